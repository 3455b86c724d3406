"""Files that appear whole or not at all: a temporary name, fsync, rename; JSON and TOML read back."""

from __future__ import annotations

import json
import os
import re
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save
from torch import Tensor

from wm_agents.errors import ConfigurationError

if sys.version_info >= (3, 11):
    import tomllib
else:
    import toml as tomllib  # Comes with jsonargparse[toml].

PROJECT_FILE = "wm.toml"
"""What makes a folder a project."""


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A temporary path in the same folder, which takes the place of `path` when the block ends without an error."""
    path.parent.mkdir(parents=True, exist_ok=True)
    tmp = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        yield tmp
        with open(tmp, "rb") as file:
            os.fsync(file.fileno())
        os.replace(tmp, path)
    finally:
        tmp.unlink(missing_ok=True)


def write_text(path: Path, text: str) -> None:
    """Write `text` to `path` in one move."""
    with replacing(path) as tmp:
        tmp.write_text(text)


def write_json(path: Path, values: Any) -> None:
    """Write `values` as indented JSON to `path` in one move."""
    write_text(path, json.dumps(values, indent=2) + "\n")


def read_json(path: Path, wanted: str) -> dict[str, Any]:
    """The JSON object at `path`, which is to be what is `wanted`.

    Raises:
        FileNotFoundError: there is none.
        ConfigurationError: it is no JSON, or no object.
    """
    try:
        values: Any = json.loads(path.read_text())
    except FileNotFoundError:
        raise FileNotFoundError(f"{path} does not exist; give {wanted}") from None
    except ValueError as error:
        raise ConfigurationError(f"{path} is not JSON ({error}); give {wanted}") from error
    if not isinstance(values, dict):
        raise ConfigurationError(f"{path} must hold an object, it holds a {type(values).__name__}; give {wanted}")
    return values


def read_toml(path: Path) -> dict[str, Any]:
    """The values of the TOML file at `path`; a byte order mark is ignored.

    Raises:
        ConfigurationError: the file is not valid TOML in UTF-8; the message quotes the line.
    """
    text = path.read_text(encoding="utf-8-sig", errors="replace")
    try:
        values: dict[str, Any] = tomllib.loads(text)
    except (ValueError, IndexError) as error:  # `toml`, which reads it on Python 3.10, raises both.
        raise ConfigurationError(f"{path} is not TOML: {error}{_quoted_line(str(error), text)}") from error
    return values


def _quoted_line(error: str, text: str) -> str:
    """The line that the parser's error names, if it names one."""
    found, lines = re.search(r"\bline (\d+)", error), text.splitlines()
    if found is None or not 0 < int(found[1]) <= len(lines):
        return ""
    return f"\n  line {found[1]}: {lines[int(found[1]) - 1].strip()}"


def write_tensors(path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str] | None = None) -> None:
    """Write tensors as safetensors to `path` in one move; tied ones are stored once for each name."""
    whole = {name: t.detach().cpu().clone(memory_format=torch.contiguous_format) for name, t in tensors.items()}
    with replacing(path) as tmp:
        # Not save_file, which lets the owner alone read what it writes.
        tmp.write_bytes(save(whole, metadata=dict(metadata or {})))
