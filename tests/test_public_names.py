"""The names that users were promised, and how long they wait for them."""

from __future__ import annotations

import importlib
import subprocess
import sys
from pathlib import Path

import pytest

import wm_agents

ROOT = Path(__file__).parents[1]
PROMISED = {
    "wm_agents": [
        "create_world_model", "list_models", "get_model_info", "get_config", "WorldModelConfig", "DreamerV3Config",
        "TDMPC2Config", "VMCConfig", "EnsembleConfig", "ConfigurationError",
    ],
    "wm_agents.training": ["TrainingConfig", "Trainer", "ReplayBuffer", "train"],
    "wm_agents.training.callbacks": [
        "LoggingCallback", "CheckpointCallback", "ProgressCallback", "EarlyStoppingCallback", "EvalCallback",
    ],
    "wm_agents.training.data": ["create_random_buffer"],
    "wm_agents.models.vmc": ["ConvVAE", "MDRNN", "MDRNNCell", "conv_vae_loss", "gmm_loss"],
    "wm_agents.models.dreamerv3": ["DreamerV3"],
    "wm_agents.models.tdmpc2": ["TDMPC2"],
    "policies.linear": ["Controller"],
}  # fmt: skip


@pytest.mark.parametrize("module, name", [(module, name) for module, names in PROMISED.items() for name in names])
def test_a_promised_name_is_there(module: str, name: str) -> None:
    assert getattr(importlib.import_module(module), name) is not None


def test_what_is_exported_is_what_is_listed() -> None:
    assert set(wm_agents.__all__) == set(wm_agents._MODULES) == set(PROMISED["wm_agents"])
    assert set(wm_agents.__all__) <= set(dir(wm_agents))
    with pytest.raises(AttributeError, match="module 'wm_agents' has no attribute 'create_world_modle'"):
        wm_agents.create_world_modle  # noqa: B018


def test_importing_the_package_waits_for_nothing_heavy() -> None:
    code = "import sys, wm_agents; print([m for m in ('torch', 'gymnasium', 'numpy', 'h5py') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_a_family_is_imported_when_it_is_asked_for() -> None:
    code = (
        "import sys; from wm_agents import create_world_model; "
        "create_world_model('ensemble:ci', obs_shape=(3,), action_dim=1); "
        "print([m for m in ('dreamerv3', 'tdmpc2', 'vmc') if f'wm_agents.models.{m}' in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
