"""When a task of a curriculum is solved, and when to give it up. Plain numbers; nothing here plays or trains."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

WINDOW = 5
"""Evaluations in the real environment that a promotion rests on; fewer never promote."""
Verdict = Literal["solved", "plateau", "max_generations"]


@dataclass
class Promotion:
    """A task is solved when the mean of its last five evaluations reaches the threshold."""

    threshold: float
    means: list[float] = field(default_factory=list)
    """Mean returns of the last evaluations, five at most."""

    def add(self, mean: float) -> bool:
        """Take in one evaluation; True when the task is solved.

        Raises:
            ValueError: the mean is not finite.
        """
        if not math.isfinite(mean):
            raise ValueError(f"an evaluation's mean return must be finite, got {mean}")
        self.means = [*self.means, float(mean)][-WINDOW:]
        return self.solved

    @property
    def rolling(self) -> float | None:
        """Mean of the last five evaluations; None before there are five."""
        return sum(self.means) / WINDOW if len(self.means) == WINDOW else None

    @property
    def solved(self) -> bool:
        return self.rolling is not None and self.rolling >= self.threshold


@dataclass
class Plateau:
    """Stops a task whose rolling mean no longer rises, or whose generations are spent; near the threshold it extends.

    The extension comes once: `extension` generations from the one that would have been the last. Patience is not
    looked at meanwhile, and what has risen by their end goes on as before.
    """

    threshold: float
    max_generations: int
    patience: int = 20
    """Evaluations in a row without improvement that are borne."""
    min_delta: float = 1.0
    """By how much the rolling mean must beat the best one to count as improvement."""
    early_stop: bool = True
    """False: only spent generations stop."""
    period: int = 1
    """Generations between evaluations; an extension ends with one."""
    best: float | None = None
    """The best rolling mean that counted."""
    num_bad: int = 0
    """Evaluations since then."""
    extended_at: int | None = None
    """The generation that would have been the last."""

    def __post_init__(self) -> None:
        for name, low in (("max_generations", 1), ("patience", 1), ("period", 1), ("min_delta", 0)):
            if not getattr(self, name) >= low:
                raise ValueError(f"{name} must be at least {low}, got {getattr(self, name)}")

    def add(self, generation: int, rolling: float | None) -> Verdict | None:
        """Take in one evaluation's rolling mean (None before five); the reason to stop, if there is one."""
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
        """Whether the rolling mean lies within max(5, a tenth of the threshold) below it."""
        return rolling is not None and rolling >= self.threshold - max(5.0, 0.1 * abs(self.threshold))

    @property
    def extension(self) -> int:
        """Generations that an extension adds: a tenth of the most there may be, ten at least, up to an evaluation."""
        return math.ceil(max(10, self.max_generations / 10) / self.period) * self.period

    @property
    def limit(self) -> int:
        """The last generation that may be trained, as things stand."""
        return max(self.max_generations, self._extended_until)

    @property
    def _extended_until(self) -> int:
        return 0 if self.extended_at is None else self.extended_at + self.extension

    def _reason(self, generation: int) -> Verdict | None:
        if generation >= self.limit:
            return "max_generations"
        stale = self.early_stop and self.num_bad >= self.patience
        return "plateau" if stale and generation >= self._extended_until else None


@dataclass
class Standing:
    """Where a task stands: what one evaluation after the other has made of it. JSON by `to_dict`."""

    promotion: Promotion
    plateau: Plateau
    verdict: Verdict | None = None
    """None while the task goes on; it never changes again."""

    def add(self, generation: int, mean: float) -> Verdict | None:
        """Take in one evaluation; the verdict, None to go on."""
        if self.verdict is None:
            solved = self.promotion.add(mean)
            self.verdict = "solved" if solved else self.plateau.add(generation, self.promotion.rolling)
        return self.verdict

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Standing:
        return cls(Promotion(**values["promotion"]), Plateau(**values["plateau"]), values["verdict"])
