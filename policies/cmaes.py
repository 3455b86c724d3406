"""CMA-ES for linear controllers, in dreams (the whole population is one batch) or in the real environment.

The package pycma implements the strategy. This file makes it maximise, makes it resumable and scores its candidates.
"""

from __future__ import annotations

import hashlib
import json
import os
import time
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

import gymnasium as gym
import numpy as np
from gymnasium.vector import VectorEnv
from numpy.typing import NDArray

from policies.linear import LinearPolicy
from policies.play import EpisodePool, EpisodeTask
from policies.rollout import check_seed, returns, rollout
from wm_envs.action import act_dim
from wm_envs.fields import above, at_least, check_fields, differing

Array = NDArray[Any]
EMPTY: Mapping[str, str] = MappingProxyType({})
Score = Callable[[Array, int], Array]
"""Maps candidates (P, D) and the number of the generation to returns (P,)."""


@dataclass(frozen=True)
class CMAConfig:
    """Settings of the strategy; population, rollouts and sigma default to those of the paper."""

    population: int = field(default=64, metadata=at_least(2))
    """Candidates per generation."""
    rollouts: int = field(default=16, metadata=at_least(1))
    """Episodes per candidate. Their seeds are the same for all candidates of a generation."""
    generations: int = field(default=120, metadata=at_least(1))
    """Number of generations."""
    sigma: float = field(default=0.1, metadata=above(0))
    """Initial standard deviation of the weights."""
    components: int | None = field(default=None, metadata=at_least(1))
    """Evolve weights on the first N principal components of feat (`policies.subspace`) instead of on feat itself. This
    takes far fewer dreams if feat has many correlated dimensions."""
    average: int = field(default=1, metadata=at_least(1))
    """The result is the average of the distribution's means after the last N generations (Polyak & Juditsky 1992).
    With few rollouts this removes much of the noise of a single mean."""
    seed: int = field(default=0, metadata=at_least(0))
    """Random seed."""

    def __post_init__(self) -> None:
        check_fields(self)


class Generation(NamedTuple):
    """The progress after one generation."""

    number: int
    mean: float
    """Mean return of the population."""
    best: float
    sigma: float
    wall_s: float
    weights: Array
    """The result so far (D,)."""


class Evolution:
    """CMA-ES by `ask` and `tell`, which maximises returns.

    The saved state is the list of all returns so far. Replaying them restores the covariance and the random numbers of
    pycma exactly, without unpickling. The mean is saved too and compared after the replay, because the linear algebra
    of another machine may give other candidates.
    """

    def __init__(self, x0: Array, cfg: CMAConfig, told: Array | None = None, about: Mapping[str, str] = EMPTY) -> None:
        import cma  # Imports Matplotlib, which workers and `--help` do not need.

        self.cfg = cfg
        self.x0 = np.asarray(x0, np.float64)
        self.about = dict(about)
        """Facts that the caller needs to compute scores in the same way after resuming."""
        self.told: list[Array] = []
        self._means: deque[Array] = deque(maxlen=cfg.average)
        rng = np.random.default_rng(cfg.seed)
        options = {
            "popsize": cfg.population,
            "randn": lambda *shape: rng.standard_normal(shape),
            "seed": np.nan,  # Do not seed NumPy's global generator.
            "verbose": -9,
            "verb_log": 0,
            "maxiter": np.inf,
        }
        self._es = cma.CMAEvolutionStrategy(self.x0, cfg.sigma, options)
        for values in told if told is not None else ():
            self.ask()
            self.tell(values)

    @property
    def generation(self) -> int:
        """Number of generations so far."""
        return len(self.told)

    @property
    def mean(self) -> Array:
        """The distribution's mean (D,)."""
        return np.asarray(self._es.mean, np.float64)

    @property
    def result(self) -> Array:
        """The average of the last `cfg.average` means (D,), which is reported and saved instead of the best sample."""
        if not self._means:
            return self.mean
        average: Array = np.mean(self._means, axis=0)
        return average

    @property
    def sigma(self) -> float:
        return float(self._es.sigma)

    def ask(self) -> Array:
        """The next candidates (P, D)."""
        self._asked = np.asarray(self._es.ask())
        return self._asked

    def tell(self, values: Array) -> None:
        """Update the distribution with the returns (P,) of the last candidates; higher is better.

        Raises:
            ValueError: a return is not finite.
        """
        values = np.asarray(values, np.float64)
        if values.shape != (self.cfg.population,) or not np.isfinite(values).all():
            raise ValueError(f"returns must be ({self.cfg.population},) and finite, got {values.shape}: {values}")
        self._es.tell(list(self._asked), list(-values))  # cma minimises.
        self.told.append(values)
        self._means.append(self.mean)

    def save(self, path: Path) -> None:
        """Write the state completely or not at all."""
        state = {
            "cfg": asdict(self.cfg),
            "x0": self.x0.tolist(),
            "told": [t.tolist() for t in self.told],
            "mean": self.mean.tolist(),
            "about": self.about,
        }
        temporary = path.with_suffix(".tmp")
        with temporary.open("w", encoding="utf-8") as file:
            file.write(json.dumps({**state, "sha256": _digest(state)}))
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)

    @classmethod
    def load(cls, path: Path, cfg: CMAConfig | None = None) -> Evolution:
        """Restore a saved state. `cfg` may differ from the saved settings only in the number of generations.

        Raises:
            ValueError: the settings differ, or the replay gives another mean on this machine.
        """
        state = _read_evolution(path)
        saved = CMAConfig(**state["cfg"])
        cfg = cfg or saved
        changes = differing(asdict(saved) | {"generations": 0}, asdict(cfg) | {"generations": 0})
        if changes:
            raise ValueError(
                f"{path} contains an evolution with other settings: {changes}; restore them to resume, or remove the "
                "file to start over"
            )
        evolution = cls(np.array(state["x0"]), cfg, np.array(state["told"]), state["about"])
        if not np.allclose(evolution.mean, state["mean"], rtol=1e-6, atol=1e-9):
            raise ValueError(
                f"recomputing the generations of {path} gives another mean than the stored one: the file was written "
                "on another machine, with other libraries or with another number of threads. "
                "Resume where it was written, or remove the file to start over"
            )
        return evolution


