"""A world model as an environment: `DreamVectorEnv` steps all rows in one forward pass, `DreamEnv` is one row of it."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, dataclass, field, replace
from typing import Any, Literal

import gymnasium as gym
import numpy as np
import torch
from gymnasium import spaces
from gymnasium.utils import seeding
from gymnasium.vector import AutoresetMode, VectorEnv
from gymnasium.vector.utils import batch_space
from numpy.typing import NDArray
from torch import Tensor

from wm_envs.action import ActionEncoder
from wm_envs.drawing import draw, how_drawn
from wm_envs.dream_arguments import (
    as_ensemble,
    check_arguments,
    check_latent,
    check_render_mode,
    check_reset_mask,
    find_autoreset_mode,
    put_rows,
    take_rows,
)
from wm_envs.fields import above, at_least, below, check_fields, fail
from wm_envs.noise import EVERYONE, Rows, RowStreams
from wm_envs.precision import step_in_bf16
from wm_envs.threads import few_threads
from wm_envs.window import Window
from wm_envs.world_model import Latent, WorldModel, feat_space

Array = NDArray[Any]
Obs = Literal["pixels", "latent"]


@dataclass(frozen=True)
class DreamConfig:
    """Settings of dreams. A saved model stores one, and `gym.make("Dream-...", temperature=1.15)` changes a field."""

    temperature: float = field(default=1.0, metadata=above(0))
    """Scales the randomness of the dream (tau in Ha & Schmidhuber). Dreams of a higher temperature are more difficult
    to exploit."""
    horizon: int | None = field(default=None, metadata=at_least(1))
    """Truncate a dream after N steps; None: never."""
    stall: int | None = field(default=None, metadata=at_least(1))
    """Truncate a dream after N consecutive steps without a positive reward; None: never."""
    cut_off: float = field(default=0.5, metadata=above(0) | below(1))
    """A dream terminates when `cont` of the model falls below this, unless the model samples termination. The default
    is that of Ha & Schmidhuber; saved models have a value calibrated on held-out episodes."""
    pessimism: float = field(default=0.0, metadata=at_least(0))
    """Ensembles only: subtract this factor times the disagreement of the members from the reward."""
    max_disagreement: float | None = field(default=None, metadata=above(0))
    """Ensembles only: terminate a dream when the disagreement exceeds this value. If rewards are negative, early
    termination is an advantage, so use `pessimism` instead."""

    def __post_init__(self) -> None:
        if self.temperature == 0:
            fail(self, "temperature", "a number above 0 (deterministic=True dreams the most likely future)")
        check_fields(self)


DEFAULT = DreamConfig()
SETTINGS = {*asdict(DEFAULT), "start", "disagreement"}
"""Attributes of a dream that may be changed while it runs."""


class DreamVectorEnv(VectorEnv[Array, Array, Array]):
    """A batch of `num_envs` dreams of one model as a vector environment.

    Observations are (N, *obs) or, with `obs="latent"`, feat (N, F) float32. Rewards are float64 (N,), as in Gymnasium's
    own vector environments. Row i with seed s equals the single dream with seed s + i.

    Args:
        model: the world model; it is not trained here.
        starts: latents of real episodes from which dreams start, by name ("begin", "anywhere"), leaves (S, ...).
        num_envs: number of rows, at least 1.
        dream: the settings of the dreams.
        obs: "pixels": observations of the real environment, also if they are vectors; "latent": feat of the model.
        autoreset_mode: SAME_STEP (default), NEXT_STEP or DISABLED, as a name or as Gymnasium's enum.
        deterministic: dream the most likely future; `temperature` then has no effect.
        start: the entry of `starts` from which dreams start, unless `options["start"]` names another.
        disagreement: ensembles only: report the disagreement (N,) in `info`. This evaluates all members; a step without
            it evaluates one.
        precision: "fp32"; "bf16": matrix products and convolutions in bfloat16, if the device supports it; "auto": bf16
            if a few trial steps are faster in it. The attribute `precision` is the one in use.
        fps: steps per second of the real environment, for videos and windows.
        drawing: id of the real environment, whose drawing renders vectors (`wm_envs.drawing`); None: bars.
            `metadata["drawn"]` describes the frames: decoded pixels, a drawing or bars.
        changes: fields that differ from `dream`, such as `temperature=1.15` or `horizon=100`.
    """

    metadata = {  # noqa: RUF012
        "render_modes": ["rgb_array"],
        "render_fps": 30,
        "autoreset_mode": AutoresetMode.SAME_STEP,
    }

    def __init__(
        self,
        model: WorldModel,
        starts: dict[str, Latent],
        num_envs: int = 1,
        dream: DreamConfig = DEFAULT,
        *,
        obs: Obs = "pixels",
        autoreset_mode: str | AutoresetMode = AutoresetMode.SAME_STEP,
        deterministic: bool = False,
        start: str = "begin",
        disagreement: bool = False,
        precision: Literal["fp32", "bf16", "auto"] = "fp32",
        fps: float = 30,
        drawing: str | None = None,
        render_mode: str | None = None,
        **changes: Any,
    ) -> None:
        check_arguments(num_envs, obs, precision)
        dream = replace(dream, **changes)
        self.model = model
        self.starts = {name: check_latent(f"starts[{name!r}]", bank, model) for name, bank in starts.items()}
        if start not in starts:
            raise ValueError(f"start must be one of {sorted(starts)}, got {start!r}")
        self.num_envs = num_envs
        self.obs = obs
        self.temperature = 0.0 if deterministic else dream.temperature
        self.horizon, self.stall, self.cut_off = dream.horizon, dream.stall, dream.cut_off
        self.start = start
        self.pessimism, self.max_disagreement = dream.pessimism, dream.max_disagreement
        self.disagreement = disagreement
        asked: bool | Literal["auto"] = "auto"
        if precision != "auto":
            asked = precision == "bf16"
        self.precision = "bf16" if step_in_bf16(asked, model, num_envs, obs == "pixels") else "fp32"
        self.render_mode, self.drawing = render_mode, drawing
        self.autoreset = find_autoreset_mode(autoreset_mode)
        drawn = how_drawn(drawing, model.obs_space)
        self.metadata = {**self.metadata, "render_fps": fps, "autoreset_mode": self.autoreset, "drawn": drawn}
        check_render_mode(render_mode, self.metadata["render_modes"])
        if self._asks_members:
            as_ensemble(model)
        self.single_observation_space = feat_space(model) if obs == "latent" else model.obs_space
        self.single_action_space = model.act_space
        self.observation_space = batch_space(self.single_observation_space, num_envs)
        self.action_space = batch_space(self.single_action_space, num_envs)
        self.streams = RowStreams([seeding.np_random()[0] for _ in range(num_envs)])
        self._encoder = ActionEncoder(model.act_space)
        self._threads = few_threads(model, num_envs, images=obs == "pixels" and len(model.obs_space.shape or ()) > 1)
        self.latent: Latent | None = None
        self.steps = 0
        """Number of dreamed steps so far, over all rows."""
        self._age, self._idle = np.zeros((2, num_envs), np.int64)
        # Whether the episode of each row has terminated or been truncated, and was not reset since.
        self._term, self._trunc = np.zeros((2, num_envs), bool)

    def reset(
        self, *, seed: int | list[int | None] | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Array, dict[str, Any]]:
        """Start new episodes from stored latents.

        Args:
            seed: row i gets `seed + i`, or `seed[i]`; None: the row continues with its generator.
            options: `start` ("begin", "anywhere" or a latent of N rows) and `reset_mask` (N,) bool, the rows to reset.
        """
        options = dict(options or {})
        mask = check_reset_mask(options.pop("reset_mask", None), self.num_envs)
        start = self._check_start(options.pop("start", self.start))
        if options:
            raise ValueError(f"unknown reset options {sorted(options)}; known are 'start' and 'reset_mask'")
        if self.latent is None and not mask.all():
            raise ValueError("the first reset must reset every row; omit reset_mask")
        rows = np.flatnonzero(mask)
        self._seed(seed, rows)
        with torch.inference_mode(), self._threads:
            self._restart(rows, start)
            return self._observe(self._live()), {}

    def step(self, actions: Array) -> tuple[Array, Array, Array, Array, dict[str, Any]]:
        """Dream one step in all running rows in one forward pass.

        With autoreset DISABLED, a row whose episode has ended keeps its observation and gets reward 0 until it is
        reset.
        """
        encoded, over = self.encode(actions), self._term | self._trunc
        ended = np.flatnonzero(over)
        rew, info = np.zeros(self.num_envs), self._unknown()
        with torch.inference_mode(), self._threads:
            if len(ended) < self.num_envs:
                running: Rows = EVERYONE
                if len(ended):
                    running = np.flatnonzero(~over)
                self._dream(running, encoded, rew, info)
            if self.autoreset == AutoresetMode.NEXT_STEP and len(ended):
                self._restart(ended, self.start)
            term, trunc = self._term.copy(), self._trunc.copy()
            obs = self._observe(self._live())
            done = np.flatnonzero(term | trunc)
            if self.autoreset == AutoresetMode.SAME_STEP and len(done):
                info |= self._final(obs, done)
                self._restart(done, self.start)
                obs[done] = self._observe(take_rows(self._live(), done))
        return obs, rew, term, trunc, info

    @property
    def is_plain(self) -> bool:
        """Whether `step_row` is equivalent to `step`: one running row, without limits except `horizon`."""
        return not (self.num_envs > 1 or self._asks_members or self.stall or self._term[0] or self._trunc[0])

    def step_row(self, act: Tensor) -> tuple[Array, float, bool, bool]:
        """`step` for a single row and an encoded action (1, A), in half of the time: it avoids arrays of one
        element."""
        with torch.inference_mode(), self._threads:
            with self._casting():
                out = self.model.step(self._live(), act, temperature=self.temperature, generator=self.streams)
            self.latent = out.latent
            obs = self._observe(out.latent)
            rew, term = float(out.rew), bool(out.over(self.cut_off))
        self.steps += 1
        self._age[0] += 1
        trunc = self.horizon is not None and bool(self._age[0] >= self.horizon)
        self._term[0], self._trunc[0] = term, trunc
        return obs[0], rew, term, trunc

    def encode(self, actions: Array) -> Tensor:
        """Actions (N, *act) as the model takes them, (N, A)."""
        actions = np.asarray(actions)
        shape = (self.num_envs, *(self.single_action_space.shape or ()))
        if actions.shape != shape:
            raise ValueError(f"actions must be {shape} for {self.single_action_space}, got {actions.shape}")
        return torch.from_numpy(self._encoder(actions)).to(self.model.device)

    def render(self) -> tuple[Array, ...] | None:
        """Frames (H, W, 3) uint8, one per row, if `render_mode="rgb_array"`."""
        if self.render_mode is None:
            return None
        return tuple(self.frames())

    def frames(self) -> Array:
        """Frames (N, H, W, 3) uint8 of all rows; `metadata["drawn"]` describes them."""
        with torch.inference_mode(), self._threads:
            obs = self.model.decode(self._live()).cpu().numpy()
        return draw(self.drawing, self.model.obs_space, obs)

    def _seed(self, seed: int | list[int | None] | None, rows: NDArray[np.int64]) -> None:
        if seed is None:
            return
        seeds = [seed + i for i in range(self.num_envs)] if isinstance(seed, int | np.integer) else list(seed)
        if len(seeds) != self.num_envs:
            raise ValueError(f"seed must be one int or {self.num_envs} of them, got {len(seeds)}")
        for row in rows:
            if seeds[row] is not None:
                self.streams.rngs[row] = seeding.np_random(int(seeds[row]))[0]

    def _check_start(self, start: str | Latent) -> str | Latent:
        if not isinstance(start, str):
            return check_latent("start", start, self.model, self.num_envs)
        if start not in self.starts:
            raise ValueError(f"start must be one of {sorted(self.starts)} or a latent, got {start!r}")
        return start

    def _restart(self, rows: NDArray[np.int64], start: str | Latent) -> None:
        """Start a new episode in `rows`, from a stored latent or from the rows of a given latent."""
        if isinstance(start, str):
            bank = self.starts[start]
            size = len(next(iter(bank.values())))
            picks = np.array([self.streams.rngs[row].integers(size) for row in rows])
        else:
            bank, picks = start, rows
        for row in rows:
            self.streams.restart(row)
        new = {key: leaf.float().to(self.model.device) for key, leaf in take_rows(bank, picks).items()}
        self.latent = new if len(rows) == self.num_envs else put_rows(self._live(), rows, new)
        self._age[rows] = self._idle[rows] = 0
        self._term[rows] = self._trunc[rows] = False

    def _live(self) -> Latent:
        if self.latent is None:
            raise gym.error.ResetNeeded("call reset() before step() or render()")
        return self.latent

    def _dream(self, rows: Rows, encoded: Tensor, rew: Array, info: dict[str, Any]) -> None:
        """Dream one step in `rows`, and write their rewards and infos into `rew` and `info`."""
        before = latent = self._live()
        act = encoded
        if not isinstance(rows, slice):
            latent, act = take_rows(before, rows), encoded[rows]
        self.streams.active = rows
        with self._casting():
            out = self.model.step(latent, act, temperature=self.temperature, generator=self.streams)
        self.latent = out.latent
        if not isinstance(rows, slice):
            self.latent = put_rows(before, rows, out.latent)
        rew[rows] = out.rew.cpu().double().numpy()
        self._term[rows] = out.over(self.cut_off).cpu().numpy()
        if self._asks_members:
            with self._casting():
                apart = as_ensemble(self.model).disagreement(latent, act, out.latent).float().cpu().numpy()
            info["disagreement"][rows], info["_disagreement"][rows] = apart, True
            rew[rows] -= self.pessimism * apart
            if self.max_disagreement is not None:
                self._term[rows] |= apart > self.max_disagreement
        self.steps += len(act)
        self._age[rows] += 1
        if self.horizon is not None:
            self._trunc[rows] |= self._age[rows] >= self.horizon
        if self.stall is not None:
            self._idle[rows] = np.where(rew[rows] > 0, 0, self._idle[rows] + 1)
            self._trunc[rows] |= self._idle[rows] >= self.stall

    @property
    def _asks_members(self) -> bool:
        return self.disagreement or self.pessimism > 0 or self.max_disagreement is not None

    def _unknown(self) -> dict[str, Any]:
        """The info of rows that are not stepped."""
        if not self._asks_members:
            return {}
        return {
            "disagreement": np.zeros(self.num_envs, np.float32),
            "_disagreement": np.zeros(self.num_envs, bool),
        }

    def _observe(self, latent: Latent) -> Array:
        with self._casting():
            seen = self.model.feat(latent).float() if self.obs == "latent" else self.model.decode(latent)
        # A copy, because the caller may write into it, and the model may return its latent.
        obs: Array = seen.cpu().numpy().copy()
        return obs

    def _final(self, obs: Array, done: NDArray[np.int64]) -> dict[str, Any]:
        final, mask = np.full(self.num_envs, None, dtype=object), np.zeros(self.num_envs, bool)
        mask[done] = True
        for row in done:
            final[row] = obs[row].copy()
        return {"final_obs": final, "_final_obs": mask, "final_info": {}, "_final_info": mask.copy()}

    def _casting(self) -> AbstractContextManager[Any]:
        if self.precision == "fp32":
            return nullcontext()
        return torch.autocast(self.model.device.type, torch.bfloat16)


class DreamEnv(gym.Env[Array, Any]):
    """A single dream: row 0 of a `DreamVectorEnv`. It takes the same arguments except `num_envs` and
    `autoreset_mode`."""

    metadata = {"render_modes": ["rgb_array", "human"], "render_fps": 30}  # noqa: RUF012

    def __init__(
        self,
        model: WorldModel,
        starts: dict[str, Latent],
        dream: DreamConfig = DEFAULT,
        *,
        render_mode: str | None = None,
        **kwargs: Any,
    ) -> None:
        self.envs = DreamVectorEnv(model, starts, 1, dream, autoreset_mode=AutoresetMode.DISABLED, **kwargs)
        told = {name: self.envs.metadata[name] for name in ("render_fps", "drawn")}
        self.metadata = {**self.metadata, **told}
        check_render_mode(render_mode, self.metadata["render_modes"])
        self.render_mode = render_mode
        self.observation_space = self.envs.single_observation_space
        self.action_space = self.envs.single_action_space
        self._window: Window | None = None
        self._encoded: dict[int, Tensor] = {}

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Array, dict[str, Any]]:
        super().reset(seed=seed)
        self.envs.streams.rngs[0] = self.np_random
        obs, _ = self.envs.reset(options=options)
        self._show()
        return obs[0], {}

    def step(self, action: Any) -> tuple[Array, float, bool, bool, dict[str, Any]]:
        if self.envs.is_plain:
            obs, rew, term, trunc = self.envs.step_row(self._encode(action))
            self._show()
            return obs, rew, term, trunc, {}
        many_obs, rews, terms, truncs, infos = self.envs.step(np.asarray(action)[None])
        self._show()
        info = {key: float(values[0]) for key, values in infos.items() if key == "disagreement"}
        return many_obs[0], float(rews[0]), bool(terms[0]), bool(truncs[0]), info

    def render(self) -> Array | None:
        if self.render_mode != "rgb_array":
            return None
        frame: Array = self.envs.frames()[0]
        return frame

    def close(self) -> None:
        if self._window is not None:
            self._window.close()
            self._window = None

    def __getattr__(self, name: str) -> Any:
        """The settings of the dream, such as `temperature`, are those of its only row."""
        if name in SETTINGS:
            return getattr(self.envs, name)
        raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}")

    def __setattr__(self, name: str, value: Any) -> None:
        if name in SETTINGS:
            setattr(self.envs, name, value)
        else:
            super().__setattr__(name, value)

    def _encode(self, action: Any) -> Tensor:
        """The encoded action (1, A); the codes of discrete actions are cached."""
        if not isinstance(self.action_space, spaces.Discrete) or not isinstance(action, int | np.integer):
            return self.envs.encode(np.asarray(action)[None])
        key = int(action)
        if key not in self._encoded:
            self._encoded[key] = self.envs.encode(np.array([key]))
        return self._encoded[key]

    def _show(self) -> None:
        if self.render_mode == "human":
            self._window = self._window or Window(self.metadata["render_fps"])
            self._window.show(self.envs.frames()[0])
