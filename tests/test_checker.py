"""The vector checker passes what keeps the contract and names what breaks it."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from gymnasium.vector import AutoresetMode, SyncVectorEnv
from tiny import save_tiny
from toy import Toy, toy_starts

from wm_envs.checker import check_vector_env
from wm_envs.dream import DreamEnv, DreamVectorEnv

NOISY = Toy(noise=0.3, end=2.0)


def dreams(model: Toy = NOISY, kind: type[DreamVectorEnv] = DreamVectorEnv, **kwargs: Any) -> DreamVectorEnv:
    return kind(model, toy_starts(), **{"horizon": 7, **kwargs})


def dream(model: Toy = NOISY, **kwargs: Any) -> DreamEnv:
    return DreamEnv(model, toy_starts(), horizon=7, **kwargs)


@pytest.mark.parametrize("obs", ["pixels", "latent"])
@pytest.mark.parametrize("model", [NOISY, Toy(noise=0.3, pixels=True), Toy(act_space=gym.spaces.Discrete(3))])
def test_dreams_pass(model: Toy, obs: str) -> None:
    check_vector_env(partial(dreams, model, obs=obs), partial(dream, model, obs=obs))
    check_vector_env(partial(dreams, model, obs=obs))  # Against itself with one row.


@pytest.mark.parametrize("obs", ["pixels", "latent"])
def test_made_dreams_of_a_vmc_pass(obs: str, tmp_path: Any) -> None:
    kwargs = {"model": save_tiny(tmp_path / "model"), "obs": obs, "horizon": 6}
    check_vector_env(partial(gym.make_vec, "Dream-v0", **kwargs), partial(gym.make, "Dream-v0", **kwargs), steps=15)


def test_gymnasium_s_own_vector_environment_passes() -> None:
    def make(num_envs: int, autoreset_mode: AutoresetMode) -> SyncVectorEnv:
        return SyncVectorEnv([partial(gym.make, "CartPole-v1")] * num_envs, autoreset_mode=autoreset_mode)

    check_vector_env(make, partial(gym.make, "CartPole-v1"), steps=60)


class OneStream(DreamVectorEnv):
    """All rows draw from one generator."""

    def reset(self, **kwargs: Any) -> Any:
        self.streams.rngs = [self.streams.rngs[0]] * self.num_envs
        return super().reset(**kwargs)


class NoSeed(DreamVectorEnv):
    def reset(self, *, seed: Any = None, options: Any = None) -> Any:
        return super().reset(options=options)


class OneSeed(DreamVectorEnv):
    def reset(self, *, seed: Any = None, options: Any = None) -> Any:
        return super().reset(seed=None if seed is None else [0] * self.num_envs, options=options)


class SeedsBackwards(DreamVectorEnv):
    def reset(self, *, seed: Any = None, options: Any = None) -> Any:
        seeds = [seed + self.num_envs - i for i in range(self.num_envs)] if isinstance(seed, int) else seed
        return super().reset(seed=seeds, options=options)


class OneBuffer(DreamVectorEnv):
    def _observe(self, latent: Any) -> Any:
        obs = super()._observe(latent)
        self.buffer = getattr(self, "buffer", np.empty((self.num_envs, 2), np.float32))
        self.buffer[: len(obs)] = obs
        return self.buffer[: len(obs)]


class GivesItsLatentAway(DreamVectorEnv):
    def _observe(self, latent: Any) -> Any:
        return latent["x"].numpy()


class WritesInActions(DreamVectorEnv):
    def step(self, actions: Any) -> Any:
        out = super().step(actions)
        actions[:] = 0
        return out


class Declares(DreamVectorEnv):
    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.metadata = {**self.metadata, "autoreset_mode": "SameStep"}


class Changed(DreamVectorEnv):
    """`change(out)` of every step's (obs, rew, term, trunc, info), a list."""

    @staticmethod
    def change(out: list[Any]) -> None:
        raise NotImplementedError

    def step(self, actions: Any) -> Any:
        out = list(super().step(actions))
        self.change(out)
        return tuple(out)


def changed(change: Callable[[list[Any]], Any]) -> type[Changed]:
    return type("Broken", (Changed,), {"change": staticmethod(change)})


def put(index: int, make: Callable[[Any], Any]) -> type[Changed]:
    return changed(lambda out: out.__setitem__(index, make(out[index])))


