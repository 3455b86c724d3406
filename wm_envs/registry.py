"""The table of tasks: real id, how it is seen, Dream id, threshold. Strings and numbers only."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, field, fields, replace
from typing import Any

from gymnasium.envs.registration import register, registry


@dataclass(frozen=True)
class RealSpec:
    """How a real environment is made and seen; a model's artifact stores it."""

    id: str
    """A Gymnasium id; `module:Id-v0` where the module must be imported first."""
    kwargs: dict[str, Any] = field(default_factory=dict)
    size: int | None = None
    """Pixels are resized by area to (size, size, C) uint8, C as the env has it: 1 grey, 3 RGB. None keeps the native
    observation; what is no vector is flattened to one, choices as one-hots."""
    action_repeat: int = 1
    max_episode_steps: int | None = None
    """In agent steps, each `action_repeat` frames long; None keeps the env's own limit."""
    crop: tuple[int, int, int, int] | None = None
    """Rows top to bottom and columns left to right of the native picture are kept: (top, bottom, left, right)."""
    max_frames: bool = False
    """Each pixel is its maximum over the last two frames: the ALE draws some things in every other frame only."""
    actions: tuple[int, ...] | None = None
    """The choices of a Discrete env that are kept, in this order; None keeps them all."""
    lives_end: bool = False
    """A lost life of an ALE game ends the episode that is learned from, and so the dream; scores are of whole games."""
    stack: bool = False
    """The last three pictures, in grey, are the channels of one, oldest first: what sees one frame sees motion."""

    def __post_init__(self) -> None:
        for name in ("size", "action_repeat", "max_episode_steps"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"{self.id}: {name} must be at least 1, got {value}")

    def to_dict(self) -> dict[str, Any]:
        """JSON values. Fields that came later are left out at their default, so that older files stay equal."""
        later = ("crop", "max_frames", "actions", "lives_end", "stack")
        return {name: value for name, value in asdict(self).items() if value or name not in later}

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> RealSpec:
        known = {f.name for f in fields(cls)}
        if extra := sorted(set(values) - known):
            raise ValueError(f"unknown fields {extra} of a RealSpec; known are {sorted(known)}")
        tuples = {name: tuple(values[name]) for name in ("crop", "actions") if values.get(name) is not None}
        return cls(**{**values, **tuples})


@dataclass(frozen=True)
class Task:
    """A real environment that dreams are made of."""

    name: str
    real: RealSpec
    threshold: float
    """Mean return over 100 episodes at which the task counts as solved."""
    model: str
    """Name of the shipped model in the store."""
    protocol: str
    """What differs from the way the environment is usually scored; printed beside scores."""

    @property
    def dream_id(self) -> str:
        return f"Dream-{self.name}-v0"

    @property
    def real_id(self) -> str:
        return f"Real-{self.name}-v0"


# Frames are repeated here and not by the ALE, whose frames in between could not be seen. Sticky actions are drawn for
# every frame either way. Grey is the ALE's own luminance: all that moves keeps its contrast, at a third of the bytes.
_ALE = {"frameskip": 1, "obs_type": "grayscale"}
_ALE_PROTOCOL = (
    "sticky actions 0.25, 4 frames a step, maximum over the last two and the limit of 108,000 frames as usual in the "
    "ALE's v5; no no-op starts, lives are no ends; seen grey as the field alone, 64x64 not 84x84"
)

TASKS = {
    task.name: task
    for task in [
        Task(
            "CarRacing",
            RealSpec("CarRacing-v3", size=64, action_repeat=4, max_episode_steps=250),
            threshold=900.0,
            model="vmc-carracing-small",
            protocol="1,000 frames as usual; 4 frames a step, seen at 64x64 not 96x96",
        ),
        Task(
            "Pong",
            RealSpec(
                "ALE/Pong-v5",
                _ALE,
                size=64,
                action_repeat=4,
                max_episode_steps=27_000,
                crop=(34, 194, 0, 160),
                max_frames=True,
                actions=(0, 2, 3),
            ),
            threshold=18.0,
            model="vmc-pong-small",
            protocol=f"{_ALE_PROTOCOL}; 3 of the 6 actions (the others double them with FIRE)",
        ),
        Task(
            "LunarLander",
            RealSpec("LunarLander-v3", max_episode_steps=1000),
            threshold=200.0,
            model="ensemble-lunarlander",
            protocol="as usual",
        ),
        Task(
            "Breakout",
            RealSpec(
                "ALE/Breakout-v5",
                _ALE,
                size=64,
                action_repeat=4,
                max_episode_steps=27_000,
                crop=(32, 196, 8, 152),
                max_frames=True,
                actions=(1, 2, 3),
                lives_end=True,
            ),
            threshold=50.0,
            model="vmc-breakout-small",
            protocol=f"{_ALE_PROTOCOL}; FIRE, which only serves, in place of NOOP, which may wait for ever",
        ),
        Task(
            "CartPole",
            RealSpec("CartPole-v1", max_episode_steps=500),
            threshold=475.0,
            model="ensemble-cartpole",
            protocol="as usual",
        ),
        Task(
            "Acrobot",
            RealSpec("Acrobot-v1", max_episode_steps=500),
            threshold=-100.0,
            model="ensemble-acrobot",
            protocol="as usual",
        ),
    ]
}


def task_of(spec: RealSpec) -> Task | None:
    """The task whose environment is seen just so."""
    return next((task for task in TASKS.values() if task.real == spec), None)


def protocol_of(spec: RealSpec) -> str:
    """What differs from the way the environment is usually scored, in words."""
    near: dict[str, Any] = {"size": None, "stack": False, "lives_end": False}
    task = next((task for task in TASKS.values() if replace(task.real, **near) == replace(spec, **near)), None)
    usual = RealSpec(spec.id, max_episode_steps=_own_steps(spec)) if task is None else task.real
    usual = replace(usual, lives_end=spec.lives_end)  # Whole games are scored, whatever is learned from.
    other = [f"{name} {value}" for name, value in asdict(spec).items() if value != getattr(usual, name)]
    words = "as usual" if task is None else task.protocol
    return f"{words} but for {', '.join(other)}" if other else words


def _own_steps(spec: RealSpec) -> int | None:
    """The limit that `spec` sets, if it is the environment's own."""
    own = registry[spec.id].max_episode_steps if spec.id in registry else None
    same = own is not None and spec.max_episode_steps == math.ceil(own / spec.action_repeat)
    return spec.max_episode_steps if same else None


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
