"""Errors of videos and reports are printed and do not end a run; interruptions do."""

from __future__ import annotations

import io

import pytest
from rich.console import Console

from wm_agents.system.extras import extra


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (ValueError("frame [3] is missing"), "frame [3] is missing"),
        (LookupError("no codec"), "LookupError: no codec (--debug prints the traceback)"),
        (SystemExit(3), "SystemExit(3)"),
    ],
)
def test_an_error_is_printed_and_does_not_end_the_run(error: BaseException, reason: str) -> None:
    said = io.StringIO()
    with extra("the video", Console(file=said, width=500)):
        raise error
    assert said.getvalue() == f"  the video was not made: {reason}; the run continues without it\n"


def test_an_interruption_ends_the_run() -> None:
    with pytest.raises(KeyboardInterrupt), extra("the video", Console(file=io.StringIO())):
        raise KeyboardInterrupt