def end_shows_the_new_episode(out: list[Any]) -> None:
    for i in np.flatnonzero(out[4].get("_final_obs", [])):
        out[4]["final_obs"][i] = out[0][i].copy()


class RewardAtReset(DreamVectorEnv):
    """NEXT_STEP's opening step carries a reward."""

    def step(self, actions: Any) -> Any:
        over = self._term | self._trunc
        obs, rew, *rest = super().step(actions)
        rew[over] = 1.0
        return obs, rew, *rest


class MaskIgnored(DreamVectorEnv):
    def reset(self, *, seed: Any = None, options: Any = None) -> Any:
        return super().reset(seed=seed)


class TermIsTrunc(DreamVectorEnv):
    """Only the batch mixes the two up, the single environment does not."""

    def step(self, actions: Any) -> Any:
        obs, rew, term, trunc, info = super().step(actions)
        return obs, rew, term | trunc, term & trunc, info


BROKEN = [
    (OneStream, r"row \d with seed 7 must equal the single env with seed"),
    (NoSeed, r"reset\(seed=7\) twice must give the same trajectory|writing into"),
    (OneSeed, "seeds 7 and 107 gave the same observations: seeds are ignored|equivalent to seed=s"),
    (SeedsBackwards, r"seed=\[s, s \+ 1, ...\] must be equivalent to seed=s"),
    (OneBuffer, "two calls returned the same memory as obs"),
    (GivesItsLatentAway, "writing into returned arrays must not change the episode"),
    (WritesInActions, "step 0 changed the actions that were passed in"),
    (Declares, r"metadata\['autoreset_mode'\] must be AutoresetMode.NEXT_STEP as requested, got 'SameStep'"),
    (put(0, lambda obs: obs.astype(np.float64)), r"obs must be \(3, 2\) float32, got \(3, 2\) float64"),
    (put(0, lambda obs: obs + 2000), "obs must lie in Box.*, got"),
    (put(1, lambda rew: rew.tolist()), r"rew must be an array \(3,\) of floats, got .*list"),
    (put(2, lambda term: term.astype(int)), r"term must be an array \(3,\) of bools, got"),
    (put(4, lambda info: None), "info must be a dict, got"),
    (put(4, lambda info: {}), r"SAME_STEP, step \d+: info\['_final_obs'\] must be"),
    (changed(end_shows_the_new_episode), r"info\['final_obs'\]\[\d\] must be the last frame of the episode"),
    (RewardAtReset, r"NEXT_STEP.*row \d: \(rew, term, trunc\) must be \(0.0, False, False\) \(the step after an ep"),
    (MaskIgnored, r"reset_mask=.*rows outside the mask must not change"),
    (TermIsTrunc, r"row \d: \(rew, term, trunc\) must be .*False, True.* got .*True, False"),
]


@pytest.mark.parametrize(
    ("kind", "message"), BROKEN, ids=[f"{kind.__name__}-{i}" for i, (kind, _) in enumerate(BROKEN)]
)
def test_a_broken_vector_environment_is_named(kind: type[DreamVectorEnv], message: str) -> None:
    with pytest.raises(AssertionError, match=message):
        check_vector_env(partial(dreams, kind=kind), dream)


def test_episodes_that_never_end_leave_the_check_undone() -> None:
    with pytest.raises(AssertionError, match="no episode ended in 30 steps.*pass more steps or a shorter horizon"):
        check_vector_env(partial(dreams, Toy(noise=0.1), horizon=None))


def test_spaces_that_do_not_fit_are_named() -> None:
    def make(num_envs: int, autoreset_mode: AutoresetMode) -> DreamVectorEnv:
        envs = dreams(num_envs=num_envs, autoreset_mode=autoreset_mode)
        envs.action_space = envs.single_action_space
        return envs

    with pytest.raises(AssertionError, match=r"action_space must be 3 x Box\(-1.0, 1.0, \(1,\), float32\), got Box"):
        check_vector_env(make)
    with pytest.raises(AssertionError, match="num_envs must be 3 as requested, got 2"):
        check_vector_env(lambda num_envs, autoreset_mode: dreams(num_envs=2, autoreset_mode=autoreset_mode))
    with pytest.raises(AssertionError, match="make must return a gymnasium.vector.VectorEnv, got .*DreamEnv"):
        check_vector_env(lambda num_envs, autoreset_mode: dream())
