"""One episode, the unit of data: `obs[t], act[t] -> rew[t], obs[t+1]`."""

from __future__ import annotations

from collections.abc import Generator, Iterable
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from policies.rollout import Transition

Array = NDArray[Any]
Scalar = str | int | float | bool | None

UNKNOWN_SEED = -1
"""The seed of an episode without a known seed."""
LARGEST = float(np.finfo(np.float32).max)
"""Models compute in float32."""
MEND = "it must be finite in float32; correct the environment, or replace the value in a wrapper"


class NonFiniteStep(ValueError):
    """An environment returned an observation or a reward that is NaN, infinite or too large for float32."""


class Episode(NamedTuple):
    """T steps from a reset to termination or truncation: `obs[t], act[t] -> rew[t], obs[t+1]`."""

    obs: Array
    """(T+1, ...), including the last frame"""
    act: Array
    """(T, *action shape), the environment's own actions"""
    rew: NDArray[np.floating]
    """(T,), float32, or the dtype of imported data"""
    term: bool
    trunc: bool
    seed: int
    info: dict[str, Scalar]

    @property
    def num_steps(self) -> int:
        return len(self.rew)


def check_episode(ep: Episode) -> None:
    """Raise ValueError if the shapes, dtypes or values of `ep` are inconsistent."""
    steps = len(ep.rew)
    if steps == 0:
        raise ValueError(f"an episode needs at least one step, got none (seed {ep.seed})")
    if len(ep.obs) != steps + 1 or len(ep.act) != steps:
        raise ValueError(
            f"an episode of {steps} rewards needs {steps + 1} obs and {steps} act, "
            f"got {len(ep.obs)} and {len(ep.act)} (seed {ep.seed}); include the last frame"
        )
    if ep.rew.ndim != 1 or not np.issubdtype(ep.rew.dtype, np.floating):
        raise ValueError(f"rew must be floats (T,), got {ep.rew.dtype} {ep.rew.shape} (seed {ep.seed})")
    if ep.obs.dtype == object or ep.act.dtype == object:
        raise ValueError(
            f"obs and act must be plain arrays, got {ep.obs.dtype} and {ep.act.dtype} (seed {ep.seed}); "
            "flatten dict or tuple spaces with a wrapper"
        )
    if not _is_finite(ep.rew):
        step = int((~(np.abs(ep.rew) <= LARGEST)).argmax()) + 1
        check_step(ep.obs[0], ep.rew[step - 1], ep.seed, step)
    if not _is_finite(ep.obs):
        for step, obs in enumerate(ep.obs):
            check_step(obs, 0.0, ep.seed, step)
    if not (ep.term or ep.trunc):
        raise ValueError(f"an episode must end with term or trunc, got neither (seed {ep.seed})")


def _is_finite(values: Array) -> bool:
    """Whether all `values` are finite in float32; integers are."""
    return values.dtype.kind not in "fc" or bool((np.abs(values) <= LARGEST).all())


def check_step(obs: Array, rew: float, seed: int, step: int) -> None:
    """Check what an environment returned at `step`, 0 for the reset.

    Raises:
        NonFiniteStep: the observation or the reward is NaN, infinite or too large for float32.
    """
    if not abs(rew) <= LARGEST:
        raise NonFiniteStep(f"the reward of step {step} is {rew} (seed {seed}); {MEND}")
    if not _is_finite(obs):
        place = tuple(map(int, np.argwhere(~(np.abs(obs) <= LARGEST))[0]))
        raise NonFiniteStep(
            f"the observation of step {step} is {obs[place]} at index {list(place)} (seed {seed}); {MEND}"
        )


def collect_episode(
    transitions: Iterable[Transition],
    seed: int,
    *,
    stall: int | None = None,
    max_steps: int | None = None,
    info: dict[str, Scalar] | None = None,
) -> Episode:
    """Record one episode from a rollout of one row.

    Args:
        stall: truncate the episode after N steps without a positive reward.
        max_steps: truncate the episode after N steps.
    """
    obs: list[Array] = []
    act: list[Array] = []
    rew: list[float] = []
    term = trunc = False
    idle = 0
    for t in transitions:
        if len(t.rew) != 1:
            raise ValueError(f"an episode is recorded from a rollout of 1 row, got {len(t.rew)} rows")
        if not obs:
            obs.append(np.array(t.obs[0]))
            check_step(obs[0], 0.0, seed, 0)
        obs.append(np.array(t.next_obs[0]))  # Copies: the env may reuse its buffers.
        act.append(np.array(t.act[0]))
        rew.append(float(t.rew[0]))
        check_step(obs[-1], rew[-1], seed, len(rew))
        term, trunc = bool(t.term[0]), bool(t.trunc[0])
        idle += 1
        if rew[-1] > 0:
            idle = 0
        if not term and ((stall is not None and idle >= stall) or len(act) == max_steps):
            trunc = True
        if term or trunc:
            break
    if isinstance(transitions, Generator):
        transitions.close()
    if not obs:
        raise ValueError(f"the rollout has no transitions (seed {seed})")
    ep = Episode(np.stack(obs), np.stack(act), np.array(rew, np.float32), term, trunc, seed, dict(info or {}))
    check_episode(ep)
    return ep


def split_episode(ep: Episode, ends: NDArray[np.int64]) -> list[Episode]:
    """Split an episode after each of the steps `ends`, which become terminations.

    The next episode starts with the frame to which the step led.
    """
    stops = sorted({*(int(t) + 1 for t in ends), ep.num_steps})
    parts = []
    for start, stop in zip([0, *stops], stops):
        flags = (True, False)
        if stop == ep.num_steps and stop - 1 not in ends:
            flags = (ep.term, ep.trunc)
        parts.append(
            Episode(ep.obs[start : stop + 1], ep.act[start:stop], ep.rew[start:stop], *flags, ep.seed, ep.info)
        )
    return parts


def drop_autoreset_rows(
    obs: Array, act: Array, rew: Array, term: Array, trunc: Array, *, seed: int = UNKNOWN_SEED
) -> list[Episode]:
    """Split the stream of one environment, recorded with NEXT_STEP autoreset, into episodes.

    With NEXT_STEP, the step after an episode ignores its action and returns the first frame of the next episode
    with reward 0. That row is not a transition and is dropped. An unfinished last episode counts as
    truncated, with `info["cut"]`. Only the first episode can have `seed`.

    Args:
        obs: (T+1, ...), from the reset on; act (T, ...), rew, term and trunc (T,) as returned by `step`.
    """
    done = np.asarray(term, bool) | np.asarray(trunc, bool)
    if len(obs) != len(done) + 1:
        raise ValueError(f"a stream of {len(done)} steps needs {len(done) + 1} obs, got {len(obs)}")
    stops = [int(i) + 1 for i in np.flatnonzero(done)]
    starts = [0] + [stop + 1 for stop in stops]  # Skips the autoreset row at index `stop`.
    episodes = []
    for start, stop in zip(starts, [*stops, len(done)], strict=True):
        if stop <= start:
            continue
        unfinished = not bool(done[stop - 1])
        ep = Episode(
            np.array(obs[start : stop + 1]),
            np.array(act[start:stop]),
            np.asarray(rew[start:stop], np.float32),
            bool(term[stop - 1]),
            bool(trunc[stop - 1]) or unfinished,
            seed,
            {},
        )
        if unfinished:
            ep.info["cut"] = True
        check_episode(ep)
        episodes.append(ep)
        seed = UNKNOWN_SEED
    return episodes
