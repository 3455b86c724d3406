"""Shows a controller in the real environment beside its dream, in a video or a window."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing
from itertools import islice
from pathlib import Path

from wm_agents.pretrained import load_dream
from wm_agents.video import Frame, compose, one_env, real_and_dream, write_video
from wm_envs.frames import is_image
from wm_envs.window import Window

MOST_FRAMES = 1000
"""Maximum steps of a video or a window."""
RESYNC_EVERY = 50
"""Steps after which the dream is synchronised with the real frame."""


def film(model: Path, path: Path, *, seed: int, fps: float | None = None) -> int:
    """Record one episode of the model's controller to `path`, at the speed of the real environment or `fps`.

    Returns:
        The number of frames, one more than steps.
    """
    with closing(_Show(model)) as show:
        return write_video(path, show.frames(seed), fps or show.fps)


def watch(model: Path, window: Window, *, seed: int) -> int:
    """Show one episode of the model's controller in `window` and return the number of frames."""
    frames = 0
    with closing(_Show(model)) as show:
        for frame in show.frames(seed):
            window.show(frame)
            frames += 1
    return frames


class _Show:
    """The real environment of a model, and its frames beside the dream."""

    def __init__(self, model: Path) -> None:
        self.saved = load_dream(model)
        self.envs = one_env(self.saved.spec, rendered=not is_image(self.saved.model.obs_space))
        self.fps = float(self.envs.metadata["render_fps"])

    def frames(self, seed: int) -> Iterator[Frame]:
        pairs = real_and_dream(
            self.envs,
            self.saved.model,
            self.saved.policy,
            self.saved.dream,
            seed=seed,
            resync_every=RESYNC_EVERY,
            drawing=self.saved.spec.id,
        )
        return map(compose, islice(pairs, MOST_FRAMES))

    def close(self) -> None:
        self.envs.close()
