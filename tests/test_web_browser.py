"""The pages in a real browser: Debian's Chromium, driven by Playwright. `pytest -m browser` runs these alone.

Three tests at the end require a speed of the pages. Each measures first what the machine does without a page, is
skipped unless that leaves half of the time for the page, and takes the best of several windows.
"""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TextIO

import gymnasium as gym
import numpy as np
import pytest
import torch
from waiting import wait_until

import wm_envs  # noqa: F401
from policies.linear import LinearPolicy
from wm_agents.models.vmc import VMC, VMCConfig
from wm_agents.pretrained import load_model, save_model
from wm_agents.system.files import write_tensors
from wm_agents.web.web_export import export_web
from wm_envs.registry import RealSpec

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


@pytest.fixture(scope="module")
def car() -> Iterator[str]:
    """The URL of a server of CarRacing."""
    with serving("-m", "wm_agents", "play", "Dream-CarRacing-v0", "--port", "0", "--max-sessions", "30") as url:
        yield url


def width(page: Any, dimension: int) -> float:
    """The width of the gauge of a dimension of the action, from 0 to 100."""
    return float(page.locator(".gauges rect").nth(dimension).get_attribute("width"))


WATCH = """
window.taken = null; window.frames_drawn = 0; window.shown_ms = []; window.pressed = null; window.fresh = false;
addEventListener("keydown", (event) => { if (!event.repeat) window.pressed = performance.now(); }, true);
const Plain = WebSocket;
window.WebSocket = class extends Plain {
  constructor(...given) {
    super(...given);
    this.addEventListener("message", ({ data }) => {
      const length = new DataView(data).getUint32(0, true);
      const about = JSON.parse(new TextDecoder().decode(new Uint8Array(data, 4, length)));
      if (about.kind !== "step") return;
      window.taken = about.act;
      const pressed = about.act[1] > 0 ? window.pressed : null;  // The step that took the key.
      if (pressed !== null) window.pressed = null;
      window.fresh = true;
      requestAnimationFrame((now) => {  // The page has drawn, because it asked for this frame before.
        if (window.fresh) window.frames_drawn += 1;
        window.fresh = false;
        if (pressed !== null) window.shown_ms.push(performance.now() - pressed);
      });
    });
  }
};
"""
GAMEPAD = """() => {
  const pad = { axes: [0, 0], buttons: Array.from({ length: 17 }, () => ({ value: 0 })) };
  window.pad = pad;
  navigator.getGamepads = () => [pad];
}"""


def test_a_gamepad_steers_by_degrees(page: Any, car: str) -> None:
    page.goto(car)
    wait_text(page, "#dream-state", "steps on its own")
    page.evaluate(GAMEPAD)
    page.get_by_role("radio", name="random").click()
    page.wait_for_selector("[data-pilot=random][aria-checked=true]")
    page.evaluate("() => { window.pad.axes[0] = -0.5; window.pad.buttons[7].value = 0.6; }")
    page.wait_for_selector("[data-pilot=person][aria-checked=true]")  # It takes over.
    wait_until(lambda: width(page, 1) == 60)
    assert width(page, 0) == 25  # Half of the way to the left.
    page.evaluate("() => { window.pad.axes[0] = 0; window.pad.buttons[7].value = 0; }")
    wait_until(lambda: width(page, 1) <= 1)
    page.goto("about:blank")


def test_a_finger_on_the_stick_steers_by_degrees(page: Any, car: str) -> None:
    page.set_viewport_size({"width": 390, "height": 844})
    page.goto(car)
    wait_text(page, "#dream-state", "steps on its own")
    stick = page.locator(".stick")
    stick.scroll_into_view_if_needed()
    box = stick.bounding_box()
    assert box["x"] >= 0 and box["x"] + box["width"] <= 390
    page.mouse.move(box["x"] + 0.75 * box["width"], box["y"] + 0.25 * box["height"])
    page.mouse.down()
    wait_until(lambda: 45 < width(page, 1) < 55)
    assert 20 < width(page, 0) < 30
    page.mouse.up()
    wait_until(lambda: width(page, 1) <= 1)
    assert page.evaluate("() => document.documentElement.scrollWidth") <= 390  # Nothing is cut off.
    page.goto("about:blank")


