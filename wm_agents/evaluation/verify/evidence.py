"""An evidence bundle: everything behind a verification result, with a sha256 for every file."""

from __future__ import annotations

import json
import shutil
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from wm_agents.checkpoint import sha256
from wm_agents.evaluation.verify.verify import Verification, report
from wm_agents.models.saved import model_path
from wm_agents.system.files import write_json, write_text
from wm_agents.system.replace import replacing_folder

SCHEMA = "wm.evidence.v1"
MANIFEST = "manifest.json"


class EvidenceError(ValueError):
    """The folder is not an evidence bundle, or was changed."""


def write_evidence(found: Verification, out: Path) -> Path:
    """Write a bundle to the folder `out` completely or not at all. An older bundle is replaced.

        manifest.json       schema, result, date, and the sha256 and size of every other file
        verification.json   all checks with their numbers, seeds, versions, hardware, all returns
        report.txt          the printed report
        model_config.json   the model's config.json, which contains the sha256 of its weights
        run_manifest.json   the manifest of the training run, if it is beside the model

    Raises:
        EvidenceError: `out` contains other files.
    """
    if out.exists() and any(out.iterdir()) and not is_evidence(out):
        raise EvidenceError(f"{out} is not empty and not an evidence bundle; give another folder")
    model = model_path(found.model)
    with replacing_folder(out) as tmp:
        write_json(tmp / "verification.json", found.to_dict())
        write_text(tmp / "report.txt", report(found) + "\n")
        shutil.copyfile(model / "config.json", tmp / "model_config.json")
        if (run := model.parent / "run_manifest.json").is_file():
            shutil.copyfile(run, tmp / "run_manifest.json")
        files = {f.name: {"sha256": sha256(f), "bytes": f.stat().st_size} for f in sorted(tmp.iterdir())}
        written = datetime.now(timezone.utc).isoformat(timespec="seconds")
        facts = {"schema": SCHEMA, "verified": found.verified, "mode": found.mode, "written_at": written}
        write_json(tmp / MANIFEST, {**facts, "files": files})
    return out


def is_evidence(path: Path) -> bool:
    """Whether a folder claims to be a bundle."""
    return (path / MANIFEST).is_file() and "wm.evidence." in (path / MANIFEST).read_text(
        errors="replace", encoding="utf-8"
    )


def read_evidence(path: Path) -> dict[str, Any]:
    """Read the verification of a bundle, and compare every file with its sha256.

    Raises:
        EvidenceError: a file is missing, changed or added, or the recorded result contradicts the recorded checks.
    """
    manifest = _json(path / MANIFEST)
    if manifest.get("schema") != SCHEMA:
        raise EvidenceError(f"{path / MANIFEST}: schema must be {SCHEMA!r}, got {manifest.get('schema')!r}")
    listed = manifest.get("files", {})
    there = {file.name for file in path.iterdir()} - {MANIFEST}
    if there != set(listed):
        missing, added = sorted(set(listed) - there), sorted(there - set(listed))
        raise EvidenceError(f"{path} was changed: missing files {missing}, added files {added}; verify the model again")
    for name, facts in listed.items():
        if (got := sha256(path / name)) != facts["sha256"]:
            raise EvidenceError(f"{path / name} was changed: sha256 expected {facts['sha256']}, got {got}")
    found = _json(path / "verification.json")
    if sha256(path / "model_config.json") != found.get("model_sha256"):
        raise EvidenceError(f"{path}: model_config.json does not belong to the verified model")
    passed = all(check["ok"] is not False for check in found["checks"])
    if found["verified"] != manifest["verified"] or (found["verified"] and not passed):
        raise EvidenceError(f"{path}: the recorded result contradicts the recorded checks")
    return found


def _json(path: Path) -> dict[str, Any]:
    try:
        values: Any = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise EvidenceError(f"{path} cannot be read: {error}") from error
    if not isinstance(values, dict):
        raise EvidenceError(f"{path} does not contain a JSON object")
    return values
