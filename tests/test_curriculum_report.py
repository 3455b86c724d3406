"""Records, and the files that are made of them: JSON and CSV that any reader takes, tables that pdflatex takes."""

from __future__ import annotations

import csv
import io
import json
import math
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

from wm_agents.curriculum.latex import _latex, latex_table
from wm_agents.curriculum.promotion import Plateau, Promotion
from wm_agents.curriculum.record import Evaluation, Record
from wm_agents.curriculum.report import (
    Runtime,
    _clock,
    _draw_curve,
    _table_controller,
    _table_runtime,
    as_json,
    curriculum_progress,
    eval_progress,
    metrics_summary,
    snapshot,
    write_report,
)

RUNTIME = Runtime("cpu", "bf16", "AMD EPYC 9B14 & Co, 2 cores")


def record(means: list[float], threshold: float = 18.0, env_id: str = "ALE/Pong-v5") -> Record:
    task = Record.new("Pong", env_id, "ALE_Pong-v5", Promotion(threshold), Plateau(threshold, 100, patience=3))
    for i, mean in enumerate(means, 1):
        task.standing.add(10 * i, mean)
        best = max(mean, task.last.best if task.last else -math.inf)
        standing = task.standing
        task.evaluations.append(
            Evaluation(
                10 * i,
                [mean - 1, mean, mean + 1],
                910_000 + 3 * i,
                best,
                standing.promotion.rolling,
                standing.plateau.num_bad,
                standing.verdict == "solved",
                None,
                1000 * i,
                60.0 * i,
                "2026-11-21T10:00:00",
            )
        )
    task.phases = {"collect": 226.04, "learn": 174.3, "control": 4000.0, "evaluation": 0.52}
    return task


def rows(text: str) -> list[dict[str, str]]:
    return list(csv.DictReader(io.StringIO(text)))


def strict(text: str) -> Any:
    """JSON as the standard has it: NaN and Infinity are none."""

    def refuse(name: str) -> None:
        raise AssertionError(f"{name} is not JSON")

    return json.loads(text, parse_constant=refuse)


@pytest.mark.parametrize("means", [[], [-21.0], [-21.0] * 4 + [0.0], [18.0] * 5, [-20.5] * 10])
def test_a_record_survives_json(means: list[float]) -> None:
    task = record(means)
    assert Record.from_dict(strict(as_json(task.to_dict()))) == task


def test_json_never_holds_infinities() -> None:
    with pytest.raises(ValueError, match="not JSON compliant"):
        as_json({"best": -math.inf})


def test_a_snapshot_reports_what_the_evaluation_was() -> None:
    task = record([-21.0, -20.0])
    first = strict(as_json(snapshot(task, task.evaluations[1])))
    assert first == {
        "generation": 20, "env_id": "ALE/Pong-v5", "mean_reward": -20.0, "std_reward": 1.0, "min_reward": -21.0,
        "max_reward": -19.0, "best_reward": -20.0, "threshold": 18.0, "solved": False, "rolling_mean": None,
        "no_improvement_count": 0, "dream_reward": None, "real_steps": 2000, "timestamp": "2026-11-21T10:00:00",
        "episodes": [{"seed": 910_006 + i, "reward": -21.0 + i} for i in range(3)],
    }  # fmt: skip


def test_eval_progress_has_a_row_an_evaluation_and_nothing_where_there_is_not_a_mean_yet() -> None:
    found = rows(eval_progress(record([18.0] * 5)))
    assert [list(row) for row in found[:1]] == [
        ["generation", "mean_reward", "std_reward", "best_reward", "threshold", "solved", "rolling_mean",
         "no_improvement_count"]
    ]  # fmt: skip
    assert [row["rolling_mean"] for row in found] == ["", "", "", "", "18.0"]
    assert [row["solved"] for row in found] == ["False"] * 4 + ["True"]