def test_waking_up_starts_seeds_and_single_steps(page: Any, car: str) -> None:
    page.goto(car)
    wait_text(page, "#dream-state", "steps on its own")
    page.click("#wake")
    wait_text(page, "#real-state", "in control")
    wait_text(page, "#verdict", "Awake")
    page.click("#wake")
    wait_text(page, "#real-state", "same actions")
    page.click("#pause")
    wait_text(page, "#pause", "Play")
    page.select_option("#start", "anywhere")
    wait_text(page, "#at", "^0$")
    page.click("#step")
    wait_text(page, "#at", "^1$")
    page.fill("#seed", "7")
    page.press("#seed", "Enter")
    wait_text(page, "#at", "^0$")
    page.locator("#temperature").click()
    wait_text(page, "#temperature-out", r"1\.3")
    assert page.evaluate("() => document.activeElement === document.body")  # Arrow keys steer, not the slider.
    page.fill("#horizon", "1")
    page.press("#horizon", "Enter")
    page.click("#step")
    wait_text(page, "#dream-state", "over: truncated")
    page.goto("about:blank")


def test_videos_are_recorded_and_play(page: Any, car: str) -> None:
    page.goto(car)
    wait_text(page, "#dream-state", "steps on its own")
    page.click("#record")
    page.wait_for_selector("#record[aria-pressed=true]")
    at = int(page.inner_text("#at"))
    wait_until(lambda: int(page.inner_text("#at")) > at + 5)
    page.click("#record")
    sync_api.expect(page.locator("#clip video")).to_be_visible(timeout=WAIT_MS)
    wait_until(lambda: page.evaluate("() => document.querySelector('#clip video').readyState >= 2"))
    assert page.evaluate("() => document.querySelector('#clip video').videoWidth") > 300
    wait_until(lambda: page.evaluate("() => document.querySelector('#clip video').currentTime > 0.1"))
    assert page.get_attribute("#clip-save", "download") == "Dream-CarRacing-v0.mp4"
    page.goto("about:blank")


def test_keys_drive_policies_switch_and_recordings_play(page: Any, car: str) -> None:
    page.goto(car)
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


def save_endless(path: Path, act_space: gym.Space[Any]) -> str:
    """An untrained model of CartPole with these actions. Its dreams do not terminate."""
    torch.manual_seed(0)
    obs_space = gym.make("CartPole-v1").observation_space
    model = VMC(VMCConfig("identity", z_dim=4, hidden=8, mixtures=2), obs_space, act_space).eval()
    with torch.no_grad():
        model.memory.gmm_linear.bias[-1] = -9.0
    starts = {"begin": model.initial(4)}
    save_model(path, model, RealSpec("CartPole-v1"), starts, horizon=10**6, card="# fresh\n")
    return str(path)


def test_every_part_of_an_action_has_keys_and_buttons(page: Any, tmp_path: Path) -> None:
    model = save_endless(tmp_path / "model", gym.spaces.MultiDiscrete([3, 2], start=[0, 5]))
    page.add_init_script(WATCH)
    with serving("-m", "wm_agents", "play", model, "--port", "0", "--no-real") as url:
        page.goto(url)
        wait_text(page, "#at", "[1-9]")
        for key in ("ArrowRight", "ArrowRight", "ArrowRight", "ArrowLeft", "ArrowUp"):
            page.keyboard.press(key)
        wait_until(lambda: page.evaluate("() => window.taken") == [1, 6])
        page.get_by_role("button", name="part 1: 2").click()
        wait_until(lambda: page.evaluate("() => window.taken") == [2, 6])
        chosen = page.locator("[aria-pressed=true]")
        assert [chosen.nth(i).text_content() for i in range(chosen.count())] == ["2", "6"]
        page.evaluate(GAMEPAD)
        page.evaluate("() => { window.pad.axes[1] = 0.9; }")
        wait_until(lambda: page.evaluate("() => window.taken") == [2, 5])
        page.evaluate("() => { window.pad.axes[1] = 0; }")
        page.get_by_role("radio", name="random").click()
        acts: set[tuple[int, ...]] = set()

        def all_seen() -> bool:
            acts.add(tuple(page.evaluate("() => window.taken")))
            return len(acts) == 6

        wait_until(all_seen)
        page.goto("about:blank")


NO_STORAGE = "Object.defineProperty(window, 'localStorage', { get() { throw new Error('storage is blocked'); } });"


