"""The journeys of docs/concepts.md are short, name files that exist, and follow the calls of the code."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PAGE = (ROOT / "docs" / "concepts.md").read_text(encoding="utf-8")
DREAM = "From `gym.make` to a dreamed step"
TRACE = f"""
import sys, gymnasium as gym, torch
def note(frame, event, arg):
    if event == "call" and frame.f_code.co_filename.startswith({str(ROOT)!r}):
        print(frame.f_code.co_filename, frame.f_code.co_name)
sys.setprofile(note)
import wm_envs
env = gym.make("Dream-CartPole-v0")
env.reset(seed=0)
env.step(1)
"""
"""Prints the calls of functions of the project."""


def journey(title: str) -> list[str]:
    """The steps of a journey."""
    text = re.split(r"\n\*\*|\n## ", PAGE.split(f"**{title}**", 1)[1], maxsplit=1)[0]
    return re.split(r"^\d+\. ", text, flags=re.MULTILINE)[1:]


@pytest.mark.parametrize(
    ("title", "most"),
    [("A frame, from the environment to the loss", 10), (DREAM, 8), ("From `wm train` to a verified model", 15)],
)
def test_a_journey_is_short_and_its_files_exist(title: str, most: int) -> None:
    names = set(re.findall(r"`([\w/]+\.py)`", " ".join(journey(title))))
    assert 1 < len(names) <= most, names
    paths = [str(path) for package in ("wm_envs", "policies", "wm_agents") for path in (ROOT / package).rglob("*.py")]
    assert [name for name in names if not any(path.endswith(f"/{name}") for path in paths)] == []


def test_the_steps_of_a_dream_are_called_in_the_order_of_its_journey() -> None:
    out = subprocess.run([sys.executable, "-c", TRACE], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    calls = out.splitlines()
    for step in journey(DREAM):
        file, function = re.findall(r"`([\w/.]+)`", step)[:2]
        name = {"ActionEncoder": "__call__"}.get(function, function.split(".")[-1])
        call = f"{ROOT / file} {name}"
        assert call in calls, f"{file}: {function} is not called after the step before"
        calls = calls[calls.index(call) :]
