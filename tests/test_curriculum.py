"""The curriculum on scripted learning curves: verdicts, files, kills between any two writes, exit codes."""

from __future__ import annotations

import csv
import io
import json
import os
import shutil
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from policies.rollout import EVAL_SEED
from wm_agents.curriculum import report, run
from wm_agents.curriculum.config import CurriculumConfig
from wm_agents.curriculum.plan import Course
from wm_agents.curriculum.record import Record
from wm_agents.curriculum.run import Curriculum
from wm_agents.curriculum.task_run import EVALUATION_SEED, Hands, Played
from wm_agents.curriculum.tasks import Entry, _Threshold
from wm_agents.loops.recipes import ImproveConfig
from wm_agents.loops.rounds import Check, OnCheck, Rounds
from wm_agents.system.files import write_json
from wm_agents.system.run_folder import FolderInUse, read_metrics
from wm_envs.registry import RealSpec

Curve = Callable[[int], float]
POLE, ACRO = "CartPole-v1", "Acrobot-v1"


class Killed(BaseException):
    """Not an Exception: nothing on the way may swallow it."""


class Scripted:
    """Trains nothing: a controller of generation g scores `curve(g)`. Goes on after kills as the real loop does."""

    def __init__(self, curves: dict[str, Curve]) -> None:
        self.curves = curves
        self.dreamed: Curve = lambda generation: float("nan")
        self.told: Rounds = []
        self.trained: list[ImproveConfig] = []
        self.played: list[tuple[str, int, int]] = []
        self.filmed: list[Path] = []
        self.shown: list[Path] = []

    def train(
        self,
        cfg: ImproveConfig,
        console: Console | None = None,
        on_check: OnCheck | None = None,
        looks: Callable[[], Rounds] | None = None,
    ) -> dict[str, Any]:
        assert on_check is not None and looks is not None and cfg.check_every is not None
        self.trained.append(cfg)
        out = Path(cfg.out)
        state = json.loads((out / "state.json").read_text()) if (out / "state.json").exists() else {"done": 0}
        again = state["done"] > 0  # What it had come to is shown once more.
        while (again or state["done"] < cfg.rounds * cfg.generations) and not state.get("stopped"):
            if not again:
                state["done"] += 1
                write_json(out / "state.json", state)
            done, again = state["done"], False
            if done % cfg.check_every:
                continue
            round_ = (done - 1) // cfg.generations
            model = out / f"round-{round_:02d}"
            write_json(model / "config.json", {"generation": done})
            wall_s = {"collect": 1.0, "learn": 2.0, "control": 3.0}
            if on_check(Check(done, round_, model, self.dreamed(done), 100 * round_, wall_s)):
                write_json(out / "state.json", state | {"stopped": True})
                break
        write_json(out / "model" / "config.json", {"generation": state["done"]})
        self.told = looks()
        real = {"mean": self.curves[cfg.spec.id](state["done"]), "std": 0.0, "ci95": 0.0, "episodes": 5}
        return {
            "real": real | {"seed": EVAL_SEED},
            "dream": {"mean": 1.0},
            "gap": 2.0,
            "protocol": "standard",
            "real_steps": 100,
            "wall_s": 4.0,
        }

    def play(self, spec: RealSpec, model: Path, seeds: range) -> Played:
        generation = json.loads((model / "config.json").read_text())["generation"]
        self.played.append((spec.id, generation, seeds[0]))
        return Played([self.curves[spec.id](generation) + off for off in range(-1, len(seeds) - 1)], 10 * len(seeds))

    def film(self, model: Path, path: Path, seed: int) -> int:
        self.filmed.append(path)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(model.name.encode())
        return 7

    def show(self, model: Path, seed: int, path: Path) -> int:
        self.shown.append(path)
        return 0

    @property
    def hands(self) -> Hands:
        return Hands(self.train, self.play, self.film, self.show)


def course(
    env_id: str,
    threshold: float,
    most: int = 20,
    period: int = 2,
    films: tuple[int, ...] = (),
    check_every: int = 1,
    rounds: int | None = None,
) -> Course:
    rounds = rounds or (most + 10) // 10
    cfg = ImproveConfig(RealSpec(env_id), out="", rounds=rounds, check_every=check_every, controller="ppo")
    cfg = replace(cfg, ppo=replace(cfg.ppo, iterations=10))
    return Course(Entry(env_id, _Threshold(threshold, threshold)), cfg, threshold, most, period, 3, films)


