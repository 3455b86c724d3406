"""A replay buffer: recent episodes in one ring of frames, with random windows.

Frames are stored consecutively, each with the step that starts at it; the last frame of an episode has no
step. A window is a run of frames, so sampling a batch is one gather. The ring contains whole episodes; the
oldest is dropped as a whole.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import gymnasium as gym
import numpy as np
import torch
from numpy.typing import DTypeLike, NDArray
from torch import Tensor

from wm_agents.data.batch import Batch
from wm_agents.data.episode import Episode, check_episode
from wm_agents.data.plain_episode import plain_episode
from wm_agents.data.replay_file import read_replay, write_replay
from wm_agents.data.window_index import WindowIndex
from wm_agents.system.hardware import find_device
from wm_envs.action import act_dim, encode_action

__all__ = ["Batch", "ReplayBuffer"]

Array = NDArray[Any]

LATENT = "latent/"


class _Owned(NamedTuple):
    """An episode in the ring."""

    begin: int
    """Position of its first frame; positions count every frame ever added."""
    steps: int


class ReplayBuffer:
    """Up to `capacity` steps in whole episodes; the oldest are dropped. Not thread-safe.

    Positions count all frames ever added; position p is in slot p % slots. The ring grows as it fills.
    """

    def __init__(
        self,
        capacity: int,
        obs_shape: tuple[int, ...],
        action_dim: int,
        obs_dtype: DTypeLike = np.float32,
        *,
        max_gb: float | None = None,
        latent_dtype: DTypeLike = np.float16,
    ) -> None:
        """Create an empty buffer.

        Args:
            capacity: maximum number of steps.
            action_dim: width of an encoded action: dimensions of a Box, or number of Discrete actions.
            max_gb: maximum memory of the arrays.
            latent_dtype: dtype in which `write_latents` stores latents.
        """
        for name, value in (("capacity", capacity), ("action_dim", action_dim)):
            if isinstance(value, bool) or not isinstance(value, int | np.integer) or value < 1:
                raise ValueError(f"{name} must be a whole number of at least 1, got {value!r}")
        if max_gb is not None and not max_gb > 0:
            raise ValueError(f"max_gb must be above 0, or None, got {max_gb}")
        self.capacity, self.action_dim = int(capacity), int(action_dim)
        self.obs_shape = tuple(int(n) for n in obs_shape)
        self.max_gb = max_gb
        self.latent_dtype = np.dtype(latent_dtype)
        self._owned: deque[_Owned] = deque()
        self._steps = 0
        self._head = 0  # Position of the next frame.
        self._slots = 0
        self._frames: dict[str, Array] = {
            "obs": np.zeros((0, *self.obs_shape), obs_dtype),
            "act": np.zeros((0, self.action_dim), np.float32),
            "rew": np.zeros(0, np.float32),
            "term": np.zeros(0, bool),
            "first": np.zeros(0, bool),
            "last": np.zeros(0, bool),
        }
        self._latents: dict[str, Array] = {}
        self._windows: WindowIndex | None = None

    def __len__(self) -> int:
        """Steps in the buffer."""
        return self._steps

    def __repr__(self) -> str:
        return f"ReplayBuffer({self._steps} of {self.capacity} steps in {self.num_episodes} episodes)"

    @property
    def obs_dtype(self) -> np.dtype[Any]:
        return self._frames["obs"].dtype

    @property
    def num_episodes(self) -> int:
        return len(self._owned)

    @property
    def num_frames(self) -> int:
        return self._head - self._tail

    @property
    def nbytes(self) -> int:
        """Memory of the arrays, including free slots."""
        return sum(array.nbytes for array in self._arrays().values())

    @property
    def _tail(self) -> int:
        if self._owned:
            return self._owned[0].begin
        return self._head

    def add(
        self, episode: Episode, act_space: gym.Space[Any], latents: Mapping[str, Array | Tensor] | None = None
    ) -> None:
        """Add an episode with the env's own actions.

        Args:
            latents: latents of its T+1 frames, leaves (T+1, ...).

        Raises:
            ValueError: the episode is inconsistent, or does not fit this buffer.
        """
        check_episode(episode)
        if act_dim(act_space) != self.action_dim:
            raise ValueError(f"actions must be {self.action_dim} wide, got {act_dim(act_space)} for {act_space}")
        self._check_obs(np.asarray(episode.obs))
        act = encode_action(act_space, episode.act)
        self._append(episode.obs, act, episode.rew, bool(episode.term), latents)

    def add_episode(
        self,
        obs: Array,
        actions: Array,
        rewards: Array,
        dones: Array | None = None,
        *,
        terminated: bool | None = None,
    ) -> None:
        """Add an episode of T steps.

        Give T+1 obs, and `terminated` (False: truncated). T obs with T `dones` are also accepted: a final
        True counts as a termination, and the missing last frame is a copy of the one before.

        Args:
            obs: (T+1, *obs_shape), or (T, *obs_shape).
            actions: (T, A) encoded, or integers (T,) or (T, 1), which become one-hot vectors.
            rewards: (T,)
            terminated: whether the last step terminated the episode.
            dones: (T,), True only at the last step, or nowhere.
        """
        obs = np.asarray(obs)
        self._check_obs(obs)
        self._append(*plain_episode(obs, actions, rewards, dones, terminated, self.action_dim), latents=None)

    def sample(
        self,
        batch_size: int,
        seq_len: int,
        device: torch.device | str = "cpu",
        *,
        pack: bool = False,
        generator: torch.Generator | None = None,
    ) -> Batch:
        """Sample windows of `seq_len` steps. All steps are sampled equally often, including first and last
        ones.

        Args:
            pack: a window may continue into the next episode; otherwise it lies inside one episode.
            generator: a CPU generator; default: the global generator of torch.

        Raises:
            ValueError: no episode is long enough, or the device does not exist.
        """
        place = find_device(device)
        if batch_size < 1 or seq_len < 1:
            raise ValueError(f"batch_size and seq_len must be at least 1, got {batch_size} and {seq_len}")
        draw = self._packed if pack else self._inside
        begin = draw(batch_size, seq_len, generator)
        index = begin[:, None] + np.arange(seq_len + 1)
        at = index % self._slots
        steps = at[:, :-1]
        latent = {key: torch.from_numpy(leaf[at[:, 0]]).float() for key, leaf in self._latents.items()}
        batch = Batch(
            obs=torch.from_numpy(self._frames["obs"].take(at, axis=0)),
            act=torch.from_numpy(self._frames["act"].take(steps, axis=0)),
            rew=torch.from_numpy(self._frames["rew"].take(steps)),
            term=torch.from_numpy(self._frames["term"].take(steps)),
            first=torch.from_numpy(self._frames["first"].take(at)),
            last=torch.from_numpy(self._frames["last"].take(at)),
            latent=latent or None,
            index=torch.from_numpy(index),
        )
        if place.type == "cpu":
            return batch
        return batch.to(place)

    def has_window(self, seq_len: int, pack: bool = False) -> bool:
        """Whether there is a window of `seq_len` steps."""
        if pack:
            return self.num_frames > seq_len
        return any(ep.steps >= seq_len for ep in self._owned)

    def episodes(self) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """The position of the first frame of every episode, and its number of steps, oldest first."""
        owned = np.array(self._owned, np.int64).reshape(-1, 2)
        return owned[:, 0], owned[:, 1]

    def frames(self, index: NDArray[np.int64]) -> tuple[Array, NDArray[np.float32]]:
        """The frames at positions `index` (any shape), and the actions taken there; zeros for last frames.

        Raises:
            IndexError: a position is not in the buffer.
        """
        if index.size and not (self._tail <= index.min() and index.max() < self._head):
            raise IndexError(f"index must be from {self._tail} to {self._head - 1}, got {index.min()} to {index.max()}")
        at = index % max(self._slots, 1)
        return self._frames["obs"][at], self._frames["act"][at]

    def write_latents(self, index: Tensor | Array, latent: Mapping[str, Tensor | Array]) -> None:
        """Store latents of the frames at `index` (any shape); frames that were dropped are ignored.

        Args:
            latent: leaves (*index.shape, ...).
        """
        where = _numpy(index)
        leaves = {key: _numpy(leaf) for key, leaf in latent.items()}
        for key, leaf in leaves.items():
            if leaf.shape[: where.ndim] != where.shape:
                raise ValueError(f"latent {key!r} must be ({', '.join(map(str, where.shape))}, ...), got {leaf.shape}")
        self._know_latents({key: leaf.shape[where.ndim :] for key, leaf in leaves.items()})
        there = (where >= self._tail) & (where < self._head)
        for key, leaf in leaves.items():
            self._latents[key][where[there] % self._slots] = leaf[there]

    def save(self, path: str | Path) -> None:
        """Write the buffer to one npz atomically; each array has one row per frame."""
        live = np.arange(self._tail, self._head) % max(self._slots, 1)
        frames = {name: array[live] for name, array in self._arrays().items()}
        settings = {
            "obs_shape": np.array(self.obs_shape, np.int64),
            "action_dim": self.action_dim,
            "capacity": self.capacity,
            "max_gb": np.nan if self.max_gb is None else self.max_gb,
            "latent_dtype": self.latent_dtype.name,
            "tail": self._tail,
        }
        write_replay(Path(path), frames, settings)

    @classmethod
    def load(cls, path: str | Path) -> ReplayBuffer:
        """Read a file written by `save`, which restores the buffer exactly, or an npz of another program.

        The latter needs only the arrays in `replay_file.PLAIN` and is split into episodes at `dones`.

        Raises:
            ValueError: the file is not a valid npz, a key is missing, or the arrays are inconsistent.
        """
        stored = read_replay(Path(path))
        shape = tuple(int(n) for n in stored["obs_shape"])
        max_gb = float(stored.get("max_gb", np.nan))
        buffer = cls(
            int(stored["capacity"]),
            shape,
            int(stored["action_dim"]),
            stored["obs"].dtype,
            max_gb=None if np.isnan(max_gb) else max_gb,
            latent_dtype=str(stored.get("latent_dtype", "float16")),
        )
        if "format_version" in stored:
            buffer._take_stored(stored)
        else:
            buffer._take_plain(stored)
        return buffer

    def _take_stored(self, stored: dict[str, Array]) -> None:
        """Split the arrays at the stored episode ends; positions continue from the stored ones."""
        self._check_obs(stored["obs"])
        latents = {name.removeprefix(LATENT): leaf for name, leaf in stored.items() if name.startswith(LATENT)}
        self._head = int(stored["tail"])
        begin = 0
        for end in np.flatnonzero(stored["last"]) + 1:
            part, steps = slice(begin, end), slice(begin, end - 1)
            self._append(
                stored["obs"][part],
                stored["actions"][steps],
                stored["rewards"][steps],
                bool(stored["terminated"][end - 2]),
                {key: leaf[part] for key, leaf in latents.items()} or None,
            )
            begin = int(end)

    def _take_plain(self, stored: dict[str, Array]) -> None:
        begin = 0
        for end in [*(np.flatnonzero(stored["dones"]) + 1), len(stored["dones"])]:
            if end > begin:
                part = slice(begin, int(end))
                self.add_episode(*(stored[name][part] for name in ("obs", "actions", "rewards", "dones")))
            begin = int(end)

    def _append(
        self,
        obs: Array,
        act: NDArray[np.float32],
        rew: Array,
        term: bool,
        latents: Mapping[str, Array | Tensor] | None,
    ) -> None:
        """Write one checked episode at the head."""
        steps, frames = len(rew), len(rew) + 1
        leaves = {key: _numpy(leaf) for key, leaf in (latents or {}).items()}
        for key, leaf in leaves.items():
            if len(leaf) != frames:
                raise ValueError(f"latents must cover all {frames} frames, got {len(leaf)} of {key!r}")
        if leaves:
            self._know_latents({key: leaf.shape[1:] for key, leaf in leaves.items()})
        if steps > self.capacity or frames > self._most_slots():
            raise ValueError(
                f"an episode of {steps} steps does not fit into a buffer of {self.capacity} steps and "
                f"{self._most_slots()} frames; raise capacity or max_gb, or truncate episodes"
            )
        while self._steps + steps > self.capacity:
            self._evict()
        self._make_room(frames)
        at = np.arange(self._head, self._head + frames) % self._slots
        put = self._frames
        put["obs"][at] = obs
        put["act"][at[:-1]], put["rew"][at[:-1]] = act, rew
        put["act"][at[-1]], put["rew"][at[-1]] = 0, 0
        put["term"][at] = put["first"][at] = put["last"][at] = False
        put["term"][at[-2]], put["first"][at[0]], put["last"][at[-1]] = term, True, True
        for key, store in self._latents.items():
            store[at] = leaves.get(key, 0)
        self._owned.append(_Owned(self._head, steps))
        self._head += frames
        self._steps += steps
        self._windows = None

    def _evict(self) -> None:
        self._steps -= self._owned.popleft().steps
        self._windows = None

    def _make_room(self, frames: int) -> None:
        """Free `frames` slots: double the ring while allowed, then drop the oldest episodes."""
        most = self._most_slots()
        need = self.num_frames + frames
        if need > self._slots and self._slots < most:
            self._resize(min(max(2 * self._slots, need, 1024), most))
        while self.num_frames + frames > self._slots:
            self._evict()

    def _most_slots(self) -> int:
        """Maximum number of slots: one per step and one more per episode, within the memory limit."""
        if self.max_gb is None:
            return 2 * self.capacity
        frame = sum(_row_bytes(array) for array in self._arrays().values())
        return min(2 * self.capacity, int(self.max_gb * 1e9) // frame)

    def _resize(self, slots: int) -> None:
        """Move the stored frames to a ring of `slots`, one array at a time."""
        live = np.arange(self._tail, self._head)
        for kind in (self._frames, self._latents):
            for name, old in kind.items():
                new = np.zeros((slots, *old.shape[1:]), old.dtype)
                for part in np.array_split(live, max(len(live) // 4096, 1)):
                    new[part % slots] = old[part % max(self._slots, 1)]
                kind[name] = new
                del old
        self._slots = slots

    def _know_latents(self, shapes: dict[str, tuple[int, ...]]) -> None:
        """Allocate latents for the frames on first use; later ones must have the same shapes."""
        known = {key: leaf.shape[1:] for key, leaf in self._latents.items()}
        if known and known != shapes:
            raise ValueError(f"latents must have the same shapes as those stored before, {known}, got {shapes}")
        if known:
            return
        self._latents = {key: np.zeros((self._slots, *shape), self.latent_dtype) for key, shape in shapes.items()}
        most = self._most_slots()
        if self._slots > most:
            while self.num_frames > most:
                self._evict()
            self._resize(most)

    def _packed(self, num: int, seq_len: int, generator: torch.Generator | None) -> NDArray[np.int64]:
        places = self.num_frames - seq_len
        if places < 1:
            raise ValueError(
                f"windows of {seq_len} steps need {seq_len + 1} frames, the buffer has {self.num_frames}; "
                "add episodes or lower seq_len"
            )
        return self._tail + torch.randint(places, (num,), generator=generator).numpy()

    def _inside(self, num: int, seq_len: int, generator: torch.Generator | None) -> NDArray[np.int64]:
        if self._windows is None or self._windows.seq_len != seq_len:
            self._windows = WindowIndex(*self.episodes(), seq_len)
        return self._windows.sample(num, generator)

    def _arrays(self) -> dict[str, Array]:
        return self._frames | {LATENT + key: leaf for key, leaf in self._latents.items()}

    def _check_obs(self, obs: Array) -> None:
        if obs.shape[1:] != self.obs_shape:
            raise ValueError(f"obs must be (T+1, {', '.join(map(str, self.obs_shape))}), got {obs.shape}")
        if obs.dtype == np.uint8 and self.obs_dtype != np.uint8:
            raise ValueError(
                f"obs are uint8, but the buffer stores {self.obs_dtype}; create it with obs_dtype=np.uint8"
            )
        if not np.can_cast(obs.dtype, self.obs_dtype, "same_kind"):
            raise ValueError(f"obs must be {self.obs_dtype}, got {obs.dtype}; set obs_dtype of the ReplayBuffer")
        if obs.dtype.kind == "f" and not np.isfinite(obs).all():
            frame = int((~np.isfinite(obs.reshape(len(obs), -1)).all(1)).argmax())
            raise ValueError(f"obs must be finite, got NaN or infinity in frame {frame}; end the episode before it")


def _row_bytes(array: Array) -> int:
    return int(np.prod(array.shape[1:], dtype=np.int64)) * array.dtype.itemsize


def _numpy(values: Tensor | Array) -> Array:
    if isinstance(values, Tensor):
        return values.detach().cpu().numpy()
    return np.asarray(values)
