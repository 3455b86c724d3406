"""A directory of shards as one dataset of episodes, with random windows, frames and episodes.

root/
  seed-0000000.h5     whole episodes (see shard.py); other files are skipped and listed
  manifest.json       the list of shards; it can be rebuilt by a scan
"""

from __future__ import annotations

import json
import logging
from collections import OrderedDict
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import h5py
import numpy as np
from numpy.typing import NDArray

from wm_agents.data.episode import Episode
from wm_agents.data.shard import SUFFIX, ShardError, ShardInfo, check_self_contained, read_info, write_shard
from wm_agents.system.files import write_json

__all__ = ["Dataset", "ShardInfo", "Windows", "hold_out", "write_manifest", "write_shard"]

Array = NDArray[Any]
Ints = NDArray[np.int64]
log = logging.getLogger(__name__)

MANIFEST = "manifest.json"
MAX_OPEN = 128
"""Maximum number of open shards."""
RUN = 8
"""Adjacent frames that `Dataset.frames` reads together, because they share a chunk."""


class Windows(NamedTuple):
    """B windows of L steps, each inside one episode. `obs[:, t], act[:, t] -> rew[:, t], obs[:, t+1]`."""

    obs: Array
    """(B, L+1, ...)"""
    act: Array
    """(B, L, ...)"""
    rew: NDArray[np.float32]
    """(B, L)"""
    term: NDArray[np.bool_]
    """(B, L): obs[:, t+1] is terminal"""
    first: NDArray[np.bool_]
    """(B, L): obs[:, t] is the first frame of its episode"""


class _Open(NamedTuple):
    file: h5py.File
    obs: h5py.Dataset
    act: Array
    rew: NDArray[np.floating]


