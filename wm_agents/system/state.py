"""State files, from which a run resumes: JSON or tensors with a checksum, so that damage is found and named."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors.torch import load
from torch import Tensor

from wm_agents.errors import ConfigurationError
from wm_agents.system.files import digest, split_safetensors, write_json, write_tensors
from wm_agents.system.strict_json import strict_json

CHECKSUM = "sha256"
RESTART = "delete the file to repeat the part of the run that it records"

RETRAIN = "delete the file and `last.safetensors` in its folder to train again"


class DamagedState(ConfigurationError):
    """A state file does not match its checksum, or cannot be read."""

    def __init__(self, path: Path, reason: object, remedy: str) -> None:
        super().__init__(f"{path} is damaged: {' '.join(str(reason).split())}; restore a copy, or {remedy}")


def write_state(path: Path, values: Mapping[str, Any]) -> None:
    """Write a JSON object with its checksum, atomically."""
    values = strict_json({**values})
    write_json(path, {**values, CHECKSUM: digest(values)})


def read_state(path: Path, remedy: str = RESTART) -> dict[str, Any]:
    """Read a file written by `write_state`. Files of earlier versions have no checksum and are read without this check.

    Args:
        remedy: what to do if it is damaged, for the error message.

    Raises:
        FileNotFoundError: the file does not exist.
        DamagedState: it is not a JSON object, or was changed.
    """
    try:
        values: Any = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise DamagedState(path, f"not valid JSON ({error})", remedy) from error
    if not isinstance(values, dict):
        raise DamagedState(path, f"expected a JSON object, got a {type(values).__name__}", remedy)
    expected = values.pop(CHECKSUM, None)
    if expected not in (None, digest(values)):
        raise DamagedState(path, f"it does not match its {CHECKSUM} (if you edited it, remove that line)", remedy)
    return values


def write_state_tensors(path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> None:
    """Write a safetensors file with its checksum, atomically."""
    write_tensors(path, tensors, metadata, checksum=CHECKSUM)


def read_state_tensors(path: Path, remedy: str = RESTART) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Read a file of `write_state_tensors`; one without a checksum, of an earlier version, is read too.

    Raises:
        FileNotFoundError: the file does not exist.
        DamagedState: it is not a safetensors file, or was changed.
    """
    data = path.read_bytes()
    try:
        header, tensors = split_safetensors(data)
        metadata = dict(header.pop("__metadata__", {}))
        expected = metadata.pop(CHECKSUM, None)
        if expected not in (None, digest({**header, "__metadata__": metadata}, tensors)):
            raise ValueError(f"it does not match its {CHECKSUM}")
        return load(data), metadata
    except Exception as error:  # The library raises errors of several types.
        raise DamagedState(path, error, remedy) from error
