"""Recordings of a game: both worlds side by side, as mp4 or GIF."""

from __future__ import annotations

import io
import pickle
import tempfile
import zlib
from collections.abc import Iterator
from pathlib import Path

import cv2
import numpy as np
from PIL import Image

from wm_agents.video import Pair, compose, write_video
from wm_agents.web.game import Scene
from wm_agents.web.playable import Playable
from wm_envs.drawing import Frame, draw

FORMATS = ("mp4", "gif")
MAX_FRAMES = 1800
"""Steps that a recording holds."""
MAX_BYTES = 32 * 2**20
"""Compressed observations that a recording holds in memory."""
GIF_SIDE = 256
"""Height of a GIF in pixels."""


class Recording:
    """Steps in the order in which they were shown; they are drawn when the recording is saved."""

    def __init__(self, playable: Playable) -> None:
        self.playable = playable
        self.size = 0
        """Bytes held."""
        self._steps: list[bytes] = []

    def __len__(self) -> int:
        return len(self._steps)

    def add(self, scene: Scene) -> bool:
        """Keep a step; return False if the recording is full."""
        if len(self) >= MAX_FRAMES or self.size > MAX_BYTES:
            return False
        self._steps.append(zlib.compress(pickle.dumps(scene), 1))
        self.size += len(self._steps[-1])
        return True

    def encode(self, form: str) -> bytes:
        """The recording as an mp4 or a GIF."""
        if form == "gif":
            return self._gif()
        return self._mp4()

    def _images(self) -> Iterator[Frame]:
        for data in self._steps:
            yield self._drawn(pickle.loads(zlib.decompress(data)))  # Bytes of this process, never a file.

    def _drawn(self, scene: Scene) -> Frame:
        space = self.playable.model.obs_space
        dream = draw(self.playable.env_id, space, scene.dream)
        real = np.zeros_like(dream) if scene.real is None else draw(self.playable.env_id, space, scene.real)
        return compose(Pair(real, dream, scene.real_ret or 0.0, scene.ret, scene.age, bool(scene.dream_over)))

    def _mp4(self) -> bytes:
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "recording.mp4"
            write_video(path, self._images(), self.playable.fps)
            return path.read_bytes()

    def _gif(self) -> bytes:
        first, *others = (self._small(frame) for frame in self._images())
        out = io.BytesIO()
        first.save(out, "GIF", save_all=True, append_images=others, duration=round(1000 / self.playable.fps), loop=0)
        return out.getvalue()

    def _small(self, frame: Frame) -> Image.Image:
        scale = GIF_SIDE / frame.shape[0]
        size = (round(frame.shape[1] * scale), GIF_SIDE)
        return Image.fromarray(cv2.resize(frame, size, interpolation=cv2.INTER_AREA)).quantize(128)
