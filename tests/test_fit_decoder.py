"""A narrow decoder is fitted to the images of a trained model, of which all else is kept."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path

import gymnasium as gym
import numpy as np
import pytest
import torch
from tiny import save_tiny

from wm_agents.models.vmc import VMC, Decoder, VMCConfig
from wm_agents.pretrained import load_model
from wm_agents.training.config import TrainingConfig
from wm_agents.training.fit_decoder import HELD_OUT, fit_decoder, with_narrow_decoder

ACT = gym.spaces.Box(-1, 1, (3,), np.float32)
PIXELS = gym.spaces.Box(0, 255, (32, 32, 3), np.uint8)
CFG = TrainingConfig(total_steps=2, batch_size=4, eval_interval=2, save_interval=2, device="cpu")


def teacher(**fields: object) -> VMC:
    torch.manual_seed(0)
    return VMC(VMCConfig(z_dim=4, hidden=8, **fields), PIXELS, ACT).eval()  # type: ignore[arg-type]


def test_all_but_the_decoder_is_copied() -> None:
    old = teacher(motion_weight=3.0)
    old.vision.still.copy_(torch.rand(3, 32, 32))  # type: ignore[union-attr]
    new = with_narrow_decoder(old)
    assert isinstance(new.vision.decoder, Decoder) and new.cfg == old.cfg.replace(decoder="narrow")  # type: ignore[union-attr]
    kept = {name for name in old.state_dict() if not name.startswith("vision.decoder.")}
    assert kept == {name for name in new.state_dict() if not name.startswith("vision.decoder.")}
    assert all(torch.equal(new.state_dict()[name], old.state_dict()[name]) for name in kept)


@pytest.mark.parametrize("motion_weight", [0.0, 3.0])
def test_only_the_new_decoder_is_trained(motion_weight: float, tmp_path: Path) -> None:
    old = teacher(motion_weight=motion_weight)
    new = with_narrow_decoder(old)
    before = {name: w.clone() for name, w in new.state_dict().items()}
    drawn = {name: w.clone() for name, w in old.state_dict().items()}
    fit_decoder(new, old, torch.randn(HELD_OUT + 8, 4), CFG, tmp_path)
    moved = {name for name, w in new.state_dict().items() if not torch.equal(w, before[name])}
    assert moved == {name for name in before if name.startswith("vision.decoder.")}
    assert all(torch.equal(w, drawn[name]) for name, w in old.state_dict().items())


def test_what_cannot_be_fitted_raises_an_error(tmp_path: Path) -> None:
    old = teacher()
    with pytest.raises(ValueError, match="needs decoder='deconv' and images"):
        with_narrow_decoder(with_narrow_decoder(old))
    with pytest.raises(ValueError, match="more than 512 rows, which are held out, got 512"):
        fit_decoder(with_narrow_decoder(old), old, torch.randn(HELD_OUT, 4), CFG, tmp_path)


def test_the_script_saves_a_dream_with_the_same_latents(tmp_path: Path, monkeypatch, capsys) -> None:
    path = Path(__file__).parents[1] / "scripts" / "fit_decoder.py"
    spec = importlib.util.spec_from_file_location("fit_decoder_script", path)
    script = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(script)
    source, out = save_tiny(tmp_path / "old"), tmp_path / "new"
    monkeypatch.setattr(sys, "argv", [str(path), source, str(out), "--steps", "2", "--dreamed", "2"])
    script.main()
    assert "in grey levels: mean" in capsys.readouterr().out
    old, new = load_model(source), load_model(out)
    assert new[0].cfg.decoder == "narrow" and new[1].policies.keys() == old[1].policies.keys()
    assert new[1].starts.keys() == old[1].starts.keys()
    latent = {key: torch.randn(3, leaf.shape[1]) for key, leaf in old[0].initial(3).items()}
    act = torch.zeros(3, 3)
    with torch.no_grad():
        a, b = (m.step(latent, act, temperature=0).latent for m in (old[0], new[0]))
    for key, leaf in a.items():
        torch.testing.assert_close(b[key], leaf, atol=5e-3, rtol=5e-3)  # Saved as float16.
