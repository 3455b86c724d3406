"""The table of tasks: real environment, preprocessing, Dream id, threshold. Imports no torch."""

from __future__ import annotations

import math
import re
from dataclasses import asdict, dataclass, field, fields, replace
from typing import Any

from gymnasium.envs.registration import register, registry

from wm_envs.fields import at_least, check_fields, fail


@dataclass(frozen=True)
class RealSpec:
    """How a real environment is created and preprocessed. Saved models store it."""

    id: str
    """A Gymnasium id, or `module:Id-v0` to import the module first."""
    kwargs: dict[str, Any] = field(default_factory=dict)
    """Arguments of `gym.make`."""
    size: int | None = field(default=None, metadata=at_least(1))
    """Resize images by area to (size, size, C) uint8, with C = 1 for grey and 3 for RGB. None keeps the
    native observation, flattened to a vector if necessary, with discrete parts as one-hot vectors."""
    action_repeat: int = field(default=1, metadata=at_least(1))
    """Frames per agent step."""
    max_episode_steps: int | None = field(default=None, metadata=at_least(1))
    """Limit in agent steps of `action_repeat` frames; None keeps the env's own limit."""
    crop: tuple[int, int, int, int] | None = None
    """Part of the native image to keep: (top, bottom, left, right)."""
    max_frames: bool = False
    """Take each pixel's maximum over the last two frames, because the ALE draws some objects only in every
    other frame."""
    actions: tuple[int, ...] | None = None
    """The subset of a Discrete action space to use, renumbered in this order; None uses all."""
    lives_end: bool = False
    """A lost life of an ALE game terminates the training episode and the dream. Scores cover whole games."""
    noops: int = field(default=0, metadata=at_least(0))
    """Begin each episode of an ALE game with 1 to N no-op steps, drawn from the seed; 0: none."""
    stack: bool = False
    """The last three images, in grey, are the channels of one observation, oldest first, so that motion is
    visible."""
    wrapper: str | None = None
    """`module:function`: it takes the environment as `gym.make` creates it, and returns it wrapped. A wrapper class
    works too."""

    def __post_init__(self) -> None:
        check_fields(self)
        if self.wrapper is not None and not re.fullmatch(r"[\w.]+:\w+", self.wrapper):
            fail(self, "wrapper", "module:function")

    def to_dict(self) -> dict[str, Any]:
        """JSON values. Newer fields are omitted at their default, so that older files compare equal."""
        later = ("crop", "max_frames", "actions", "lives_end", "noops", "stack", "wrapper")
        return {name: value for name, value in asdict(self).items() if value or name not in later}

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> RealSpec:
        known = {f.name for f in fields(cls)}
        if extra := sorted(set(values) - known):
            raise ValueError(f"unknown fields {extra} of RealSpec; known fields: {sorted(known)}")
        tuples = {name: tuple(values[name]) for name in ("crop", "actions") if values.get(name) is not None}
        return cls(**{**values, **tuples})


@dataclass(frozen=True)
class Task:
    """A named real environment with a shipped dream."""

    name: str
    real: RealSpec
    threshold: float
    """Mean return over 100 episodes at which the task counts as solved."""
    model: str
    """Name of the shipped model in the store."""
    protocol: str
    """Differences from the standard evaluation protocol; printed beside scores."""

    @property
    def dream_id(self) -> str:
        return f"Dream-{self.name}-v0"

    @property
    def real_id(self) -> str:
        return f"Real-{self.name}-v0"


# ActionRepeat repeats the frames, because the ALE's own repeat hides the frames in between. Sticky actions
# are sampled for every frame either way. Grey is the ALE's own luminance: moving objects keep their contrast.
_STICKY = "repeat_action_probability"
_WITH_STICKY = "with sticky actions 0.25"
_NO_NOOPS = "no no-op starts"
NOOPS = 30
"""Maximum of no-op frames at the start of a game without sticky actions (Mnih et al. 2015)."""
_ALE = {"frameskip": 1, "obs_type": "grayscale"}
_ALE_PROTOCOL = (
    f"ALE v5 {_WITH_STICKY}, 4 frames a step, 108,000 frames at most; {_NO_NOOPS}, whole games; grey, "
    "cropped to the field"
)

