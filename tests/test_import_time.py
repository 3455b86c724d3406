"""What is light stays light: `import wm_envs`, `wm --help`, and everything that needs no torch.

Times are of the processor, the best of up to three runs, so that a busy machine does not fail them.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
HEAVY = ("torch", "stable_baselines3", "matplotlib", "cv2", "moviepy", "h5py")


def run(code: str) -> tuple[float, set[str]]:
    """CPU seconds that `code` takes in a fresh Python, and the heavy modules it has loaded."""
    code = f"import time; began = time.process_time()\n{code}\n"
    code += f"import sys; print(time.process_time() - began, *(m for m in {HEAVY} if m in sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    seconds, *loaded = done.stdout.splitlines()[-1].split()
    return float(seconds), set(loaded)


@pytest.mark.parametrize(
    ("code", "limit"),
    [
        ("import wm_envs", 0.3),
        ("import gymnasium as gym, wm_envs\nassert 'Dream-CarRacing-v0' in gym.registry", 0.3),
        ("from wm_agents.cli.app import main\nassert main(['--help']) == 0", 0.5),
        ("from wm_agents.cli.app import main\nassert main(['evalute']) == 2", 0.5),
        ("import wm_agents\nassert 'create_world_model' in dir(wm_agents)", 0.3),
        ("import wm_agents.cli.verbs", 0.5),
    ],
)
def test_it_takes_no_longer_and_loads_nothing_heavy(code: str, limit: float) -> None:
    seconds = []
    for _ in range(3):
        took, loaded = run(code)
        assert loaded == set()
        seconds.append(took)
        if took < limit:
            return
    pytest.fail(f"{code!r} takes {min(seconds):.2f} s, more than {limit} s")


def test_heavy_modules_and_long_times_are_seen() -> None:
    seconds, loaded = run("import h5py, time\nend = time.process_time() + 0.2\nwhile time.process_time() < end: pass")
    assert loaded == {"h5py"} and seconds > 0.2
