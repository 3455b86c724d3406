"""Settings of a curriculum; `wm curriculum` has a flag for each."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from wm_agents.curriculum.films import Mode
from wm_agents.curriculum.promotion import WINDOW


@dataclass(frozen=True)
class CurriculumConfig:
    """What a curriculum is run with."""

    curriculum: str | None = None
    """core (Pong, LunarLander, CarRacing), full (with Breakout), classic (Pong, Breakout, CartPole, Acrobot), or a
    TOML file of tasks; core unless given, classic with --prefer-box2d False."""
    prefer_box2d: bool = True
    """False: the curriculum that needs no Box2D."""
    quick: bool = False
    """Lower thresholds and little training: everything once, within half an hour on two cores."""
    device: str = "auto"
    """auto, cpu, cuda, cuda:1 or mps: where models are trained; controllers dream on the CPU."""
    max_generations: int | None = None
    """Generations of controllers that a task may take, over all rounds; those of its recipe unless given."""
    seed: int = 1
    """Of everything that is drawn in training; environment seeds are counted from it."""
    procs: int = 2
    """Processes that play real episodes."""
    checkpoint_dir: str = "runs/curriculum"
    """The run's folder; the same command goes on in it."""
    artifact_root: str | None = None
    """Where the large things go (episodes, models, films) if not into the run's folder."""
    max_gb: float = 5.0
    """Largest size of one task's episodes on disk."""
    clean_cache: bool = True
    """Delete what a task leaves in tmp/ (episodes, rounds) once it is through; logs and models stay."""
    keep_latents: bool = False
    """Keep the episodes as the model sees them: checkpoints/latent_episodes.npz."""

    episodes_per_eval: int = 5
    """Real episodes of an evaluation."""
    eval_every: int | None = None
    """Generations between evaluations; 10 unless given, less where that gives under 10 evaluations."""
    early_stop: bool = True
    """Give a task up on a plateau."""
    patience: int = 20
    """Evaluations without improvement that are borne."""
    min_delta: float = 1.0
    """By how much the mean of five evaluations must rise to count as improvement."""

    smoke_test: bool = False
    """Only the preflight: exit 0 when all is well, else 1."""
    preflight: bool = True
    """Check environments, films, disk, memory and one small run of everything before training."""
    validate_rgb: bool = True
    """The preflight looks at one frame of each environment."""
    validate_sizes: bool = True
    """The preflight compares the sizes of what environments show with what they declare."""

    record_video: bool = False
    """Film real episodes by the schedule, and the last controller."""
    video_schedule: Mode | None = None
    """triad (near the beginning, in the middle, near the end), all (each evaluation) or none; triad in quick runs and
    from 200 generations on, else all."""
    video_gens: tuple[int, ...] = ()
    """Film just these generations, like 25,500,975."""
    video_every_n_gens: int | None = None
    """A film every so many generations."""
    visualize: bool = False
    """Watch an episode at each evaluation."""
    render_mode: Literal["human", "rgb_array"] = "human"
    """human: watch in a window; rgb_array: in a film that each evaluation replaces, videos/watch.mp4."""
    fps: int | None = None
    """Frames a second of films; the real environment's own unless given."""
    eval_fps: int = 60
    """Frames a second in the window."""
    window_reuse: bool = True
    """One window for the whole run; else one for each episode."""
    close_on_completion: bool = False
    """Close the window when a task is through; else it stays until the run's end."""
    fallback_rgb: bool = True
    """Where there is no display, a film takes the window's place; else the run does not start."""

    amp: bool = True
    """bfloat16 autocast where the device gains by it; False: models are trained in float32."""
    tf32: bool = True
    """TensorFloat-32 for what float32 remains on CUDA devices."""
    vae_img_size: int | None = None
    """Pixels a side that models see: 32, 64 or 96; those of the task's recipe unless given."""
    vae_batch: int | None = None
    """Images a batch of V's training; those of the task's recipe unless given."""
    grad_accum: int = 1
    """Batches a gradient step, of whose gradients the mean is taken."""

    def __post_init__(self) -> None:
        for name, low in (("episodes_per_eval", 1), ("patience", 1), ("min_delta", 0), ("procs", 0), ("eval_fps", 1),
                          ("grad_accum", 1)):  # fmt: skip
            self._at_least(name, low)
        for name in ("max_generations", "eval_every", "video_every_n_gens", "fps", "vae_batch"):
            if getattr(self, name) is not None:
                self._at_least(name, 1)
        if not self.max_gb > 0:
            raise ValueError(f"--max-gb must be above 0, got {self.max_gb}")
        if self.vae_img_size not in (None, 32, 64, 96):
            raise ValueError(f"--vae-img-size must be 32, 64 or 96, got {self.vae_img_size}")
        if self.max_generations is not None:
            self.period(self.max_generations)

    def _at_least(self, name: str, low: int) -> None:
        if not getattr(self, name) >= low:
            raise ValueError(f"--{name.replace('_', '-')} must be at least {low}, got {getattr(self, name)}")

    def period(self, max_generations: int) -> int:
        """Generations between evaluations of a task that may take `max_generations`.

        Raises:
            ValueError: there would be too few evaluations to ever promote.
        """
        every = self.eval_every or min(10, max(1, max_generations // 10))
        if max_generations // every < WINDOW:
            raise ValueError(
                f"{max_generations} generations, evaluated every {every}, give {max_generations // every} evaluations; "
                f"a promotion needs {WINDOW}. Raise --max-generations or lower --eval-every"
            )
        return every

    @property
    def root(self) -> Path:
        return Path(self.checkpoint_dir)

    @property
    def heavy_root(self) -> Path:
        """Where the large things go."""
        return Path(self.artifact_root or self.checkpoint_dir)
