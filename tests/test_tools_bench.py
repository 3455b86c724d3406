"""`wm bench`: it measures what it says, for as long as it is told."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from tiny import save_tiny

from wm_agents.cli import app as cli
from wm_agents.cli import bench
from wm_agents.system.hardware import num_cores
from wm_envs.registry import RealSpec


def wm(*args: str) -> int:
    return cli.main(["bench", *args])


@pytest.fixture
def pole(tmp_path: Path) -> str:
    return save_tiny(tmp_path / "m", RealSpec("CartPole-v1"))


def test_dreams_training_and_data_are_measured(
    pole: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(bench, "TRAINED", ("ensemble:ci",))
    threads = torch.get_num_threads()
    assert wm("--model", pole, "--rows", "[1,4]", "--seconds", "0.02", "--threads", "1", "--json") == 0
    out, err = capsys.readouterr()
    result = json.loads(out)
    names = [speed["what"] for speed in result["speeds"]]
    assert names[-3:] == ["train ensemble:ci", "read shards", "sample replay"]
    assert names[:2] == ["real, gym.make, 1 row(s)", "real, AsyncVectorEnv, 1 row(s)"]
    native = {speed["what"]: speed for speed in result["speeds"] if "native vector" in speed["what"]}
    assert list(native) == [f"dream, native vector, {num} row(s)" for num in (1, 4)]
    assert all(s["times_real"] == s["per_s"] / result["speeds"][0]["per_s"] for s in native.values())
    assert all(speed["per_s"] > 0 for speed in result["speeds"])
    assert (result["machine"]["threads"], result["machine"]["device"], result["seconds"]) == (1, "cpu", 0.02)
    assert err.count("/s\n") == len(names) and torch.get_num_threads() == threads


def test_a_part_can_be_measured_alone(
    pole: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("COLUMNS", "400")
    monkeypatch.setattr(bench, "real_doors", lambda model, cores: [bench.Door("gym.make", "CartPole-v1")] * 2)
    assert wm("--only", '["dream"]', "--model", pole, "--rows", "[2]", "--seconds", "0.01") == 0
    out = capsys.readouterr().out
    assert "dream, native vector, 2 row(s)" in out and "DreamVecEnv(gym.make_vec(" in out and "x real" in out
    assert "read shards" not in out and "torch" in out


def test_dreams_of_pixels_have_doors_for_latents_and_for_pixels(tmp_path: Path) -> None:
    shown = {(door.way, door.rows, door.kwargs.get("obs")) for door in bench.dream_doors(save_tiny(tmp_path / "m"))}
    few = {
        ("gym.make", 1),
        ("SyncVectorEnv", 8),
        ("make_vec_env", 8),
        *(("native vector", num) for num in (8, 64, 1024)),
    }
    both = {(way, rows, obs) for way, rows in few for obs in ("latent", "pixels")}
    assert shown == both | {("DreamVecEnv", 64, "latent"), ("DreamVecEnv", 1024, "latent")}


@pytest.mark.parametrize("model", ["Dream-Pong-v0", "objects-pong"])
def test_shipped_dreams_stand_beside_their_real_environment_by_their_ids(model: str) -> None:
    assert {door.id for door in bench.dream_doors(model)} == {"Dream-Pong-v0"}
    alone, processes, plain = bench.real_doors(model, 3)
    assert (alone.id, plain.id, plain.kwargs) == ("Real-Pong-v0", "ale_py:ALE/Pong-v5", {})
    assert (processes.way, processes.rows) == ("AsyncVectorEnv", 3)
    assert alone.whole_episodes and processes.whole_episodes and plain.whole_episodes


def test_device_and_precision_reach_every_door_unless_they_are_the_defaults(pole: str) -> None:
    doors = bench.dream_doors(pole, options={"device": "cuda", "precision": "bf16"})
    assert all((door.kwargs["device"], door.kwargs["precision"]) == ("cuda", "bf16") for door in doors)
    plain = (*bench.dream_doors(pole, options={"device": "cpu", "precision": "fp32"}), *bench.real_doors(pole, 1))
    assert all(door.kwargs == {"model": pole} for door in plain if not door.id.startswith("CartPole"))


def test_a_rate_is_calls_a_second(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = [0.0]
    monkeypatch.setattr(bench, "time", type("Clock", (), {"perf_counter": lambda: clock[0]}))

    def call() -> None:
        clock[0] += 0.25

    assert bench._rate(call, 1.5) == 4 and clock[0] == 0.25 * (bench.WARM_UP + 6)


@pytest.mark.parametrize("flags", [["--seconds", "0"], ["--rows", "[0]"]])
def test_numbers_that_make_no_sense_are_rejected(flags: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert wm(*flags) == 1
    assert "seconds must be above 0 and rows at least 1" in capsys.readouterr().err


@pytest.mark.parametrize("num", [0, -1, 9999])
def test_threads_that_this_machine_does_not_have_are_rejected(num: int, capsys: pytest.CaptureFixture[str]) -> None:
    threads = torch.get_num_threads()
    assert wm("--threads", str(num)) == 1
    line = f"threads must be from 1 to {num_cores()}, the cores of this process, got {num}"
    assert line in capsys.readouterr().err and torch.get_num_threads() == threads


def test_unknown_parts_and_devices_are_rejected(capsys: pytest.CaptureFixture[str]) -> None:
    assert wm("--only", '["dreams"]') == 2
    assert wm("--device", "cuda:9") == 1
    assert "device 'cuda:9' is not on this machine" in capsys.readouterr().err
