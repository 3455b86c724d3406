"""Fits the fast narrow decoder to the images of a trained V; encoder, M and latents stay as they are."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from wm_agents.models.loss import LossOutput
from wm_agents.models.vmc import VMC, ConvVAE
from wm_agents.training.config import TrainingConfig
from wm_agents.training.trainer import Trainer, TrainingResult

HELD_OUT = 512
"""Latents that the fit is validated on."""


def with_narrow_decoder(model: VMC) -> VMC:
    """A copy of `model` on the CPU with an untrained narrow decoder.

    Raises:
        ValueError: it has no decoder of transposed convolutions.
    """
    if not isinstance(model.vision, ConvVAE) or model.cfg.decoder != "deconv":
        raise ValueError(f"the model needs decoder='deconv' and images, got {model.cfg}; there is nothing to replace")
    twin = VMC(model.cfg.replace(decoder="narrow"), model.obs_space, model.act_space)
    kept = {name: w for name, w in model.state_dict().items() if not name.startswith("vision.decoder.")}
    twin.load_state_dict({**twin.state_dict(), **kept})
    return twin.eval()


def fit_decoder(model: VMC, teacher: VMC, z: Tensor, cfg: TrainingConfig, run_dir: Path) -> TrainingResult:
    """Train the decoder of `model` to draw what `teacher` draws from the latents z (N, Z), more than 512 of them.

    The error is V's own: squared, and with a motion weight larger where an image differs from the background.
    """
    if len(z) <= HELD_OUT:
        raise ValueError(f"z must have more than {HELD_OUT} rows, which are held out, got {len(z)}")
    vision, drawn = model.vision, teacher.vision.eval()
    assert isinstance(vision, ConvVAE) and isinstance(drawn, ConvVAE)

    def loss(z: Tensor) -> LossOutput:
        with torch.no_grad():
            want = drawn.decoder(z, drawn.still).float().clamp(0, 1)
        weight = 1.0 if vision.still is None else 1 + model.cfg.motion_weight * vision.attention(want)
        error = (weight * (vision.decoder(z, vision.still).float() - want).square()).sum() / len(z)
        return LossOutput(error, {"rec": error}, {})

    held_out, train = z[:HELD_OUT], z[HELD_OUT:]
    trainer = Trainer(vision.decoder, cfg, loss=loss, run_dir=run_dir)
    for part in (model, teacher):
        part.to(trainer.fabric.device)

    def batch(update: int) -> Tensor:
        return train[torch.from_numpy(cfg.rng(update).integers(len(train), size=cfg.batch_size))]

    result = trainer.fit(batch, lambda: float(loss(trainer.fabric.to_device(held_out)).loss))
    trainer.load_best()
    return result
