"""A checker for vector environments. Gymnasium's own checker covers only single environments.

check_vector_env(partial(gym.make_vec, "Dream-CarRacing-v0", horizon=5), partial(gym.make, "Dream-...", horizon=5))
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import combinations
from typing import Any, NamedTuple

import gymnasium as gym
import numpy as np
from gymnasium.vector import AutoresetMode, VectorEnv
from gymnasium.vector.utils import batch_space
from numpy.typing import NDArray

Array = NDArray[Any]
Vector = VectorEnv[Any, Any, Any]
Make = Callable[..., Vector]

SEED = 7


class _Seen(NamedTuple):
    """The result of one call of a vector environment; rew, term and trunc are 0 for reset."""

    obs: Array
    rew: Array
    term: Array
    trunc: Array
    info: dict[str, Any]

    @property
    def done(self) -> Array:
        return self.term | self.trunc


def check_vector_env(
    make: Make, make_single: Callable[[], gym.Env[Any, Any]] | None = None, *, num_envs: int = 3, steps: int = 30
) -> None:
    """Check spaces, seeds, ownership of arrays and the three autoreset modes. Observations must be arrays.

    Args:
        make: `make(num_envs=..., autoreset_mode=...)`; episodes must end within `steps` steps.
        make_single: creates the single environment that each row must equal: row i with seed s equals this
            environment with seed s + i. Default: the vector environment with one row.
        num_envs: number of rows, at least 2.
        steps: steps to play in each mode.

    Raises:
        AssertionError: a rule is violated; the message names the rule and the step.
    """
    for mode in AutoresetMode:
        envs = make(num_envs=num_envs, autoreset_mode=mode)
        _check_declaration(envs, num_envs, mode)
        _check_ownership(envs, steps)
        _check_seeds(envs, steps)
        rows = [make_single() if make_single else _OneRow(make) for _ in range(num_envs)]
        _check_rows(envs, rows, mode, steps)
        for env in [envs, envs, *rows]:  # Closing twice must be allowed.
            env.close()


def _check_declaration(envs: Vector, num: int, mode: AutoresetMode) -> None:
    """Spaces, sizes and metadata match the requested environment."""
    assert isinstance(envs, VectorEnv), f"make must return a gymnasium.vector.VectorEnv, got {type(envs)}"
    assert envs.num_envs == num, f"num_envs must be {num} as requested, got {envs.num_envs}"
    declared = envs.metadata.get("autoreset_mode")
    assert declared == mode, f"metadata['autoreset_mode'] must be {mode} as requested, got {declared!r}"
    for name in ("observation", "action"):
        single, batched = getattr(envs, f"single_{name}_space"), getattr(envs, f"{name}_space")
        assert batched == batch_space(single, num), f"{name}_space must be {num} x {single}, got {batched}"


def _check_seeds(envs: Vector, steps: int) -> None:
    """The same seed gives the same trajectory, and another seed a different one."""
    first, again, other = (_play(envs, steps, seed) for seed in (SEED, SEED, SEED + 100))
    _assert_same(again, first, f"reset(seed={SEED}) twice must give the same trajectory")
    listed = _play(envs, steps, [SEED + i for i in range(envs.num_envs)])
    _assert_same(listed, first, "seed=[s, s + 1, ...] must be equivalent to seed=s")
    differs = any(not np.array_equal(a.obs, b.obs) for a, b in zip(first, other, strict=True))
    assert differs, f"seeds {SEED} and {SEED + 100} gave the same observations: seeds are ignored"


def _check_ownership(envs: Vector, steps: int) -> None:
    """Returned arrays belong to the caller, and arrays passed in are not changed."""
    given: list[_Seen] = []
    seen = _play(envs, steps, SEED, given)
    for name in ("obs", "rew", "term", "trunc"):
        pairs = combinations((getattr(call, name) for call in given), 2)
        shared = any(np.may_share_memory(a, b) for a, b in pairs)
        assert not shared, f"two calls returned the same memory as {name}; return a new array in every call"
    _assert_same(given, seen, "a later call must not change returned arrays")
    smudged = _play(envs, steps, SEED, smudge=True)
    _assert_same(smudged, seen, "writing into returned arrays must not change the episode")


def _check_rows(envs: Vector, rows: list[Any], mode: AutoresetMode, steps: int) -> None:
    """Row i with seed s equals the single environment with seed s + i, including resets."""
    want = [row.reset(seed=SEED + i)[0] for i, row in enumerate(rows)]
    obs, _ = envs.reset(seed=SEED)
    _assert_obs(envs, obs, want, "reset")
    envs.action_space.seed(SEED)
    over = np.zeros(len(rows), bool)
    num_ends = 0
    for t in range(steps):
        where = f"{mode}, step {t}"
        if mode == AutoresetMode.DISABLED and over.any():
            _check_partial_reset(envs, rows, want, over, where)
            over[:] = False
        actions = envs.action_space.sample()
        seen = _checked(envs, _Seen(*envs.step(actions)), where)
        final: dict[int, Array] = {}
        for i, row in enumerate(rows):
            if over[i]:  # NEXT_STEP: the action is ignored and a new episode starts.
                want[i], facts = row.reset()[0], (0.0, False, False)
            else:
                want[i], *rest = row.step(actions[i])
                facts = (float(rest[0]), bool(rest[1]), bool(rest[2]))
            got = (float(seen.rew[i]), bool(seen.term[i]), bool(seen.trunc[i]))
            rule = "row == single"
            if over[i]:
                rule = "the step after an episode starts a new one: reward 0, not done"
            close = np.allclose(got[0], facts[0], rtol=1e-3, atol=1e-4) and got[1:] == facts[1:]
            assert close, f"{where}, row {i}: (rew, term, trunc) must be {facts} ({rule}), got {got}"
            if mode == AutoresetMode.SAME_STEP and seen.done[i]:
                final[i], want[i] = want[i], row.reset()[0]
        _assert_obs(envs, seen.obs, want, where)
        _check_final(seen.info, final, len(rows), where)
        num_ends += int(seen.done.sum())
        over = seen.done & (mode != AutoresetMode.SAME_STEP)
    assert num_ends, (
        f"no episode ended in {steps} steps, so resets were not checked; pass more steps or a shorter horizon"
    )


def _check_partial_reset(envs: Vector, rows: list[Any], want: list[Array], over: Array, where: str) -> None:
    for i in np.flatnonzero(over):
        want[i] = rows[i].reset()[0]
    obs, _ = envs.reset(options={"reset_mask": over.copy()})
    _assert_obs(envs, obs, want, f"{where}, reset_mask={over.tolist()} (rows outside the mask must not change)")


def _check_final(info: dict[str, Any], final: dict[int, Array], num: int, where: str) -> None:
    """SAME_STEP puts the last observation and info of an episode into info, only for rows that ended."""
    mask = np.isin(np.arange(num), list(final))
    for name in ("final_obs", "final_info"):
        given = np.asarray(info.get(f"_{name}", np.zeros(num, bool)))
        assert np.array_equal(given, mask), f"{where}: info['_{name}'] must be {mask}, got {given}"
        assert name in info or not final, f"{where}: info[{name!r}] is missing at the end of an episode"
    for i, obs in final.items():
        _assert_close(
            info["final_obs"][i], obs, f"{where}: info['final_obs'][{i}] must be the last frame of the episode"
        )


def _play(
    envs: Vector, steps: int, seed: int | list[int], given: list[_Seen] | None = None, *, smudge: bool = False
) -> list[_Seen]:
    """Copies of a reset and `steps` steps. The arrays themselves go to `given`; `smudge` overwrites them."""
    if given is None:
        given = []
    obs, info = envs.reset(seed=seed)  # type: ignore[arg-type]
    zeros = np.zeros(envs.num_envs), np.zeros(envs.num_envs, bool), np.zeros(envs.num_envs, bool)
    given.append(_checked(envs, _Seen(obs, *zeros, info), "reset"))
    seen = [_copy(given[-1])]
    envs.action_space.seed(SEED)
    for t in range(steps):
        over = seen[-1].done
        if smudge:
            for part in given[-1][:4]:
                part[...] = ~part if part.dtype == bool else 77
        if envs.metadata["autoreset_mode"] == AutoresetMode.DISABLED and over.any():
            envs.reset(options={"reset_mask": over.copy()})
        actions = envs.action_space.sample()
        passed = np.copy(actions)
        given.append(_checked(envs, _Seen(*envs.step(passed)), f"step {t}"))
        seen.append(_copy(given[-1]))
        assert np.array_equal(passed, actions), f"step {t} changed the actions that were passed in"
    return seen


def _copy(seen: _Seen) -> _Seen:
    return _Seen(seen.obs.copy(), seen.rew.copy(), seen.term.copy(), seen.trunc.copy(), dict(seen.info))


def _checked(envs: Vector, seen: _Seen, where: str) -> _Seen:
    num = envs.num_envs
    assert isinstance(seen.obs, np.ndarray), f"{where}: obs must be an array, got {type(seen.obs)}"
    space = envs.observation_space
    assert (seen.obs.shape, seen.obs.dtype) == (space.shape, space.dtype), (
        f"{where}: obs must be {space.shape} {space.dtype}, got {seen.obs.shape} {seen.obs.dtype}"
    )
    assert space.contains(seen.obs), f"{where}: obs must lie in {space}, got {seen.obs.min()} to {seen.obs.max()}"
    for name, kind in (("rew", "floats"), ("term", "bools"), ("trunc", "bools")):
        part = getattr(seen, name)
        got = (getattr(part, "shape", None), getattr(part, "dtype", type(part)))
        right = isinstance(part, np.ndarray) and part.shape == (num,) and part.dtype.kind == kind[0]
        assert right, f"{where}: {name} must be an array ({num},) of {kind}, got {got}"
    assert isinstance(seen.info, dict), f"{where}: info must be a dict, got {type(seen.info)}"
    return seen


def _assert_same(got: list[_Seen], want: list[_Seen], rule: str) -> None:
    for t, (a, b) in enumerate(zip(got, want, strict=True)):
        for name in ("obs", "rew", "term", "trunc"):
            x, y = getattr(a, name), getattr(b, name)
            assert np.array_equal(x, y), f"{rule}; {name} differs at call {t}: {x} and {y}"


def _assert_obs(envs: Vector, obs: Array, want: list[Array], where: str) -> None:
    for i, one in enumerate(want):
        _assert_close(obs[i], one, f"{where}: row {i} with seed {SEED} must equal the single env with seed {SEED + i}")


def _assert_close(got: Array, want: Array, rule: str) -> None:
    assert got is not None, f"{rule}, got None"
    # The rounding of a pixel may depend on the batch size.
    atol = 1.0 if want.dtype == np.uint8 else 1e-4
    got, want = np.asarray(got, np.float64), np.asarray(want, np.float64)
    assert got.shape == want.shape, f"{rule}; shapes are {got.shape} and {want.shape}"
    assert np.allclose(got, want, rtol=1e-3, atol=atol), f"{rule}; they differ by up to {np.abs(got - want).max()}"


class _OneRow:
    """A vector environment of one row as a single environment without autoreset."""

    def __init__(self, make: Make) -> None:
        self.envs = make(num_envs=1, autoreset_mode=AutoresetMode.DISABLED)

    def reset(self, *, seed: int | None = None) -> tuple[Array, dict[str, Any]]:
        obs, info = self.envs.reset(seed=seed)
        return obs[0], info

    def step(self, action: Any) -> tuple[Array, float, bool, bool, dict[str, Any]]:
        obs, rew, term, trunc, info = self.envs.step(np.asarray(action)[None])
        return obs[0], rew[0], term[0], trunc[0], info

    def close(self) -> None:
        self.envs.close()
