"""One shard: an immutable HDF5 file of whole episodes, written under a temporary name and renamed."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from numpy.typing import NDArray

from wm_agents.data.episode import Episode, check_episode
from wm_agents.system.replace import replacing

try:
    import hdf5plugin  # Registers zstd with HDF5, also for reading.
except ImportError:  # Use gzip, which is a little larger and slower.
    hdf5plugin = None  # type: ignore[assignment]

Array = NDArray[Any]

FORMAT = "wm-episodes"
FORMAT_VERSION = 1
CHUNK_FRAMES = 32
SUFFIX = ".h5"
LEVEL = 12
"""Level of zstd: 5 % smaller files than level 6, and still negligible beside rendering."""
ZSTD_ID = 32015
MAX_ROWS = 10**8
"""Maximum number of frames in a shard, because a foreign file may declare any number without storing data."""


@dataclass(frozen=True)
class ShardInfo:
    """Metadata of a shard, read without its frames."""

    name: str
    bytes: int
    lengths: NDArray[np.int64]
    """(E,) steps of each episode, which has one more frame"""
    term: NDArray[np.bool_]
    trunc: NDArray[np.bool_]
    seeds: tuple[int, ...]
    """-1 if unknown; a list, because seeds may exceed int64"""
    returns: NDArray[np.float64]
    obs_shape: tuple[int, ...]
    obs_dtype: str
    act_shape: tuple[int, ...]
    act_dtype: str
    spec: dict[str, Any]
    """The environment (`RealSpec.to_dict`), or empty"""

    @property
    def num_episodes(self) -> int:
        return len(self.lengths)

    @property
    def num_steps(self) -> int:
        return int(self.lengths.sum())


class ShardError(ValueError):
    """A file that is not a readable shard; the message gives the reason."""


def write_shard(
    root: Path | str,
    name: str,
    episodes: Iterable[Episode],
    spec: Mapping[str, Any] | None = None,
) -> ShardInfo:
    """Write `root/name.h5` from a stream of episodes, completely or not at all."""
    return land_shard(root, name, build_shard(name, episodes, spec))


def land_shard(root: Path | str, name: str, image: bytes) -> ShardInfo:
    """Write the bytes `image` to `root/name.h5`, completely or not at all: a full disk raises an OSError."""
    path = Path(root) / f"{name}{SUFFIX}"
    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path) as tmp:
        tmp.write_bytes(image)
    _sync_dir(path.parent)
    return read_info(path)


def build_shard(name: str, episodes: Iterable[Episode], spec: Mapping[str, Any] | None = None) -> bytes:
    """The content of the shard `name`, compressed, from a stream of episodes."""
    with h5py.File(f"{name}{SUFFIX}", "w", driver="core", backing_store=False) as file:
        frames = None
        kept: list[Episode] = []
        for ep in episodes:
            check_episode(ep)
            if frames is None:
                frames = _create_frames(file, ep)
            _check_alike(ep, frames, kept)
            end = len(frames)
            frames.resize(end + len(ep.obs), axis=0)
            frames[end:] = ep.obs
            kept.append(ep._replace(obs=ep.obs[:0]))  # The file contains the frames.
        if not kept:
            raise ValueError(f"{name}{SUFFIX}: a shard needs at least one episode, got none")
        file["act"] = np.concatenate([ep.act for ep in kept])
        file["rew"] = np.concatenate([ep.rew for ep in kept])
        file["length"] = np.array([ep.num_steps for ep in kept], np.int64)
        file["term"] = np.array([ep.term for ep in kept], bool)
        file["trunc"] = np.array([ep.trunc for ep in kept], bool)
        file["seed"] = [str(ep.seed) for ep in kept]
        file["info"] = [json.dumps(ep.info) for ep in kept]
        file.attrs["format"] = FORMAT
        file.attrs["format_version"] = FORMAT_VERSION
        file.attrs["spec"] = json.dumps(dict(spec or {}))
        file.attrs["sha256"] = _digest(file)
        file.flush()
        return bytes(file.id.get_file_image())


def _digest(file: h5py.File) -> str:
    """sha256 of everything but the frames, whose chunks have checksums of their own."""
    obs = file["obs"]
    digest = hashlib.sha256(f"{file.attrs['spec']} obs {obs.dtype.str} {obs.shape}".encode())
    for name in ("act", "rew", "length", "term", "trunc"):
        values = file[name][:]
        digest.update(f"{name} {values.dtype.str} {values.shape}".encode())
        digest.update(values.tobytes())
    for name in ("seed", "info"):
        digest.update(json.dumps([text.decode() for text in file[name][:]]).encode())
    return digest.hexdigest()


def _create_frames(file: h5py.File, ep: Episode) -> h5py.Dataset:
    shape = ep.obs.shape[1:]
    frame_bytes = max(1, ep.obs[0].nbytes)
    chunk = max(CHUNK_FRAMES, min(1024, 65536 // frame_bytes))  # Small vectors need longer chunks.
    return file.create_dataset(
        "obs",
        (0, *shape),
        maxshape=(None, *shape),
        dtype=ep.obs.dtype,
        chunks=(chunk, *shape),
        fletcher32=True,  # Detects flipped bits.
        **_compression(),
    )


def _compression() -> dict[str, Any]:
    if hdf5plugin is None:
        return {"compression": "gzip", "compression_opts": 4}
    return dict(hdf5plugin.Zstd(clevel=LEVEL))


def _check_alike(ep: Episode, frames: h5py.Dataset, kept: list[Episode]) -> None:
    want = (frames.shape[1:], frames.dtype)
    if (ep.obs.shape[1:], ep.obs.dtype) != want:
        raise ValueError(f"obs of one shard must all be {want}, got {(ep.obs.shape[1:], ep.obs.dtype)}")
    if kept and (ep.act.shape[1:], ep.act.dtype) != (kept[0].act.shape[1:], kept[0].act.dtype):
        raise ValueError(
            f"act of one shard must all be {(kept[0].act.shape[1:], kept[0].act.dtype)}, "
            f"got {(ep.act.shape[1:], ep.act.dtype)}"
        )


def read_info(path: Path) -> ShardInfo:
    """Read a shard without its frames.

    Raises:
        ShardError: the file is truncated, corrupt, not a shard, or of a newer version.
        ImportError: the file is compressed with zstd, and hdf5plugin is not installed.
    """
    try:
        with h5py.File(path, "r") as file:
            return _read_info(file, path)
    except (ImportError, MemoryError, ShardError):
        raise
    except Exception as error:  # HDF5 raises errors of any type for damaged files.
        raise ShardError(f"truncated or corrupt: {type(error).__name__}: {error}") from error


def _read_info(file: h5py.File, path: Path) -> ShardInfo:
    if file.attrs.get("format") != FORMAT:
        raise ShardError(f"not a shard: its attribute 'format' must be {FORMAT!r}, got {file.attrs.get('format')!r}")
    check_self_contained(file)
    version = int(file.attrs["format_version"])
    if version > FORMAT_VERSION:
        raise ShardError(f"format version {version} is newer than {FORMAT_VERSION}; update this package")
    obs, act, lengths = file["obs"], file["act"], file["length"][:]
    if obs.id.get_create_plist().get_nfilters() and not h5py.h5z.filter_avail(ZSTD_ID) and _uses_zstd(obs):
        raise ImportError(f"{path} is compressed with zstd: pip install hdf5plugin")
    steps = int(lengths.sum())
    if len(obs) != steps + len(lengths) or len(act) != steps or len(file["rew"]) != steps:
        raise ShardError(
            f"corrupt: {len(lengths)} episodes of {steps} steps need {steps + len(lengths)} obs, {steps} act "
            f"and rew, got {len(obs)}, {len(act)} and {len(file['rew'])}"
        )
    if "sha256" in file.attrs and file.attrs["sha256"] != _digest(file):  # Earlier versions wrote none.
        raise ShardError("corrupt: actions, rewards, lengths or flags do not match their checksum")
    counts = {name: len(file[name]) for name in ("length", "term", "trunc", "seed", "info")}
    if len(set(counts.values())) > 1 or lengths.min(initial=1) < 1:
        raise ShardError(f"corrupt: every episode needs at least one step and one entry of each field, got {counts}")
    spec = json.loads(file.attrs["spec"])
    if not isinstance(spec, dict):
        raise ShardError(f"corrupt: spec must be a JSON object, got a {type(spec).__name__}")
    return ShardInfo(
        name=path.name,
        bytes=path.stat().st_size,
        lengths=lengths,
        term=file["term"][:],
        trunc=file["trunc"][:],
        seeds=tuple(int(seed) for seed in file["seed"][:]),
        returns=np.add.reduceat(file["rew"][:].astype(np.float64), np.cumsum(lengths) - lengths),
        obs_shape=tuple(obs.shape[1:]),
        obs_dtype=str(obs.dtype),
        act_shape=tuple(act.shape[1:]),
        act_dtype=str(act.dtype),
        spec=spec,
    )


def check_self_contained(file: h5py.File) -> None:
    """Check, before reading any data, that a shard contains its own data: no links, groups or external storage.

    Raises:
        ShardError: a part of it is stored elsewhere, or has more rows than a shard may have.
    """
    for name in file:
        link = file.get(name, getlink=True)
        if not isinstance(link, h5py.HardLink):
            raise ShardError(f"rejected: {name} is a link to other data ({type(link).__name__})")
        part = file[name]
        if not isinstance(part, h5py.Dataset):
            raise ShardError(f"rejected: {name} must be a dataset, got {type(part).__name__}")
        if part.external or part.is_virtual:
            raise ShardError(f"rejected: {name} is stored in another file")
        if part.ndim == 0 or len(part) > MAX_ROWS:
            raise ShardError(f"rejected: {name} has shape {part.shape}; a shard has at most {MAX_ROWS:,} rows")


def _uses_zstd(obs: h5py.Dataset) -> bool:
    plist = obs.id.get_create_plist()
    return any(plist.get_filter(i)[0] == ZSTD_ID for i in range(plist.get_nfilters()))


def _sync_dir(path: Path) -> None:
    """Make a rename in `path` survive a power cut (no effect if directories cannot be opened)."""
    try:
        handle = os.open(path, os.O_RDONLY)
    except OSError:
        return
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
