"""Layers against NumPy and against the long way round."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

import policies.nets
from policies.nets import BlockLinear, Linear, NormSiLU, compute_dtype, init_weight
from wm_agents.models.conv_layers import Down, Up, spread
from wm_agents.models.scan_layers import ScanBlocks, ScanLinear


def test_weights_begin_with_unit_variance_by_fan_in_cut_at_two_deviations() -> None:
    torch.manual_seed(0)
    weight = torch.empty(400, 100)
    init_weight(weight, 100)
    assert float(weight.std()) == pytest.approx(0.1, rel=0.01)
    assert float(weight.abs().max()) <= 2 * 0.11368 + 1e-6
    layer = Linear(100, 10, scale=0.0)
    assert not layer.weight.any() and not layer.bias.any() and Linear(100, 10).weight.any()


def np_norm_silu(x: np.ndarray, scale: np.ndarray) -> np.ndarray:
    y = x / np.sqrt((x**2).mean(-1, keepdims=True) + 1e-4) * scale
    return y / (1 + np.exp(-y))


def test_norm_and_silu_are_the_equations() -> None:
    x, scale = np.random.default_rng(0).normal(size=(2, 5, 7)), np.linspace(0.5, 2, 7)
    norm = NormSiLU(7).double()
    norm.weight.data = torch.from_numpy(scale)
    np.testing.assert_allclose(norm(torch.from_numpy(x)).detach(), np_norm_silu(x, scale), rtol=1e-5)


@pytest.mark.parametrize("chunk", [2**17, 32])
def test_norm_and_silu_have_the_gradients_of_autograd(chunk: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(policies.nets, "CHUNK", chunk)
    torch.manual_seed(0)
    x, weight, grad = torch.randn(4, 5, 8, requires_grad=True), torch.rand(8, requires_grad=True), torch.randn(4, 5, 8)
    norm = NormSiLU(8)
    norm.weight.data = weight.detach().clone()
    got = norm(x)
    want = F.silu(x * (x.square().mean(-1, keepdim=True) + 1e-4).rsqrt() * weight)
    torch.testing.assert_close(got, want)
    wants = torch.autograd.grad(want, [x, weight], grad)
    torch.testing.assert_close(torch.autograd.grad(got, [x, norm.weight], grad), wants)


def test_norm_and_silu_stay_in_float32_under_autocast(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(policies.nets, "CHUNK", 32)
    torch.manual_seed(0)
    x, norm = torch.randn(20, 8, requires_grad=True), NormSiLU(8)
    norm.weight.data = torch.rand(8)
    grads = []
    for enabled in (False, True):
        with torch.autocast("cpu", torch.bfloat16, enabled):
            grads.append(torch.autograd.grad(norm(x).square().sum(), [x, norm.weight]))
    torch.testing.assert_close(*grads, rtol=0, atol=0)


def test_blocks_see_their_part_and_what_is_shared() -> None:
    torch.manual_seed(0)
    layer, x, shared = BlockLinear(6, 9, 3, shared_dim=4), torch.randn(5, 6), torch.randn(5, 4)
    layer.bias.data = torch.randn(9)
    weight = layer.weight.detach().numpy()
    parts = [np.concatenate([x[:, 2 * g : 2 * g + 2], shared], 1) @ weight[g] for g in range(3)]
    got = layer(x, shared).detach()
    np.testing.assert_allclose(got, np.concatenate(parts, 1) + layer.bias.detach().numpy(), rtol=1e-5, atol=1e-6)
    with pytest.raises(ValueError, match="divisible by 4 blocks, got 6 and 9"):
        BlockLinear(6, 9, 4)


def test_layers_in_a_scan_have_the_gradients_of_layers_called_at_every_step() -> None:
    torch.manual_seed(0)
    steps, rows = 4, 3
    linear, blocks = Linear(6, 6), BlockLinear(6, 6, 2, shared_dim=6)
    start, shared = torch.randn(rows, 6, requires_grad=True), torch.randn(steps, rows, 6, requires_grad=True)
    leaves = [start, shared, *linear.parameters(), *blocks.parameters()]

    def loss(one: object, many: object) -> list[torch.Tensor]:
        x = start
        for t in range(steps):
            x = torch.tanh(many(torch.tanh(one(x)), shared[t]).transpose(0, 1).flatten(1))  # type: ignore[operator]
        return list(torch.autograd.grad(x.square().sum(), leaves))

    got = loss(ScanLinear(linear, steps, rows), ScanBlocks(blocks, steps, rows))
    torch.testing.assert_close(got, loss(linear, blocks.by_block))


def test_part_of_a_layer_may_be_taken_outside_the_scan() -> None:
    torch.manual_seed(0)
    linear, x, outside = Linear(5, 4), torch.randn(3, 2, 3), torch.randn(3, 2, 2)
    ahead = F.linear(outside, linear.weight[:, 3:], linear.bias)
    late = ScanLinear(linear, 3, 2, bias=ahead, columns=3)
    got = torch.stack([late(x[t]) for t in range(3)])
    want = linear(torch.cat([x, outside], -1))
    torch.testing.assert_close(got, want)
    params = list(linear.parameters())
    wants = torch.autograd.grad(want.square().sum(), params)
    torch.testing.assert_close(torch.autograd.grad(got.square().sum(), params), wants)


@pytest.mark.parametrize("out_dim", [5, 16])
def test_an_image_is_convolved_and_then_halved_by_the_largest_of_four_pixels(out_dim: int) -> None:
    torch.manual_seed(0)
    layer, x = Down(3, out_dim).double(), torch.randn(2, 8, 12, 3, dtype=torch.float64, requires_grad=True)
    layer.bias.data = torch.randn(out_dim, dtype=torch.float64)
    got = layer(x)
    conv = F.conv2d(x.permute(0, 3, 1, 2), layer.weight, layer.bias, padding=2)
    pixels = conv.reshape(2, out_dim, 4, 2, 6, 2).amax((3, 5)).permute(0, 2, 3, 1)
    want = F.silu(pixels * (pixels.square().mean(-1, keepdim=True) + 1e-4).rsqrt())
    # The norm is taken in float32.
    torch.testing.assert_close(got, want, rtol=1e-5, atol=1e-5)
    leaves = [x, layer.weight, layer.bias]
    wants = torch.autograd.grad(want.square().sum(), leaves)
    torch.testing.assert_close(torch.autograd.grad(got.square().sum(), leaves), wants, rtol=1e-4, atol=1e-4)


def test_an_image_is_doubled_and_then_convolved() -> None:
    torch.manual_seed(0)
    layer, x = Up(3, 5), torch.randn(2, 4, 6, 3, requires_grad=True)
    layer.bias.data = torch.randn(5)
    got = spread(layer(x))
    doubled = F.interpolate(x.permute(0, 3, 1, 2), scale_factor=2, mode="nearest")
    want = F.conv2d(doubled, layer.weight, layer.bias, padding=2).permute(0, 2, 3, 1)
    torch.testing.assert_close(got, want, atol=1e-5, rtol=1e-5)
    leaves = [x, layer.weight, layer.bias]
    wants = torch.autograd.grad(want.square().sum(), leaves)
    torch.testing.assert_close(torch.autograd.grad(got.square().sum(), leaves), wants, atol=1e-3, rtol=1e-4)


def test_products_are_taken_in_autocasts_type() -> None:
    weight = nn.Parameter(torch.ones(2))
    assert compute_dtype(weight) == torch.float32
    with torch.autocast("cpu", torch.bfloat16):
        assert compute_dtype(weight) == torch.bfloat16
        assert Linear(2, 2)(torch.ones(1, 2)).dtype == torch.bfloat16
    assert Linear(2, 2).half()(torch.ones(1, 2)).dtype == torch.float16


def test_blocks_begin_as_small_as_one_layer_of_all_of_them() -> None:
    layer = BlockLinear(800, 1600, 8, shared_dim=50)  # The authors' fan-in is the blocks' together.
    assert float(layer.weight.detach().std()) == pytest.approx((8 * (100 + 50)) ** -0.5, rel=0.02)