def rename(source: Path, target: Path) -> None:
    """`os.replace` without the flush that some file systems add to it."""
    target.unlink(missing_ok=True)
    os.rename(source, target)


@pytest.fixture(autouse=True)
def no_models(monkeypatch: pytest.MonkeyPatch) -> None:
    """Scripted models have no V to hand on, pictures take half a second, and nothing here outlives a power cut."""
    monkeypatch.setattr(os, "fsync", lambda fd: None)
    monkeypatch.setattr(os, "replace", rename)
    monkeypatch.setattr("wm_agents.system.run_folder.provenance", lambda: {})
    monkeypatch.setattr(run, "find_source", lambda *args: None)
    monkeypatch.setattr(report, "_draw_curve", lambda record, path: path.write_bytes(b"curve"))


def take(
    root: Path, script: Scripted, courses: list[Course], left_out: dict[str, str] | None = None, **flags: Any
) -> tuple[bool, list[Record]]:
    cfg = CurriculumConfig(checkpoint_dir=str(root), episodes_per_eval=3, **flags)
    with Curriculum(cfg, courses, left_out or {}, Console(file=io.StringIO()), script.hands) as curriculum:
        return curriculum.run(), curriculum.records


def strict(path: Path) -> Any:
    """JSON as the standard has it."""

    def refuse(name: str) -> None:
        raise AssertionError(f"{name} in {path} is not JSON")

    return json.loads(path.read_text(), parse_constant=refuse)


def rows(path: Path) -> list[dict[str, str]]:
    return list(csv.DictReader(path.read_text().splitlines()))


RISING: Curve = lambda generation: 10.0 * generation  # noqa: E731
FLAT: Curve = lambda generation: -5.0  # noqa: E731


def test_tasks_are_taken_in_order_and_promoted_on_the_mean_of_five(tmp_path: Path) -> None:
    script = Scripted({POLE: RISING, ACRO: FLAT})
    solved, records = take(
        tmp_path, script, [course(POLE, 100.0, films=(3,)), course(ACRO, 0.0)], {"Pong": "pip install it"}
    )
    assert not solved
    # Evaluations at 2, 4, ... 20: the mean of 6 ... 14 is 100.
    assert [(r.env_id, r.status, r.generations) for r in records] == [
        (POLE, "SOLVED", 14),
        (ACRO, "MAX_GENERATIONS", 30),
    ]
    found = strict(tmp_path / "curriculum_results.json")
    assert (found["tasks_completed"], found["total_tasks"], found["success_rate"]) == (1, 2, 0.5)
    assert found["left_out"] == {"Pong": "pip install it"} and found["total_time_hours"] > 0
    keys = ("env_id", "solved", "best_score", "threshold_score", "generations_trained")
    assert [tuple(task[key] for key in keys) for task in found["tasks"]] == [
        (POLE, True, 140.0, 100.0, 14),
        (ACRO, False, -5.0, 0.0, 30),
    ]
    assert found["tasks"][0]["held_out"]["seed"] == EVAL_SEED and found["tasks"][0]["held_out"]["real"] == 140.0
    assert found["tasks"][0]["real_steps"] == 100 + 7 * 30 + 7  # A round of training, evaluations, a film.


def test_all_solved_is_reported(tmp_path: Path) -> None:
    assert take(tmp_path, Scripted({POLE: RISING}), [course(POLE, 60.0)])[0]


def test_a_task_near_its_threshold_is_really_trained_longer(tmp_path: Path) -> None:
    script = Scripted({POLE: lambda g: 97.0 if g <= 22 else 105.0})
    solved, (record,) = take(tmp_path, script, [course(POLE, 100.0)])
    assert solved and record.generations == 26  # 97, 97, 105, 105 ...: beyond the 20 generations that were asked for.
    assert record.standing.plateau.extended_at == 20
    assert rows(tmp_path / POLE / "report" / "metrics_summary.csv")[0]["extension_generations"] == "10"


