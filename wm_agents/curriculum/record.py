"""The record of one task of a curriculum: evaluations, state, and the time of each phase."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np

from wm_agents.curriculum.promotion import Plateau, Promotion, Standing

STATUS = {"solved": "SOLVED", "plateau": "PLATEAU_STOP", "max_generations": "MAX_GENERATIONS", None: "INCOMPLETE"}


@dataclass(frozen=True)
class Evaluation:
    """One evaluation in the real environment, and the state of the task after it."""

    generation: int
    returns: list[float]
    seed: int
    """Environment seed of the first episode; the others are consecutive."""
    best: float
    """The best mean return so far."""
    rolling: float | None
    """Mean of the last five evaluations."""
    num_bad: int
    """Evaluations since the last improvement."""
    solved: bool
    dream_return: float | None
    """The return of the controller in the dream it is trained in."""
    real_steps: int
    """Agent steps of real episodes so far, including evaluations and videos."""
    elapsed_s: float
    """Seconds of the run so far, over all starts."""
    timestamp: str

    @property
    def mean(self) -> float:
        return float(np.mean(self.returns))

    @property
    def std(self) -> float:
        """Sample standard deviation of the episodes."""
        if len(self.returns) > 1:
            return float(np.std(self.returns, ddof=1))
        return 0.0


@dataclass
class Record:
    """The record of one task; `to_dict` converts it to JSON."""

    name: str
    env_id: str
    folder: str
    standing: Standing
    evaluations: list[Evaluation] = field(default_factory=list)
    phases: dict[str, float] = field(default_factory=dict)
    """Measured seconds of each phase."""
    final: dict[str, Any] | None = None
    """Score of the final controller on held-out seeds."""
    warm_start: dict[str, Any] | None = None
    """The model from which the encoder V was initialised, and the measured effect."""
    looked_at: int = 0
    """The last generation that was recorded or evaluated."""
    best_model: str | None = None
    """The generation of the best evaluation."""
    looked_steps: int = 0
    """Agent steps of all evaluations and of episodes that were shown."""
    evaluated_steps: int = 0
    """Agent steps of evaluations alone, also of those that were killed and repeated."""
    films: dict[str, int] = field(default_factory=dict)
    """Agent steps of each video, by generation."""
    looked: dict[str, float] = field(default_factory=dict)
    """Seconds of evaluations and videos, by training round."""
    done: bool = False
    """The task has ended, with report and cleanup."""

    @classmethod
    def new(cls, name: str, env_id: str, folder: str, promotion: Promotion, plateau: Plateau) -> Record:
        return cls(name, env_id, folder, Standing(promotion, plateau))

    @property
    def threshold(self) -> float:
        return self.standing.promotion.threshold

    @property
    def solved(self) -> bool:
        return self.standing.verdict == "solved"

    @property
    def status(self) -> str:
        return STATUS[self.standing.verdict]

    @property
    def last(self) -> Evaluation | None:
        if self.evaluations:
            return self.evaluations[-1]
        return None

    @property
    def best(self) -> float | None:
        if self.last is None:
            return None
        return self.last.best

    @property
    def generations(self) -> int:
        """Generations up to the last evaluation."""
        if self.last is None:
            return 0
        return self.last.generation

    @property
    def solved_generation(self) -> int | None:
        return next((e.generation for e in self.evaluations if e.solved), None)

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Record:
        standing = Standing.from_dict(values["standing"])
        return cls(**{**values, "standing": standing, "evaluations": [Evaluation(**e) for e in values["evaluations"]]})
