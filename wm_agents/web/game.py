"""A dream beside the real environment under the same actions, one step at a time. No HTTP here."""

from __future__ import annotations

from collections import deque
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from policies.policy import Policy
from wm_agents.web.controls import resting
from wm_agents.web.playable import PERSON, Playable
from wm_envs.action import encode_action
from wm_envs.real import make_real
from wm_envs.world_model import Latent, Observer, can_disagree

Array = NDArray[Any]
WINDOW = 10
"""Steps over which errors are averaged before the dream is said to have left reality."""
SLACK = 0.02
"""Error that counts as none, in units of the observation's range or spread."""
WARM_UP = 60
"""Real steps at most before an episode that starts anywhere."""


class _Errors(NamedTuple):
    """Distances from the real observation, as root mean squares in units of `Playable.spread`."""

    dream: float
    late: float
    """Of the real observation one second earlier (of the shared one, within the first second)."""
    seen: float
    """Of the model's reconstruction of the real frame: the error of encoder and decoder alone."""


class Scene(NamedTuple):
    """One step of both worlds, for showing."""

    step: int
    """Steps since the restart."""
    age: int
    """Steps since dream and reality shared a frame."""
    dream: Array
    """The dream's observation, as in `obs_space`"""
    real: Array | None
    act: Array
    rew: float
    ret: float
    cont: float
    disagreement: float | None
    real_rew: float | None
    real_ret: float | None
    errors: _Errors | None
    left: int | None
    """The step at which the dream left reality, or None."""
    dream_over: str
    """"terminated", "truncated" or empty."""
    real_over: str
    awake: bool
    feat: NDArray[np.float32]

    @property
    def over(self) -> bool:
        """Whether the episode is over: the real one while awake, the dreamed one while asleep."""
        return bool(self.real_over if self.awake else self.dream_over)