def test_curriculum_progress_follows_the_tasks() -> None:
    found = rows(curriculum_progress([record([1.0, 2.0]), record([], env_id="none"), record([3.0], env_id="b")]))
    assert [(row["env_id"], row["generation"], row["mean_score"], row["best_score"]) for row in found] == [
        ("ALE/Pong-v5", "10", "1.0", "1.0"),
        ("ALE/Pong-v5", "20", "2.0", "2.0"),
        ("b", "10", "3.0", "3.0"),
    ]
    assert [*found[0]] == [
        "timestamp", "env_id", "generation", "mean_score", "best_score", "threshold", "solved", "time_elapsed",
    ]  # fmt: skip


@pytest.mark.parametrize(
    "means, expected",
    [
        ([18.0] * 5, ("SOLVED", "50", "50", "False", "0")),
        ([-21.0] * 8, ("PLATEAU_STOP", "", "80", "True", "0")),
        ([2.0 * i for i in range(-30, -20)], ("MAX_GENERATIONS", "", "100", "False", "0")),
        ([17.0] * 8, ("INCOMPLETE", "", "80", "False", "10")),
        ([], ("INCOMPLETE", "", "0", "False", "0")),
    ],
)
def test_metrics_summary_says_how_a_task_ended(means: list[float], expected: tuple[str, ...]) -> None:
    (row,) = rows(metrics_summary([record(means)]))
    names = ("completion_status", "solved_generation", "total_generations", "plateau_stopped", "extension_generations")
    assert tuple(row[name] for name in names) == expected


def test_the_curve_shows_band_rolling_mean_and_threshold(tmp_path: Path) -> None:
    _draw_curve(record([-21.0, -10.0, 0.0, 10.0, 18.0, 19.0, 21.0, 21.0, 21.0]), tmp_path / "curve.png")
    picture = cv2.imread(str(tmp_path / "curve.png"))
    assert picture is not None and picture.shape == (900, 1500, 3)
    blue, orange, red, band = (
        (np.abs(picture.astype(int) - bgr).max(-1) < 12).sum()
        for bgr in ((180, 119, 31), (14, 127, 255), (40, 39, 214), (240, 228, 210))
    )
    assert blue > 500 and orange > 500 and red > 500 and band > 3000


def test_a_curve_without_evaluations_can_be_drawn(tmp_path: Path) -> None:
    _draw_curve(record([]), tmp_path / "curve.png")
    assert (tmp_path / "curve.png").stat().st_size > 1000


COMMANDS = {
    "makeatletter", "makeatother", "ifx", "else", "fi", "relax", "empty", "def", "wmend", "documentclass", "begin",
    "end", "centering", "hline", "caption", "label", "textbackslash", "textasciitilde", "textasciicircum", "textless",
    "textgreater", "textbar",
}  # fmt: skip


def check_latex(text: str) -> list[list[str]]:
    """Stricter than pdflatex: plain ASCII, known commands, braces and cells that match. The cells come back."""
    assert text.isascii() and text.isprintable() | ("\n" in text)
    body = "\n".join(line for line in text.splitlines() if not line.startswith("%"))
    plain = re.sub(r"\\[&%$#_{}\\]", "", body).replace(r"\@nodocument", "").replace("\\\n", "")
    assert set(re.findall(r"\\([a-zA-Z]+)", plain)) <= COMMANDS
    assert not re.search(r"[$#^~%]|\\[^a-zA-Z]", plain.replace(r"\\", "")), plain
    depth = 0
    for c in plain:
        depth += (c == "{") - (c == "}")
        assert depth >= 0
    assert depth == 0
    columns = re.search(r"\\begin{tabular}{(l+)}", text)
    assert columns is not None
    lines = [line for line in text.splitlines() if line.endswith(r" \\")]
    cells = [re.split(r"(?<!\\)&", line[:-3]) for line in lines]
    assert {len(row) for row in cells} == {len(columns[1])}
    assert "_" not in re.sub(r"\\_", "", "".join(lines))
    return [[cell.strip() for cell in row] for row in cells]


