"""With `--json`, stdout is one JSON object, whatever environments and libraries print."""

from __future__ import annotations

import ctypes
import json
import math
import os
from pathlib import Path
from typing import Any

import gymnasium as gym
import pytest
from toy_env import Echo

from policies.policy import Array
from wm_agents.cli.app import main
from wm_agents.cli.printing import json_alone, print_json


class Chatty(Echo):
    """Prints with Python, with a child process and with C."""

    def step(self, action: Array) -> tuple[Array, float, bool, bool, dict[str, Any]]:
        print("python")
        os.system("echo child")
        ctypes.CDLL(None).puts(b"buffered by C")
        return super().step(action)


if "Chatty-v0" not in gym.registry:
    gym.register("Chatty-v0", entry_point=Chatty, max_episode_steps=3)


def test_an_environment_that_prints_does_not_spoil_it(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    flags = ["--spec.id", "Chatty-v0", "--steps", "3", "--procs", "0", "--json"]
    assert main(["collect", str(tmp_path / "data"), *flags]) == 0
    said = capfd.readouterr()
    assert json.loads(said.out)["steps"] >= 3 and said.out.count("\n") == 1
    assert {"python", "child", "buffered by C"} <= set(said.err.splitlines())
    print("stdout is whole again")
    assert capfd.readouterr().out == "stdout is whole again\n"


def test_what_was_printed_before_an_error_stays(capfd: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(KeyboardInterrupt), json_alone():
        print_json({"steps": 3, "mean": math.nan})
        raise KeyboardInterrupt
    assert json.loads(capfd.readouterr().out) == {"steps": 3, "mean": None}
