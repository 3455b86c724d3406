"""Everything that a wm.toml may say, section by section; what is not here does not exist.

Two sections have their keys elsewhere: [training] those of `TrainingConfig`, [architecture] those of the family's
config.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal


def at_least(low: float) -> dict[str, float]:
    """The range of a field: from `low` up."""
    return {"low": low}


@dataclass(frozen=True)
class DataSection:
    """What the model learns from, and how the environment is seen."""

    source: Literal["gym", "random"] = "gym"
    """`gym`: real episodes of the environment. `random`: numbers without meaning, for trying things out; the run counts
    as degraded."""
    num_steps: int = field(default=2000, metadata=at_least(1))
    """Agent steps in the real environment: all by exploration, or with online collection those of the learned behaviour
    too."""
    episode_length: int | None = field(default=None, metadata=at_least(2))
    """Collected episodes are cut, and random ones made, so long; unless given, at the environment's limit, and 100."""
    buffer_capacity: int = field(default=1_000_000, metadata=at_least(1))
    """Steps that the replay buffer holds, the last ones."""
    env_kwargs: dict[str, Any] = field(default_factory=dict)
    """Passed to `gymnasium.make`."""
    size: int | None = field(default=None, metadata=at_least(8))
    """Pixels are resized to so many a side."""
    action_repeat: int = field(default=1, metadata=at_least(1))
    """Frames that each action is held for."""
    max_episode_steps: int | None = field(default=None, metadata=at_least(1))
    """Agent steps after which the environment is cut, in training and in evaluation; its own limit unless given."""
    crop: tuple[int, int, int, int] | None = None
    """Rows and columns of the picture that are kept: top, bottom, left, right."""
    max_frames: bool = False
    """Each pixel is its maximum over the last two frames."""
    actions: tuple[int, ...] | None = None
    """The choices that are kept."""
    lives_end: bool = False
    """A lost life ends the episode."""
    stack: bool = False
    """The last three pictures, in grey, are the channels of one."""


@dataclass(frozen=True)
class OnlineSection:
    """Whether the learned behaviour collects data of its own."""

    enabled: bool = False
    warmup_transitions: int = field(default=512, metadata=at_least(1))
    """Of the real steps, so many are exploration, before anything is learned."""
    rounds: int = field(default=2, metadata=at_least(2))
    """Of collecting, learning, dreaming and judging; the first collects the warm-up, the others share the rest."""
    collect_steps_per_update: float = field(default=2.0, metadata=at_least(0.001))
    """Agent steps between updates."""
    num_envs: int = field(default=1, metadata=at_least(1))
    """Environments that are played side by side."""


@dataclass(frozen=True)
class ControllerSection:
    """What learns to act in the model's dreams, for families that do not learn to act themselves."""

    kind: Literal["ppo", "linear"] = "ppo"
    """`ppo`: a small network by Stable-Baselines3; `linear`: evolved by CMA-ES."""
    iterations: int | None = field(default=None, metadata=at_least(1))
    """Of PPO, or generations of CMA-ES, in each round; those of the task's recipe unless given."""
    horizon: int | None = field(default=None, metadata=at_least(1))
    """Steps of a dream that it learns in; those of the task's recipe unless given."""


@dataclass(frozen=True)
class GameplaySection:
    """A film of a real episode beside the dream of it, after training."""

    enabled: bool = False
    fps: float | None = field(default=None, metadata=at_least(1))
    """Frames a second; the environment's own unless given."""
    max_frames: int = field(default=512, metadata=at_least(2))
    """Filmed at most; they are real steps too."""


@dataclass(frozen=True)
class VisualizationSection:
    """Curves of what was measured, as a picture. TensorBoard's files are always written."""

    enabled: bool = True
    history_max_points: int = field(default=2000, metadata=at_least(2))
    """Points of a curve, at most; the rest is averaged."""


