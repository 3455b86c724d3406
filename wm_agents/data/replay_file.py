"""A replay buffer as one npz: arrays with one row per frame, and the settings of the buffer.

Files of other programs need only the seven arrays of `PLAIN`.
"""

from __future__ import annotations

import zipfile
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from wm_agents.system.replace import replacing

Array = NDArray[Any]

FORMAT_VERSION = 1
MAX_UNPACKED, MAX_RATIO = 10**9, 300
"""Maximum unpacked size of a foreign npz in bytes, and relative to its packed size."""
PLAIN = ("obs", "actions", "rewards", "dones", "obs_shape", "action_dim", "capacity")
FURTHER = ("terminated", "first", "last", "tail", "max_gb", "latent_dtype")
"""Arrays of our own files, which also store latents."""


def write_replay(path: Path, frames: Mapping[str, Array], settings: Mapping[str, Any]) -> None:
    """Write the frames of a buffer, one row each under the names of a `Batch`, and its settings, atomically."""
    ends = np.zeros(len(frames["last"]), bool)
    ends[:-1] = frames["last"][1:]
    names = {"act": "actions", "rew": "rewards", "term": "terminated"}
    arrays = {names.get(name, name): array for name, array in frames.items()}
    arrays |= {name: np.array(value) for name, value in settings.items()}
    with replacing(path) as tmp, open(tmp, "wb") as file:
        np.savez(file, allow_pickle=False, dones=ends, format_version=np.array(FORMAT_VERSION), **arrays)


def read_replay(path: Path) -> dict[str, Array]:
    """Read and check the arrays of a file; one without `format_version` is of another program.

    Raises:
        ValueError: the file is not a valid npz, a key is missing, or the arrays are inconsistent.
    """
    stored = _read(path)
    _check(stored, path)
    return stored


def _read(path: Path) -> dict[str, Array]:
    """Read the arrays of an npz."""
    try:
        with zipfile.ZipFile(path) as archive:  # numpy would report other files as pickles.
            _check_unpacked(archive)
        with np.load(path, allow_pickle=False) as file:
            return {name: file[name] for name in file.files}
    except FileNotFoundError:
        raise
    except (zipfile.BadZipFile, zlib.error, EOFError, OSError, ValueError, NotImplementedError, MemoryError) as error:
        objects = "Object arrays" in str(error)
        what = "is not a valid npz"
        if objects:
            what = "contains Python objects, which are never loaded"
        raise ValueError(f"{path} {what} ({error}); give a file of ReplayBuffer.save or np.savez") from error


def _check_unpacked(archive: zipfile.ZipFile) -> None:
    """Reject a small file that unpacks to a huge one.

    Raises:
        ValueError: more than 1 GB, and more than 300 times the packed size.
    """
    packed = sum(part.compress_size for part in archive.infolist())
    unpacked = sum(part.file_size for part in archive.infolist())
    most = max(MAX_UNPACKED, MAX_RATIO * packed)
    if unpacked > most:
        raise ValueError(f"its {packed:,} bytes unpack to {unpacked:,}, more than {most:,}")


def _check(stored: dict[str, Array], path: Path) -> None:
    """Check keys, versions and shapes of a foreign file."""
    wanted = [*PLAIN]
    if "format_version" in stored:
        if int(stored["format_version"]) > FORMAT_VERSION:
            raise ValueError(
                f"{path} has format version {int(stored['format_version'])}, but this installation reads up to "
                f"{FORMAT_VERSION}; upgrade the package"
            )
        wanted += FURTHER
    if missing := [name for name in wanted if name not in stored]:
        raise ValueError(f"{path} is not a replay buffer: {', '.join(missing)} missing; it has {', '.join(stored)}")
    sizes = {name: stored[name].shape for name in ("capacity", "action_dim")}
    if any(sizes.values()):
        raise ValueError(f"{path}: capacity and action_dim must be single numbers, got arrays of {sizes}")
    num, shape, width = len(stored["obs"]), tuple(stored["obs_shape"].tolist()), int(stored["action_dim"])
    rows = {"obs": (num, *shape), "actions": (num, width)}
    flat = {name: (num,) for name in ("rewards", "dones", "terminated", "first", "last") if name in wanted}
    for name, want in (rows | flat).items():
        if stored[name].shape != want:
            raise ValueError(f"{path}: {name} must have the shape {want}, got {stored[name].shape}")
    if "last" in wanted and num:
        first, last = stored["first"], stored["last"]
        alternate = first[0] and last[-1] and (first[1:] == last[:-1]).all() and not (first & last).any()
        if not alternate:
            raise ValueError(f"{path} contains an incomplete episode; save the buffer again")
