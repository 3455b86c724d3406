"""The benchmark of training times what it says it does, by turns with a port, and says so where something fails."""

from __future__ import annotations

import argparse
import ast
import io
import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from rich.console import Console
from rich.table import Table

sys.path.insert(0, str(Path(__file__).parents[1] / "scripts"))

import bench_train_speed as bench
from ports import contest, stopwatch
from ports.stopwatch import Job

from wm_agents.models.families import FAMILIES, config_class

SCRIPTS = Path(bench.__file__).parent
WORKER = """
import json, sys
name, log, ms = sys.argv[1], sys.argv[2], json.loads(sys.argv[3])
print(json.dumps({"params": 7, "loss": None, "first_s": 0.1}), flush=True)
for line in sys.stdin:
    open(log, "a").write(name)
    print(json.dumps({"ms": [ms, ms, 9e9], "cpu_ms": [ms / 2], "peak_mb": 1.0, "process_mb": 2.0}), flush=True)
"""


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Batches that take no time."""
    monkeypatch.setattr(bench, "BATCH", dict.fromkeys(bench.BATCH, (2, 3)))


def contender(tmp_path: Path, by: str, ms: float, code: str = WORKER) -> contest.Contender:
    """One whose process answers with the given milliseconds, and notes each time that it is asked."""
    script = tmp_path / "worker.py"
    script.write_text(code)
    command = (sys.executable, "-S", str(script), by[0], str(tmp_path / "log"), str(ms))
    return contest.Contender("dreamerv3:size1m", by, Job({}), command, 1024)


@pytest.mark.parametrize("name", ["M ci", "ensemble:ci", "tdmpc2:ci", "dreamerv3:ci"])
def test_an_update_trains_every_weight_of_the_family(small: None, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    kept = []
    make = bench.make_part
    monkeypatch.setattr(bench, "make_part", lambda *args: kept.append(make(*args)) or kept[0])
    job, frames = bench.describe_job(name, "cpu", 1)
    timed = bench.prepare(job)
    weights = [p for p in kept[0].module.parameters() if p.requires_grad]
    before = [p.detach().clone() for p in weights]
    assert torch.isfinite(timed.call()) and timed.params == sum(p.numel() for p in weights)
    assert frames == {"M ci": 64 * 64, "ensemble:ci": 256}.get(name, 6)
    # Warm-up and layers that begin as zero hold some back in the very first update.
    moved = [bool((p != old).any()) for p, old in zip(weights, before)]
    assert sum(moved) > 0.5 * len(moved)


def test_a_plan_begins_from_the_one_before(monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []
    plan = bench.MPPI.plan
    monkeypatch.setattr(bench.MPPI, "plan", lambda self, z, last: seen.append(last) or plan(self, z, last))
    timed = bench.prepare(bench.describe_job("tdmpc2:ci plan", "cpu", 1)[0])
    timed.call(), timed.call()
    assert seen[0] is None and seen[1].shape == (1, 3, FAMILIES["tdmpc2"].action_dim)


def test_bf16_is_the_same_update_in_another_precision(small: None, native_bf16: None) -> None:
    job, _ = bench.describe_job("dreamerv3:ci", "cpu", 1)
    fp32, bf16 = (float(bench.prepare(job._replace(precision=p)).call()) for p in ("fp32", "bf16"))
    assert fp32 != bf16 and fp32 == pytest.approx(bf16, rel=0.01)


def test_every_size_of_every_family_is_timed() -> None:
    names = set(bench.names_of([*FAMILIES]))
    for family in ("ensemble", "dreamerv3", "tdmpc2"):
        assert {f"{family}:{size}" for size in config_class(family).SIZES} <= names
    assert {"V small", "V paper", "M", "tdmpc2:1m plan"} <= names
    assert {*bench.BARS, *bench.RATIO_BARS, *bench.MS_BARS} <= names
    vision = {bench.part_of_vmc(name) for name in names if name.startswith(("V", "M"))}
    assert {size for _, size in vision} == {*config_class("vmc").SIZES}


def test_sizes_and_batch_are_passed_to_ports_and_only_to_those_of_the_family(tmp_path: Path) -> None:
    args = argparse.Namespace(
        family=["dreamerv3", "tdmpc2"], preset=["size1m", "1m"], device="cpu", threads=1, compiled=False,
        port=[("sheeprl", "/s"), ("tdmpc2", "/t"), ("dreamerv3-torch", "/d")], port_python="python9",
    )  # fmt: skip
    groups = {group[0].name: group for group in bench.make_contenders(args)}
    who = {name: [c.by for c in group if c.by != "ours"] for name, group in groups.items()}
    assert who == {
        "dreamerv3:size1m": ["sheeprl", "sheeprl", "dreamerv3-torch"],
        "tdmpc2:1m": ["tdmpc2", "tdmpc2"],
        "tdmpc2:1m plan": ["tdmpc2", "tdmpc2"],
    }
    assert [c.job.precision for c in groups["tdmpc2:1m plan"] if c.by == "ours"] == ["fp32"]
    theirs = groups["dreamerv3:size1m"][-1]
    assert theirs.command[0] == "python9" and theirs.job.path == "/d" and theirs.frames == 1024
    assert (theirs.job.batch, theirs.job.length, theirs.job.obs_shape) == (16, 64, (64, 64, 3))
    assert theirs.job.sizes["deter_dim"] == 512 and theirs.job.actions == 6
    assert Job(**json.loads(json.dumps(theirs.job._asdict()))).sizes == theirs.job.sizes


def test_ports_are_timed_by_turns_with_ours_and_ours_alone_one_after_the_other(tmp_path: Path) -> None:
    ours, port = contender(tmp_path, "ours", 10), contender(tmp_path, "sheeprl", 30)
    contest.compare([ours, port], 0.3, 3)
    contest.compare([ours, ours._replace(command=(*ours.command[:3], "O", *ours.command[4:]))], 0.2, 2)
    assert (tmp_path / "log").read_text() == "ososos" + "ooOO"


def test_the_fastest_port_is_set_against_ours(tmp_path: Path) -> None:
    group = [contender(tmp_path, by, ms) for by, ms in (("ours", 10), ("sheeprl", 30), ("dreamerv3-torch", 24))]
    table = Table(*"abcdefghijkl")
    results = bench.report(group, contest.compare(group, 0.1, 2), table)
    assert results[0]["ratio"] == pytest.approx(2.4) and results[0]["cpu_ratio"] == pytest.approx(2.4)
    assert results[0]["fastest_port"] == "dreamerv3-torch fp32" and "ratio" not in results[1]
    assert results[0]["ms"] == 10 and results[0]["per_s"] == pytest.approx(102_400) and results[0]["params"] == 7
    console = Console(width=200, record=True, file=io.StringIO())
    console.print(table)
    assert "2.40x, cpu 2.40x of dreamerv3-torch" in (text := console.export_text()) and "2x" in text


def test_what_fails_is_said_and_stops_nobody_else(tmp_path: Path) -> None:
    big = "import json\nprint(json.dumps({'failed': 'does not fit'}))"
    killed = "import os\nos.kill(os.getpid(), 9)"
    codes = {"sheeprl": "raise ModuleNotFoundError('no hydra')", "big": big, "killed": killed}
    group = [contender(folder(tmp_path, by), by, 1, code) for by, code in codes.items()]
    group.append(contender(folder(tmp_path, "ours"), "ours", 5))
    *failed, fine = contest.compare(group, 0.1, 2)
    assert failed == ["failed: ModuleNotFoundError: no hydra", "does not fit", "does not fit"] and fine.ms == 5
    results = bench.report(group, [*failed, fine], Table(*"abcdefghijkl"))
    assert results[0]["failed"].endswith("no hydra") and "ratio" not in results[-1]


def folder(path: Path, name: str) -> Path:
    (path / name).mkdir()
    return path / name


def test_a_port_needs_a_known_name_and_a_folder(tmp_path: Path) -> None:
    assert bench.port_of(f"sheeprl={tmp_path}") == ("sheeprl", str(tmp_path))
    with pytest.raises(argparse.ArgumentTypeError, match="NAME must be one of dreamerv3-torch, sheeprl, tdmpc2"):
        bench.port_of(f"rllib={tmp_path}")
    with pytest.raises(argparse.ArgumentTypeError, match="needs the folder of a checkout"):
        bench.port_of("sheeprl=/nowhere")


def test_json_goes_to_a_file_or_to_stdout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys) -> None:  # type: ignore[no-untyped-def]
    speed = contest.Speed([20.0], [8.0], 20.0, 8.0, 3.0, 4.0, 5, 0.25)
    monkeypatch.setattr(bench, "compare", lambda group, *args: [speed] * len(group))
    monkeypatch.setattr(bench, "use_bf16", lambda asked, kinds, device: False)
    for extra in ([], ["--json", str(tmp_path / "out.json")]):
        monkeypatch.setattr(sys, "argv", ["bench", "--family", "vmc", "--preset", "small", "M", *extra])
        bench.main()
    out, err = capsys.readouterr()
    report = json.loads(out)
    assert [entry["part"] for entry in report["results"]] == ["V small", "M"]
    assert report["results"][0]["per_s"] == 3200 and json.loads((tmp_path / "out.json").read_text()) == report
    assert "2,000/s" in err and "60,000/s" in err and "204,800" in err


def test_a_spell_measures_each_call_on_the_clock_and_of_the_processor(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = [0.0, 0.0]
    fake = type("Clock", (), {"perf_counter": lambda: clock[0], "process_time": lambda: clock[1]})
    monkeypatch.setattr(stopwatch, "time", fake)

    def call() -> None:
        clock[0], clock[1] = clock[0] + 0.5, clock[1] + 0.125

    assert stopwatch._spell(call, 1.5, "cpu") == {"ms": [500.0] * 3, "cpu_ms": [125.0] * 3}
    assert stopwatch._spell(call, 0, "cpu")["ms"] == [500.0]  # Slow ones are called once, at least.


MEMORY = """
import json
import torch
from ports.stopwatch import Memory
memory = Memory("cpu", 2**20)
before = memory.peaks()
torch.ones(50 * 2**20)
print(json.dumps([before, memory.peaks()]))
"""


def test_memory_counts_what_calls_take() -> None:
    """In a process of its own, because the peak of this one may lie above all that the calls take."""
    if not Path("/proc/self/status").exists():
        pytest.skip("no /proc here")
    done = subprocess.run([sys.executable, "-c", MEMORY], cwd=SCRIPTS, capture_output=True, text=True, check=True)
    before, after = json.loads(done.stdout)
    assert before["peak_mb"] >= 3.5 and after["peak_mb"] > before["peak_mb"] + 150
    assert after["process_mb"] > after["peak_mb"]


@pytest.mark.parametrize("name", sorted({port.script for port in bench.PORTS.values()}))
def test_a_driver_imports_nothing_of_its_port_before_it_is_asked(name: str) -> None:
    tree = ast.parse((SCRIPTS / "ports" / name).read_text())
    named = [node for node in tree.body if isinstance(node, ast.Import | ast.ImportFrom)]
    tops = {node.module or "" for node in named if isinstance(node, ast.ImportFrom)}
    tops |= {alias.name for node in named if isinstance(node, ast.Import) for alias in node.names}
    assert {top.partition(".")[0] for top in tops} <= {*sys.stdlib_module_names, "torch", "numpy", "stopwatch"}