@dataclass(frozen=True)
class InferenceSection:
    """What inference.py and `wm verify` take up."""

    checkpoint: str | None = None
    """A model directory; `model` in the output folder unless given."""
    horizon: int = field(default=50, metadata=at_least(1))
    """Steps that inference.py dreams."""


@dataclass(frozen=True)
class VerifySection:
    """How `wm verify` judges."""

    mode: Literal["quick", "proof"] = "quick"
    episodes: int = field(default=5, metadata=at_least(1))
    """Held-out real episodes of each of four policies."""
    proof_episodes: int = field(default=100, metadata=at_least(2))
    """Real episodes that returns are compared over, in proof mode."""


@dataclass(frozen=True)
class Project:
    """A wm.toml, checked. `training` and `architecture` hold what was said, the rest also what was not."""

    environment: str
    """A Gymnasium id, `module:Id-v0` where a module must be imported first."""
    model: str
    """A preset, `family:size`."""
    family: str
    size: str
    root: Path
    """The folder that paths are relative to."""
    project_name: str = ""
    architecture: Mapping[str, Any] = field(default_factory=dict)
    training: Mapping[str, Any] = field(default_factory=dict)
    data: DataSection = field(default_factory=DataSection)
    online_collection: OnlineSection = field(default_factory=OnlineSection)
    controller: ControllerSection = field(default_factory=ControllerSection)
    gameplay: GameplaySection = field(default_factory=GameplaySection)
    visualization: VisualizationSection = field(default_factory=VisualizationSection)
    inference: InferenceSection = field(default_factory=InferenceSection)
    verify: VerifySection = field(default_factory=VerifySection)
    given: frozenset[str] = frozenset()
    """The keys that were said, as `section.key`."""
    places: Mapping[str, str] = field(default_factory=dict)
    """By key, where it was said: a line of the file, or a flag."""

    @property
    def out(self) -> Path:
        """The output folder."""
        return self.root / str(self.training.get("output_dir", "outputs"))

    @property
    def checkpoint(self) -> Path:
        """The model directory that is looked at."""
        return self.out / "model" if self.inference.checkpoint is None else self.root / self.inference.checkpoint

    def to_dict(self) -> dict[str, Any]:
        """Everything a run depends on, as JSON takes it; not where it lies."""
        values = asdict(self)
        for name in ("root", "given", "places", "family", "size"):
            values.pop(name)
        return values


SECTIONS: dict[str, type] = {
    "data": DataSection,
    "online_collection": OnlineSection,
    "controller": ControllerSection,
    "gameplay": GameplaySection,
    "visualization": VisualizationSection,
    "inference": InferenceSection,
    "verify": VerifySection,
}
OPEN_SECTIONS = ("architecture", "training")
TOP = ("project_name", "environment", "model")

DREAMS_IN = ("vmc", "ensemble")
"""Families whose controller learns in finished dreams, round by round."""
ACTS = ("dreamerv3", "tdmpc2")
"""Families that learn to act as they learn the world."""
ONLY: dict[str, tuple[tuple[str, ...], str]] = {
    "training.sequence_length": (("vmc", *ACTS), "an ensemble learns single steps"),
    "data.buffer_capacity": (ACTS, "it learns from all data on disk"),
    "online_collection.rounds": (DREAMS_IN, "it collects between updates"),
    "online_collection.collect_steps_per_update": (ACTS, "it collects in rounds"),
    "online_collection.num_envs": (ACTS, "it collects over processes"),
    "controller.kind": (DREAMS_IN, "it learns to act by itself"),
    "controller.iterations": (DREAMS_IN, "it learns to act by itself"),
    "controller.horizon": (DREAMS_IN, "it learns to act by itself"),
}
"""Keys that mean something to some families only, and why not to the others: saying them elsewhere is an error."""
ONLINE_TRAINING = (
    "batch_size", "sequence_length", "learning_rate", "optimizer", "grad_clip", "warmup_steps", "mixed_precision",
    "compile_model", "device", "seed", "output_dir", "log_interval",
)  # fmt: skip
"""Keys of [training] that families that learn to act have a use for while they collect online."""
