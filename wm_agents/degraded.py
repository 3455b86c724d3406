"""What a run did without, in words that follow its model wherever it goes."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from wm_agents.checkpoint import Artifact
from wm_agents.system.files import write_json

RANDOM_DATA = "random_data"
"""It learned from random numbers."""
NO_ENV = "no_environment"
"""The real environment could not be made."""
MEANING = {
    RANDOM_DATA: "the model has learned from random numbers and knows nothing of any environment",
    NO_ENV: "the real environment could not be made here",
}
FIELD = "degraded_modes"


def mark_degraded(model: Path, modes: Sequence[str]) -> None:
    """Note in a saved model's config.json what its training did without."""
    if modes:
        file = model / "config.json"
        write_json(file, {**json.loads(file.read_text()), FIELD: list(modes)})


def degraded_of(artifact: Artifact) -> list[str]:
    """What the training of a saved model did without, by its own config.json and the manifest of the run it lies in."""
    beside = artifact.path.parent / "run_manifest.json"
    found = [*artifact.config.get(FIELD, []), *(_manifest(beside).get(FIELD, []))]
    return sorted(set(map(str, found)))


def _manifest(path: Path) -> dict[str, Any]:
    try:
        values: Any = json.loads(path.read_text())
    except (OSError, ValueError):
        return {}
    return values if isinstance(values, dict) else {}