class Game:
    """One visitor's episode. Every method is called by one thread at a time.

    Asleep, the policy observes the dream, and the real environment repeats its actions. Awake, each real frame updates
    the dream.
    """

    def __init__(self, playable: Playable) -> None:
        self.playable = playable
        self.model = playable.model
        self.dream = playable.dream()
        self.env = None if playable.spec is None else make_real(playable.spec)
        self.observer = Observer(playable.model)
        self.person = resting(playable.model.act_space, playable.controls)
        self.pilot = PERSON
        self.temperature = float(self.dream.temperature)
        self.horizon = self.dream.horizon
        self.start = "begin"
        self.awake = False
        self._policies: dict[str, Policy] = {}

    def restart(self, seed: int) -> Scene:
        """Start an episode: both worlds from the same real frame, or the dream from an initial latent."""
        self.seed, self.step_count, self.awake = seed, 0, False
        self.ret = self.real_ret = 0.0
        self.dream_over = self.real_over = ""
        options: dict[str, Any] = {"start": self.start if self.start in self.dream.starts else "begin"}
        for policy in self._policies.values():
            policy.reset(1, seed)
        if self.env is not None:
            self._open_real(self.env, seed)
            options["start"] = self._observed()
        self.dream.reset(seed=seed, options=options)
        self._share()
        return self._scene(resting(self.model.act_space, self.playable.controls), 0.0, 1.0, None, None)

    def fly(self, pilot: str) -> None:
        """Let a person, or the policy of this name, choose the actions from now on.

        Raises:
            ValueError: there is no such pilot.
        """
        if pilot != PERSON and pilot not in self._policies:
            if pilot not in self.playable.pilots:
                raise ValueError(f"pilot must be one of {[PERSON, *self.playable.pilots]}, got {pilot!r}")
            policy = self.playable.pilots[pilot]()
            policy.reset(1, self.seed)
            self._policies[pilot] = policy
        self.pilot = pilot

    def wake(self) -> Scene:
        """Reality takes over control, also after the end of the dream.

        Raises:
            ValueError: there is no real environment, or its episode has ended.
        """
        if self.env is None:
            raise ValueError(f"cannot switch to the real environment: {self.playable.no_real}")
        if self.real_over:
            raise ValueError(f"the real episode has {self.real_over}; restart before switching to it")
        self.awake = True
        return self._follow_now()

    def sleep(self) -> Scene:
        """The dream takes over control, from the current real frame."""
        if not self.awake:
            return self.scene
        self.awake, self.dream_over = False, ""
        return self._follow_now()

    @torch.inference_mode()
    def step(self) -> Scene:
        """One step of both worlds with the action of the pilot; nothing happens after the end."""
        act = self._choose()
        encoded = torch.from_numpy(encode_action(self.model.act_space, act[None]))
        before = self._latent()
        out = self.model.step(before, encoded, temperature=self.temperature, generator=self.dream.streams)
        rew, cont, apart = float(out.rew), float(out.cont), None
        if can_disagree(self.model):
            apart = float(self.model.disagreement(before, encoded, out.latent))
        self.step_count += 1
        real_rew = None
        if self.env is not None and not self.real_over:
            real_rew = self._step_real(act)
        if self.awake:
            self._follow()
        elif not self.dream_over:
            self.dream.latent = out.latent
            self.age += 1
            if bool(out.over(self.playable.settings.cut_off)):
                self.dream_over = "terminated"
            elif self.horizon is not None and self.step_count >= self.horizon:
                self.dream_over = "truncated"
        self.ret += rew
        return self._scene(act, rew, cont, apart, real_rew)

    def close(self) -> None:
        """Free the real environment."""
        if self.env is not None:
            self.env.close()

    def _choose(self) -> Array:
        if self.pilot == PERSON:
            return self.person
        feat = self.model.feat(self._latent()).float().numpy()
        return np.asarray(self._policies[self.pilot].act(feat)[0])

    def _latent(self) -> Latent:
        latent = self._observed() if self.awake else self.dream.latent
        assert latent is not None, "restart() comes first"
        return latent

    def _observed(self) -> Latent:
        assert self.observer.latent is not None
        return self.observer.latent

    def _open_real(self, env: Any, seed: int) -> None:
        """Reset the real environment; an episode that starts anywhere has been played for a while by a policy."""
        obs, _ = env.reset(seed=seed)
        self.observer.reset()
        feat = self.observer.observe(obs[None], None)
        if self.start == "anywhere":
            policy = next(iter(self.playable.pilots.values()))()
            policy.reset(1, seed)
            for _ in range(int(np.random.default_rng(seed).integers(1, WARM_UP + 1))):
                act = np.asarray(policy.act(feat)[0])
                new, _, term, trunc, _ = env.step(act)
                if term or trunc:
                    break
                obs, feat = new, self.observer.observe(new[None], act[None])
            else:
                self.obs = obs
                return
            obs, _ = env.reset(seed=seed)
            self.observer.reset()
            self.observer.observe(obs[None], None)
        self.obs = obs

    def _step_real(self, act: Array) -> float:
        assert self.env is not None
        self.obs, rew, term, trunc, _ = self.env.step(act)
        self.observer.observe(self.obs[None], act[None])
        self.real_over = ""
        if term or trunc:
            self.real_over = "terminated" if term else "truncated"
        self.real_ret += float(rew)
        return float(rew)

    def _follow(self) -> None:
        """The dream continues from the current real frame."""
        self.dream.latent = self._observed()
        self._share()

    def _follow_now(self) -> Scene:
        """Between two steps, the dream continues from the current real frame."""
        self._follow()
        last = self.scene
        return self._scene(last.act, last.rew, last.cont, last.disagreement, last.real_rew)

    def _share(self) -> None:
        """Both worlds show the same moment now."""
        self.age = 0
        self.left: int | None = None
        self._recent: deque[_Errors] = deque(maxlen=WINDOW)
        self._past: deque[Array] = deque(maxlen=max(WINDOW, round(self.playable.fps)) + 1)

    @torch.inference_mode()
    def _scene(self, act: Array, rew: float, cont: float, apart: float | None, real_rew: float | None) -> Scene:
        latent = self._latent()
        dreamed = self.model.decode(latent)[0].numpy().copy()
        real, real_ret, errors = None, None, None
        if self.env is not None:
            real, real_ret = np.array(self.obs), self.real_ret
            if not self.real_over:
                errors = self._compare(dreamed)
        self.scene = Scene(
            step=self.step_count,
            age=self.age,
            dream=dreamed,
            real=real,
            act=act,
            rew=rew,
            ret=self.ret,
            cont=cont,
            disagreement=apart,
            real_rew=real_rew,
            real_ret=real_ret,
            errors=errors,
            left=self.left,
            dream_over=self.dream_over,
            real_over=self.real_over,
            awake=self.awake,
            feat=self.model.feat(latent)[0].float().numpy(),
        )
        return self.scene

    def _compare(self, dreamed: Array) -> _Errors:
        """The errors of this step; sets `left` where the dream has left reality.

        That is so where, over the last steps, it is further from reality than reality itself was one second before,
        and its error is clearly above that of encoder and decoder alone.
        """
        self._past.append(np.array(self.obs))
        seen = self.model.decode(self._observed())[0].numpy()
        errors = _Errors(*(self._distance(obs) for obs in (dreamed, self._past[0], seen)))
        self._recent.append(errors)
        if self.left is None and not self.awake and self.age >= WINDOW:
            dream, late, floor = np.mean(self._recent, axis=0)
            if dream > max(late, 1.25 * floor + SLACK):
                self.left = self.step_count
        return errors

    def _distance(self, obs: Any) -> float:
        off = (np.asarray(obs, np.float64) - self.obs) / self.playable.spread
        return float(np.sqrt(np.mean(off**2)))
