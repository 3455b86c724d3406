"""Plays the controllers of a curriculum in evaluations, videos and a window."""

from __future__ import annotations

from pathlib import Path

from policies.play import EpisodePool, EpisodeTask
from policies.step_count import StepCount
from wm_agents.curriculum.config import CurriculumConfig
from wm_agents.curriculum.show import film, watch
from wm_agents.curriculum.task_run import Played
from wm_agents.loops.preflight import display_error
from wm_agents.pretrained import frame_policy
from wm_envs.registry import RealSpec
from wm_envs.window import Window

STEPS = "evaluation_steps"
"""The file that counts the real steps of the evaluations of a task."""


class Stage:
    """Keeps worker processes and window open between evaluations; must be closed."""

    def __init__(self, cfg: CurriculumConfig) -> None:
        self.cfg = cfg
        self.pool: EpisodePool | None = None
        self.window: Window | None = None
        self.count: StepCount | None = None
        self.counted = 0

    def begin(self, folder: Path, counted: int) -> None:
        """Begin or resume a task. The steps of its evaluations are counted in `folder` before they are taken.

        Args:
            counted: the steps of evaluations that are in the record of the task; further ones were interrupted.
        """
        folder.mkdir(parents=True, exist_ok=True)
        self.count, self.counted = StepCount(folder / STEPS), counted

    def play(self, spec: RealSpec, model: Path, seeds: range) -> Played:
        """Play one real episode per seed, in order. The model at a path must not change.

        The steps are all since the last call, also those of an evaluation that was killed.
        """
        if self.pool is None or self.pool.spec != spec:
            self.close_pool()
            self.pool = EpisodePool(spec, frame_policy, self.cfg.workers, self.count)
        played = sorted(self.pool.play([EpisodeTask(seed, (str(model),)) for seed in seeds]))
        steps = sum(p.steps for p in played)
        if self.count is not None:
            steps, self.counted = self.count.value - self.counted, self.count.value
        return Played([round(p.ret, 3) for p in played], steps)

    def film(self, model: Path, path: Path, seed: int) -> int:
        return film(model, path, seed=seed, fps=self.cfg.fps) - 1

    def show(self, model: Path, seed: int, path: Path) -> int:
        """Show an episode if requested: in a window, or as a video without a display."""
        if not self.cfg.visualize:
            return 0
        if self.cfg.render_mode == "rgb_array" or display_error():
            path.unlink(missing_ok=True)
            return self.film(model, path, seed)
        if self.window is None:
            self.window = Window(self.cfg.eval_fps)
        frames = watch(model, self.window, seed=seed)
        if not self.cfg.window_reuse:
            self.close_window()
        return frames - 1

    def leave(self) -> None:
        """Called when a task ends."""
        self.close_pool()
        if self.cfg.close_on_completion:
            self.close_window()

    def close(self) -> None:
        self.close_pool()
        self.close_window()

    def close_pool(self) -> None:
        if self.pool is not None:
            self.pool.close()
            self.pool = None

    def close_window(self) -> None:
        if self.window is not None:
            self.window.close()
            self.window = None
