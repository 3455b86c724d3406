"""The flags of the curriculum trainer: all that are printed anywhere are read, and what makes no sense is refused."""

from __future__ import annotations

from dataclasses import fields
from pathlib import Path

import pytest

from wm_agents.cli.curriculum import CurriculumParser
from wm_agents.curriculum.config import CurriculumConfig

# As it was once printed for users.
PRINTED = """--device cuda --max-generations 100 --amp True --tf32 True --episodes-per-eval 3 --visualize False
--record-video False --vae-img-size 32 --vae-batch 16 --quick True --checkpoint-dir runs_20250824_211933/OPTIMIZED"""


def read(flags: str) -> CurriculumConfig:
    args = flags.split()
    cfg: CurriculumConfig = CurriculumParser(args, "wm curriculum").arguments(args)["cfg"]
    return cfg


def refused(flags: str, capsys: pytest.CaptureFixture[str]) -> str:
    with pytest.raises(SystemExit) as stop:
        read(flags)
    assert stop.value.code == 2
    (line,) = capsys.readouterr().err.splitlines()
    return line


def test_the_printed_command_is_read_as_it_says() -> None:
    assert read(PRINTED) == CurriculumConfig(
        device="cuda", max_generations=100, amp=True, tf32=True, episodes_per_eval=3, visualize=False,
        record_video=False, vae_img_size=32, vae_batch=16, quick=True, checkpoint_dir="runs_20250824_211933/OPTIMIZED",
    )  # fmt: skip


def test_no_flags_are_the_defaults() -> None:
    assert read("") == CurriculumConfig()


TRUTHS = [f.name for f in fields(CurriculumConfig) if f.type == "bool"]


@pytest.mark.parametrize(
    "spelling, value",
    [
        *((f"--{{}} {word}", True) for word in ("True", "true", "1", "yes")),
        *((f"--{{}} {word}", False) for word in ("False", "false", "0", "no")),
        ("--{}=True", True),
        ("--{}=false", False),
        ("--{}", True),
        ("--no-{}", False),
    ],
)
def test_truths_can_be_written_in_many_ways(spelling: str, value: bool) -> None:
    cfg = read(" ".join(spelling.format(name.replace("_", "-")) for name in TRUTHS))
    assert len(TRUTHS) == 16 and {getattr(cfg, name) for name in TRUTHS} == {value}


@pytest.mark.parametrize(
    "flags, changed",
    [
        ("--video-schedule triad", {"video_schedule": "triad"}),
        ("--video-gens 25,500,975", {"video_gens": (25, 500, 975)}),
        ("--video-gens [25,500]", {"video_gens": (25, 500)}),
        ("--video-every-n-gens 10", {"video_every_n_gens": 10}),
        ("--artifact-root D:/WorldModels", {"artifact_root": "D:/WorldModels"}),
        ("--keep-latents True --clean-cache False", {"keep_latents": True, "clean_cache": False}),
        ("--early-stop False --patience 50 --min-delta 0.5", {"early_stop": False, "patience": 50, "min_delta": 0.5}),
        ("--eval-every 5 --eval-episodes 3", {"eval_every": 5, "episodes_per_eval": 3}),
        ("--render-mode rgb_array --fps 30 --eval-fps 30", {"render_mode": "rgb_array", "fps": 30, "eval_fps": 30}),
        ("--no-window-reuse --close-on-completion", {"window_reuse": False, "close_on_completion": True}),
        (
            "--no-validate-rgb --no-validate-sizes --no-fallback-rgb",
            {"validate_rgb": False, "validate_sizes": False, "fallback_rgb": False},
        ),
        ("--smoke-test True --preflight False", {"smoke_test": True, "preflight": False}),
        ("--prefer-box2d false", {"prefer_box2d": False}),
        ("--grad-accum 2 --vae-img-size 96", {"grad_accum": 2, "vae_img_size": 96}),
        ("--curriculum full --seed 7 --procs 4", {"curriculum": "full", "seed": 7, "procs": 4}),
        ("--max_generations 70 --checkpoint_dir=my_runs/a", {"max_generations": 70, "checkpoint_dir": "my_runs/a"}),
    ],
)
def test_every_other_flag_is_read(flags: str, changed: dict[str, object]) -> None:
    assert read(flags) == CurriculumConfig(**changed)  # type: ignore[arg-type]


def test_a_file_holds_the_same_names_and_flags_win_over_it(tmp_path: Path) -> None:
    file = tmp_path / "run.toml"
    file.write_text('quick = true\nmax_generations = 60\nvideo_gens = [5, 10]\ncheckpoint_dir = "x"\namp = false\n')
    cfg = read(f"--config {file} --max-generations 80")
    wanted = CurriculumConfig(quick=True, max_generations=80, video_gens=(5, 10), checkpoint_dir="x", amp=False)
    assert cfg == wanted


@pytest.mark.parametrize(
    "flags, message",
    [
        ("--amp maybe", "--amp must be True or False, got 'maybe'"),
        ("--recrod-video True", "did you mean --record-video?"),
        ("--no-quik", "did you mean"),
        ("--max-generations 3.5", "max_generations"),
        ("--max-generations 0", "--max-generations must be a whole number of at least 1, or None, got 0"),
        ("--episodes-per-eval 0", "--episodes-per-eval must be a whole number of at least 1, got 0"),
        ("--video-gens 1;2", "video_gens"),
        ("--video-schedule some", "video_schedule"),
        ("--render-mode window", "render_mode"),
        ("--grad-accum 0", "--grad-accum must be a whole number of at least 1, got 0"),
        ("--vae-img-size 48", "vae_img_size"),
        ("--max-gb 0", "--max-gb must be a number above 0"),
        ("--max-generations 40 --eval-every 10", "give 4 evaluations, but at least 5 are needed"),
        ("--max-generations 4", "give 4 evaluations, but at least 5 are needed"),
    ],
)
def test_what_makes_no_sense_is_rejected_in_one_line(
    flags: str, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    line = refused(flags, capsys)
    assert message in line and line.startswith("wm curriculum: ") and "wm curriculum --help" in line


@pytest.mark.parametrize("generations, every", [(5, 1), (24, 2), (100, 10), (1000, 10)])
def test_evaluations_are_ten_or_every_tenth_generation(generations: int, every: int) -> None:
    assert CurriculumConfig().period(generations) == every
    assert CurriculumConfig(eval_every=1).period(generations) == 1


def test_help_explains_every_flag(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        read("--help")
    text = " ".join(capsys.readouterr().out.split())
    assert stop.value.code == 0 and "<function" not in text
    helps = [f"--{name.replace('_', '-')} " for name in (field.name for field in fields(CurriculumConfig))]
    assert not [flag for flag in helps if text.count(flag) < 2]
    assert "Real episodes per evaluation." in text and text.count("default: ") >= len(TRUTHS)
