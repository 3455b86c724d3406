"""Reads and writes text, JSON, TOML and tensors; every file is written completely or not at all."""

from __future__ import annotations

import hashlib
import json
import re
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save
from torch import Tensor

from wm_agents.errors import ConfigurationError
from wm_agents.system.replace import replacing
from wm_agents.system.strict_json import strict_json

if sys.version_info >= (3, 11):
    import tomllib
else:
    import toml as tomllib  # A dependency of jsonargparse[toml].

MAX_JSON = 16_000_000
"""Bytes; the largest config.json that is read."""
PROJECT_FILE = "wm.toml"
"""The file that makes a folder a project."""


def write_text(path: Path, text: str) -> None:
    """Write `text` to `path` atomically."""
    with replacing(path) as tmp:
        tmp.write_text(text, encoding="utf-8")


def write_json(path: Path, values: Any) -> None:
    """Write `values` as indented JSON to `path` atomically; NaN and infinity become null."""
    write_text(path, json.dumps(strict_json(values), indent=2) + "\n")


def read_json(path: Path, wanted: str) -> dict[str, Any]:
    """Read the JSON object at `path`; `wanted` describes it in error messages.

    Raises:
        FileNotFoundError: the file does not exist.
        ConfigurationError: it is not valid JSON, or not an object.
    """
    try:
        values: Any = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise FileNotFoundError(f"{path} does not exist; give {wanted}") from None
    except ValueError as error:
        raise ConfigurationError(f"{path} is not valid JSON ({error}); give {wanted}") from error
    if not isinstance(values, dict):
        raise ConfigurationError(f"{path} must contain a JSON object, got a {type(values).__name__}; give {wanted}")
    return values


def read_toml(path: Path) -> dict[str, Any]:
    """The values of the TOML file at `path`; a byte order mark is ignored.

    Raises:
        ConfigurationError: the file is not valid TOML in UTF-8; the message quotes the line.
    """
    try:
        text = path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise ConfigurationError(f"{path} is not encoded in UTF-8: {error}; save it as UTF-8") from error
    try:
        values: dict[str, Any] = tomllib.loads(text)
    except (ValueError, IndexError) as error:  # `toml`, used on Python 3.10, raises both.
        raise ConfigurationError(f"{path} is not valid TOML: {error}{_quoted_line(str(error), text)}") from error
    return values


def _quoted_line(error: str, text: str) -> str:
    """The line that the error of the parser names, if any."""
    found, lines = re.search(r"\bline (\d+)", error), text.splitlines()
    if found is None or not 0 < int(found[1]) <= len(lines):
        return ""
    return f"\n  line {found[1]}: {lines[int(found[1]) - 1].strip()}"


def parse_json(path: Path) -> Any:
    """The JSON value in a file that may be foreign.

    Raises:
        ValueError: the file is larger than 16 MB, is not JSON, is nested too deeply, or repeats a key.
    """
    if (size := path.stat().st_size) > MAX_JSON:
        raise ValueError(f"{size / 1e6:,.0f} MB, more than {MAX_JSON / 1e6:.0f} MB")
    try:
        return json.loads(path.read_text(encoding="utf-8"), object_pairs_hook=_unique)
    except RecursionError:
        raise ValueError("nested too deeply") from None


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    values = dict(pairs)
    if len(values) < len(pairs):
        names = [name for name, _ in pairs]
        raise ValueError(f"the key {next(n for n in names if names.count(n) > 1)!r} occurs twice")
    return values


def write_tensors(
    path: Path,
    tensors: Mapping[str, Tensor],
    metadata: Mapping[str, str] | None = None,
    checksum: str | None = None,
) -> None:
    """Write tensors as safetensors to `path` atomically; tied tensors are stored once per name.

    Equal tensors and metadata give equal bytes.

    Args:
        checksum: name of an additional entry of the metadata, the `digest` of everything else in the file.
    """
    whole = {name: t.detach().cpu().clone(memory_format=torch.contiguous_format) for name, t in tensors.items()}
    header, data = split_safetensors(save(whole, metadata=dict(metadata or {}) or None))
    about = header.setdefault("__metadata__", {})
    if checksum is not None:
        about[checksum] = digest(header, data)
    header["__metadata__"] = dict(sorted(about.items()))  # The library writes it in random order.
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)  # Tensors begin at a multiple of 8 bytes.
    with replacing(path) as tmp, tmp.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        file.write(data)


def split_safetensors(data: bytes) -> tuple[dict[str, Any], memoryview]:
    """The header and the tensor bytes of a safetensors file."""
    begin = 8 + int.from_bytes(data[:8], "little")
    header: dict[str, Any] = json.loads(data[8:begin])
    return header, memoryview(data)[begin:]


def digest(values: Any, data: bytes | memoryview = b"") -> str:
    """sha256 of a JSON value, in any order of its keys, and of further bytes."""
    text = hashlib.sha256(json.dumps(values, sort_keys=True).encode())
    text.update(data)
    return text.hexdigest()
