"""The artifact: a model as a directory of JSON and safetensors. Nothing in it is ever unpickled.

my_model/
  config.json              what the model is and how its env is seen; sha256 of every other file
  model.safetensors        weights
  starts.safetensors       latents that dreams start from (a model saved alone has none)
  policy_<name>.safetensors  controllers (optional)
  README.md                the model card
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from wm_agents.system.files import write_tensors, write_text

FORMAT_VERSION = 1

Policy = tuple[dict[str, Tensor], dict[str, str]]


class ArtifactError(ValueError):
    """A directory that is not an artifact this version can load."""


@dataclass(frozen=True)
class Artifact:
    """What a directory holds: tensors as saved, on the CPU; policies as (tensors, metadata) by name."""

    path: Path
    config: dict[str, Any]
    tensors: dict[str, Tensor]
    starts: dict[str, Tensor]
    policies: dict[str, Policy]


def save_artifact(
    path: str | Path,
    config: Mapping[str, Any],
    tensors: Mapping[str, Tensor],
    starts: Mapping[str, Tensor],
    card: str,
    policies: Mapping[str, Mapping[str, Tensor] | Policy] | None = None,
    half: bool = False,
) -> Path:
    """Write the directory `path`, all of it or nothing; one that is there is replaced.

    Args:
        config: JSON values; `format_version` and `files` (sha256) are added.
        policies: tensors, or (tensors, metadata), by name.
        half: store floating-point weights and starts as float16. Policies keep their precision.
    """
    path = Path(path)
    if path.exists() and not (path / "config.json").exists():
        raise ArtifactError(f"{path} exists and holds no config.json; refusing to replace what is not an artifact")
    with _replacing_folder(path) as tmp:
        write_tensors(tmp / "model.safetensors", plain_names(_halved(tensors) if half else tensors))
        if starts:
            write_tensors(tmp / "starts.safetensors", _halved(starts) if half else starts)
        for name, policy in (policies or {}).items():
            values, metadata = policy if isinstance(policy, tuple) else (policy, {})
            write_tensors(tmp / f"policy_{name}.safetensors", values, metadata)
        write_text(tmp / "README.md", card)
        files = {file.name: sha256(file) for file in sorted(tmp.iterdir())}
        facts = {**config, "format_version": FORMAT_VERSION, "files": files}
        write_text(tmp / "config.json", json.dumps(facts, indent=2) + "\n")
    return path


def load_artifact(path: str | Path) -> Artifact:
    """Read the directory `path`; ArtifactError says what is wrong with one that cannot be loaded."""
    path = Path(path)
    config = _load_config(path)
    for name, expected in config.get("files", {}).items():
        _check_hash(path / name, expected)
    tensors, _ = read_tensors(path / "model.safetensors")
    starts = read_tensors(path / "starts.safetensors")[0] if (path / "starts.safetensors").is_file() else {}
    found = sorted(path.glob("policy_*.safetensors"))
    policies = {file.stem.removeprefix("policy_"): read_tensors(file) for file in found}
    return Artifact(path, config, tensors, starts, policies)


def read_tensors(path: str | Path) -> Policy:
    """Tensors and metadata of a safetensors file; a pickle or a torch zip is refused unread."""
    path = Path(path)
    if not path.is_file():
        raise ArtifactError(f"{path} is missing")
    _refuse_pickle(path)
    try:
        with safe_open(path, "pt") as file:
            metadata = dict(file.metadata() or {})
            return {name: file.get_tensor(name) for name in file.keys()}, metadata  # noqa: SIM118
    except SafetensorError as error:
        raise ArtifactError(f"{path} is corrupt or no safetensors file ({error}); fetch or save it again") from error


def load_weights(module: nn.Module, tensors: Mapping[str, Tensor]) -> None:
    """Copy `tensors` into `module` (which keeps its dtype and device) if all names and shapes agree."""
    own, given = plain_names(module.state_dict()), plain_names(tensors)
    problems = [f"{name} {tuple(own[name].shape)}: missing in the file" for name in own.keys() - given.keys()]
    problems += [f"{name} {tuple(given[name].shape)}: not in the model" for name in given.keys() - own.keys()]
    problems += [
        f"{name}: {tuple(own[name].shape)} in the model, {tuple(given[name].shape)} in the file"
        for name in own.keys() & given.keys()
        if own[name].shape != given[name].shape
    ]
    if problems:
        shown = "\n  ".join(sorted(problems)[:10])
        more = f"\n  and {len(problems) - 10} more" if len(problems) > 10 else ""
        raise ArtifactError(
            f"weights do not fit {type(module).__name__}; build it with the sizes they were saved with:"
            f"\n  {shown}{more}"
        )
    # Copying works for compiled modules too, whose own names carry the prefix.
    with torch.no_grad():
        for name, tensor in own.items():
            tensor.copy_(given[name])


def plain_names(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Names without the `_orig_mod.` that torch.compile puts into them."""
    return {name.replace("_orig_mod.", ""): tensor for name, tensor in tensors.items()}


