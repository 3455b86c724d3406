"""Degraded modes of a training run, which are stored with its model."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from wm_agents.checkpoint import Artifact
from wm_agents.system.files import write_json

RANDOM_DATA = "random_data"
"""The model was trained on random data."""
NO_ENV = "no_environment"
"""The real environment could not be created."""
MEANING = {
    RANDOM_DATA: "the model was trained on random data and describes no environment",
    NO_ENV: "the real environment could not be created",
}
FIELD = "degraded_modes"


def mark_degraded(model: Path, modes: Sequence[str]) -> None:
    """Record the degraded modes of its training in a saved model's config.json."""
    if modes:
        file = model / "config.json"
        write_json(file, {**json.loads(file.read_text(encoding="utf-8")), FIELD: list(modes)})


def degraded_of(artifact: Artifact) -> list[str]:
    """The degraded modes of a saved model, from its config.json and from the manifest of its run folder."""
    beside = artifact.path.parent / "run_manifest.json"
    found = [*artifact.config.get(FIELD, []), *(_manifest(beside).get(FIELD, []))]
    return sorted(set(map(str, found)))


def _manifest(path: Path) -> dict[str, Any]:
    try:
        values: Any = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return values if isinstance(values, dict) else {}
