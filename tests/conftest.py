"""Every test runs without display or sound, on one thread; what trains takes its seed from here."""

import os
import signal
from contextlib import nullcontext

import pytest

os.environ.setdefault("SDL_VIDEODRIVER", "dummy")
os.environ.setdefault("SDL_AUDIODRIVER", "dummy")
os.environ.setdefault("MPLBACKEND", "Agg")
os.environ.setdefault("OMP_NUM_THREADS", "1")  # Of the processes that tests start, too.

if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:  # As in jobs that a shell starts in the background.
    signal.signal(signal.SIGINT, signal.default_int_handler)

import torch

from wm_envs import precision

torch.set_num_threads(1)


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--learning-seeds", type=int, default=1, metavar="N", help="run every test that trains something with N seeds"
    )


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """`learning_seed`: taken by tests, and fixtures, that train something and hold it to a threshold."""
    if "learning_seed" in metafunc.fixturenames:
        seeds = range(metafunc.config.getoption("learning_seeds"))
        marked = [pytest.param(seed, id=f"seed{seed}", marks=pytest.mark.learns) for seed in seeds]
        metafunc.parametrize("learning_seed", marked, scope="session")


@pytest.fixture
def native_bf16(monkeypatch: pytest.MonkeyPatch) -> None:
    """What asks for bfloat16 gets it, be it emulated here: all but LSTMs then run on any CPU."""
    monkeypatch.setattr(precision, "bf16_speedup", lambda kind, device="cpu", training=False: 2.0)
    monkeypatch.setattr(precision, "_speedup", lambda run: 2.0)


@pytest.fixture(autouse=True)
def no_lines_after_silence(monkeypatch: pytest.MonkeyPatch) -> None:
    """Commands print no line when they are slow, because tests do not read the clock."""
    monkeypatch.setattr("wm_agents.cli.app._alive", lambda name: nullcontext())
