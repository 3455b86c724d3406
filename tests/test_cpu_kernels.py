"""Each function for CPUs gives the values and gradients of its plain definition."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from wm_agents.models.cpu_kernels import dropout_, max_pool, mish, pixel_loss


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_the_largest_of_four_pixels_gets_the_gradient(dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    # No two are equal, in bfloat16 neither.
    x = torch.randperm(2 * 6 * 8).to(dtype).view(2, 6, 8, 1).repeat(1, 1, 1, 3).requires_grad_()
    want = F.max_pool2d(x.permute(0, 3, 1, 2), 2).permute(0, 2, 3, 1)
    grad = torch.randn(want.shape).to(dtype)
    assert torch.equal(max_pool(x), want)
    assert torch.equal(*(torch.autograd.grad(out, x, grad)[0] for out in (max_pool(x), want)))


def test_of_equal_pixels_one_gets_the_gradient() -> None:
    x = torch.zeros(1, 4, 4, 1, requires_grad=True)
    first = torch.tensor([[1.0, 0], [0, 0]]).repeat(2, 2)[None, :, :, None]
    assert torch.equal(torch.autograd.grad(max_pool(x).sum(), x)[0], first)


def test_mish_and_its_slope_are_torchs_own() -> None:
    x = torch.linspace(-30, 30, 601, dtype=torch.double, requires_grad=True)
    torch.testing.assert_close(mish(x), F.mish(x))
    torch.testing.assert_close(*(torch.autograd.grad(f(x).sum(), x)[0] for f in (mish, F.mish)))
    wide = torch.tensor([-1e4, -200.0, 0.0, 200.0, 1e4])
    torch.testing.assert_close(mish(wide), torch.tensor([0.0, 0.0, 0.0, 200.0, 1e4]))


def test_dropout_drops_its_share_of_places_and_keeps_the_mean() -> None:
    torch.manual_seed(0)
    x = dropout_(torch.ones(2000, 1000), 0.01)
    assert float((x == 0).float().mean()) == pytest.approx(0.01, rel=0.03)
    assert float(x.mean()) == pytest.approx(1.0, abs=1e-3) and x.unique().numel() == 2
    both = (x[:, :-1] == 0) & (x[:, 1:] == 0)
    assert float(both.float().mean()) == pytest.approx(1e-4, rel=0.3)  # Neighbours fall independently.


@pytest.mark.parametrize("uint8", [True, False])
def test_the_pixel_loss_and_its_gradient_are_those_of_its_definition(uint8: bool) -> None:
    torch.manual_seed(0)
    logits, grad = torch.randn(20, 4, 5, 3, requires_grad=True), torch.rand(20)  # More frames than are taken at once.
    frames = torch.randint(0, 256, (20, 4, 5, 3), dtype=torch.uint8)
    target = frames.float() / 255
    want = (torch.sigmoid(logits) - target).square().sum((1, 2, 3))
    got = pixel_loss(logits, frames if uint8 else target)
    torch.testing.assert_close(got, want)
    torch.testing.assert_close(*(torch.autograd.grad(out, logits, grad)[0] for out in (got, want)))