HOSTILE = r"a_b & 50 % $x$ #1 {y} ~ ^ \input{/etc/passwd} <→> é ± | " + '"q"'


def tables() -> dict[str, str]:
    odd = record([1.0] * 9, env_id=HOSTILE)
    odd.phases = {HOSTILE: 3.0}
    return {
        "empty": _table_controller(record([])),
        "solved": _table_controller(record([-21.0, 0.0, 18.0, 19.0, 20.0, 21.0, 21.0])),
        "hostile": _table_controller(odd),
        "runtime": _table_runtime(record([1.0]), RUNTIME),
        "runtime-hostile": _table_runtime(odd, Runtime(HOSTILE, HOSTILE, HOSTILE)),
    }


@pytest.mark.parametrize("name", tables())
def test_tables_are_plain_latex(name: str) -> None:
    check_latex(tables()[name])


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("pdflatex") is None, reason="pdflatex is not installed")
@pytest.mark.parametrize("name", tables())
def test_pdflatex_takes_tables_alone_and_in_a_paper(name: str, tmp_path: Path) -> None:
    (tmp_path / "table.tex").write_text(tables()[name])
    (tmp_path / "paper.tex").write_text(
        "\\documentclass{article}\\begin{document}Text \\input{table.tex} and \\input{table.tex} text.\\end{document}"
    )
    for file in ("table", "paper"):
        command = ["pdflatex", "-interaction=nonstopmode", "-halt-on-error", file]
        done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=60)
        assert done.returncode == 0 and (tmp_path / f"{file}.pdf").exists(), done.stdout[-2000:]


def test_the_table_of_the_controller_shows_five_generations_from_first_to_last() -> None:
    head, *found = check_latex(_table_controller(record([-21.0, 0.0, 5.0, 18.0, 19.0, 20.0, 21.0, 21.0])))
    assert head == ["Generation", "Mean", "Best", "Solved?", "Notes"]
    assert [row[0] for row in found] == ["10", "30", "50", "60", "80"]
    assert found[-1] == ["80", "21.0", "21.0", "yes", "best evaluation, promoted, mean of 5: 19.8"]


def test_the_table_of_times_shows_what_was_measured() -> None:
    found = check_latex(_table_runtime(record([1.0]), RUNTIME))
    assert found == [
        ["Phase", "Wallclock", "Device", "Precision"],
        ["collect", "3 min 46 s", "cpu", "-"],
        ["learn", "2 min 54 s", "cpu", "bf16"],
        ["control", "1 h 06 min", "cpu", "-"],
        ["evaluation", "0.5 s", "cpu", "-"],
        ["all", "1 h 13 min", "", ""],
    ]


def test_latex_prints_any_text_as_it_is() -> None:
    assert _latex("a_b 50%") == r"a\_b 50\%"
    assert _latex("\\x{}") == r"\textbackslash{}x\{\}"
    assert _latex("é±\n") == "e?"
    check_latex(latex_table(["x"], [[HOSTILE]], HOSTILE, HOSTILE))


@pytest.mark.parametrize(
    "seconds, text",
    [(0.04, "0.0 s"), (59.94, "59.9 s"), (60, "1 min 00 s"), (3599, "59 min 59 s"), (7320, "2 h 02 min")],
)
def test_times_are_reported_as_people_do(seconds: float, text: str) -> None:
    assert _clock(seconds) == text


def test_a_report_is_four_files_and_the_same_each_time(tmp_path: Path) -> None:
    write_report(record([1.0] * 6), tmp_path, RUNTIME)
    names = {"metrics_summary.csv", "learning_curve.png", "table_controller.tex", "table_runtime.tex"}
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    assert set(before) == names
    write_report(record([1.0] * 6), tmp_path, RUNTIME)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before
