"""The benchmark of doors prints what it measured, compares checkouts by turns, and checks bars."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
from tiny import save_tiny
from waiting import wait_until

sys.path.append(str(Path(__file__).parents[1] / "scripts"))
import bench_dream_speed as bench
from dream_speed.bars import Timed, check_bars
from dream_speed.worker import Busy

from wm_agents.cli.doors import Door
from wm_envs.registry import RealSpec

ROOT = Path(__file__).parents[1]


def run(monkeypatch: pytest.MonkeyPatch, *args: str) -> int:
    monkeypatch.setattr(sys, "argv", ["bench_dream_speed.py", *args])
    return bench.main()


def test_the_same_checkout_is_measured_by_turns_on_one_small_door(tmp_path: Path, monkeypatch, capsys) -> None:
    model = save_tiny(tmp_path / "pole", RealSpec("CartPole-v1"))
    one = bench.dream_doors(model)[:1]
    alone, vector, plain = bench.real_doors(model, 1)
    sync = vector._replace(way="SyncVectorEnv")  # Starting processes takes seconds.
    monkeypatch.setattr(bench, "dream_doors", lambda model, options: one)
    monkeypatch.setattr(bench, "real_doors", lambda model, cores: [alone, sync, plain])
    flags = ["--dreams", model, "--seconds", "0.05", "--threads", "1", "--against", str(ROOT), "--busy", "--json"]
    assert run(monkeypatch, *flags) == 0
    out, shown = capsys.readouterr()
    report = json.loads(out)
    *real, dream = report["doors"]
    assert [timed["way"] for timed in real] == ["gym.make", "SyncVectorEnv", "processes", "gym.make"]
    assert [timed["door"]["id"] for timed in real] == ["Real-v0"] * 3 + ["CartPole-v1"]
    assert all(timed["per_s"] > 0 and timed["new_over_old"] is None for timed in real)
    assert dream["door"] == one[0]._asdict() and dream["family"] == "vmc"
    assert dream["times_real"] == dream["per_s"] / real[0]["per_s"]
    assert dream["times_real_all"] == dream["per_s"] / real[2]["per_s"]
    assert min(dream[key] for key in ("old_per_s", "new_over_old", "busy_loss", "old_busy_loss", "gymnasium")) > 0
    assert report["machine"]["threads"] == 1 and report["against"] == str(ROOT)
    assert [bar["bar"] for bar in report["bars"]] == ["at most 3 times slower while every core is busy"]
    assert "5 doors in" in shown and "new / old" in shown and ("pass" in shown or "FAIL" in shown)


def test_a_folder_without_the_packages_is_rejected(tmp_path: Path, monkeypatch, capsys) -> None:
    with pytest.raises(SystemExit):
        run(monkeypatch, "--against", str(tmp_path))
    assert "must be a checkout of this project, but has no folder wm_envs" in capsys.readouterr().err


def state(pid: int) -> str:
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]


def reaches(pid: int, wanted: str) -> bool:
    """Wait until the process is in one of these states; a signal takes a moment."""
    wait_until(lambda: state(pid) in wanted)
    return True


def test_busy_processes_run_beside_a_spell_only() -> None:
    busy = Busy(2)
    pids = [process.pid for process in busy.processes]
    try:
        assert all(reaches(pid, "T") for pid in pids)
        assert busy.beside(lambda: 7.0 if all(reaches(pid, "RSD") for pid in pids) else 0.0) == 7.0
        assert all(reaches(pid, "T") for pid in pids)
    finally:
        busy.close()
    assert len(pids) == 2 and all(process.poll() is not None for process in busy.processes)


def timed(way: str, rows: int = 1, obs: str | None = "latent", **fields: float) -> Timed:
    view = {"obs": obs} if obs else {}
    family = "vmc" if obs else "ensemble"
    return Timed("Dream-X-v0", family, way, Door(way, "Dream-X-v0", rows, view), 100.0, **fields)


def test_bars_are_checked_at_the_slowest_door() -> None:
    pixels = [timed("gym.make", 1, "pixels", new_over_old=2.6), timed("native vector", 64, "pixels", new_over_old=2.4)]
    (bar,) = check_bars(pixels)
    assert (bar.bar, bar.value, bar.passed) == ("V-M-C pixels, every door: new / old at least 2.5", 2.4, False)
    assert bar.door == "gym.make_vec('Dream-X-v0', 64, obs='pixels')"
    (bar,) = check_bars([timed("gym.make", busy_loss=3.0), timed("make_vec_env", 8, busy_loss=2.0)])
    assert bar.value == 3.0 and bar.passed
    (bar,) = check_bars([timed("gym.make", busy_loss=3.1), timed("make_vec_env", 8, busy_loss=2.0)])
    assert bar.value == 3.1 and not bar.passed


@pytest.mark.parametrize(
    ("result", "name", "least"),
    [
        (lambda x: timed("native vector", 1024, None, new_over_old=x), "ensemble, 1,024 rows", 6),
        (lambda x: timed("gym.make", 1, None, new_over_old=x), "ensemble, gym.make", 8),
        (lambda x: timed("native vector", 1024, new_over_old=x), "V-M-C latents, 1,024 rows", 1.3),
        (lambda x: timed("gym.make", new_over_old=x), "V-M-C latents, gym.make", 3),
        (lambda x: timed("native vector", 1024, None, times_real_all=x), "1,024 rows faster than the real", 1),
        (lambda x: timed("native vector", 1024, "pixels", times_real_all=x), "1,024 rows faster than the real", 1),
    ],
)
def test_a_bar_is_passed_from_its_limit_on(result, name: str, least: float) -> None:
    for value, passed in ((least, True), (0.99 * least, False)):
        (bar,) = check_bars([result(value)])
        assert bar.bar.startswith(name) and bar.passed is passed


def test_latents_of_pixels_must_be_a_hundred_times_the_real_environment() -> None:
    faster, hundred = check_bars([timed("native vector", 1024, times_real_all=99.0)])
    assert faster.passed and not hundred.passed and "100 times" in hundred.bar


def test_what_was_not_measured_is_not_checked() -> None:
    assert check_bars([timed("gym.make"), timed("native vector", 8, new_over_old=0.1)]) == []


def test_real_rows_carry_the_plain_id_where_that_is_what_was_stepped() -> None:
    plain = Timed("Dream-X-v0", "real", "gym.make", Door("gym.make", "X-v1"), 1.0)
    twin = plain._replace(door=Door("gym.make", "Real-X-v0"))
    assert (plain.name, twin.name, twin.sees) == ("X-v1", "gym.make", "real")
    assert bench.shown(None) == "" and bench.shown(1234.5) == "1,234" and bench.shown(0.0123) == "0.0123"
