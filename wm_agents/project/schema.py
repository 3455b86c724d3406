"""All keys of a wm.toml, by section.

The keys of [training] are the fields of `TrainingConfig`, those of [architecture] the fields of the model's
config.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

from wm_agents.models.families import FAMILIES, Family
from wm_envs.fields import at_least


@dataclass(frozen=True)
class DataSection:
    """The data, and the preprocessing of the environment."""

    source: Literal["gym", "random"] = "gym"
    """`gym`: real episodes of the environment. `random`: random data, for tests; the run counts as
    degraded."""
    num_steps: int = field(default=2000, metadata=at_least(1))
    """Agent steps in the real environment, including those of the learned policy with online collection."""
    episode_length: int | None = field(default=None, metadata=at_least(2))
    """Truncate collected episodes after N steps, and create random ones with N steps; default: the
    environment's limit, and 100."""
    buffer_capacity: int = field(default=1_000_000, metadata=at_least(1))
    """Capacity of the replay buffer in steps."""
    env_kwargs: dict[str, Any] = field(default_factory=dict)
    """Arguments of `gymnasium.make`."""
    size: int | None = field(default=None, metadata=at_least(8))
    """Resize images to N x N pixels."""
    action_repeat: int = field(default=1, metadata=at_least(1))
    """Frames per agent step."""
    max_episode_steps: int | None = field(default=None, metadata=at_least(1))
    """Episode limit in agent steps, for training and evaluation; default: the environment's limit."""
    crop: tuple[int, int, int, int] | None = None
    """Part of the image to keep: top, bottom, left, right."""
    max_frames: bool = False
    """Each pixel is its maximum over the last two frames."""
    actions: tuple[int, ...] | None = None
    """The subset of discrete actions to use."""
    lives_end: bool = False
    """A lost life terminates the training episode."""
    stack: bool = False
    """Stack the last three images, in grey, as channels."""
    wrapper: str | None = None
    """`module:function` that wraps the environment."""


@dataclass(frozen=True)
class OnlineSection:
    """Collection with the learned policy."""

    enabled: bool = False
    """Whether the learned policy collects data."""
    warmup_transitions: int = field(default=512, metadata=at_least(1))
    """Exploration steps before training."""
    rounds: int = field(default=2, metadata=at_least(2))
    """Rounds of collection, training and evaluation; the first collects the warm-up, the others share the
    rest."""
    collect_steps_per_update: float = field(default=2.0, metadata=at_least(0.001))
    """Agent steps between updates."""
    num_envs: int = field(default=1, metadata=at_least(1))
    """Number of real environments in parallel."""


@dataclass(frozen=True)
class ControllerSection:
    """The controller that is trained in dreams, for families without their own policy."""

    kind: Literal["ppo", "linear"] = "ppo"
    """`ppo`: a small network trained by Stable-Baselines3's PPO; `linear`: a linear controller trained by
    CMA-ES."""
    iterations: int | None = field(default=None, metadata=at_least(1))
    """Iterations of PPO, or generations of CMA-ES, per round; default: those of the recipe."""
    horizon: int | None = field(default=None, metadata=at_least(1))
    """Steps of each dream used for training; default: those of the recipe."""


@dataclass(frozen=True)
class GameplaySection:
    """The agent at play: live frames on the dashboard during training, and a video afterwards."""

    enabled: bool = False
    """Whether to show live frames, and to record a video of a real episode beside its dream after training."""
    live_fps: float = field(default=4.0, metadata=at_least(0))
    """Live frames per second; 0: none."""
    fps: float | None = field(default=None, metadata=at_least(1))
    """Frames per second of the video; default: those of the environment."""
    max_frames: int = field(default=512, metadata=at_least(2))
    """Maximum number of frames of the video; they count as real steps."""


@dataclass(frozen=True)
class VisualizationSection:
    """Learning curves, as an image and on the dashboard, and the fidelity report. TensorBoard files are always
    written."""

    enabled: bool = True
    """Whether to plot learning curves in curves.png after training."""
    history_max_points: int = field(default=2000, metadata=at_least(2))
    """Maximum points per curve; neighbours are averaged."""
    dashboard: bool = False
    """Whether to serve the dashboard during training, as `wm dashboard` does."""
    host: str = "127.0.0.1"
    """Address of the dashboard. Any other than 127.0.0.1 requires the token in the URL that is printed."""
    port: int = field(default=8766, metadata=at_least(0))
    """Port of the dashboard; another free one is taken if it is in use."""
    refresh_ms: int = field(default=1000, metadata=at_least(100))
    """Milliseconds between two updates of the dashboard."""
    open_browser: bool = False
    """Whether to open the dashboard in the default browser."""
    report_minutes: float = field(default=2.0, metadata=at_least(0))
    """Time limit of the fidelity report, in minutes; 0: no report."""


@dataclass(frozen=True)
class InferenceSection:
    """The model for inference.py and `wm verify`."""

    checkpoint: str | None = None
    """A model directory; default: `model` in the output folder."""
    horizon: int = field(default=50, metadata=at_least(1))
    """Steps of the dream in inference.py."""


@dataclass(frozen=True)
class VerifySection:
    """Settings of `wm verify`."""

    mode: Literal["quick", "proof"] = "quick"
    """`quick`: check the model; `proof`: also compare dream and real returns."""
    episodes: int = field(default=5, metadata=at_least(1))
    """Held-out real episodes for each of four policies."""
    proof_episodes: int = field(default=100, metadata=at_least(2))
    """Real episodes for the comparison of returns in proof mode."""


@dataclass(frozen=True)
class Project:
    """A checked wm.toml. `training` and `architecture` contain only the given keys, the other sections all
    keys."""

    environment: str
    """A Gymnasium id, or `module:Id-v0` to import the module first."""
    model: str
    """A preset, `family:size`."""
    family: str
    size: str
    root: Path
    """The folder to which paths are relative."""
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
    """The given keys, as `section.key`."""
    places: Mapping[str, str] = field(default_factory=dict)
    """The place of each given key: a line of the file, or a flag."""

    @property
    def row(self) -> Family:
        """The row of the family in the table."""
        return FAMILIES[self.family]

    @property
    def is_online(self) -> bool:
        """Whether the family has its own policy and learns online."""
        return self.row.learns == "online"

    @property
    def out(self) -> Path:
        """The output folder."""
        return self.root / str(self.training.get("output_dir", "outputs"))

    @property
    def checkpoint(self) -> Path:
        """The model directory for inference and verification."""
        if self.inference.checkpoint is None:
            return self.out / "model"
        return self.root / self.inference.checkpoint

    def to_dict(self) -> dict[str, Any]:
        """All settings of a run as JSON values, without paths."""
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

UNUSED: dict[str, dict[str, str]] = {
    "rounds": {
        "data.buffer_capacity": "it trains on all data on disk",
        "online_collection.collect_steps_per_update": "it collects in rounds",
        "online_collection.num_envs": "it collects in parallel processes",
    },
    "online": {
        "online_collection.rounds": "it collects between updates",
        "controller.kind": "it has its own policy",
        "controller.iterations": "it has its own policy",
        "controller.horizon": "it has its own policy",
    },
}
"""By the way in which a family learns: keys without effect, with the reason."""
ONLINE_TRAINING = (
    "batch_size", "sequence_length", "learning_rate", "optimizer", "grad_clip", "warmup_steps", "mixed_precision",
    "compile_model", "device", "seed", "output_dir", "log_interval",
)  # fmt: skip
"""Keys of [training] that apply to families with their own policy during online collection."""
