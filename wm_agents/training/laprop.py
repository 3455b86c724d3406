"""The optimizer of DreamerV3: adaptive gradient clipping, RMS scaling, then momentum."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, cast

import torch
from torch import Tensor


class LaProp(torch.optim.Optimizer):
    """Adam with momentum after the scaling (Ziyin et al. 2020), under adaptive gradient clipping (Brock et al. 2021).

    Args:
        params: tensors or parameter groups.
        lr: learning rate, roughly the maximum change of a weight per step.
        betas: decay of the momentum and of the squared gradients.
        eps: added to the root of the squared gradients.
        agc: maximum norm of a gradient relative to the norm of its tensor; 0: no clipping.
        pmin: minimum norm of a tensor for this clipping.
    """

    def __init__(
        self,
        params: Any,
        lr: float = 4e-5,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-20,
        agc: float = 0.3,
        pmin: float = 1e-3,
    ) -> None:
        if not (lr >= 0 and 0 <= betas[0] < 1 and 0 <= betas[1] < 1 and eps >= 0 and agc >= 0 and pmin > 0):
            raise ValueError(
                "LaProp needs lr, eps and agc of at least 0, betas in [0, 1) and pmin above 0, "
                f"got {lr=}, {betas=}, {eps=}, {agc=}, {pmin=}"
            )
        super().__init__(params, {"lr": lr, "betas": betas, "eps": eps, "agc": agc, "pmin": pmin})

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        """Update every tensor that has a gradient."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            params = [p for p in group["params"] if p.grad is not None]
            if params:
                self._move(group, params)
        return loss

    def _move(self, group: dict[str, Any], params: list[Tensor]) -> None:
        states = [self._state_of(p) for p in params]
        for state in states:
            state["step"] += 1
        keep, keep_square = group["betas"]
        grads = _clip_by_agc(params, [cast(Tensor, p.grad) for p in params], group["agc"], group["pmin"])

        squares = [state["square"] for state in states]
        torch._foreach_mul_(squares, keep_square)
        torch._foreach_addcmul_(squares, grads, grads, 1 - keep_square)
        sizes = torch._foreach_div(squares, [1 - keep_square ** state["step"] for state in states])
        torch._foreach_sqrt_(sizes)
        torch._foreach_add_(sizes, group["eps"])

        momenta = [state["momentum"] for state in states]
        torch._foreach_mul_(momenta, keep)
        torch._foreach_addcdiv_(momenta, grads, sizes, 1 - keep)
        moves = torch._foreach_mul(momenta, [-float(group["lr"]) / (1 - keep ** state["step"]) for state in states])
        torch._foreach_add_(params, moves)

    def _state_of(self, param: Tensor) -> dict[str, Any]:
        state: dict[str, Any] = self.state[param]
        if not state:
            state.update(step=0, square=torch.zeros_like(param), momentum=torch.zeros_like(param))
        return state


def _clip_by_agc(params: list[Tensor], grads: list[Tensor], agc: float, pmin: float) -> list[Tensor]:
    """Gradients with norms of at most `agc` times the norm of their tensor (or `pmin`)."""
    if agc == 0 or not params:
        return grads
    most = torch.stack(torch._foreach_norm(params)).clamp(min=pmin) * agc
    lengths = torch.stack(torch._foreach_norm(grads))
    return list(torch._foreach_div(grads, list((lengths / most).clamp(min=1).unbind())))