def model_card(title: str, facts: Mapping[str, Any], text: str = "") -> str:
    """Markdown: a title, a sentence or more, a table of facts."""
    rows = "".join(f"| {name} | {value} |\n" for name, value in facts.items())
    return f"# {title}\n\n{text.strip()}\n\n| what | value |\n| --- | --- |\n{rows}"


def sha256(path: Path) -> str:
    """Hex digest of a file."""
    with path.open("rb") as file:
        digest = hashlib.sha256()
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def _load_config(path: Path) -> dict[str, Any]:
    if not path.is_dir():
        what = "is a file" if path.exists() else "does not exist"
        raise ArtifactError(f"{path} {what}; a saved model is a directory with config.json and model.safetensors")
    missing = [n for n in ("config.json", "model.safetensors") if not (path / n).is_file()]
    if missing:
        raise ArtifactError(f"{path} is not a saved model: {', '.join(missing)} missing")
    try:
        config: Any = json.loads((path / "config.json").read_text())
    except ValueError as error:
        raise ArtifactError(f"{path / 'config.json'} is not JSON ({error}); fetch or save the model again") from error
    version = config.get("format_version") if isinstance(config, dict) else None
    if not isinstance(version, int) or version < 1:
        raise ArtifactError(
            f"{path / 'config.json'} has no format_version; it was not written by save_artifact of this project"
        )
    if version > FORMAT_VERSION:
        raise ArtifactError(
            f"{path} has format version {version}, this installation reads up to {FORMAT_VERSION}; upgrade the package"
        )
    return dict(config)


def _check_hash(path: Path, expected: str) -> None:
    if not path.is_file():
        raise ArtifactError(f"{path} is missing; config.json lists it")
    _refuse_pickle(path)
    if (got := sha256(path)) != expected:
        raise ArtifactError(
            f"{path} is not the file that was saved: sha256 expected {expected}, got {got}; fetch or save it again"
        )


def _refuse_pickle(path: Path) -> None:
    with path.open("rb") as file:
        head = file.read(9)
    # A safetensors file opens with a length of 8 bytes, which may look like a pickle's first two, and then "{".
    if head[:2] == b"PK" or (head[:1] == b"\x80" and head[8:] != b"{"):
        raise ArtifactError(
            f"{path} is a {'zip' if head[:2] == b'PK' else 'pickle'} as torch.save writes it, not safetensors: loading "
            "it could run code, so it is refused. Open it where you trust it and save it with safetensors"
        )


def _halved(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name: t.half() if t.is_floating_point() else t for name, t in tensors.items()}


@contextmanager
def _replacing_folder(path: Path) -> Iterator[Path]:
    """A temporary folder beside `path` that takes its place when the block ends without an error."""
    path.parent.mkdir(parents=True, exist_ok=True)
    mark = f"{os.getpid()}.{uuid.uuid4().hex[:8]}"
    tmp, old = path.with_name(f".{path.name}.{mark}.tmp"), path.with_name(f".{path.name}.{mark}.old")
    tmp.mkdir()
    try:
        yield tmp
        if path.exists():
            os.rename(path, old)
        try:
            os.rename(tmp, path)
        except OSError:
            if old.exists():
                os.rename(old, path)
            raise
    finally:
        shutil.rmtree(tmp, ignore_errors=True)
        shutil.rmtree(old, ignore_errors=True)
