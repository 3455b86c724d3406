"""A world model as an environment: `DreamVectorEnv` steps all rows in one forward pass, `DreamEnv` is one row of it."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
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

from wm_envs.action import encode_action
from wm_envs.world_model import Latent, RowStreams, WorldModel

Array = NDArray[Any]
Obs = Literal["pixels", "latent"]
CUT_OFF = 0.5  # An episode ends where cont falls below this: Ha & Schmidhuber's doomrnn, steadier than a coin.


class DreamVectorEnv(VectorEnv[Array, Array, Array]):
    """`num_envs` dreams side by side.

    Observations are (N, *obs) or, with `obs="latent"`, feat (N, F) float32. Rewards are float64 (N,), as in
    Gymnasium's own vector envs. Row i seeded s is the single dream seeded s + i.

    Args:
        model: what is dreamed in; it is used as it is and never trained here.
        starts: banks of posterior latents of real episodes, by name ("begin", "anywhere"), each leaf (S, ...).
        num_envs: rows, at least 1.
        obs: "pixels" (the real env's own observation, vectors included) or "latent".
        temperature: Ha's tau, above 0: higher is more uncertain, harder to exploit.
        horizon: steps after which a dream is truncated; None never truncates.
        autoreset_mode: SAME_STEP (default), NEXT_STEP or DISABLED; a name or Gymnasium's enum.
        deterministic: dream the most likely future; temperature is then not used.
        start: the bank that resets draw from when `options["start"]` does not say.
        precision: "fp32", or "bf16" for matrix products in bfloat16.
    """

    metadata = {  # noqa: RUF012
        "render_modes": ["rgb_array"],
        "render_fps": 50,
        "autoreset_mode": AutoresetMode.SAME_STEP,
    }

    def __init__(
        self,
        model: WorldModel,
        starts: dict[str, Latent],
        num_envs: int = 1,
        *,
        obs: Obs = "pixels",
        temperature: float = 1.0,
        horizon: int | None = None,
        autoreset_mode: str | AutoresetMode = AutoresetMode.SAME_STEP,
        deterministic: bool = False,
        start: str = "begin",
        precision: Literal["fp32", "bf16"] = "fp32",
        render_mode: str | None = None,
    ) -> None:
        _check_arguments(num_envs, obs, temperature, horizon, start, starts, precision, render_mode)
        self.model = model
        self.starts = starts
        self.num_envs = num_envs
        self.obs = obs
        self.temperature = 0.0 if deterministic else temperature
        self.horizon = horizon
        self.start = start
        self.precision = precision
        self.render_mode = render_mode
        self.autoreset = _autoreset_mode(autoreset_mode)
        self.metadata = {**self.metadata, "autoreset_mode": self.autoreset}
        feat_space = spaces.Box(-np.inf, np.inf, (model.feat_dim,), np.float32)
        self.single_observation_space = feat_space if obs == "latent" else model.obs_space
        self.single_action_space = model.act_space
        self.observation_space = batch_space(self.single_observation_space, num_envs)
        self.action_space = batch_space(self.single_action_space, num_envs)
        self.streams = RowStreams([seeding.np_random()[0] for _ in range(num_envs)])
        self.latent: Latent | None = None
        self._age = np.zeros(num_envs, np.int64)
        self._over = np.zeros(num_envs, bool)
        self._ended = (self._over, self._over)

    def reset(
        self, *, seed: int | list[int | None] | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Array, dict[str, Any]]:
        """Open new episodes from real moments.

        Args:
            seed: row i gets `seed + i`, or `seed[i]`; None goes on with the row's own generator.
            options: `start` ("begin", "anywhere" or a latent of N rows) and `reset_mask` (N,) bool, the rows to reset.
        """
        options = dict(options or {})
        mask = _reset_mask(options.pop("reset_mask", None), self.num_envs)
        start = options.pop("start", self.start)
        if options:
            raise ValueError(f"unknown reset options {sorted(options)}; known are 'start' and 'reset_mask'")
        if self.latent is None and not mask.all():
            raise ValueError("the first reset must reset every row; leave reset_mask out")
        rows = np.flatnonzero(mask)
        self._seed(seed, rows)
        with torch.inference_mode():
            self._restart(rows, start)
            return self._observe(self._live()), {}

    def step(self, actions: Array) -> tuple[Array, Array, Array, Array, dict[str, Any]]:
        """Dream one step in every row; one forward pass."""
        latent, encoded = self._live(), self._encode(actions)
        with torch.inference_mode():
            over = self._over
            self.streams.active = ~over if over.any() else None
            with self._casting():
                out = self.model.step(latent, encoded, temperature=self.temperature, generator=self.streams)
            self.latent = out.latent
            self._age += 1
            rew = out.rew.double().cpu().numpy()
            term = (out.cont < CUT_OFF).cpu().numpy()
            trunc = np.zeros(self.num_envs, bool) if self.horizon is None else self._age >= self.horizon
            if self.autoreset == AutoresetMode.NEXT_STEP and over.any():
                self._restart(np.flatnonzero(over), self.start)
                rew[over], term[over], trunc[over] = 0.0, False, False
            elif self.autoreset == AutoresetMode.DISABLED and over.any():
                # A row that ended stays as it was until reset: no reward, still over.
                self.latent = _where(over, latent, out.latent)
                self._age[over] -= 1
                rew[over], term[over], trunc[over] = 0.0, self._ended[0][over], self._ended[1][over]
            obs = self._observe(self.latent)
            done, info = term | trunc, {}
            if self.autoreset == AutoresetMode.SAME_STEP and done.any():
                info = self._final(obs, done)
                self._restart(np.flatnonzero(done), self.start)
                obs = self._observe(self.latent)
            else:
                self._over, self._ended = done, (term, trunc)
        return obs, rew, term, trunc, info

    def render(self) -> tuple[Array, ...] | None:
        """Frames (H, W, 3) uint8, one a row, when `render_mode="rgb_array"`."""
        if self.render_mode is None:
            return None
        return tuple(self.frames())

    def frames(self) -> Array:
        """The rows decoded to pixels, (N, H, W, 3) uint8."""
        with torch.inference_mode():
            frames: Array = self.model.decode(self._live()).cpu().numpy()
        if frames.ndim != 4:
            raise ValueError(
                f"this dream's observations are vectors {frames.shape[1:]}: nothing to draw; leave render_mode out"
            )
        return frames

    def _seed(self, seed: int | list[int | None] | None, rows: NDArray[np.int64]) -> None:
        if seed is None:
            return
        seeds = [seed + i for i in range(self.num_envs)] if isinstance(seed, int | np.integer) else list(seed)
        if len(seeds) != self.num_envs:
            raise ValueError(f"seed must be one int or {self.num_envs} of them, got {len(seeds)}")
        for row in rows:
            if seeds[row] is not None:
                self.streams.rngs[row] = seeding.np_random(seeds[row])[0]

    def _restart(self, rows: NDArray[np.int64], start: str | Latent) -> None:
        """Put the latents of a new episode in `rows`."""
        if isinstance(start, str):
            if start not in self.starts:
                raise ValueError(f"start must be one of {sorted(self.starts)} or a latent, got {start!r}")
            bank = self.starts[start]
            size = len(next(iter(bank.values())))
            picks = [int(self.streams.rngs[row].integers(size)) for row in rows]
        else:
            bank, picks = _check_start(start, self.model.initial(1), self.num_envs), rows.tolist()
        for row in rows:
            self.streams.restart(int(row))
        new = {key: leaf[picks].float().to(self.model.device) for key, leaf in bank.items()}
        if len(rows) == self.num_envs:
            self.latent = new
        else:
            index = torch.from_numpy(rows).to(self.model.device)
            self.latent = {k: v.index_copy(0, index, new[k].to(v.dtype)) for k, v in self._live().items()}
        self._age[rows] = 0
        self._over = self._over.copy()
        self._over[rows] = False

    def _live(self) -> Latent:
        if self.latent is None:
            raise gym.error.ResetNeeded("call reset() before step() or render()")
        return self.latent

    def _encode(self, actions: Array) -> Tensor:
        actions = np.asarray(actions)
        shape = (self.num_envs, *(self.single_action_space.shape or ()))
        if actions.shape != shape:
            raise ValueError(f"actions must be {shape} for {self.single_action_space}, got {actions.shape}")
        if actions.dtype.kind == "f" and not np.isfinite(actions).all():
            raise ValueError("actions must be finite, got NaN or infinity; the policy has diverged")
        return torch.from_numpy(encode_action(self.single_action_space, actions)).to(self.model.device)

    def _observe(self, latent: Latent) -> Array:
        seen = self.model.feat(latent).float() if self.obs == "latent" else self.model.decode(latent)
        obs: Array = seen.cpu().numpy()
        return obs

    def _final(self, obs: Array, done: NDArray[np.bool_]) -> dict[str, Any]:
        final = np.full(self.num_envs, None, dtype=object)
        for row in np.flatnonzero(done):
            final[row] = obs[row]
        return {"final_obs": final, "_final_obs": done.copy(), "final_info": {}, "_final_info": done.copy()}

    def _casting(self) -> AbstractContextManager[Any]:
        if self.precision == "fp32":
            return nullcontext()
        return torch.autocast(self.model.device.type, torch.bfloat16)


class DreamEnv(gym.Env[Array, Any]):
    """One dream: row 0 of a `DreamVectorEnv`, whose arguments it takes (all but `num_envs` and `autoreset_mode`)."""

    metadata = {"render_modes": ["rgb_array", "human"], "render_fps": 50}  # noqa: RUF012

    def __init__(
        self, model: WorldModel, starts: dict[str, Latent], *, render_mode: str | None = None, **kwargs: Any
    ) -> None:
        if render_mode not in (None, "rgb_array", "human"):
            raise ValueError(f"render_mode must be None, 'rgb_array' or 'human', got {render_mode!r}")
        self.render_mode = render_mode
        self.envs = DreamVectorEnv(model, starts, 1, autoreset_mode=AutoresetMode.DISABLED, **kwargs)
        self.observation_space = self.envs.single_observation_space
        self.action_space = self.envs.single_action_space
        self._window: _Window | None = None

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Array, dict[str, Any]]:
        super().reset(seed=seed)
        self.envs.streams.rngs[0] = self.np_random
        obs, _ = self.envs.reset(options=options)
        self._show()
        return obs[0], {}

    def step(self, action: Any) -> tuple[Array, float, bool, bool, dict[str, Any]]:
        obs, rew, term, trunc, _ = self.envs.step(np.asarray(action)[None])
        self._show()
        return obs[0], float(rew[0]), bool(term[0]), bool(trunc[0]), {}

    def render(self) -> Array | None:
        return self.envs.frames()[0] if self.render_mode == "rgb_array" else None

    def close(self) -> None:
        if self._window is not None:
            self._window.close()
            self._window = None

    def _show(self) -> None:
        if self.render_mode == "human":
            self._window = self._window or _Window(self.metadata["render_fps"])
            self._window.show(self.envs.frames()[0])


class _Window:
    """A pygame window that shows frames at a steady rate."""

    def __init__(self, fps: int, side: int = 512) -> None:
        import pygame

        self.pygame, self.fps, self.side = pygame, fps, side
        pygame.display.init()
        self.screen = pygame.display.set_mode((side, side))
        self.clock = pygame.time.Clock()

    def show(self, frame: Array) -> None:
        surface = self.pygame.surfarray.make_surface(frame.swapaxes(0, 1))
        self.pygame.transform.scale(surface, (self.side, self.side), self.screen)
        self.pygame.event.pump()
        self.pygame.display.flip()
        self.clock.tick(self.fps)

    def close(self) -> None:
        self.pygame.display.quit()


def _check_arguments(
    num_envs: int,
    obs: str,
    temperature: float,
    horizon: int | None,
    start: str,
    starts: dict[str, Latent],
    precision: str,
    render_mode: str | None,
) -> None:
    if num_envs < 1:
        raise ValueError(f"num_envs must be at least 1, got {num_envs}")
    if obs not in ("pixels", "latent"):
        raise ValueError(f"obs must be 'pixels' or 'latent', got {obs!r}")
    if not temperature > 0:
        raise ValueError(
            f"temperature must be above 0, got {temperature}; for the most likely future use deterministic=True"
        )
    if horizon is not None and horizon < 1:
        raise ValueError(f"horizon must be at least 1 step or None, got {horizon}")
    if start not in starts:
        raise ValueError(f"start must be one of the model's banks {sorted(starts)}, got {start!r}")
    if precision not in ("fp32", "bf16"):
        raise ValueError(f"precision must be 'fp32' or 'bf16', got {precision!r}")
    if render_mode not in (None, "rgb_array"):
        raise ValueError(f"render_mode must be None or 'rgb_array' for a vector of dreams, got {render_mode!r}")


def _autoreset_mode(mode: str | AutoresetMode) -> AutoresetMode:
    names = {str(m.value).lower(): m for m in AutoresetMode} | {m.name.lower(): m for m in AutoresetMode}
    if isinstance(mode, AutoresetMode):
        return mode
    if mode.lower() not in names:
        raise ValueError(f"autoreset_mode must be one of {[m.name for m in AutoresetMode]}, got {mode!r}")
    return names[mode.lower()]


def _reset_mask(given: Any, num: int) -> NDArray[np.bool_]:
    if given is None:
        return np.ones(num, bool)
    mask: NDArray[np.bool_] = np.asarray(given)
    if mask.shape != (num,) or mask.dtype != np.bool_:
        raise ValueError(f"reset_mask must be ({num},) bool, got {mask.shape} {mask.dtype}")
    if not mask.any():
        raise ValueError("reset_mask selects no row; at least one must be reset")
    return mask


def _check_start(start: Latent, like: Latent, num: int) -> Latent:
    for key, leaf in like.items():
        want = (num, *leaf.shape[1:])
        got = tuple(start[key].shape) if key in start else "nothing"
        if got != want:
            raise ValueError(f"start[{key!r}] must be {want}, got {got}; a start latent has {sorted(like)}")
    return start


def _where(rows: NDArray[np.bool_], a: Latent, b: Latent) -> Latent:
    """Leaves of `a` in `rows`, of `b` elsewhere."""
    index = torch.from_numpy(np.flatnonzero(rows)).to(next(iter(b.values())).device)
    return {key: leaf.index_copy(0, index, a[key][index].to(leaf.dtype)) for key, leaf in b.items()}
