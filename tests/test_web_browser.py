"""The pages in a real browser: Debian's Chromium, driven by Playwright. `pytest -m browser` runs these alone."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from waiting import wait_until

import wm_envs  # noqa: F401
from wm_agents.web.web_export import export_web

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
pytestmark = [
    pytest.mark.browser,
    pytest.mark.slow,
    pytest.mark.skipif(CHROMIUM is None, reason="Chromium is not installed"),
]
sync_api = pytest.importorskip("playwright.sync_api", reason="Playwright is not installed")
WAIT_MS = 60_000


@contextmanager
def serving(*command: str) -> Iterator[str]:
    """The URL that a command prints when it serves."""
    with subprocess.Popen([sys.executable, *command], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        try:
            line = process.stdout.readline()
            assert "http://" in line, line
            yield "http://" + line.split("http://")[1].split("/")[0] + "/"
        finally:
            process.terminate()


@pytest.fixture
def page() -> Iterator[Any]:
    """A page whose errors fail the test."""
    errors: list[str] = []
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox", "--disable-gpu"])
        page = browser.new_page()
        page.set_default_timeout(WAIT_MS)
        page.on("pageerror", lambda error: errors.append(str(error)))
        page.on("console", lambda line: errors.append(line.text) if line.type == "error" else None)
        yield page
        browser.close()
    assert not errors


def wait_text(page: Any, place: str, pattern: str) -> None:
    # Not by page.wait_for_function, whose eval the Content-Security-Policy forbids.
    sync_api.expect(page.locator(place).first).to_have_text(re.compile(pattern), timeout=WAIT_MS)


def test_keys_drive_policies_switch_and_recordings_play(page: Any) -> None:
    with serving("-m", "wm_agents", "play", "Dream-CarRacing-v0", "--port", "0") as url:
        page.goto(url)
        wait_text(page, "#dream-state", "steps on its own")
        page.keyboard.down("ArrowUp")
        gauge = page.locator(".gauges rect").nth(1)
        sync_api.expect(gauge).to_have_attribute("width", re.compile(r"^(9\d|100)"), timeout=WAIT_MS)
        before = page.locator("#dream-view").screenshot()
        wait_until(lambda: page.locator("#dream-view").screenshot() != before)
        page.keyboard.up("ArrowUp")
        page.get_by_role("radio", name="policy (linear)").click()
        page.wait_for_selector("[data-pilot='policy (linear)'][aria-checked=true]")
        page.keyboard.press("ArrowLeft")  # A person takes over.
        page.wait_for_selector("[data-pilot=person][aria-checked=true]")
        page.keyboard.press("c")
        page.wait_for_selector("#record[aria-pressed=true]")
        page.keyboard.press("e")
        wait_text(page, "#real-state", "in control")
        page.select_option("#format", "gif")
        page.click("#record")
        sync_api.expect(page.locator("#clip img")).to_be_visible(timeout=WAIT_MS)
        assert page.locator("#clip img").bounding_box()["width"] > 100
        page.keyboard.press("Escape")
        page.keyboard.press("p")
        wait_text(page, "#pause", "Play")
        page.goto("about:blank")


def test_the_dashboard_follows_a_running_run(page: Any, tmp_path: Path) -> None:
    file = tmp_path / "one" / "metrics.jsonl"
    file.parent.mkdir()
    file.write_text('{"step": 1, "train/loss": 8.5}\n{"step": 2, "tra')
    with serving("-m", "wm_agents", "dashboard", str(tmp_path), "--port", "0") as url:
        page.goto(url)
        wait_text(page, "#charts output", r"^8\.5$")
        with file.open("a") as more:
            more.write('in/loss": 0.25}\n')
        wait_text(page, "#charts output", r"^0\.25$")
        page.goto("about:blank")  # It would ask a server that is gone.


REWARDS = """async () => {
  const { Dream } = await import("./dream.js");
  const get = async (url) => (await fetch(url)).arrayBuffer();
  const dream = await Dream.load(new URL(".", location.href), get);
  dream.reset(11);
  return Array.from({ length: 20 }, (_, t) => dream.step([[0.1, 0.6, 0], [-0.3, 0.2, 0]][t % 2]).rew);
}"""


def test_the_exported_page_plays_the_dream_of_python(page: Any, tmp_path: Path) -> None:
    export_web("Dream-CarRacing-v0", tmp_path / "out")
    command = ("-u", "-m", "http.server", "0", "--bind", "127.0.0.1", "--directory", str(tmp_path / "out"))
    with serving(*command) as url:
        page.goto(url)
        wait_text(page, "#dream-state", "step [1-9]")
        page.get_by_role("radio", name="policy (linear)").click()
        wait_text(page, "#dream-ret", r"^\d\d+\.")
        theirs = page.evaluate(REWARDS)
    env = gym.make("Dream-CarRacing-v0")
    env.reset(seed=11)

    acts = [np.array(act, np.float32) for act in ([0.1, 0.6, 0], [-0.3, 0.2, 0])]
    mine = [float(env.step(acts[t % 2])[1]) for t in range(20)]
    assert theirs == pytest.approx(mine, abs=1e-3), json.dumps(theirs)
