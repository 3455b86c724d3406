"""The run folder: what it records, that it survives a kill, that it serves one process."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from wm_agents.system.files import write_json
from wm_agents.system.hardware import describe
from wm_agents.system.replace import replacing
from wm_agents.system.run_folder import (
    FolderInUse,
    MetricsLog,
    RunFolder,
    _git_state,
    read_metrics,
    start_run,
    versions,
)
from wm_agents.system.state import read_state
from wm_envs.precision import KINDS

HOLD = "import sys; from pathlib import Path; from wm_agents.system.run_folder import RunFolder; \
r = RunFolder(Path(sys.argv[1])); print('held', flush=True); sys.stdin.read()"


def test_run_json_reports_what_was_run_on_what(tmp_path: Path) -> None:
    with start_run(tmp_path / "run", {"updates": 3, "sizes": (1, 2)}, {"train": 0}):
        record = json.loads((tmp_path / "run" / "run.json").read_text())
    assert record["config"] == {"updates": 3, "sizes": [1, 2]} and record["seeds"] == {"train": 0}
    (start,) = record["starts"]
    assert "/" not in start["command"].split()[0] and start["started_at"].endswith("+00:00")
    assert start["versions"]["gymnasium"] and start["versions"]["torch"]
    assert start["hardware"]["cores"] >= 1


def test_a_run_started_again_continues_from_its_state(tmp_path: Path) -> None:
    with start_run(tmp_path, {"rounds": 2}, {}) as run:
        run.update(round=1, best={"mean": 3.5})
        run.update(stage="dream")
    with start_run(tmp_path, {"rounds": 5}, {}, may_change=("rounds",)) as run:
        assert run.state == {"round": 1, "best": {"mean": 3.5}, "stage": "dream"}
    record = json.loads((tmp_path / "run.json").read_text())
    assert record["config"] == {"rounds": 5} and len(record["starts"]) == 2


def test_other_settings_are_rejected_and_the_folder_given_back(tmp_path: Path) -> None:
    start_run(tmp_path, {"a": 1}, {"train": 0}).close()
    with pytest.raises(ValueError, match=r"with other settings: config.a was 1, now 2; seeds.train was 0, now 9"):
        start_run(tmp_path, {"a": 2}, {"train": 9})
    start_run(tmp_path, {"a": 1}, {"train": 0}).close()


def test_state_that_is_not_json_changes_nothing(tmp_path: Path) -> None:
    with RunFolder(tmp_path) as run:
        run.update(a=1)
        with pytest.raises(TypeError):
            run.update(b=object())
        assert run.state == {"a": 1}
    assert read_state(tmp_path / "state.json") == {"a": 1}
    assert not list(tmp_path.glob(".*"))


def test_metrics_go_to_jsonl_and_tensorboard(tmp_path: Path) -> None:
    with RunFolder(tmp_path) as run:
        run.metrics(1, {"eval/real/return": 2.5})
    with RunFolder(tmp_path) as run:
        run.metrics(2, {"eval/real/return": 3.0})
    assert read_metrics(tmp_path / "metrics.jsonl") == [
        {"step": 1, "eval/real/return": 2.5},
        {"step": 2, "eval/real/return": 3.0},
    ]
    assert list(tmp_path.glob("events.*"))


def test_a_resumed_log_forgets_what_comes_again_and_a_line_cut_short(tmp_path: Path) -> None:
    file = tmp_path / "metrics.jsonl"
    file.write_text('{"step": 1, "x": 1}\n{"step": 2, "x": 2}\n{"step": 3, "x"')
    log = MetricsLog(tmp_path, keep_until=1)
    log.write(2, {"x": 5})
    log.close()
    assert read_metrics(file) == [{"step": 1, "x": 1}, {"step": 2, "x": 5}]


def test_a_second_process_is_rejected_and_reported_who_holds_the_folder(tmp_path: Path) -> None:
    holder = subprocess.Popen([sys.executable, "-c", HOLD, str(tmp_path)], stdin=-1, stdout=-1, text=True)
    assert holder.stdin and holder.stdout
    with holder:
        assert holder.stdout.readline() == "held\n"
        with pytest.raises(FolderInUse, match=f"in use by process {holder.pid};"):
            RunFolder(tmp_path)
        holder.kill()
        holder.wait()
        RunFolder(tmp_path).close()


def test_the_same_process_cannot_open_a_folder_twice(tmp_path: Path) -> None:
    with RunFolder(tmp_path), pytest.raises(FolderInUse, match=f"in use by process {os.getpid()}"):
        RunFolder(tmp_path)
    RunFolder(tmp_path).close()


def test_a_write_that_fails_leaves_the_old_file(tmp_path: Path) -> None:
    file = tmp_path / "x.json"
    write_json(file, [1])
    with pytest.raises(RuntimeError), replacing(file) as tmp:
        tmp.write_text("[2")
        raise RuntimeError
    assert json.loads(file.read_text()) == [1] and [p.name for p in tmp_path.iterdir()] == ["x.json"]


def test_git_state_is_none_outside_a_checkout(tmp_path: Path) -> None:
    assert _git_state(tmp_path) is None


def test_hardware_and_versions_are_json() -> None:
    facts = json.loads(json.dumps({**describe(), **versions()}))
    assert facts["cpu"] and facts["python"] and set(facts["bf16"]) <= set(KINDS)


def test_a_run_of_before_a_setting_existed_continues(tmp_path: Path) -> None:
    start_run(tmp_path, {"spec": {"id": "A-v0"}, "rounds": 2}, {}).close()
    start_run(tmp_path, {"spec": {"id": "A-v0", "crop": None}, "rounds": 2, "family": "auto"}, {}).close()
    with pytest.raises(ValueError, match="config.spec was .*now .*crop"):
        start_run(tmp_path, {"spec": {"id": "A-v0", "crop": [1, 2]}, "rounds": 2, "family": "auto"}, {})
