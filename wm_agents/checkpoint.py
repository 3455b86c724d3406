"""The artifact: a model as a directory of JSON and safetensors files. Loading never unpickles.

my_model/
  config.json              the model's settings, its environment, and the sha256 of every other file
  model.safetensors        weights
  starts.safetensors       encoded real observations from which dreams start (absent if only the weights were saved)
  policy_<name>.safetensors  controllers (optional)
  README.md                the model card
"""

from __future__ import annotations

import hashlib
import os
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from wm_agents.system.files import parse_json, write_json, write_tensors, write_text
from wm_agents.system.replace import replacing_folder, restore

FORMAT_VERSION = 1
POLICY_FILES = "policy_*.safetensors"

Policy = tuple[dict[str, Tensor], dict[str, str]]


class ArtifactError(ValueError):
    """A directory that this version cannot load as an artifact."""


@dataclass(frozen=True)
class Artifact:
    """The content of a directory: tensors as saved, on the CPU; policies as (tensors, metadata) by name."""

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
    """Write the directory `path` completely or not at all. An existing artifact is replaced, and other
    files in its folder are kept.

    Args:
        config: JSON values; `format_version` and `files` (sha256) are added.
        policies: tensors, or (tensors, metadata), by name.
        half: store floating-point matrices and kernels as float16, where their values fit. Vectors, such as units
            and biases, and `starts` and `policies` keep their precision.

    Raises:
        ArtifactError: `path` is a folder of something else.
    """
    path = Path(path)
    previous = _previous_files(path)
    with replacing_folder(path) as tmp:
        write_tensors(tmp / "model.safetensors", plain_names(halved(tensors) if half else tensors))
        if starts:
            write_tensors(tmp / "starts.safetensors", starts)
        for name, policy in (policies or {}).items():
            values, metadata = policy if isinstance(policy, tuple) else (policy, {})
            write_tensors(tmp / f"policy_{name}.safetensors", values, metadata)
        write_text(tmp / "README.md", card)
        files = {file.name: sha256(file) for file in sorted(tmp.iterdir())}
        facts = {**config, "format_version": FORMAT_VERSION, "files": files}
        write_json(tmp / "config.json", facts)
        for other in path.iterdir() if path.exists() else ():
            if other.name not in previous and not (tmp / other.name).exists():
                _keep(other, tmp / other.name)
    return path


def _previous_files(path: Path) -> set[str]:
    """The names of the files of the artifact `path` that a new one replaces; empty if `path` does not exist.

    Raises:
        ArtifactError: `path` is something else.
    """
    if not path.exists():
        return set()
    try:
        config = parse_json(path / "config.json")
    except (OSError, ValueError):
        config = None
    if not isinstance(config, dict) or not isinstance(config.get("files"), dict):
        other = " of a saved model" if (path / "config.json").exists() else ""
        raise ArtifactError(
            f"{path} exists and has no config.json{other}; only a saved model may be replaced, so give another path"
        )
    return {*config["files"], *(file.name for file in path.glob(POLICY_FILES))}


def _keep(file: Path, kept: Path) -> None:
    """Put a file or folder of the user (notes, the .git of a clone) at `kept`, as a hard link where possible."""
    if file.is_dir() and not file.is_symlink():
        shutil.copytree(file, kept, symlinks=True, copy_function=_link)
    else:
        _link(file, kept)


def _link(file: str | Path, kept: str | Path) -> None:
    try:
        os.link(file, kept, follow_symlinks=False)
    except OSError:  # Another file system, or one without hard links.
        shutil.copy2(file, kept, follow_symlinks=False)


def load_artifact(path: str | Path) -> Artifact:
    """Read the directory `path`.

    Raises:
        ArtifactError: it is not an artifact, is damaged, or has a newer format.
    """
    path = Path(path)
    restore(path)
    while True:
        with _held(path) as is_replaced:
            try:
                return _read_artifact(path)
            except (ArtifactError, FileNotFoundError):
                if not is_replaced():  # Else another process has just saved it again.
                    raise


@contextmanager
def _held(path: Path) -> Iterator[Callable[[], bool]]:
    """A function that returns whether another folder has taken the place of `path` since the block began."""
    try:
        folder = os.open(path, os.O_RDONLY)
    except FileNotFoundError:
        yield path.exists
        return
    try:
        yield lambda: not path.exists() or not os.path.samestat(os.fstat(folder), os.stat(path))
    finally:
        os.close(folder)


def _read_artifact(path: Path) -> Artifact:
    config = _load_config(path)
    found = sorted(path.glob(POLICY_FILES))
    starts_file = path / "starts.safetensors"
    has_starts = starts_file.exists()
    read = {"model.safetensors", *(file.name for file in found)}
    if has_starts:
        read.add(starts_file.name)
    _check_files(path, config.get("files"), read)
    tensors, _ = read_tensors(path / "model.safetensors")
    starts = {}
    if has_starts:
        starts = read_tensors(starts_file)[0]
    _check_finite(starts_file, starts)
    policies = {file.stem.removeprefix("policy_"): read_tensors(file) for file in found}
    return Artifact(path, config, tensors, starts, policies)


def read_tensors(path: str | Path) -> Policy:
    """Tensors and metadata of a safetensors file; pickle files and torch archives are rejected unread."""
    path = Path(path)
    if not path.is_file():
        raise ArtifactError(f"{path} is missing")
    _refuse_pickle(path)
    try:
        with safe_open(path, "pt") as file:
            metadata = dict(file.metadata() or {})
            return {name: file.get_tensor(name) for name in file.keys()}, metadata  # noqa: SIM118
    except SafetensorError as error:
        raise ArtifactError(f"{path} is not a valid safetensors file ({error}); download or save it again") from error


