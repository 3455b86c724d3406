"""A silent command prints a line, and nothing else changes."""

from __future__ import annotations

import io
import sys

from wm_agents.cli.app import _alive
from wm_agents.system import pulse
from wm_agents.system.pulse import Pulse, asking


def test_a_line_is_printed_after_five_seconds_of_silence_only() -> None:
    now, out = [0.0], io.StringIO()
    watched = Pulse("wm x", out, every_s=5.0, clock=lambda: now[0])
    for now[0] in (4.9, 5.0, 7.0, 9.9, 10.0):
        watched.beat()
    assert out.getvalue() == "wm x: still working, 5 s\nwm x: still working, 10 s\n"
    now[0] = 12.0
    watched.write("round 1\n")
    now[0] = 16.9
    watched.beat()
    assert out.getvalue().endswith("10 s\nround 1\n")


def test_a_command_that_asks_is_silent() -> None:
    now, out = [0.0], io.StringIO()
    watched = Pulse("wm x", out, clock=lambda: now[0])
    now[0] = 60.0
    with asking():
        watched.beat()
    assert out.getvalue() == ""
    watched.beat()
    assert out.getvalue() == "wm x: still working, 60 s\n"


def test_stderr_is_restored() -> None:
    before = sys.stderr
    with Pulse("wm x", before) as watched:
        assert sys.stderr is watched and watched.isatty() == before.isatty()
    assert sys.stderr is before and pulse.SILENCE_S == 5


def test_every_command_but_servers_is_watched() -> None:
    assert isinstance(_alive("improve"), Pulse) and isinstance(_alive("init"), Pulse)
    assert not isinstance(_alive("play"), Pulse)
