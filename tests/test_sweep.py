"""Many runs: one folder for each, a table over seeds, failures by name, and the same call resumes."""

from __future__ import annotations

import io
import json
import sys
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console
from tiny import work_here

from wm_agents.cli import app as cli
from wm_agents.cli.flags import Parser
from wm_agents.errors import ConfigurationError
from wm_agents.loops import sweep as sweeping
from wm_agents.loops.sweep import LOG, Run, SweepConfig, sweep

SCRIPT = """
import json, os, pathlib, sys
folder, seed = pathlib.Path(sys.argv[1]), int(sys.argv[2])
print("cores", os.environ["OMP_NUM_THREADS"])
if seed == 3 and not (folder / "mended").exists():
    sys.exit("wm improve: the environment broke at seed 3\\n")
real = {"mean": 10.0 * seed, "std": 1.0, "ci95": 0.5, "returns": [10.0 * seed]}
(folder / "summary.json").write_text(json.dumps({"real": real, "real_steps": 100, "train_wall_s": 7}))
"""


@pytest.fixture(autouse=True)
def stand_in(monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> None:
    """A script in the place of `wm improve`, started by this process."""
    if "cluster" in request.keywords or "slow" in request.keywords:
        return
    work_here(monkeypatch)
    monkeypatch.setattr(Run, "command", property(lambda run: [sys.executable, "-c", SCRIPT, run.folder, str(run.seed)]))


def run(out: Path, **changes: Any) -> dict[str, Any]:
    cfg = SweepConfig(**{"out": str(out), "tasks": ("CartPole",), "seeds": (1, 2, 3, 4), **changes})
    return sweep(cfg, Console(file=io.StringIO()))


def test_every_seed_has_a_row_a_failure_is_named_and_the_same_call_tries_it_again(tmp_path: Path) -> None:
    result = run(tmp_path, cores=2)
    rows = {row["seed"]: row for row in result["runs"]}
    assert {seed: row.get("real") for seed, row in rows.items()} == {1: 10.0, 2: 20.0, 3: None, 4: 40.0}
    assert rows[3]["failed"] == "wm improve: the environment broke at seed 3"
    group = result["groups"]["CartPole"]
    assert (group["seeds"], group["failed"], group["mean"]) == (4, 1, 23.333)
    assert group["ci95"] == pytest.approx(4.303 * 15.2753 / 3**0.5, abs=0.01)
    assert group["iqm"] == 23.333 and group["iqm_interval"][0] >= 10.0
    table = (tmp_path / "table.md").read_text()
    assert "| CartPole | 4 | 23.3 | ± 37.9 | 23.3 |" in table and "* CartPole, seed 3: FAILED: wm improve: the" in table
    assert (tmp_path / "returns.png").read_bytes()[:4] == b"\x89PNG"
    folder = tmp_path / "CartPole" / "seed-3"
    assert "cores 2" in (folder / LOG).read_text()

    (folder / "mended").touch()
    logs = {seed: (tmp_path / f"CartPole/seed-{seed}" / LOG).stat().st_mtime_ns for seed in (1, 2, 4)}
    again = run(tmp_path, cores=2)
    assert again["groups"]["CartPole"]["returns"] == [10.0, 20.0, 30.0, 40.0]
    assert again["groups"]["CartPole"]["iqm"] == 25
    assert {seed: (tmp_path / f"CartPole/seed-{seed}" / LOG).stat().st_mtime_ns for seed in (1, 2, 4)} == logs
    assert json.loads((tmp_path / "sweep.json").read_text())["groups"] == json.loads(json.dumps(again["groups"]))


def test_a_grid_is_every_combination_in_a_folder_of_its_own() -> None:
    cfg = SweepConfig(
        out="o", tasks=("CartPole",), envs=("toy_env:Echo-v0",), seeds=(1, 2), settings={"rounds": 1},
        grid={"ppo.lr": [0.1, 0.2], "draw_actions": [True]},
    )  # fmt: skip
    runs = list(cfg.runs())
    assert [r.folder for r in runs[:4]] == [
        "o/CartPole/ppo.lr=0.1,draw_actions=true/seed-1",
        "o/CartPole/ppo.lr=0.2,draw_actions=true/seed-1",
        "o/Echo-v0/ppo.lr=0.1,draw_actions=true/seed-1",
        "o/Echo-v0/ppo.lr=0.2,draw_actions=true/seed-1",
    ]
    assert len({r.folder for r in runs}) == len(runs) == 8
    want = {"env": "toy_env:Echo-v0", "seed": 1, "out": runs[2].folder, "procs": 0, "rounds": 1, "ppo.lr": 0.1}
    assert runs[2].flags == {**want, "draw_actions": True}


def test_all_seeds_may_fail(tmp_path: Path) -> None:
    result = run(tmp_path, seeds=(3,))
    assert result["groups"] == {"CartPole": {"seeds": 1, "failed": 1}}
    assert "| CartPole | 1 | – |" in (tmp_path / "table.md").read_text()


@pytest.mark.parametrize(
    "changes, text",
    [
        ({"tasks": ()}, "needs at least one of tasks or envs"),
        ({"seeds": ()}, "and one seed"),
        ({"tasks": ("CartPol",)}, "unknown field 'CartPol' of the tasks; did you mean 'CartPole'?"),
        ({"grid": {"ppo.lr": 0.1}}, "grid.ppo.lr must be a list of one or more values, got 0.1"),
        ({"grid": {"ppo.lr": []}}, "grid.ppo.lr must be a list of one or more values"),
        ({"settings": {"seed": 3}}, "seed is set by the sweep itself"),
        ({"settings": {"rounds": 3}, "grid": {"rounds": [3]}}, "rounds is in settings and in grid"),
        ({"cores": 0}, "cores must be a whole number of at least 1, got 0"),
    ],
)
def test_a_sweep_that_cannot_be_is_rejected(tmp_path: Path, changes: dict[str, Any], text: str) -> None:
    with pytest.raises(ConfigurationError) as caught:
        run(tmp_path / "o", **changes)
    assert text in str(caught.value)
    assert not (tmp_path / "o").exists()


def test_the_command_prints_the_table_and_its_exit_code_reports_failures(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("wm_agents.cli.sweep.ImproveParser", lambda flags, prog: Parser(lambda: None, prog=prog))
    monkeypatch.setattr(Parser, "arguments", plain_arguments(Parser.arguments))
    flags = ["sweep", "--out", str(tmp_path), "--tasks", "CartPole", "--seeds"]
    assert cli.main([*flags, "1,2"]) == 0
    assert "15.0" in capsys.readouterr().out
    assert cli.main([*flags, "1,3"]) == 1
    assert "FAILED: CartPole, seed 3: wm improve: the environment broke at seed 3" in capsys.readouterr().out


def plain_arguments(plain: Any) -> Any:
    """The arguments of a command, and none for a stand-in."""
    return lambda self, args: plain(self, args) if self.kind is SweepConfig else {}


def test_a_flag_that_improve_rejects_ends_the_sweep_before_its_first_run(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Run, "command", property(command_of))
    out = tmp_path / "o"
    flags = ["sweep", "--out", str(out), "--tasks", "CartPole", "--grid", '{"ppo.lrr": [0.1]}']
    assert cli.main(flags) == 2
    assert "--ppo.lrr" in capsys.readouterr().err and not out.exists()


def command_of(run: Run) -> list[str]:
    words = [word for name, value in run.flags.items() for word in (f"--{name}", str(value))]
    return [sys.executable, "-m", "wm_agents", "improve", *words]


def test_an_interrupted_run_is_stopped_and_nothing_is_recorded_as_failed(tmp_path: Path) -> None:
    class Halted:
        def is_set(self) -> bool:
            return True

    slow = Run("CartPole", 1, str(tmp_path / "r"), {})
    shared = sweeping.Shared(str(tmp_path), "", 1)
    sleeping = type("Sleeping", (Run,), {"command": [sys.executable, "-c", "import time; time.sleep(600)"]})
    assert sweeping._work(shared, Halted(), sleeping(*slow)) == "interrupted"


@pytest.mark.slow
def test_two_seeds_of_a_tiny_improve(tmp_path: Path) -> None:
    small = {
        "rounds": 1, "random_steps": 200, "ppo.iterations": 1, "dynamics.total_steps": 5, "final_episodes": 2,
        "starts": 32, "horizon": 10,
    }  # fmt: skip
    result = run(tmp_path, seeds=(1, 2), settings=small)
    assert result["groups"]["CartPole"]["failed"] == 0, (tmp_path / "CartPole/seed-1" / LOG).read_text()
    assert {path.name for path in (tmp_path / "CartPole" / "seed-1").iterdir()} >= {"run.json", "summary.json", "model"}
