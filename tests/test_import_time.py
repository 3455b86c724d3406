"""What is light stays light: `import wm_envs`, `wm --help`, and all else that needs no torch.

How long they take is printed by scripts/bench_import.py.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
HEAVY = ("torch", "stable_baselines3", "matplotlib", "cv2", "moviepy", "h5py", "numba", "pandas", "tensorboard")


def loaded(code: str) -> set[str]:
    """The heavy modules that a fresh Python holds after `code`."""
    code += f"\nimport sys; print(*(name for name in {HEAVY} if name in sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return set(done.stdout.splitlines()[-1].split())


@pytest.mark.parametrize(
    "code",
    [
        "import wm_envs",
        "import gymnasium as gym, wm_envs\nassert 'Dream-CarRacing-v0' in gym.registry",
        "from wm_agents.cli.app import main\nassert main(['--help']) == 0",
        "from wm_agents.cli.app import main\nassert main(['evalute']) == 2",
        "import wm_agents\nassert 'create_world_model' in dir(wm_agents)",
        "import wm_agents.cli.printing",
    ],
)
def test_nothing_heavy_is_loaded(code: str) -> None:
    assert loaded(code) == set()


def test_heavy_modules_are_seen() -> None:
    assert loaded("import h5py") == {"h5py"}