def load_weights(module: nn.Module, tensors: Mapping[str, Tensor]) -> None:
    """Copy `tensors` into `module` if all names and shapes match; `module` keeps its dtype and device."""
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
        more = ""
        if len(problems) > 10:
            more = f"\n  and {len(problems) - 10} more"
        raise ArtifactError(
            f"the weights do not fit {type(module).__name__}; build it with the sizes that were saved:\n  {shown}{more}"
        )
    for name, tensor in own.items():
        # An untrained model may have infinite bounds. Weights that are not finite would give NaN in all dreams.
        if not given[name].isfinite().all() and tensor.isfinite().all():
            raise ArtifactError(f"{name} of {type(module).__name__} has NaN or infinity; download or train it again")
    # Copying also works for compiled modules, whose names have a prefix.
    with torch.no_grad():
        for name, tensor in own.items():
            tensor.copy_(given[name])


def plain_names(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors under names without the `_orig_mod.` of torch.compile."""
    return {name.replace("_orig_mod.", ""): tensor for name, tensor in tensors.items()}


def model_card(title: str, facts: Mapping[str, Any], text: str = "") -> str:
    """A Markdown page with a title, a paragraph and a table of facts."""
    rows = "".join(f"| {name} | {value} |\n" for name, value in facts.items())
    return f"# {title}\n\n{text.strip()}\n\n| property | value |\n| --- | --- |\n{rows}"


def sha256(path: Path) -> str:
    """Hex digest of a file."""
    with path.open("rb") as file:
        digest = hashlib.sha256()
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def _load_config(path: Path) -> dict[str, Any]:
    if not path.is_dir():
        what = "does not exist"
        if path.exists():
            what = "is a file"
        raise ArtifactError(f"{path} {what}; a saved model is a directory with config.json and model.safetensors")
    missing = [n for n in ("config.json", "model.safetensors") if not (path / n).is_file()]
    if missing:
        raise ArtifactError(f"{path} is not a saved model: {', '.join(missing)} missing")
    try:
        config: Any = parse_json(path / "config.json")
    except ValueError as error:
        raise ArtifactError(
            f"{path / 'config.json'} is not valid JSON ({error}); download or save the model again"
        ) from error
    version = None
    if isinstance(config, dict):
        version = config.get("format_version")
    if type(version) is not int or version < 1:
        raise ArtifactError(
            f"{path / 'config.json'} has no format_version, so it was not written by this package; "
            "save the model with wm_agents.pretrained.save_model"
        )
    if version > FORMAT_VERSION:
        raise ArtifactError(
            f"{path} has format version {version}, but this installation reads up to {FORMAT_VERSION}; "
            "upgrade the package"
        )
    return dict(config)


def _check_files(path: Path, files: Any, read: set[str]) -> None:
    """Check that `files` of config.json lists every loaded tensor file with its sha256.

    Raises:
        ArtifactError: `files` is invalid, or a file does not match.
    """
    place = path / "config.json"
    if not isinstance(files, dict) or not all(isinstance(digest, str) for digest in files.values()):
        raise ArtifactError(f"{place}: `files` must map file names to sha256; save the model again")
    for name in files:
        if name in ("", ".", "..") or Path(name).name != name or "\\" in name or "\0" in name:
            raise ArtifactError(f"{place}: `files` may name only files in {path}, got {name!r}; do not use this model")
    if unlisted := sorted(read - files.keys()):
        raise ArtifactError(f"{place}: `files` does not list {', '.join(unlisted)}; save or download the model again")
    for name, expected in files.items():
        _check_hash(path / name, expected)


def _is_foreign_link(path: Path) -> bool:
    """Whether a file is a link to anything but the blobs of its own repository in the Hub's cache."""
    if not path.is_symlink():
        return False
    repository = path.resolve().parent.parent
    return path.resolve().parent.name != "blobs" or repository != path.parent.resolve().parent.parent


def _check_finite(path: Path, tensors: Mapping[str, Tensor]) -> None:
    for name, tensor in tensors.items():
        if not tensor.isfinite().all():
            raise ArtifactError(f"{path}: {name} has NaN or infinity; save or download the model again")


def _check_hash(path: Path, expected: str) -> None:
    if _is_foreign_link(path):
        raise ArtifactError(f"{path} is a link to {os.readlink(path)}; replace the link with a copy of the file")
    if not path.is_file():
        raise ArtifactError(f"{path} is listed in config.json but missing; download or save the model again")
    _refuse_pickle(path)
    if (got := sha256(path)) != expected:
        raise ArtifactError(
            f"{path} was changed: sha256 expected {expected}, got {got}; download or save the model again"
        )


def _refuse_pickle(path: Path) -> None:
    with path.open("rb") as file:
        head = file.read(9)
    # A safetensors file starts with a length of 8 bytes, which may look like a pickle header, and then "{".
    kind = next((kind for start, kind in ((b"PK", "zip"), (b"\x80", "pickle")) if head.startswith(start)), None)
    if kind == "zip" or (kind == "pickle" and head[8:] != b"{"):
        raise ArtifactError(
            f"{path} is a {kind} file of torch.save, not safetensors. "
            "Loading it could run code. If you trust it, load it with torch and save it with safetensors"
        )


def halved(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Matrices and kernels in half precision, but for those whose values it cannot hold."""
    return {name: t.half() if t.ndim > 1 and _fits_half(t) else t for name, t in tensors.items()}


def _fits_half(tensor: Tensor) -> bool:
    return tensor.is_floating_point() and bool((tensor.half().isfinite() == tensor.isfinite()).all())
