"""Settings of a curriculum; `wm curriculum` has a flag for each."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from policies.pool import Procs
from policies.ray_pool import workers_of
from wm_agents.curriculum.films import Mode
from wm_agents.curriculum.promotion import WINDOW
from wm_envs.fields import above, at_least, check_fields


@dataclass(frozen=True)
class CurriculumConfig:
    """Settings of a curriculum."""

    curriculum: str | None = None
    """core (Pong, LunarLander, CarRacing), full (core and Breakout), classic (Pong, Breakout, CartPole,
    Acrobot), or a TOML file of tasks; default: core, or classic with --no-prefer-box2d."""
    prefer_box2d: bool = True
    """False: use the curriculum without Box2D by default."""
    quick: bool = False
    """Use lower thresholds and short training: all tasks take about half an hour on two cores."""
    device: str = "auto"
    """Device for model training: auto, cpu, cuda, cuda:1 or mps; controllers are trained on the CPU."""
    max_generations: int | None = field(default=None, metadata=at_least(1))
    """Maximum generations per task, over all rounds; default: those of its recipe."""
    seed: int = 1
    """Random seed of all tasks: collection, initial weights, models and controllers. Runs with different seeds
    collect different episodes."""
    procs: int | None = field(default=None, metadata=at_least(0))
    """Worker processes for real episodes; default: 2, or all cores of the Ray cluster."""
    ray: str | None = None
    """Ray cluster whose cores are the workers: `auto`, `HOST:PORT` or `local`; default: processes of this machine."""
    checkpoint_dir: str = "runs/curriculum"
    """Run folder; the same command resumes in it."""
    artifact_root: str | None = None
    """Directory for large files (episodes, models, videos); default: the run folder."""
    max_gb: float = field(default=5.0, metadata=above(0))
    """Maximum size of the episodes of a task on disk."""
    clean_cache: bool = True
    """Delete tmp/ of a task (episodes, rounds) when the task ends; logs and models are kept."""
    keep_latents: bool = False
    """Keep the encoded episodes: checkpoints/latent_episodes.npz."""

    episodes_per_eval: int = field(default=5, metadata=at_least(1))
    """Real episodes per evaluation."""
    eval_every: int | None = field(default=None, metadata=at_least(1))
    """Generations between evaluations; default: 10, or fewer so that there are at least 10 evaluations."""
    early_stop: bool = True
    """Stop a task on a plateau."""
    patience: int = field(default=20, metadata=at_least(1))
    """Evaluations without improvement before stopping."""
    min_delta: float = field(default=1.0, metadata=at_least(0))
    """Minimum rise of the mean of five evaluations that counts as improvement."""

    smoke_test: bool = False
    """Run only the preflight check; exit code 0 if it passes, else 1."""
    preflight: bool = True
    """Before training, check environments, videos, disk, memory, and a small run of everything."""
    validate_rgb: bool = True
    """Check the frames of each environment in the preflight check."""
    validate_sizes: bool = True
    """Check that observations have their declared shapes in the preflight check."""

    record_video: bool = False
    """Record videos of real episodes by the schedule, and of the last controller."""
    video_schedule: Mode | None = None
    """triad (near the start, in the middle, near the end), all (each evaluation) or none; default: triad for
    quick runs and from 200 generations on, else all."""
    video_gens: tuple[int, ...] = ()
    """Record these generations, as in 25,500,975."""
    video_every_n_gens: int | None = field(default=None, metadata=at_least(1))
    """Record every N generations."""
    visualize: bool = False
    """Show an episode of each evaluation."""
    render_mode: Literal["human", "rgb_array"] = "human"
    """human: show it in a window; rgb_array: write it to videos/watch.mp4, which each evaluation replaces."""
    fps: int | None = field(default=None, metadata=at_least(1))
    """Frames per second of videos; default: those of the real environment."""
    eval_fps: int = field(default=60, metadata=at_least(1))
    """Frames per second in the window."""
    window_reuse: bool = True
    """Use one window for the whole run; False: one per episode."""
    close_on_completion: bool = False
    """Close the window when a task ends; False: at the end of the run."""
    fallback_rgb: bool = True
    """Without a display, write a video instead of opening a window; False: do not start."""

    amp: bool = True
    """Train models in bfloat16 if a short trial finds it faster; False: in float32."""
    tf32: bool = True
    """Allow TF32 for float32 matrix products on CUDA."""
    vae_img_size: Literal[32, 64, 96] | None = None
    """Image size for V-M-C: 32, 64 or 96 pixels; default: that of the recipe."""
    vae_batch: int | None = field(default=None, metadata=at_least(1))
    """Images per batch in the training of the encoder; default: those of the recipe."""
    grad_accum: int = field(default=1, metadata=at_least(1))
    """Batches accumulated per optimizer step."""

    def __post_init__(self) -> None:
        check_fields(self)
        if self.max_generations is not None:
            self.period(self.max_generations)

    def period(self, max_generations: int) -> int:
        """Generations between evaluations of a task with `max_generations`.

        Raises:
            ValueError: there would be too few evaluations.
        """
        every = self.eval_every or min(10, max(1, max_generations // 10))
        if max_generations // every < WINDOW:
            raise ValueError(
                f"{max_generations} generations, evaluated every {every}, give {max_generations // every} evaluations, "
                f"but at least {WINDOW} are needed; raise --max-generations or lower --eval-every"
            )
        return every

    @property
    def workers(self) -> Procs:
        """The workers that `procs` and `ray` describe."""
        return workers_of(self.procs, self.ray)

    @property
    def root(self) -> Path:
        return Path(self.checkpoint_dir)

    @property
    def heavy_root(self) -> Path:
        """The folder for large files."""
        return Path(self.artifact_root or self.checkpoint_dir)
