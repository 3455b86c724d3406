"""A client that sends garbage as fast as it can does not disturb the sessions of others."""

from __future__ import annotations

import json
import logging
import re
import threading
import time
from collections.abc import Callable
from itertools import cycle
from typing import Any

import pytest

pytest.importorskip("uvicorn", reason="the extra `web` is not installed")
pytest.importorskip("websockets", reason="the extra `web` is not installed")

from test_web_server import GARBAGE, unpack
from websockets.exceptions import ConnectionClosed, WebSocketException
from websockets.sync.client import connect

from wm_agents.web.playable import load_playable
from wm_agents.web.server import Server
from wm_agents.web.serving import serving

BAD: list[str | bytes] = [*GARBAGE, "x" * 5000, "y" * 100_000, b"\x00\xff" * 50, "seen", "\x00", "\u2028😀"]
"""Long and binary messages end the connection, so the flood opens it again."""


def flood(url: str, over: threading.Event) -> int:
    """Send bad messages without reading the answers, and return their number."""
    sent, messages = 0, cycle(BAD)
    while not over.is_set():
        try:
            with connect(f"{url}play", max_queue=None) as ws:
                while not over.is_set():
                    ws.send(next(messages))
                    sent += 1
        except (WebSocketException, OSError):
            continue
    return sent


def play_beside_a_flood(goes_on: Callable[[int], bool]) -> tuple[list[float], int]:
    """The seconds between the steps of a well-behaved visitor, and how much garbage was sent meanwhile."""
    server = Server(load_playable("Dream-CartPole-v0", real=False), max_sessions=3)
    urls: list[str] = []
    over, counts = threading.Event(), []
    with serving(server.app(), "127.0.0.1", 0, "", urls.append):
        (url,) = (re.sub("^http", "ws", each) for each in urls)
        with connect(f"{url}play") as ws:
            flooder = threading.Thread(target=lambda: counts.append(flood(url, over)))
            flooder.start()
            gaps, last, seed = [], time.monotonic(), 0
            try:
                while goes_on(len(gaps)):
                    about = unpack(ws.recv(timeout=60))[0]
                    if about["kind"] != "step":
                        continue
                    ws.send("seen")
                    gaps.append(time.monotonic() - last)
                    last = time.monotonic()
                    if about["over"]:
                        seed += 1
                        ws.send(json.dumps({"restart": seed}))
            finally:
                over.set()
                flooder.join()
    return gaps, counts[0]


def test_a_message_that_is_not_utf8_is_logged_without_a_traceback(caplog: pytest.LogCaptureFixture) -> None:
    server = Server(load_playable("Dream-CartPole-v0", real=False))
    urls: list[str] = []
    log = logging.getLogger("uvicorn.error")
    with serving(server.app(), "127.0.0.1", 0, "", urls.append), connect(f"ws{urls[0][4:]}play") as ws:
        log.addHandler(caplog.handler)
        ws.send(b"\xff", text=True)
        with pytest.raises(ConnectionClosed):
            while True:
                ws.recv(timeout=60)
    log.removeHandler(caplog.handler)
    (record,) = caplog.records
    assert "Invalid UTF-8" in record.getMessage() and record.exc_info is None


def test_others_play_on_beside_a_flood() -> None:
    gaps, sent = play_beside_a_flood(lambda steps: steps < 60)
    assert len(gaps) == 60 and sent > 20


@pytest.mark.slow
def test_others_play_on_beside_thirty_seconds_of_it(record_property: Any) -> None:
    end = time.monotonic() + 30
    gaps, sent = play_beside_a_flood(lambda steps: time.monotonic() < end)
    record_property("steps", len(gaps))
    assert len(gaps) > 60 and sent > 1000, (len(gaps), sent)
    print(f"{len(gaps)} steps, longest gap {max(gaps):.2f} s, {sent} bad messages")