class Dataset:
    """The episodes in the shards of a directory. Not thread-safe, but picklable.

    The number of an episode never changes: `refresh` appends new episodes, and episodes of a corrupt shard
    are no longer sampled.

    Raises:
        FileNotFoundError: the directory does not exist.
    """

    def __init__(self, root: Path | str) -> None:
        self.root = Path(root)
        self.skipped: dict[str, str] = {}
        """File name -> reason why it is skipped."""
        self.shards: list[ShardInfo] = []
        self._open: OrderedDict[int, _Open] = OrderedDict()
        self._bad: set[int] = set()
        self.refresh()

    def refresh(self) -> int:
        """Add new shards and return their number. Existing episodes keep their numbers."""
        if not self.root.is_dir():
            raise FileNotFoundError(f"no dataset at {self.root}: expected a directory of *{SUFFIX} shards")
        known = {shard.name for shard in self.shards}
        skipped = dict(self.skipped)
        new: list[ShardInfo] = []
        for path in sorted(self.root.glob(f"*{SUFFIX}")):
            if path.name in known:
                continue
            try:
                info = read_info(path)
                self._check_alike((self.shards + new)[0] if self.shards or new else info, info)
                new.append(info)
                skipped.pop(path.name, None)
            except ShardError as error:
                skipped[path.name] = str(error)
        for name in _listed(self.root) - {path.name for path in self.root.glob(f"*{SUFFIX}")}:
            skipped[name] = f"missing, but listed in {MANIFEST}"
        fresh = {name: why for name, why in skipped.items() if name not in self.skipped}
        if fresh:
            log.warning("%s: skipped %d file(s): %s", self.root, len(fresh), fresh)
        self.skipped = skipped
        self.shards += new
        self._index()
        return len(new)

    @staticmethod
    def _check_alike(want: ShardInfo, got: ShardInfo) -> None:
        for what in ("obs_shape", "obs_dtype", "act_shape", "act_dtype"):
            if getattr(want, what) != getattr(got, what):
                raise ShardError(f"foreign: {what} {getattr(got, what)}, but {want.name} has {getattr(want, what)}")

    def _index(self) -> None:
        """Index the shard of every episode, and its first frame and step there."""
        counts = [shard.num_episodes for shard in self.shards]
        empty = np.zeros(0, np.int64)
        self.lengths: Ints = np.concatenate([empty, *(s.lengths for s in self.shards)])
        self.seeds = [seed for s in self.shards for seed in s.seeds]
        self.returns = np.concatenate([empty, *(s.returns for s in self.shards)]).astype(np.float64)
        self.term = np.concatenate([empty, *(s.term for s in self.shards)]).astype(bool)
        self.trunc = np.concatenate([empty, *(s.trunc for s in self.shards)]).astype(bool)
        self._shard_of = np.repeat(np.arange(len(counts)), counts)
        self._row = np.concatenate([empty, *(np.cumsum(s.lengths) - s.lengths for s in self.shards)])
        self._number = np.concatenate([empty, *(np.arange(n) for n in counts)])
        self._usable = ~np.isin(self._shard_of, list(self._bad))

    @property
    def num_episodes(self) -> int:
        return len(self.lengths)

    @property
    def num_steps(self) -> int:
        return int(self.lengths.sum())

    @property
    def num_frames(self) -> int:
        """Number of stored frames, one more than the steps of each episode."""
        return self.num_steps + self.num_episodes

    @property
    def num_bytes(self) -> int:
        return sum(shard.bytes for shard in self.shards)

    @property
    def obs_shape(self) -> tuple[int, ...]:
        return self._some_shard().obs_shape

    @property
    def act_shape(self) -> tuple[int, ...]:
        return self._some_shard().act_shape

    @property
    def spec(self) -> dict[str, Any]:
        """The environment (`RealSpec.to_dict`) of the first shard; empty if unknown."""
        return self._some_shard().spec

    @property
    def skipped_note(self) -> str:
        """The skipped files and the reasons, for an error message; empty if there are none."""
        return f" ({len(self.skipped)} file(s) skipped: {self.skipped})" if self.skipped else ""

    def _some_shard(self) -> ShardInfo:
        if not self.shards:
            raise ValueError(f"no episodes in {self.root}{self.skipped_note}; collect episodes first")
        return self.shards[0]

    def shard_name(self, i: int) -> str:
        """Name of the file that holds episode `i`; episodes of one file have numbers side by side."""
        return self.shards[int(self._shard_of[i])].name

    def episode(self, i: int) -> Episode:
        """Read the complete episode `i`."""
        shard, frames, steps = self._where(i, 0, int(self.lengths[i]))
        held = self._opened(shard)
        info = json.loads(held.file["info"][int(self._number[i])])
        return Episode(
            self._frames(shard, frames),
            held.act[steps].copy(),
            held.rew[steps].copy(),
            bool(self.term[i]),
            bool(self.trunc[i]),
            self.seeds[i],
            info,
        )

    def steps(self, i: int) -> tuple[Array, NDArray[np.floating]]:
        """The actions and rewards of episode `i`, (T, ...) and (T,), without reading its frames."""
        shard, _, steps = self._where(i, 0, int(self.lengths[i]))
        held = self._opened(shard)
        return held.act[steps].copy(), held.rew[steps].copy()

    def iter_episodes(self, episodes: Ints | None = None) -> Iterator[Episode]:
        """Read episodes one after another and skip those of corrupt shards."""
        for i in self._among(episodes):
            if not self._usable[i]:
                continue
            try:
                yield self.episode(int(i))
            except ShardError:
                continue  # Already in `skipped`.

    def windows(self, num: int, length: int, rng: np.random.Generator, episodes: Ints | None = None) -> Windows:
        """Sample `num` windows of `length` steps uniformly over all positions.

        Raises:
            ValueError: no episode has `length` steps.
        """
        while True:
            i, start = self.draw_windows(num, length, rng, episodes)
            try:
                return self.read_windows(i, start, length)
            except ShardError:
                continue  # Its episodes are excluded now; if none is left, draw_windows raises an error.

    def draw_windows(
        self, num: int, length: int, rng: np.random.Generator, episodes: Ints | None = None
    ) -> tuple[Ints, Ints]:
        """Sample (episode, first step) of `num` windows without reading them."""
        among = self._among(episodes)
        places = np.maximum(self.lengths[among] - length + 1, 0) * self._usable[among]
        ends = np.cumsum(places)
        if length < 1 or len(ends) == 0 or ends[-1] == 0:
            longest = int(self.lengths[among].max(initial=0))
            raise ValueError(
                f"no window of {length} steps in {self.root}, which has {len(among)} episodes, "
                f"{int((~self._usable[among]).sum())} of them in corrupt shards; the longest has {longest} steps; use "
                "a shorter window or collect more"
            )
        place = rng.integers(0, ends[-1], num)
        pick = np.searchsorted(ends, place, side="right")
        return among[pick], place - (ends[pick] - places[pick])

    def read_windows(self, episode: Ints, start: Ints, length: int) -> Windows:
        """Read the windows that start at step `start[b]` of `episode[b]`."""
        shard = self._some_shard()
        num = len(episode)
        obs = np.empty((num, length + 1, *shard.obs_shape), shard.obs_dtype)
        act = np.empty((num, length, *shard.act_shape), shard.act_dtype)
        rew = np.empty((num, length), np.float32)
        for b in np.lexsort((start, episode)):  # In the order on disk.
            where, frames, steps = self._where(int(episode[b]), int(start[b]), length)
            held = self._opened(where)
            obs[b] = self._frames(where, frames)
            act[b], rew[b] = held.act[steps], held.rew[steps]
        at = np.asarray(start)[:, None] + np.arange(length)
        term = (at + 1 == self.lengths[episode][:, None]) & self.term[episode][:, None]
        return Windows(obs, act, rew, term, at == 0)

    def frames(self, num: int, rng: np.random.Generator, episodes: Ints | None = None) -> Array:
        """Sample `num` frames (num, ...) in random order; reads short runs of frames for speed."""
        while True:
            among = self._among(episodes)
            ends = np.cumsum((self.lengths[among] + 1) * self._usable[among])
            if len(ends) == 0 or ends[-1] == 0:
                raise ValueError(f"no frames in {self.root}: none of {len(among)} episodes is usable; collect more")
            try:
                return self._draw_frames(num, rng, among, ends)
            except ShardError:
                continue

    def _draw_frames(self, num: int, rng: np.random.Generator, among: Ints, ends: Ints) -> Array:
        place = np.sort(rng.integers(0, ends[-1], -(-2 * num // RUN)))
        runs: list[Array] = []
        got = 0
        while got < num:
            for at in place:
                pick = int(np.searchsorted(ends, at, side="right"))
                i = int(among[pick])
                t = int(at - (ends[pick] - self.lengths[i] - 1))
                runs.append(self._run(i, t))
                got += len(runs[-1])
            place = np.sort(rng.integers(0, ends[-1], len(place)))
        return np.concatenate(runs)[rng.permutation(got)[:num]]

    def _run(self, i: int, t: int) -> Array:
        """The aligned run of up to RUN frames around frame `t` of episode `i`, inside one chunk."""
        shard, frames, _ = self._where(i, 0, int(self.lengths[i]))
        begin = (frames.start + t) // RUN * RUN
        return self._frames(shard, slice(max(begin, frames.start), min(begin + RUN, frames.stop)))

    def _among(self, episodes: Ints | None) -> Ints:
        if episodes is None:
            return np.arange(self.num_episodes)
        return np.asarray(episodes, np.int64)

    def _where(self, i: int, start: int, length: int) -> tuple[int, slice, slice]:
        """The shard of episode `i`, and the rows of frames and steps of the window at `start`."""
        if not 0 <= start <= start + length <= self.lengths[i]:
            raise ValueError(f"steps {start} to {start + length} are not in episode {i} of {self.lengths[i]} steps")
        step = int(self._row[i]) + start
        frame = step + int(self._number[i])  # Each previous episode has one more frame than steps.
        return int(self._shard_of[i]), slice(frame, frame + length + 1), slice(step, step + length)

    def _frames(self, shard: int, rows: slice) -> Array:
        try:
            return np.asarray(self._opened(shard).obs[rows])
        except ShardError:
            raise
        except Exception as error:  # HDF5 and its filters raise errors of any type for damaged files.
            raise self._give_up(shard, error) from error

    def _opened(self, shard: int) -> _Open:
        if shard in self._open:
            self._open.move_to_end(shard)
            return self._open[shard]
        path = self.root / self.shards[shard].name
        try:
            # Windows are random, so a chunk cache would only use memory.
            file = h5py.File(path, "r", rdcc_nbytes=0)
            check_self_contained(file)
            held = _Open(file, file["obs"], file["act"][:], file["rew"][:])
        except Exception as error:
            raise self._give_up(shard, error) from error
        self._open[shard] = held
        while len(self._open) > MAX_OPEN:
            self._open.popitem(last=False)[1].file.close()
        return held

    def _give_up(self, shard: int, error: Exception) -> ShardError:
        name = self.shards[shard].name
        self._bad.add(shard)
        self._usable = ~np.isin(self._shard_of, list(self._bad))
        self.skipped[name] = f"corrupt: {error}"
        log.warning("%s: corrupt and skipped: %s", self.root / name, error)
        return ShardError(f"{name} is corrupt: {error}; its {self.shards[shard].num_episodes} episodes are skipped")

    def close(self) -> None:
        """Close all files; reading opens them again."""
        while self._open:
            self._open.popitem()[1].file.close()

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_open": OrderedDict()}  # File handles cannot be pickled.


def _split_episodes(num: int, val_fraction: float, seed: int = 0) -> tuple[Ints, Ints]:
    """Split episode numbers into training and validation, with at least one of each if there are two.

    The side of an episode does not depend on the others, so it does not change when the dataset grows.
    """
    if not 0 <= val_fraction < 1:
        raise ValueError(f"val_fraction must be in [0, 1), got {val_fraction}")
    if num < 2 or val_fraction == 0:
        return np.arange(num), np.arange(0)
    draw = np.random.default_rng(seed).random(num)
    val = draw < val_fraction
    val[draw.argmin()] = True
    val[draw.argmax()] = False
    return np.flatnonzero(~val), np.flatnonzero(val)


def hold_out(num: int, seed: int) -> tuple[Ints, Ints]:
    """Episodes (or steps) for training and for validation (5 %); a single one is used for both."""
    train, val = _split_episodes(num, 0.05, seed)
    return train, val if len(val) else train


def write_manifest(root: Path | str) -> dict[str, Any]:
    """Scan `root` and write manifest.json."""
    root = Path(root)
    data, spec = Dataset(root), {}
    if data.shards:
        spec = data.spec
    manifest = {
        "episodes": data.num_episodes,
        "steps": data.num_steps,
        "bytes": data.num_bytes,
        "spec": spec,
        "shards": {s.name: {"episodes": s.num_episodes, "steps": s.num_steps, "bytes": s.bytes} for s in data.shards},
        "skipped": {name: why for name, why in data.skipped.items() if (root / name).exists()},
    }
    write_json(root / MANIFEST, manifest)
    return manifest


def _listed(root: Path) -> set[str]:
    try:
        return set(json.loads((root / MANIFEST).read_text(encoding="utf-8"))["shards"])
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return set()  # The manifest is optional.
