"""Convolutions of DreamerV3, which halve and double an image."""

from __future__ import annotations

from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from policies.nets import NormSiLU, compute_dtype, init_weight
from wm_agents.models.cpu_kernels import max_pool


class Down(nn.Module):
    """5x5 convolution, 2x2 max pooling, RMS norm over channels, SiLU; images (N, H, W, C).

    CPUs multiply 16 channels at a time. With fewer channels, two neighbours of a row are treated as one pixel
    with twice the channels (as they are in memory), and a 5x3 kernel for pairs computes the same sums.
    """

    def __init__(self, in_dim: int, out_dim: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(out_dim, in_dim, 5, 5))
        self.bias = nn.Parameter(torch.zeros(out_dim))
        init_weight(self.weight, 25 * in_dim)
        self.norm = NormSiLU(out_dim)
        # Pixel `at` of the middle one of three pairs is multiplied by tap l of pixel at + l of the six.
        over = F.one_hot(torch.arange(2)[:, None] + torch.arange(5), 6).float().unflatten(-1, (3, 2))
        self.register_buffer("over", over, persistent=False)  # (2, 5, 3, 2)
        self.over: Tensor

    def forward(self, x: Tensor) -> Tensor:
        """Map (N, 2h, 2w, in_dim) to (N, h, w, out_dim)."""
        dtype = compute_dtype(self.weight)
        if x.device.type == "cpu" and len(self.weight) < 16:
            weight = torch.einsum("oikl,alqb->aobikq", self.weight, self.over).flatten(2, 3).flatten(0, 1)
            pairs = x.unflatten(2, (-1, 2)).flatten(3)
            out = _conv(pairs, weight, self.bias.repeat(2), dtype).unflatten(-1, (2, -1)).flatten(2, 3)
        else:
            out = _conv(x, self.weight, self.bias, dtype)
        return cast(Tensor, self.norm(max_pool(out)))


def _conv(x: Tensor, weight: Tensor, bias: Tensor, dtype: torch.dtype) -> Tensor:
    """Convolve images (N, H, W, C) without changing height and width."""
    high, wide = weight.shape[2:]
    weight = weight.to(dtype, memory_format=torch.channels_last)
    return F.conv2d(x.movedim(-1, 1), weight, bias.to(dtype), padding=(high // 2, wide // 2)).movedim(1, -1)


class Up(nn.Module):
    """Nearest-neighbour upsampling by 2, then a 5x5 convolution; images (N, H, W, C).

    After upsampling, the 25 pixels under the kernel have only 9 distinct values. So it is computed as four 3x3
    convolutions of the original image, one for each of the four pixels that a pixel becomes.
    """

    def __init__(self, in_dim: int, out_dim: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(out_dim, in_dim, 5, 5))
        self.bias = nn.Parameter(torch.zeros(out_dim))
        init_weight(self.weight, 25 * in_dim)
        tap, at = torch.arange(5), torch.arange(2)[:, None]
        # Pixel `at` of a pair is multiplied by tap k of the pixel at offset (at + k - 2) // 2.
        over = torch.div(at + tap - 2, 2, rounding_mode="floor")[:, None] == torch.arange(-1, 2)[:, None]
        self.register_buffer("over", over.float(), persistent=False)  # (2, 3, 5)
        self.over: Tensor

    def forward(self, x: Tensor) -> Tensor:
        """Map (N, h, w, in_dim) to (N, h, w, 4, out_dim), which `spread` converts to (N, 2h, 2w, out_dim)."""
        dtype = compute_dtype(self.weight)
        weight = torch.einsum("oikl,apk,bql->aboipq", self.weight, self.over, self.over).flatten(0, 2)
        out: Tensor = _conv(x, weight, self.bias.repeat(4), dtype).unflatten(-1, (4, -1))
        return out


def spread(quarters: Tensor) -> Tensor:
    """Rearrange (N, h, w, 4, C), the pixels of 2x2 squares, to (N, 2h, 2w, C)."""
    # Row by row, also in the gradient: interleaving both axes at once is three times slower on CPUs.
    rows = quarters.unflatten(3, (2, 2)).unbind(3)
    return torch.stack(rows, 2).flatten(1, 2).flatten(2, 3)
