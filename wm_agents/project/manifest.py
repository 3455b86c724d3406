"""outputs/run_manifest.json: settings, versions, data, results, and whether a run was degraded."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping, Sequence
from datetime import datetime, timezone
from pathlib import Path
from typing import Any, Literal

from wm_agents.checkpoint import sha256
from wm_agents.data.dataset import Dataset
from wm_agents.degraded import MEANING
from wm_agents.project.schema import Project
from wm_agents.system.files import write_json
from wm_agents.system.run_folder import provenance

SCHEMA = "wm.run_manifest.v1"
NAME = "run_manifest.json"
Status = Literal["running", "done", "interrupted", "failed"]
MEANINGFUL, SMOKE, INCOMPLETE = "meaningful_local_training", "contract_smoke", "incomplete"


def _classify(status: Status, degraded: Sequence[str]) -> str:
    """The classification of a run; a degraded run is never meaningful."""
    if degraded:
        return SMOKE
    if status == "done":
        return MEANINGFUL
    return INCOMPLETE


class Manifest:
    """The manifest of a run, rewritten at every change."""

    def __init__(self, project: Project, seeds: Mapping[str, Any], degraded: Sequence[str]) -> None:
        self.path, self.project, self.degraded = project.out / NAME, project, list(degraded)
        facts = provenance()
        self.values: dict[str, Any] = {
            "schema_version": SCHEMA,
            "project": project.project_name,
            "environment": project.environment,
            "model": project.model,
            "family": project.family,
            "config": project.to_dict(),
            "seeds": dict(seeds),
            "command": facts["command"],
            "git": facts["git"],
            "versions": facts["versions"],
            "hardware": facts["hardware"],
            "started_at": facts["started_at"],
            "timings": {},
            "scores": None,
            "data": None,
            "artifact": None,
        }
        self.write("running")

    def write(self, status: Status, **values: Any) -> dict[str, Any]:
        """Write `values`, and the entries that depend on `status`, to the file."""
        now = datetime.now(timezone.utc).isoformat(timespec="seconds")
        verdict = {
            "status": status,
            "degraded_modes": self.degraded,
            "degraded_means": [MEANING.get(mode, mode) for mode in self.degraded],
            "run_classification": _classify(status, self.degraded),
            "ended_at": None if status == "running" else now,
        }
        self.values = strict({**self.values, **values, **verdict})
        write_json(self.path, self.values)
        return self.values


def strict(value: Any) -> Any:
    """`value` as strict JSON: lists for tuples, null for non-finite numbers."""
    if isinstance(value, dict):
        return {str(key): strict(part) for key, part in value.items()}
    if isinstance(value, list | tuple):
        return [strict(part) for part in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value


def data_facts(folder: Path, mode: str) -> dict[str, Any] | None:
    """The origin of the data and a sha256 over all shards; None without data.

    The hash covers the names and hashes of the shards, in order.
    """
    if not folder.is_dir() or not any(folder.glob("*.h5")):
        return None
    data = Dataset(folder)
    digest = hashlib.sha256()
    for shard in sorted(data.shards, key=lambda shard: shard.name):
        digest.update(f"{shard.name} {sha256(folder / shard.name)}\n".encode())
    known = [seed for seed in data.seeds if seed >= 0]
    seeds = None
    if known:
        seeds = [min(known), max(known)]
    facts = {
        "mode": mode,
        "folder": folder.name,
        "environment": data.spec.get("id") if data.shards else None,
        "episodes": data.num_episodes,
        "steps": data.num_steps,
        "bytes": data.num_bytes,
        "seeds": seeds,
        "sha256": digest.hexdigest(),
        "skipped": data.skipped,
    }
    data.close()
    return facts


def artifact_facts(model: Path) -> dict[str, Any] | None:
    """The saved model, and the sha256 of its config.json, which has the checksums of the other files."""
    config = model / "config.json"
    if config.is_file():
        return {"folder": model.name, "sha256": sha256(config)}
    return None
