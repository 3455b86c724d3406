"""The rules for when a task is solved or stopped; pure arithmetic on returns."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

from wm_envs.fields import at_least, check_fields

WINDOW = 5
"""Number of evaluations that are averaged for a promotion."""
Verdict = Literal["solved", "plateau", "max_generations"]


@dataclass
class Promotion:
    """A task is solved when the mean of its last five evaluations reaches the threshold."""

    threshold: float
    means: list[float] = field(default_factory=list)
    """Mean returns of the last evaluations, five at most."""

    def add(self, mean: float) -> bool:
        """Add one evaluation and return True if the task is solved.

        Raises:
            ValueError: the mean is not finite.
        """
        if not math.isfinite(mean):
            raise ValueError(f"the mean return of an evaluation must be finite, got {mean}")
        self.means = [*self.means, float(mean)][-WINDOW:]
        return self.solved

    @property
    def rolling(self) -> float | None:
        """Mean of the last five evaluations; None with fewer than five."""
        if len(self.means) == WINDOW:
            return sum(self.means) / WINDOW
        return None

    @property
    def solved(self) -> bool:
        return self.rolling is not None and self.rolling >= self.threshold


@dataclass
class Plateau:
    """Stops a task whose rolling mean no longer rises, or whose generations are used up.

    Near the threshold, a task is extended once, by `extension` generations. Patience is ignored during the
    extension. A task whose rolling mean has risen by its end continues under the usual rules.
    """

    threshold: float
    max_generations: int = field(metadata=at_least(1))
    patience: int = field(default=20, metadata=at_least(1))
    """Consecutive evaluations without improvement before stopping."""
    min_delta: float = field(default=1.0, metadata=at_least(0))
    """Minimum rise of the rolling mean over its best value that counts as improvement."""
    early_stop: bool = True
    """False: stop only when the generations are used up."""
    period: int = field(default=1, metadata=at_least(1))
    """Generations between evaluations; an extension ends with one."""
    best: float | None = None
    """The best rolling mean that counted as improvement."""
    num_bad: int = 0
    """Evaluations since the last improvement."""
    extended_at: int | None = None
    """The last generation without the extension."""

    def __post_init__(self) -> None:
        check_fields(self)

    def add(self, generation: int, rolling: float | None) -> Verdict | None:
        """Add the rolling mean of an evaluation (None before five) and return the reason to stop, or None."""
        if rolling is not None:
            if self.best is None or rolling > self.best + self.min_delta:
                self.best, self.num_bad = rolling, 0
            else:
                self.num_bad += 1
        reason = self._reason(generation)
        if reason is not None and self.extended_at is None and self.is_near(rolling):
            self.extended_at = generation
            return None
        return reason

    def is_near(self, rolling: float | None) -> bool:
        """Whether the rolling mean is within max(5, 10 % of the threshold) below the threshold."""
        return rolling is not None and rolling >= self.threshold - max(5.0, 0.1 * abs(self.threshold))

    @property
    def extension(self) -> int:
        """Generations of an extension: 10 % of the maximum, at least ten, rounded up to an evaluation."""
        return math.ceil(max(10, self.max_generations / 10) / self.period) * self.period

    @property
    def limit(self) -> int:
        """The last generation under the current rules."""
        return max(self.max_generations, self._extended_until)

    @property
    def _extended_until(self) -> int:
        if self.extended_at is None:
            return 0
        return self.extended_at + self.extension

    def _reason(self, generation: int) -> Verdict | None:
        if generation >= self.limit:
            return "max_generations"
        stale = self.early_stop and self.num_bad >= self.patience
        if stale and generation >= self._extended_until:
            return "plateau"
        return None


@dataclass
class Standing:
    """The state of a task after all evaluations so far; `to_dict` converts it to JSON."""

    promotion: Promotion
    plateau: Plateau
    verdict: Verdict | None = None
    """None while the task runs; final once it is set."""

    def add(self, generation: int, mean: float) -> Verdict | None:
        """Add one evaluation and return the reason to stop, or None to continue."""
        if self.verdict is None:
            solved = self.promotion.add(mean)
            self.verdict = "solved" if solved else self.plateau.add(generation, self.promotion.rolling)
        return self.verdict

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Standing:
        return cls(Promotion(**values["promotion"]), Plateau(**values["plateau"]), values["verdict"])
