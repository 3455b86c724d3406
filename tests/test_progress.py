"""Progress is shown, with the time left, whether or not anybody reports it."""

from __future__ import annotations

import io
import time

from rich.console import Console

from wm_agents.system.progress import StageBar

SHARES = {"boil": 0.25, "eat": 0.75}


def bar_and_text(**kwargs: float) -> tuple[StageBar, io.StringIO]:
    text = io.StringIO()
    return StageBar(SHARES, Console(file=text, width=200), **kwargs), text


def test_a_line_has_what_is_done_of_the_whole_and_the_time_that_the_rest_takes_at_that_rate() -> None:
    bar, _ = bar_and_text()
    began = bar.began
    assert bar.line(began + 9) == "  0% 0:09"
    bar.update("boil", 0.8, "potatoes")
    assert bar.line(began + 61) == " 20% 1:01, about 4:04 left  boil potatoes"
    bar.update("eat", 0.0)
    assert bar.line(began + 100) == " 25% 1:40, about 5:00 left  eat"
    bar.update("eat", 1.0, "nothing left")
    assert bar.line(began + 400) == "100% 6:40, about 0:00 left  eat nothing left"


def test_each_stage_prints_a_line_as_it_begins_and_a_terminal_gets_a_bar() -> None:
    bar, text = bar_and_text()
    with bar:
        for stage, done in (("boil", 0.0), ("boil", 0.5), ("eat", 0.0), ("eat", 0.9)):
            bar.update(stage, done)
    assert [line.split()[-1] for line in text.getvalue().splitlines()] == ["boil", "eat"]
    screen = io.StringIO()
    with StageBar(SHARES, Console(file=screen, force_terminal=True, width=200)) as bar:
        bar.update("eat", 0.5, "potatoes")
    assert "62%" in screen.getvalue() and "potatoes" in screen.getvalue()


def test_lines_come_without_reports_and_stop_with_the_bar() -> None:
    bar, text = bar_and_text(line_every_s=0.01)
    with bar:
        bar.update("boil", 0.5)
        while text.getvalue().count("\n") < 4:
            time.sleep(0.001)
    lines = text.getvalue()
    time.sleep(0.1)
    assert text.getvalue() == lines