def read_about(state: Path | None) -> dict[str, str]:
    """The `about` of a saved evolution; empty if there is no saved state."""
    if state is None or not state.exists():
        return {}
    about: dict[str, str] = _read_evolution(state)["about"]
    return about


def _read_evolution(path: Path) -> dict[str, Any]:
    """The content of a file of `Evolution.save`.

    Raises:
        ValueError: it is damaged.
    """
    try:
        state: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        expected = state.pop("sha256", None)  # Earlier versions wrote none.
        if expected not in (None, _digest(state)):
            raise ValueError("it does not match its sha256")
        return {"about": {}, **state}
    except (ValueError, TypeError, AttributeError, RecursionError) as error:
        raise ValueError(
            f"{path} is damaged: {error}; restore a copy, or delete it to restart the evolution"
        ) from error


def _digest(state: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(state, sort_keys=True).encode()).hexdigest()


def evolve(
    score: Score,
    x0: Array,
    cfg: CMAConfig,
    *,
    state: Path | None = None,
    about: Mapping[str, str] = EMPTY,
    on_generation: Callable[[Generation], bool | None] | None = None,
) -> Evolution:
    """Run the remaining generations.

    Args:
        state: file in which the state is saved after every generation, and from which the run resumes.
        about: facts to save in the state of a new run, for `read_about`.
        on_generation: called after every generation; returns True to stop.
    """
    evolution = Evolution.load(state, cfg) if state is not None and state.exists() else Evolution(x0, cfg, about=about)

    def told(began: float) -> bool:
        if on_generation is None or not evolution.told:
            return False
        values, wall_s = evolution.told[-1], time.perf_counter() - began
        means = float(values.mean()), float(values.max())
        return bool(on_generation(Generation(evolution.generation, *means, evolution.sigma, wall_s, evolution.result)))

    # A run that was killed before the callback of this generation calls it now.
    stopped = told(time.perf_counter())
    while evolution.generation < cfg.generations and not stopped:
        began = time.perf_counter()
        values = score(evolution.ask(), evolution.generation)
        evolution.tell(values)
        if state is not None:
            evolution.save(state)
        stopped = told(began)
    return evolution


def score_in_dream(
    envs: VectorEnv[Array, Array, Array],
    cfg: CMAConfig,
    *,
    squash: tuple[str, ...] | None = None,
    start: str = "anywhere",
    widen: Callable[[Array], Array] = lambda weights: weights,
) -> Score:
    """Score a population in dreams, which have the same seeds for every candidate.

    Args:
        envs: dreams with population x rollouts rows, obs="latent" and autoreset DISABLED.
        widen: converts evolved weights to weights on feat, if only some of them are evolved.
    """
    want = cfg.population * cfg.rollouts
    if envs.num_envs != want:
        raise ValueError(f"envs must have population x rollouts = {want} rows, got {envs.num_envs}")
    space: gym.Space[Any] = envs.single_action_space

    def score(candidates: Array, generation: int) -> Array:
        policy = LinearPolicy(space, widen(unflatten(candidates, space)), squash)
        seeds: list[int | None] = [*rollout_seeds(cfg, generation)] * cfg.population
        total = returns(rollout(envs, policy, seed=seeds, options={"start": start}))
        per_candidate: Array = total.reshape(cfg.population, cfg.rollouts).mean(1)
        return per_candidate

    return score


def score_in_real(
    pool: EpisodePool,
    cfg: CMAConfig,
    space: gym.Space[Any],
    *,
    widen: Callable[[Array], Array] = lambda weights: weights,
) -> Score:
    """Score a population in real episodes, which have the same seeds for every candidate.

    Args:
        pool: its `make_policy` is called with weights (A, F + 1).
        widen: converts evolved weights to weights on feat, if only some of them are evolved.
    """

    def score(candidates: Array, generation: int) -> Array:
        seeds = rollout_seeds(cfg, generation)
        weights = widen(unflatten(candidates, space)).astype(np.float32)
        jobs = [EpisodeTask(seed, (mine,)) for mine in weights for seed in seeds]
        total = np.empty(len(jobs))
        for played in pool.play(jobs):
            total[played.task] = played.ret
        per_candidate: Array = total.reshape(cfg.population, cfg.rollouts).mean(1)
        return per_candidate

    return score


def rollout_seeds(cfg: CMAConfig, generation: int) -> range:
    """The seeds of all candidates of a generation. Raises ValueError for seeds reserved for evaluation."""
    first = cfg.seed + generation * cfg.rollouts
    check_seed(first)
    check_seed(first + cfg.rollouts - 1)
    return range(first, first + cfg.rollouts)


def unflatten(flat: Array, space: gym.Space[Any]) -> Array:
    """Flat parameters (..., D) as weights (..., A, F + 1)."""
    outs = act_dim(space)
    return flat.reshape(*flat.shape[:-1], outs, flat.shape[-1] // outs)
