"""The losses of recent training steps: their means for the log, and the check that they are finite."""

from __future__ import annotations

import torch
from torch import Tensor

from wm_agents.models.loss import LossOutput


class NonFiniteLoss(ArithmeticError):
    """The loss or the weights became NaN or infinite; `update` is the number of the first such batch."""

    def __init__(self, message: str, update: int) -> None:
        super().__init__(message)
        self.update = update


class LossWindow:
    """Losses and gradient norms since the last log, kept as tensors so that steps need not wait for them."""

    def __init__(self) -> None:
        self._outs: list[LossOutput] = []
        self._norms: list[dict[str, Tensor]] = []

    def __len__(self) -> int:
        return len(self._outs)

    def add(self, out: LossOutput) -> LossOutput:
        """Store the loss of a batch; returns it without its graph."""
        self._outs.append(detached(out))
        return self._outs[-1]

    def add_norms(self, norms: dict[str, Tensor]) -> None:
        """Store the gradient norms of a step, by name."""
        if norms:
            self._norms.append(norms)

    def clear(self) -> None:
        self._outs.clear()
        self._norms.clear()

    def means(self) -> dict[str, float]:
        """Means of losses, metrics and norms, named as in the log; this synchronises with an accelerator."""
        losses = mean_losses(self._outs)
        values = {"train/loss": losses.pop("loss")}
        values |= {f"train/loss/{name}": value for name, value in losses.items()}
        values |= {f"train/{k}": _mean([out.metrics[k] for out in self._outs]) for k in self._outs[0].metrics}
        if self._norms:
            values |= {f"train/{k}": _mean([norms[k] for norms in self._norms]) for k in self._norms[0]}
        return values

    def check_finite(self, update: int, each: int, advice: str) -> None:
        """Check all losses.

        Args:
            update: number of the next update.
            each: batches per update.
            advice: the end of the message.

        Raises:
            NonFiniteLoss: one is not finite; its components are in the message.
        """
        if not self._outs:
            return
        finite = torch.stack([out.loss for out in self._outs]).isfinite()
        if bool(finite.all()):
            return
        i = int(finite.int().argmin())
        batch, out = update - len(self._outs) // each + i // each, self._outs[i]
        parts = ", ".join(f"{name} {float(value):.4g}" for name, value in out.components.items())
        raise NonFiniteLoss(f"the loss is {float(out.loss)} on batch {batch} ({parts}); {advice}", batch)


def mean_losses(outs: list[LossOutput]) -> dict[str, float]:
    """The mean `loss`, and the means of its components by their names."""
    parts = {k: _mean([out.components[k] for out in outs]) for k in outs[0].components}
    return {"loss": _mean([out.loss for out in outs])} | parts


def detached(out: LossOutput) -> LossOutput:
    """The same values without their graph."""
    return LossOutput(
        out.loss.detach(),
        {k: v.detach() for k, v in out.components.items()},
        {k: v.detach() for k, v in out.metrics.items()},
    )


def _mean(values: list[Tensor]) -> float:
    return float(torch.stack(values).float().mean())
