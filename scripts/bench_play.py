"""Speed of `wm play`: key to frame, and steps per second, by websocket clients; the exported page in Chromium.

    python scripts/bench_play.py                       # CarRacing, with 1, 4 and 16 sessions
    python scripts/bench_play.py --model Dream-Pong-v0 --seconds 5

Latency: from sending an action to the step that took it, at the speed of the real environment. Rate: steps per second
of each session when eight times that speed is asked for. The real environment runs beside every dream.
"""

from __future__ import annotations

import argparse
import json
import shutil
import struct
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from websockets.sync.client import connect

from wm_agents.system.hardware import describe
from wm_agents.web.web_export import export_web


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="Dream-CarRacing-v0")
    parser.add_argument("--sessions", default="1,4,16")
    parser.add_argument("--seconds", type=float, default=4.0)
    args = parser.parse_args()
    print(f"{args.model}; {describe()}")
    numbers = [int(number) for number in args.sessions.split(",")]
    command = [
        "-m",
        "wm_agents",
        "play",
        args.model,
        "--port",
        "0",
        "--max-sessions",
        str(3 * max(numbers)),
    ]  # Closed ones may linger.
    with serving(command) as url:
        for number in numbers:
            latencies = sorted(1000 * x for part in together(number, url, args.seconds, latency) for x in part)
            rates = [rate for part in together(number, url, args.seconds, frequency) for rate in part]
            key = f"key to frame {np.median(latencies):.0f} ms, p95 {np.percentile(latencies, 95):.0f} ms"
            print(f"{number:2} sessions: {key}; {np.median(rates):.1f} steps/s each (slowest {min(rates):.1f})")
    print(in_chromium(args.model, args.seconds))


@contextmanager
def serving(command: list[str]) -> Iterator[str]:
    """The address of a server that prints it."""
    with subprocess.Popen(
        [sys.executable, "-u", *command], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    ) as process:
        assert process.stdout is not None
        try:
            yield process.stdout.readline().split("http://")[1].split("/")[0]
        finally:
            process.terminate()


class Client:
    """A visitor, as the page is one."""

    def __init__(self, ws: Any) -> None:
        self.ws = ws
        self.stage = self.next("hello")["stage"]

    def send(self, **command: Any) -> None:
        self.ws.send(json.dumps(command))

    def next(self, kind: str = "step") -> dict[str, Any]:
        while True:
            data = self.ws.recv(timeout=60)
            (length,) = struct.unpack_from("<I", data)
            about: dict[str, Any] = json.loads(data[4 : 4 + length])
            if about["kind"] == "step":
                self.ws.send("seen")
            if about["kind"] == kind:
                return about


def together(number: int, url: str, seconds: float, run: Callable[[Client, float], list[float]]) -> list[list[float]]:
    """Run N visitors at once."""
    results: list[list[float]] = []
    with ExitStack() as stack:
        opened = [connect(f"ws://{url}/play", origin=f"http://{url}", max_size=None) for _ in range(number)]
        clients = [Client(stack.enter_context(one)) for one in opened]
        threads = [threading.Thread(target=lambda c=client: results.append(run(c, seconds))) for client in clients]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    return results


def latency(client: Client, seconds: float) -> list[float]:
    """Seconds from sending an action to the step that took it."""
    controls, found, end, turn = client.stage["controls"], [], time.perf_counter() + seconds, 0
    while time.perf_counter() < end:
        turn += 1
        if controls["kind"] == "discrete":
            act: Any = turn % len(controls["names"]) + controls["start"]
        else:
            act = [0.5 * (turn % 2), *[0.1] * (len(controls["dims"]) - 1)]
        sent = time.perf_counter()
        client.send(act=act)
        while (about := client.next())["act"] != np.ravel(act).tolist():
            if about["over"]:
                client.send(restart=turn)
        found.append(time.perf_counter() - sent)
        if about["over"]:
            client.send(restart=turn)
    return found


def frequency(client: Client, seconds: float) -> list[float]:
    """Steps per second at most, after a second of warming up."""
    client.send(pilot=client.stage["pilots"][1])
    client.send(speed=8.0)
    start, count = time.perf_counter() + 1, 0
    while (now := time.perf_counter()) < start + seconds:
        about = client.next()
        count += now > start
        if about["over"]:
            client.send(restart=count)
    return [count / seconds]


def in_chromium(model: str, seconds: float) -> str:
    """Steps per second of the exported page, when it is asked for eight times real time."""
    chromium = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    try:
        from playwright.sync_api import sync_playwright
    except ImportError:
        chromium = None
    if chromium is None:
        return "exported page: not measured, because Playwright or Chromium is missing"
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "out"
        export_web(model, out)
        command = ["-m", "http.server", "0", "--bind", "127.0.0.1", "--directory", str(out)]
        with serving(command) as url, sync_playwright() as playwright:
            browser = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox", "--disable-gpu"])
            page = browser.new_page()
            page.goto(f"http://{url}/")
            page.get_by_role("radio").nth(1).click()
            page.fill("#speed", "3")
            rates = []
            for _ in range(int(seconds) + 1):
                page.wait_for_timeout(1000)
                rates.append(float(page.inner_text("#rate").split()[0]))
            browser.close()
    return f"exported page in Chromium: {np.median(rates[1:]):.0f} steps/s at most, computed and drawn on one thread"


if __name__ == "__main__":
    main()