def test_a_plateau_ends_a_task_by_its_patience(tmp_path: Path) -> None:
    _, (record,) = take(tmp_path, Scripted({ACRO: FLAT}), [course(ACRO, 100.0)], patience=2)
    assert (record.status, record.generations) == ("PLATEAU_STOP", 14)
    _, (record,) = take(tmp_path / "b", Scripted({ACRO: FLAT}), [course(ACRO, 100.0)], patience=2, early_stop=False)
    assert (record.status, record.generations) == ("MAX_GENERATIONS", 20)


def test_every_evaluation_has_seeds_of_its_own_below_those_held_out(tmp_path: Path) -> None:
    script = Scripted({ACRO: FLAT})
    take(tmp_path, script, [course(ACRO, 100.0)])
    seeds = [seed for *_, seed in script.played]
    assert seeds == [EVALUATION_SEED + 3 * i for i in range(10)]
    snapshot = strict(tmp_path / ACRO / "eval_snapshots" / "gen_0004.json")
    assert [episode["seed"] for episode in snapshot["episodes"]] == [910_003, 910_004, 910_005]


def test_seeds_that_are_used_up_end_the_run_before_a_held_out_one_is_played(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("wm_agents.curriculum.task_run.EVAL_SEED", EVALUATION_SEED + 8)
    script = Scripted({ACRO: FLAT})
    with pytest.raises(ValueError, match="2 evaluations of 3 episodes have used all seeds"):
        take(tmp_path, script, [course(ACRO, 100.0)])
    assert len(script.played) == 2


def test_a_task_leaves_every_file_that_is_promised(tmp_path: Path) -> None:
    take(tmp_path, Scripted({POLE: RISING}), [course(POLE, 100.0, films=(3, 4, 20))])
    task = tmp_path / POLE
    found = sorted(
        str(path.relative_to(task)) for path in task.rglob("*") if path.is_file() and "events" not in path.name
    )
    assert found == [
        "checkpoints/best/config.json", "checkpoints/final/config.json",
        *(f"eval_snapshots/gen_{g:04d}.json" for g in range(2, 15, 2)),
        "logs/eval_progress.csv", "logs/metrics.jsonl",
        "report/learning_curve.png", "report/metrics_summary.csv", "report/table_controller.tex",
        "report/table_runtime.tex", "videos/gen_0003.mp4", "videos/gen_0004.mp4", "videos/gen_0014.mp4",
    ]  # fmt: skip
    assert [row["generation"] for row in rows(task / "logs" / "eval_progress.csv")] == [*map(str, range(2, 15, 2))]
    assert len(rows(tmp_path / "logs" / "curriculum_progress.csv")) == 7
    assert rows(tmp_path / "reports" / "metrics_summary.csv")[0]["completion_status"] == "SOLVED"
    for name in ("state.json", "curriculum_results.json", "run.json"):
        strict(tmp_path / name)
    metrics = read_metrics(task / "logs" / "metrics.jsonl")
    assert [row["step"] for row in metrics] == [*range(2, 15, 2)]
    assert metrics[-1]["eval/real/mean_of_5"] == 100.0 and "eval/dream/return" not in metrics[-1]


def test_the_best_and_the_last_controller_are_kept(tmp_path: Path) -> None:
    take(tmp_path, Scripted({ACRO: lambda g: -abs(g - 6.0)}), [course(ACRO, 100.0)])
    kept = {name: strict(tmp_path / ACRO / "checkpoints" / name / "config.json") for name in ("best", "final")}
    assert kept == {"best": {"generation": 6}, "final": {"generation": 20}}


def test_large_files_can_go_to_another_disk(tmp_path: Path) -> None:
    root, heavy = tmp_path / "run", tmp_path / "disk"
    take(root, Scripted({POLE: RISING}), [course(POLE, 100.0, films=(2,))], artifact_root=str(heavy), clean_cache=False)
    assert {path.name for path in (heavy / POLE).iterdir()} == {"checkpoints", "videos", "tmp"}
    assert {path.name for path in (root / POLE).iterdir()} == {"logs", "eval_snapshots", "report"}


@pytest.mark.parametrize("clean", [True, False])
def test_what_training_continued_from_is_deleted_only_if_asked(tmp_path: Path, clean: bool) -> None:
    take(tmp_path, Scripted({POLE: RISING}), [course(POLE, 100.0)], clean_cache=clean)
    assert (tmp_path / POLE / "tmp").exists() is not clean


def test_times_are_those_that_were_measured_without_the_looks(tmp_path: Path) -> None:
    _, (record,) = take(tmp_path, Scripted({POLE: RISING}), [course(POLE, 100.0)])
    times = record.phases
    assert [*times] == ["collect", "learn", "control", "evaluation", "films", "held-out score", "fidelity", "report"]
    assert (times["collect"], times["learn"], times["held-out score"]) == (1.0, 2.0, 4.0)
    assert 3.0 - sum(record.looked.values()) <= times["control"] < 3.0
    assert 0 < times["evaluation"] < 1 and 0 < times["report"] < 1


def test_a_video_that_fails_does_not_end_the_training(tmp_path: Path) -> None:
    script = Scripted({POLE: RISING})

    def fail(*args: object) -> None:
        raise OSError("ffmpeg ended with status 1")

    script.film = script.show = fail  # type: ignore[assignment, method-assign]
    assert take(tmp_path, script, [course(POLE, 100.0, films=(2,))])[0]


def test_copies_that_a_kill_cut_short_are_swept_up(tmp_path: Path) -> None:
    for name in (".gen_0002.tmp", ".best.tmp", "gen_0001"):
        write_json(tmp_path / POLE / "checkpoints" / name / "config.json", {})
    take(tmp_path, Scripted({POLE: RISING}), [course(POLE, 100.0)])
    assert {path.name for path in (tmp_path / POLE / "checkpoints").iterdir()} == {"best", "final"}


def test_pages_of_the_training_go_to_the_report_and_its_logs_to_the_logs(tmp_path: Path) -> None:
    script = Scripted({POLE: RISING})
    train = script.train

    def paged(cfg: ImproveConfig, *args: Any, **more: Any) -> dict[str, Any]:
        for name in ("fidelity/index.html", "fidelity/plot.png", "round-00/vision/metrics.jsonl", "data/a.h5"):
            (Path(cfg.out) / name).parent.mkdir(parents=True, exist_ok=True)
            (Path(cfg.out) / name).write_text("x")
        return train(cfg, *args, **more)

    script.train = paged  # type: ignore[method-assign]
    take(tmp_path, script, [course(POLE, 100.0)])
    task = tmp_path / POLE
    assert {path.name for path in (task / "report" / "fidelity").iterdir()} == {"index.html", "plot.png"}
    train_logs = [str(p.relative_to(task / "logs" / "train")) for p in (task / "logs" / "train").rglob("*.*")]
    assert train_logs == ["round-00/vision/metrics.jsonl"] and not (task / "tmp").exists()


def test_the_report_on_the_dream_gets_what_evaluations_found(tmp_path: Path) -> None:
    script = Scripted({POLE: RISING})
    script.dreamed = lambda generation: float("nan") if generation < 4 else generation + 0.5
    _, (record,) = take(tmp_path, script, [course(POLE, 100.0)])
    assert len(script.told) == len(record.evaluations) - 1
    # Two evaluations of 3 episodes, 10 steps each.
    assert script.told[0] == {"round": 4, "dream": 4.5, "real": 40.0, "std": 1.0, "real_steps": 60}


def facts(root: Path) -> dict[str, Any]:
    """All that a run leaves, without times of day and seconds."""
    found: dict[str, Any] = {}
    for path in sorted(root.rglob("*")):
        name = str(path.relative_to(root))
        if path.suffix == ".json" and name not in ("state.json", "run.json"):
            found[name] = _timeless(json.loads(path.read_text()))
        elif path.name == "metrics.jsonl":
            found[name] = read_metrics(path)
        elif path.suffix == ".csv":
            found[name] = [_timeless(row) for row in rows(path)]
        elif path.is_file() and path.suffix in (".png", ".mp4"):
            found[name] = path.read_bytes()
        elif path.name == "table_controller.tex":
            found[name] = path.read_text()
        elif (
            path.is_file()
            and path.suffix != ""
            and "events" not in name
            and path.name not in ("state.json", "run.json")
        ):
            found[name] = None
    return found


TIMES = {"timestamp", "time_elapsed", "total_time_hours", "wall_s"}


def _timeless(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _timeless(inner) for key, inner in value.items() if key not in TIMES}
    return [_timeless(inner) for inner in value] if isinstance(value, list) else value


def kill_points(
    root: Path, monkeypatch: pytest.MonkeyPatch, go: Callable[[Path], Any], after: bool, every: int
) -> Iterator[Path]:
    """Runs killed right before or right after one of their writes to disk, until one is no longer killed."""
    real = os.replace
    for at in range(1, 10_000, every):
        calls = 0

        def killing(*args: Any, at: int = at) -> None:
            nonlocal calls
            calls += 1
            if calls == at and not after:
                raise Killed
            real(*args)
            if calls == at:
                raise Killed

        folder = root / f"kill-{at}"
        with monkeypatch.context() as patch:
            patch.setattr(os, "replace", killing)
            try:
                go(folder)
                return
            except Killed:
                pass
        yield folder


COURSES = [
    course(POLE, 30.0, most=6, period=1, films=(2, 7)),
    # Its training ends where it would be extended.
    course(ACRO, -2.0, most=9, check_every=2, rounds=1),
]


def go(folder: Path) -> None:
    take(folder, Scripted({POLE: RISING, ACRO: FLAT}), COURSES, early_stop=False)


@pytest.mark.parametrize("after", [False, True])
@pytest.mark.parametrize("every", [7, pytest.param(1, marks=pytest.mark.slow)])
def test_a_run_killed_between_any_two_writes_ends_as_one_that_was_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, after: bool, every: int
) -> None:
    go(tmp_path / "whole")
    whole = facts(tmp_path / "whole")
    assert len(whole) > 20
    assert [row["generation"] for row in whole[f"{ACRO}/logs/eval_progress.csv"]] == ["2", "4", "6", "8", "10"]
    kills = 0
    for folder in kill_points(tmp_path, monkeypatch, go, after, every):
        go(folder)
        assert facts(folder) == whole, folder
        shutil.rmtree(folder)
        kills += 1
    assert kills * every > 70


