"""The encoder of the object family: finds objects by their colour, without labels, one slot per object.

The background is the median of each pixel. All pixels of one exact colour that differ from the background are one
object. Its slot contains whether it is visible, and the position of its upper left corner in whole pixels. An object
that is partly outside the frame keeps its size, so its corner may be outside. `paint` draws frames from slots.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor, nn

MIN_SHARE = 0.02
"""Minimum share of the frames in which the colour of an object occurs."""
LONGEST = 32
"""Maximum age of an object, in steps since it appeared or disappeared."""
MAX_COLOURS = 64
"""Maximum number of colours that are considered, those with the most pixels first."""


class _Seen(NamedTuple):
    """The content of the slots."""

    place: Tensor
    """(B, K, 2) float: row and column of the upper left corner, in pixels; 0 for invisible objects."""
    here: Tensor
    """(B, K) float: 1 for visible objects, else 0."""


class Slots(nn.Module):
    """K slots for frames (H, W, C), the largest object first. All slots are empty before `fit`.

    Args:
        num: K, the maximum number of objects; if there are more, the rarest colours are ignored.
    """

    def __init__(self, num: int, height: int, width: int, channels: int) -> None:
        super().__init__()
        self.num, self.height, self.width, self.channels = num, height, width, channels
        self.background: Tensor
        self.colour: Tensor
        self.size: Tensor
        self.sprite: Tensor
        self.used: Tensor
        self.register_buffer("background", torch.zeros(height, width, channels, dtype=torch.uint8))
        self.register_buffer("colour", torch.zeros(num, channels, dtype=torch.uint8))
        self.register_buffer("size", torch.ones(num, 2))
        self.register_buffer("sprite", torch.zeros(num, height, width, dtype=torch.bool))
        self.register_buffer("used", torch.zeros(num))

    @property
    def count(self) -> int:
        """Number of slots with an object; these are the first slots."""
        return int(self.used.sum())

    @torch.no_grad()
    def fit(self, frames: Tensor) -> None:
        """Find background and objects in uint8 frames (N, H, W, C), in which every object must occur."""
        self.background.copy_(frames.median(0).values)
        codes, still = _codes(frames), _codes(self.background[None])
        moving = codes != still
        colours, pixels = codes[moving].unique(return_counts=True)
        colours = colours[pixels.argsort(descending=True)[:MAX_COLOURS]]
        things = [_thing(codes, moving, code) for code in colours.tolist()]
        often = [thing for thing in things if thing.share >= MIN_SHARE]
        kept = sorted(sorted(often, key=lambda t: -t.share)[: self.num], key=lambda t: (-t.height * t.width, t.code))
        for buffer in (self.colour, self.sprite, self.used):
            buffer.zero_()
        self.size.fill_(1)
        for k, thing in enumerate(kept):
            self.colour[k] = torch.tensor([thing.code >> (8 * c) & 255 for c in range(self.channels)])
            self.size[k] = torch.tensor([thing.height, thing.width])
            self.sprite[k, : thing.height, : thing.width] = thing.mask
            self.used[k] = 1

    def see(self, frames: Tensor) -> _Seen:
        """Find the objects in uint8 frames (B, H, W, C)."""
        moving = (frames != self.background).any(-1)
        frame, *point = torch.nonzero(moving, as_tuple=True)
        pixel, k = torch.nonzero(_codes(frames[moving])[:, None] == _codes(self.colour), as_tuple=True)
        slot = frame[pixel] * self.num + k  # Of each pixel of an object.
        corner, extent = zip(*(self._span(len(frames), slot, axis[pixel]) for axis in point), strict=True)
        low, size = torch.stack(corner, -1), torch.stack(extent, -1)
        here = (size[..., 0] > 0) * self.used
        # An object that is cut off at the top or left has its corner outside.
        low = torch.where((low == 0) & (size < self.size), size - self.size, low)
        return _Seen(low * here[..., None], here)

    def _span(self, num: int, slot: Tensor, place: Tensor) -> tuple[Tensor, Tensor]:
        """The first place (B, K) of the pixels of each slot along an axis, and the length up to the last; 0 if there
        are none."""
        first = place.new_full((num * self.num,), max(self.height, self.width)).scatter_reduce(0, slot, place, "amin")
        end = place.new_zeros(num * self.num).scatter_reduce(0, slot, place + 1, "amax")
        there = end > 0
        spans = first * there, (end - first) * there
        return tuple(span.view(num, self.num).float() for span in spans)  # type: ignore[return-value]

    def paint(self, place: Tensor, here: Tensor) -> Tensor:
        """Draw objects at positions (B, K, 2) if `here` (B, K), larger ones first; frames (B, H, W, C) uint8."""
        num, corner = len(place), place.round().long()
        frames = self.background.expand(num, -1, -1, -1).clone()
        pixels = frames.view(-1, self.channels)
        row = torch.arange(num, device=place.device)[:, None] * self.height
        for k in range(self.count):
            down, right = torch.nonzero(self.sprite[k], as_tuple=True)
            y, x = corner[:, k, :1] + down, corner[:, k, 1:] + right  # (B, pixels of the sprite)
            shown = (y >= 0) & (y < self.height) & (x >= 0) & (x < self.width) & (here[:, k, None] > 0.5)
            pixels[((row + y) * self.width + x)[shown]] = self.colour[k]
        return frames


class _Thing(NamedTuple):
    """The colour of an object, the share of frames in which it occurs, and its most common shape."""

    code: int
    share: float
    height: int
    width: int
    mask: Tensor
    """(height, width) bool."""


def _thing(codes: Tensor, moving: Tensor, code: int) -> _Thing:
    mask = moving & (codes == code)
    mask = mask[mask.flatten(1).any(1)]
    row, tall, _ = _extent(mask.any(2))
    column, wide, _ = _extent(mask.any(1))
    sizes, counts = torch.stack([tall, wide], 1).long().unique(dim=0, return_counts=True)
    height, width = sizes[counts.argmax()].tolist()
    whole = torch.nonzero((tall == height) & (wide == width))[:, 0].tolist()
    shapes = [mask[i, int(row[i]) : int(row[i]) + height, int(column[i]) : int(column[i]) + width] for i in whole]
    return _Thing(code, len(mask) / len(codes), height, width, torch.stack(shapes).float().mean(0) > 0.5)


def _codes(frames: Tensor) -> Tensor:
    """The colour of each pixel (..., C) as one integer."""
    return sum((frames[..., c].int() << (8 * c) for c in range(frames.shape[-1])), torch.zeros((), dtype=torch.int32))


def _any(mask: Tensor, axis: int) -> Tensor:
    """`mask.any(axis)`, five times as fast on CPUs."""
    return mask.view(torch.uint8).amax(axis) > 0


def _extent(line: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """For (..., L) bool: the first True, the length up to the last True, and whether there is one; (...) float each."""
    first, last = line.int().argmax(-1), line.shape[-1] - line.flip(-1).int().argmax(-1)
    any_set = line.any(-1).float()
    return first * any_set, (last - first) * any_set, any_set


class Waves(nn.Module):
    """Whole pixels as sines and cosines, by which linear layers tell apart distances of one pixel (Tancik et al. 2020).

    The periods are 2, 4, 8, ... pixels, up to one in which any two distances within a frame differ.
    """

    def __init__(self, pixels: int) -> None:
        super().__init__()
        periods = 2.0 ** torch.arange(1, math.ceil(math.log2(2 * pixels)) + 1)
        self.frequency: Tensor
        self.register_buffer("frequency", 2 * math.pi / periods, persistent=False)
        self.size = 2 * len(periods)

    def forward(self, pixels: Tensor) -> Tensor:
        """(..., N) -> (..., N * size)"""
        angle = pixels[..., None] * self.frequency
        return torch.cat([angle.sin(), angle.cos()], -1).flatten(-2)