TASKS = {
    task.name: task
    for task in [
        Task(
            "CarRacing",
            RealSpec("CarRacing-v3", size=64, action_repeat=4, max_episode_steps=250),
            threshold=900.0,
            model="vmc-carracing-small",
            protocol="the standard limit of 1,000 frames; 4 frames a step, 64x64 instead of 96x96",
        ),
        Task(
            "Pong",
            RealSpec(
                "ALE/Pong-v5",
                _ALE,
                size=160,  # Native pixels and single frames, because objects are found by their exact colours.
                action_repeat=4,
                max_episode_steps=27_000,
                crop=(34, 194, 0, 160),
                actions=(0, 2, 3),
            ),
            threshold=18.0,
            model="objects-pong",
            protocol=f"{_ALE_PROTOCOL}, 160x160 instead of 84x84; 3 of the 6 actions (the others add FIRE)",
        ),
        Task(
            "LunarLander",
            RealSpec("LunarLander-v3", max_episode_steps=1000),
            threshold=200.0,
            model="ensemble-lunarlander",
            protocol="standard",
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
            protocol=f"{_ALE_PROTOCOL}, 64x64 instead of 84x84, maximum over two frames; FIRE instead of NOOP, which "
            "may wait forever",
        ),
        Task(
            "CartPole",
            RealSpec("CartPole-v1", max_episode_steps=500),
            threshold=475.0,
            model="ensemble-cartpole",
            protocol="standard",
        ),
        Task(
            "Acrobot",
            RealSpec("Acrobot-v1", max_episode_steps=500),
            threshold=-100.0,
            model="ensemble-acrobot",
            protocol="standard",
        ),
    ]
}


def task_of(spec: RealSpec) -> Task | None:
    """The task with exactly this spec, or None."""
    return next((task for task in TASKS.values() if task.real == spec), None)


def has_sticky_actions(spec: RealSpec) -> bool:
    """Whether the environment is a game of the ALE that repeats the last action at random, as v5 ids do."""
    return "ALE/" in spec.id and spec.kwargs.get(_STICKY, 0.25) > 0


def without_sticky_actions(spec: RealSpec) -> RealSpec:
    """The game of `spec` without sticky actions and with no-op starts, as in most published Atari-100k scores."""
    return replace(spec, kwargs={**spec.kwargs, _STICKY: 0.0}, noops=NOOPS)


def protocol_of(spec: RealSpec) -> str:
    """The differences from the standard evaluation protocol, as text."""
    if "ALE/" in spec.id and not has_sticky_actions(spec):
        sticky = protocol_of(replace(spec, kwargs={k: v for k, v in spec.kwargs.items() if k != _STICKY}, noops=0))
        starts = _NO_NOOPS
        if spec.noops:
            starts = f"1 to {spec.noops} no-op steps at the start"
        if _WITH_STICKY in sticky:
            return sticky.replace(_WITH_STICKY, "without sticky actions").replace(_NO_NOOPS, starts)
        return f"{sticky}, without sticky actions, {starts}"
    near: dict[str, Any] = {"size": None, "stack": False, "lives_end": False}
    task = next((task for task in TASKS.values() if replace(task.real, **near) == replace(spec, **near)), None)
    standard, words = RealSpec(spec.id, max_episode_steps=_own_steps(spec)), "standard"
    if task is not None:
        standard, words = task.real, task.protocol
    standard = replace(standard, lives_end=spec.lives_end)  # Scores cover whole games either way.
    other = [f"{name} {value}" for name, value in asdict(spec).items() if value != getattr(standard, name)]
    if other:
        return f"{words} except {', '.join(other)}"
    return words


def _own_steps(spec: RealSpec) -> int | None:
    """The limit of `spec`, if it equals the environment's own."""
    own = None
    if spec.id in registry:
        own = registry[spec.id].max_episode_steps
    same = own is not None and spec.max_episode_steps == math.ceil(own / spec.action_repeat)
    if same:
        return spec.max_episode_steps
    return None


_MAKERS = "wm_agents.pretrained"


def register_envs() -> None:
    """Register the ids. A second call does nothing. Dreams have their own vector entry point."""
    if "Dream-v0" in registry:
        return
    dream, vector, real = (f"{_MAKERS}:make_{kind}_env" for kind in ("dream", "dream_vec", "real"))
    register("Dream-v0", entry_point=dream, vector_entry_point=vector)
    register("Real-v0", entry_point=real)
    for task in TASKS.values():
        model = {"model": task.model}
        register(task.dream_id, entry_point=dream, vector_entry_point=vector, kwargs=model)
        register(task.real_id, entry_point=real, kwargs=model)
