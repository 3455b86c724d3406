"""The table of tasks: real id, how it is seen, Dream id, threshold. Strings and numbers only."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field, fields
from typing import Any

from gymnasium.envs.registration import register, registry


@dataclass(frozen=True)
class RealSpec:
    """How a real environment is made and seen; a model's artifact stores it."""

    id: str
    """A Gymnasium id; `module:Id-v0` where the module must be imported first."""
    kwargs: dict[str, Any] = field(default_factory=dict)
    size: int | None = None
    """Pixels are resized by area to (size, size, 3) uint8; None keeps the native observation."""
    action_repeat: int = 1
    max_episode_steps: int | None = None
    """In agent steps, each `action_repeat` frames long; None keeps the env's own limit."""

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> RealSpec:
        known = {f.name for f in fields(cls)}
        if extra := sorted(set(values) - known):
            raise ValueError(f"unknown fields {extra} of a RealSpec; known are {sorted(known)}")
        return cls(**values)


@dataclass(frozen=True)
class Task:
    """A real environment with a dream that ships."""

    name: str
    real: RealSpec
    threshold: float
    """Mean return over 100 episodes at which the task counts as solved."""
    model: str
    """Name of the shipped model in the store."""

    @property
    def dream_id(self) -> str:
        return f"Dream-{self.name}-v0"

    @property
    def real_id(self) -> str:
        return f"Real-{self.name}-v0"


TASKS = {
    task.name: task
    for task in [
        Task(
            "CarRacing",
            RealSpec("CarRacing-v3", size=64, action_repeat=4, max_episode_steps=250),
            threshold=900.0,
            model="vmc-carracing-small",
        ),
    ]
}

_MAKERS = "wm_agents.pretrained"


def register_envs() -> None:
    """Register the ids; a second call changes nothing. Dreams bring a vector entry point of their own."""
    if "Dream-v0" in registry:
        return
    dream, vector, real = (f"{_MAKERS}:make_{kind}_env" for kind in ("dream", "dream_vec", "real"))
    register("Dream-v0", entry_point=dream, vector_entry_point=vector)
    for task in TASKS.values():
        model = {"model": task.model}
        register(task.dream_id, entry_point=dream, vector_entry_point=vector, kwargs=model)
        register(task.real_id, entry_point=real, kwargs=model)
