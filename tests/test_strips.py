"""Strips: real frames, reconstructions and open-loop dreams of one episode, as images."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pytest
from test_video import EchoModel

from wm_agents.strips import COLUMNS, EVERY, FRAMES, SPAN, write_strips


def episode(steps: int) -> tuple[np.ndarray, np.ndarray]:
    """Frames of Echo, which show the number of the step in red and the last action in green."""
    obs = np.zeros((steps + 1, *EchoModel.obs_space.shape), np.uint8)
    obs[..., 0] = np.arange(steps + 1)[:, None, None]
    obs[1:, ..., 1] = 190
    return obs, np.full((steps, 1), 0.5, np.float32)


def cells(path: Path) -> np.ndarray:
    """The red value in the middle of each image, (3, columns)."""
    image = cv2.imread(str(path))[..., 2]
    height = image.shape[0] // 3
    width = EchoModel.obs_space.shape[1]
    return image[height // 2 :: height, width // 2 :: width]


def test_a_strip_shows_reality_reconstruction_and_the_dream_from_its_first_frame(tmp_path: Path) -> None:
    class Behind(EchoModel):
        """Its dreams count by twos, and its reconstructions are one step late."""

        def step(self, latent, act, *, temperature=1.0, generator=None):
            out = super().step(latent, act)
            return out._replace(latent={**out.latent, "t": out.latent["t"] + 1})

        def decode(self, latent):
            return super().decode({**latent, "t": (latent["t"] - 1).clamp(min=0)})

    obs, act = episode(FRAMES + 20)
    assert write_strips(tmp_path / "strips", Behind(), obs, act, env_id="Echo-v0") == 3
    files = sorted(path.name for path in (tmp_path / "strips").iterdir())
    assert files == [f"step-{start:04d}.png" for start in (0, SPAN + 1, 2 * (SPAN + 1))]
    for file in files:
        start = int(file[5:9])
        real, seen, dream = cells(tmp_path / "strips" / file)
        ahead = EVERY * np.arange(COLUMNS)
        assert real.tolist() == (start + ahead).tolist()
        assert seen.tolist() == np.maximum(start + ahead - 1, 0).tolist()
        assert dream.tolist() == np.maximum(start + 2 * ahead - 1, 0).tolist()


@pytest.mark.parametrize("steps, columns", [(3, 0), (4, 2), (20, 6), (SPAN, COLUMNS), (SPAN + 8, COLUMNS)])
def test_short_episodes_have_one_strip_or_none(steps: int, columns: int, tmp_path: Path) -> None:
    assert write_strips(tmp_path / "s", EchoModel(), *episode(steps), env_id="Echo-v0") == min(columns, 1)
    assert columns == 0 or cells(tmp_path / "s" / "step-0000.png").shape == (3, columns)


def test_newer_strips_replace_older_ones(tmp_path: Path) -> None:
    write_strips(tmp_path, EchoModel(), *episode(FRAMES), env_id="Echo-v0")
    write_strips(tmp_path, EchoModel(), *episode(20), env_id="Echo-v0")
    assert [path.name for path in tmp_path.iterdir()] == ["step-0000.png"]