def test_a_dream_that_outlives_the_real_episode_is_marked(page: Any, tmp_path: Path) -> None:
    model = save_endless(tmp_path / "model", gym.make("CartPole-v1").action_space)
    page.add_init_script(NO_STORAGE)
    with serving("-m", "wm_agents", "play", model, "--port", "0") as url:
        page.goto(url)
        wait_text(page, "#at", "[1-9]")
        page.click("#pause")
        page.click("#restart")
        wait_text(page, "#at", "^0$")
        for step in range(1, 5):
            page.click("#step")
            wait_text(page, "#at", f"^{step}$")
        for state in ("in control", "same actions"):  # The dream starts over from here: it has no time to leave.
            page.click("#wake")
            wait_text(page, "#real-state", state)
        for step in range(5, 13):  # Nobody steers, and the pole falls.
            page.click("#step")
            wait_text(page, "#at", f"^{step}$")
        wait_text(page, "#verdict", r"The real episode ended at step \d+, and the dream continues")
        assert "left" in page.get_attribute("#verdict", "class")
        before = page.get_attribute("html", "data-theme")
        page.click("#theme")  # Also where the choice cannot be stored.
        assert {before, page.get_attribute("html", "data-theme")} == {"dark", "light"}
        page.goto("about:blank")


def test_saved_policies_are_chosen_in_mid_episode(page: Any, tmp_path: Path) -> None:
    net, _ = load_model("Dream-CartPole-v0")
    for name, act in (("lefty", 0), ("righty", 1)):
        weights = np.zeros((2, net.feat_dim + 1))
        weights[act, -1] = 1  # It always does the same.
        policy = LinearPolicy(net.act_space, weights)
        (tmp_path / name).mkdir()
        write_tensors(tmp_path / name / "policy_linear.safetensors", policy.tensors(), policy.about())
    page.add_init_script(WATCH)
    saved = f"{tmp_path / 'lefty'},{tmp_path / 'righty' / 'policy_linear.safetensors'}"
    with serving("-m", "wm_agents", "play", "Dream-CartPole-v0", "--port", "0", "--policies", saved) as url:
        page.goto(url)
        wait_text(page, "#at", "[1-9]")
        for name, act in (("righty (linear)", 1), ("lefty (linear)", 0), ("righty (linear)", 1)):
            page.click("#restart")
            page.get_by_role("radio", name=name).click()
            page.wait_for_selector(f"[data-pilot='{name}'][aria-checked=true]")
            wait_until(lambda act=act: page.evaluate("() => window.taken") == [act])
        page.goto("about:blank")


SCALE = """() => {
  const canvas = document.querySelector("#dream-view");
  return [canvas.width, canvas.clientWidth * devicePixelRatio];
}"""


def test_images_are_enlarged_by_a_whole_number_and_drawings_fill_the_screen(page: Any, car: str) -> None:
    page.goto(car)
    wait_text(page, "#dream-state", "[1-9]\\d* steps on its own")
    drawn, shown = page.evaluate(SCALE)
    assert drawn % 64 == 0 and shown <= drawn < shown + 64
    page.goto("about:blank")
    with serving("-m", "wm_agents", "play", "Dream-CartPole-v0", "--port", "0", "--no-real") as url:
        page.goto(url)
        wait_text(page, "#dream-state", "[1-9]\\d* steps on its own")
        drawn, shown = page.evaluate(SCALE)
        assert drawn == round(shown)
        page.goto("about:blank")


CHART = "canvas[aria-label^='Loss of the model']"
LOSS = f"#groups figure:has({CHART}) output"


@contextmanager
def dashboard_of(folder: Path, metrics: str) -> Iterator[tuple[str, TextIO]]:
    """The dashboard of a run with these metrics, and its file of metrics, to which more can be written."""
    (folder / "one").mkdir()
    with (folder / "one" / "metrics.jsonl").open("w", buffering=1) as file:
        file.write(metrics)
        file.flush()
        with serving("-m", "wm_agents", "dashboard", str(folder), "--port", "0") as url:
            yield url, file


def test_the_dashboard_follows_a_running_run(page: Any, tmp_path: Path) -> None:
    with dashboard_of(tmp_path, '{"step": 1, "train/loss": 8.5}\n{"step": 2, "tra') as (url, file):
        page.goto(url)
        wait_text(page, LOSS, r"^8\.5$")
        file.write('in/loss": 0.25}\n')
        wait_text(page, LOSS, r"^0\.25$")
        chart = page.locator(CHART)
        assert chart.get_attribute("aria-label") == "Loss of the model by update: 2 values, the last is 0.25"
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


# ---- speed

BAR_MS, BAR_FPS, BAR_S = 150, 25, 2.0
ROUNDS = 4
"""Windows of which the best counts."""


def seconds_of(task: Callable[[], object], number: int = 10) -> float:
    """Seconds of a task: the mean of ten, at the best of several windows."""

    def window() -> float:
        began = time.perf_counter()
        for _ in range(number):
            task()
        return (time.perf_counter() - began) / number

    return min(window() for _ in range(ROUNDS))