def test_what_was_done_is_not_done_again(tmp_path: Path) -> None:
    script = Scripted({POLE: RISING, ACRO: FLAT})
    take(tmp_path, script, COURSES)
    times = (tmp_path / POLE / "report" / "table_runtime.tex").read_text()
    before = facts(tmp_path)
    num = len(script.trained), len(script.played), len(script.filmed)
    take(tmp_path, script, COURSES)
    assert (len(script.trained), len(script.played), len(script.filmed)) == num and facts(tmp_path) == before
    assert (tmp_path / POLE / "report" / "table_runtime.tex").read_text() == times


@pytest.mark.parametrize(
    "courses, flags, message",
    [
        ([course(POLE, 31.0)], {}, "tasks was"),
        ([course(POLE, 30.0, most=30)], {}, "tasks was"),
        ([course(POLE, 30.0)], {"quick": True}, "quick was False, now True"),
        ([course(POLE, 30.0)], {"seed": 2}, "seeds.seed was 1, now 2"),
    ],
)
def test_another_run_is_not_continued_in_its_folder(
    tmp_path: Path, courses: list[Course], flags: dict[str, Any], message: str
) -> None:
    script = Scripted({POLE: RISING})
    take(tmp_path, script, [course(POLE, 30.0)])
    with pytest.raises(ValueError, match=message):
        take(tmp_path, script, courses, **flags)


def test_patience_may_be_another_when_a_run_continues(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    script = Scripted({ACRO: FLAT})
    play = script.play

    def stop(spec: RealSpec, model: Path, seeds: range) -> Played:
        if len(script.played) == 8:
            raise KeyboardInterrupt
        return play(spec, model, seeds)

    script.play = stop  # type: ignore[method-assign]
    with pytest.raises(KeyboardInterrupt):
        take(tmp_path, script, [course(ACRO, 100.0)], patience=9)
    script.play = play  # type: ignore[method-assign]
    _, (record,) = take(tmp_path, script, [course(ACRO, 100.0)], patience=4)
    assert (record.status, record.generations) == ("PLATEAU_STOP", 18)


def test_two_runs_do_not_share_a_folder(tmp_path: Path) -> None:
    script = Scripted({POLE: RISING})
    cfg = CurriculumConfig(checkpoint_dir=str(tmp_path))
    with Curriculum(cfg, COURSES, {}, Console(file=io.StringIO()), script.hands), pytest.raises(FolderInUse):
        take(tmp_path, script, COURSES)
