"""`wm bench`: it measures what it says, for as long as it is told."""

from __future__ import annotations

import json
import time
from pathlib import Path

import pytest
import torch
from tiny import save_tiny

from wm_agents.cli import app as cli
from wm_agents.cli import bench
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
    assert {"dream, 1 row(s), fp32", "dream, 4 row(s), fp32"} <= set(names)
    assert all(speed["per_s"] > 0 for speed in result["speeds"])
    assert (result["machine"]["threads"], result["machine"]["device"], result["seconds"]) == (1, "cpu", 0.02)
    assert err.count("/s\n") == len(names) and torch.get_num_threads() == threads


def test_a_part_can_be_measured_alone(pole: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert wm("--only", '["dream"]', "--model", pole, "--rows", "[2]", "--seconds", "0.01") == 0
    out = capsys.readouterr().out
    assert "dream, 2 row(s), fp32" in out and "read shards" not in out and "torch" in out


def test_a_rate_is_calls_a_second() -> None:
    assert 5 < bench._rate(lambda: time.sleep(0.01), 0.2) <= 100


@pytest.mark.parametrize("flags", [["--seconds", "0"], ["--rows", "[0]"]])
def test_numbers_that_make_no_sense_are_refused(flags: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert wm(*flags) == 1
    assert "seconds must be above 0 and rows at least 1" in capsys.readouterr().err


def test_unknown_parts_and_devices_are_refused(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        wm("--only", '["dreams"]')
    assert wm("--device", "cuda:9") == 1
    assert "device 'cuda:9' is not on this machine" in capsys.readouterr().err