@pytest.fixture(scope="module")
def bare_step() -> Callable[[], object]:
    """A step of CarRacing in the dream and in the real environment, and the encoder; without a page or a game."""
    dream, real = gym.make("Dream-CarRacing-v0"), gym.make("Real-CarRacing-v0")
    model, _ = load_model("Dream-CarRacing-v0")
    for env in (dream, real):
        env.reset(seed=0)

    def step() -> None:
        act = np.array([0, 0.1, 0], np.float32)
        for env in (dream, real):
            obs, _, term, trunc, _ = env.step(act)
            if term or trunc:
                env.reset()
        with torch.inference_mode():
            model.encode(torch.from_numpy(obs[None]))

    return step


def skip_unless_fast(task: Callable[[], object], most_s: float, what: str) -> None:
    """Skip the test where the machine alone needs more than half of the time that is left."""
    if (needed := seconds_of(task)) > most_s / 2:
        pytest.skip(f"{what} takes {1000 * needed:.0f} ms here; the test needs {500 * most_s:.0f} ms or less")


def test_a_key_changes_the_dream_within_150_ms(page: Any, car: str, bare_step: Callable[[], object]) -> None:
    period_ms = 80.0  # A key waits for the next step of the environment, 80 ms at most.
    left_s = (BAR_MS - period_ms) / 1000
    skip_unless_fast(bare_step, left_s, "a step")
    page.add_init_script(WATCH)
    page.goto(car)
    wait_text(page, "#dream-state", "[1-9]\\d* steps on its own")
    medians = []
    for _ in range(ROUNDS):
        known = len(page.evaluate("() => window.shown_ms"))
        for press in range(known, known + 7):
            page.keyboard.down("ArrowUp")
            wait_until(lambda most=press: len(page.evaluate("() => window.shown_ms")) > most)
            page.keyboard.up("ArrowUp")
            wait_until(lambda: page.evaluate("() => window.taken")[1] == 0)
        medians.append(float(np.median(page.evaluate("() => window.shown_ms")[known:])))
        if medians[-1] <= BAR_MS:
            break
    page.goto("about:blank")
    if min(medians) > BAR_MS:
        skip_unless_fast(bare_step, left_s, "a step")  # The machine may have become busy.
    assert min(medians) <= BAR_MS, f"medians of seven presses, in ms: {medians}"


def test_cars_are_drawn_25_times_a_second_beside_the_real_environment(
    page: Any, car: str, bare_step: Callable[[], object]
) -> None:
    skip_unless_fast(bare_step, 1 / BAR_FPS, "a step")
    page.add_init_script(WATCH)
    page.goto(car)
    wait_text(page, "#dream-state", "[1-9]\\d* steps on its own")
    page.get_by_role("radio", name="policy (linear)").click()
    page.wait_for_selector("[data-pilot='policy (linear)'][aria-checked=true]")
    page.fill("#speed", "3")  # Eight times real time: 100 steps per second are asked for.
    wait_text(page, "#speed-out", "^8 ")
    rates = []
    for _ in range(2 * ROUNDS):
        before = page.evaluate("() => [performance.now(), window.frames_drawn]")
        page.wait_for_timeout(1500)
        after = page.evaluate("() => [performance.now(), window.frames_drawn]")
        rates.append(1000 * (after[1] - before[1]) / (after[0] - before[0]))
        if rates[-1] >= BAR_FPS:
            break
    page.goto("about:blank")
    if max(rates) < BAR_FPS:
        skip_unless_fast(bare_step, 1 / BAR_FPS, "a step")
    assert max(rates) >= BAR_FPS, f"frames per second: {rates}"


def test_curves_of_a_running_run_follow_within_two_seconds(page: Any, tmp_path: Path) -> None:
    with dashboard_of(tmp_path, '{"step": 1, "train/loss": 1.0}\n') as (url, file):
        page.goto(url)
        wait_text(page, LOSS, r"^1$")
        waits = []
        for step in range(2, 2 + ROUNDS):
            file.write(f'{{"step": {step}, "train/loss": {step}.0}}\n')
            began = time.perf_counter()
            wait_text(page, LOSS, f"^{step}$")
            waits.append(time.perf_counter() - began)
        page.goto("about:blank")
    skip_unless_fast(lambda: page.evaluate("() => 1"), BAR_S, "a message to Chromium")
    assert min(waits) <= BAR_S, f"seconds from a row to its curve: {waits}"
