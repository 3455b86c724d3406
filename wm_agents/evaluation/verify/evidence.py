"""An evidence bundle: what a verdict was reached by, every file under its sha256, which reading compares."""

from __future__ import annotations

import json
import shutil
import tempfile
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from wm_agents.checkpoint import sha256
from wm_agents.evaluation.verify.verify import Verification, report
from wm_agents.models.saved import model_path
from wm_agents.system.files import write_json, write_text

SCHEMA = "wm.evidence.v1"
MANIFEST = "manifest.json"


class EvidenceError(ValueError):
    """A bundle that is not what was written, or no bundle."""


def write_evidence(found: Verification, out: Path) -> Path:
    """Write a bundle into the folder `out`, all of it or nothing; an older bundle there is replaced.

        manifest.json       schema, verdict, when, and the sha256 and size of every other file
        verification.json   all checks with their numbers, seeds, versions, hardware, every return
        report.txt          the same in words
        model_config.json   the model's own config.json, which has the sha256 of its weights
        run_manifest.json   of the run that made it, if it lies beside the model

    Raises:
        EvidenceError: `out` holds something else.
    """
    if out.exists() and any(out.iterdir()) and not is_evidence(out):
        raise EvidenceError(f"{out} is not empty and no evidence bundle; give another folder")
    model = model_path(found.model)
    out.parent.mkdir(parents=True, exist_ok=True)
    tmp = Path(tempfile.mkdtemp(prefix=f".{out.name}.", dir=out.parent))
    try:
        write_json(tmp / "verification.json", found.to_dict())
        write_text(tmp / "report.txt", report(found) + "\n")
        shutil.copyfile(model / "config.json", tmp / "model_config.json")
        if (run := model.parent / "run_manifest.json").is_file():
            shutil.copyfile(run, tmp / "run_manifest.json")
        files = {f.name: {"sha256": sha256(f), "bytes": f.stat().st_size} for f in sorted(tmp.iterdir())}
        written = datetime.now(timezone.utc).isoformat(timespec="seconds")
        facts = {"schema": SCHEMA, "verified": found.verified, "mode": found.mode, "written_at": written}
        write_json(tmp / MANIFEST, {**facts, "files": files})
        tmp.chmod(0o755)
        if out.exists():
            shutil.rmtree(out)
        tmp.rename(out)
    finally:
        shutil.rmtree(tmp, ignore_errors=True)
    return out


def is_evidence(path: Path) -> bool:
    """Whether a folder says that it is a bundle."""
    return (path / MANIFEST).is_file() and "wm.evidence." in (path / MANIFEST).read_text(errors="replace")


def read_evidence(path: Path) -> dict[str, Any]:
    """The verification in a bundle, after every file was compared with its sha256.

    Raises:
        EvidenceError: a file is missing, changed, or was added; or the verdict does not follow from the checks.
    """
    manifest = _json(path / MANIFEST)
    if manifest.get("schema") != SCHEMA:
        raise EvidenceError(f"{path / MANIFEST}: schema must be {SCHEMA!r}, got {manifest.get('schema')!r}")
    listed = manifest.get("files", {})
    there = {file.name for file in path.iterdir()} - {MANIFEST}
    if there != set(listed):
        missing, added = sorted(set(listed) - there), sorted(there - set(listed))
        raise EvidenceError(f"{path} is not what was written: missing {missing}, added {added}")
    for name, facts in listed.items():
        if (got := sha256(path / name)) != facts["sha256"]:
            raise EvidenceError(f"{path / name} has been changed: sha256 expected {facts['sha256']}, got {got}")
    found = _json(path / "verification.json")
    if sha256(path / "model_config.json") != found.get("model_sha256"):
        raise EvidenceError(f"{path}: model_config.json is not of the model that was verified")
    passed = all(check["ok"] is not False for check in found["checks"])
    if found["verified"] != manifest["verified"] or (found["verified"] and not passed):
        raise EvidenceError(f"{path}: the verdict does not follow from the checks")
    return found


def _json(path: Path) -> dict[str, Any]:
    try:
        values: Any = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise EvidenceError(f"{path} cannot be read: {error}") from error
    if not isinstance(values, dict):
        raise EvidenceError(f"{path} holds no object")
    return values
