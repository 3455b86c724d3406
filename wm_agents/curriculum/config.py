"""The flags of the curriculum trainer: the fields of one frozen dataclass, with dashes.

Truths may be written True, False, true, 1, yes ...; `--flag` alone is True and `--no-flag` is False.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from functools import cache
from pathlib import Path
from typing import Any, Literal, get_type_hints

from docstring_parser import parse_from_object

from wm_agents.cli.flags import Parser
from wm_agents.curriculum.films import Mode, parse_generations
from wm_agents.curriculum.promotion import WINDOW

TRUE, FALSE = ("true", "1", "yes", "on"), ("false", "0", "no", "off")
ALIASES = {"episodes_per_eval": ("--eval-episodes",)}
"""Other spellings in use."""

ABOUT = """Take a curriculum from nothing to promoted, one task after the other, in dreams. The same command goes on
where it was stopped, and asks nothing. Exit: 0 all tasks solved, 1 not all, 2 interrupted, 3 an error."""


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
        for name, low in (("episodes_per_eval", 1), ("patience", 1), ("min_delta", 0), ("procs", 1), ("eval_fps", 1),
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
            raise ValueError(f"--{_dashed(name)} must be at least {low}, got {getattr(self, name)}")

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


def parse(args: list[str], prog: str) -> CurriculumConfig:
    """Read the flags; `--config FILE` reads them from a TOML file, where their names have underscores.

    Raises:
        SystemExit: wrong flags, which are named on stderr, or `--help`.
    """
    parser = Parser(prog=prog, description=ABOUT)
    parser.add_argument("--config", action="config", help="a TOML file with the same names, underscores for dashes")
    hints = get_type_hints(CurriculumConfig)
    helps = {param.arg_name: " ".join((param.description or "").split()) for param in _docs()}
    truths = [field.name for field in fields(CurriculumConfig) if hints[field.name] is bool]
    for field in fields(CurriculumConfig):
        flags, name = [f"--{_dashed(field.name)}", *ALIASES.get(field.name, ())], field.name
        more: dict[str, Any] = {"type": hints[name], "default": field.default}
        if name in truths:  # Read below: what a type says of itself in --help is no help.
            more = {"nargs": "?", "const": True, "metavar": "True|False", "default": field.default}
        elif name == "video_gens":
            more = {"metavar": "G,G,...", "default": field.default}
        parser.add_argument(*flags, dest=name, help=helps[name], **more)
    negated = {f"--no-{_dashed(name)}" for name in truths}
    values = vars(parser.parse_args([_plain(arg, negated) for arg in args]))
    values.pop("config")
    try:
        for name in truths:
            values[name] = truth(name, values[name])
        films = values["video_gens"]
        values["video_gens"] = parse_generations(films) if isinstance(films, str) else tuple(films)
        return CurriculumConfig(**values)
    except ValueError as error:
        parser.error(str(error))


def truth(name: str, text: str | bool) -> bool:
    """`True`, `false`, `1`, `yes` ... as a truth."""
    word = str(text).lower()
    if word not in (*TRUE, *FALSE):
        raise ValueError(f"--{_dashed(name)} must be True or False, got {text!r}")
    return word in TRUE


def _plain(arg: str, negated: set[str]) -> str:
    """`--no-window-reuse` as `--window-reuse=False`, `--max_generations` as `--max-generations`."""
    if not arg.startswith("--"):
        return arg
    flag, given, value = arg.partition("=")
    flag = flag.replace("_", "-")
    if flag in negated and not given:
        return f"--{flag[5:]}=False"
    return flag + given + value


def _dashed(name: str) -> str:
    return name.replace("_", "-")


@cache
def _docs() -> list[Any]:
    return parse_from_object(CurriculumConfig).params
