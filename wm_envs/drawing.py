"""Renders observations: images as they are, vectors as a drawing for known environments, else as bars."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import cv2
import gymnasium as gym
import numpy as np
from numpy.typing import NDArray

from wm_envs.frames import is_channels_first, is_image, to_rgb

Frame = NDArray[np.uint8]
Points = NDArray[np.float64]
Color = tuple[int, int, int]

WHITE, BLACK, YELLOW, GRAY = (255, 255, 255), (0, 0, 0), (204, 204, 0), (128, 128, 128)
BARS, SIDE, LABEL_WIDTH = 64, 400, 18
"""Bars per line of a chart, the side lengths of the chart in pixels, and the least width of a bar with a label."""


def draw(env_id: str | None, space: gym.Space[Any], obs: NDArray[Any]) -> Frame:
    """Render one observation (*space.shape) or N of them (N, *space.shape).

    Drawings have the size and proportions of Gymnasium's renderers, and show only what the observation
    contains: no engine flames, no hills beside the landing pad. Values that are not finite are drawn as 0.

    Args:
        env_id: the real environment of the observations, or None if unknown.

    Returns:
        (H, W, 3) or (N, H, W, 3) uint8; H and W are even unless `space` is an image space.

    Raises:
        ValueError: `obs` does not have the shape of `space`.
    """
    shape = space.shape or ()
    obs = np.asarray(obs)
    if obs.shape == shape:
        frame: Frame = draw(env_id, space, obs[None])[0]
        return frame
    if obs.shape[1:] != shape:
        raise ValueError(f"obs must be {shape} or (N, {', '.join(map(str, shape))}), got {obs.shape}")
    if is_image(space):
        return to_rgb(obs).copy()
    if is_channels_first(space):
        return to_rgb(np.moveaxis(obs, 1, -1)).copy()
    rows = np.nan_to_num(obs.reshape(len(obs), -1).astype(np.float64), posinf=0.0, neginf=0.0)
    known = _known(env_id, space)
    if known is not None:
        return np.array([known.frame(row) for row in rows], np.uint8)
    return np.array([_bars(unit) for unit in _to_unit(space, rows)], np.uint8)


def how_drawn(env_id: str | None, space: gym.Space[Any]) -> str:
    """A description of what `draw` shows."""
    if is_image(space) or is_channels_first(space):
        return "decoded pixels"
    if _known(env_id, space) is None:
        return "bars of the observation"
    return "drawing of the observation"


class _Canvas:
    """A white frame to draw on, in the pixel coordinates of Gymnasium's renderers, with y upward."""

    def __init__(self, width: int, height: int) -> None:
        self.frame: Any = np.full((height, width, 3), 255, np.uint8)

    def polygon(self, points: Points, color: Color) -> None:
        cv2.fillPoly(self.frame, [self._fixed(points)], color, cv2.LINE_AA, shift=4)

    def line(self, points: Points, color: Color) -> None:
        cv2.polylines(self.frame, [self._fixed(points)], False, color, 1, cv2.LINE_AA, shift=4)

    def circle(self, at: Points, radius: float, color: Color) -> None:
        cv2.circle(self.frame, self._fixed(at[None])[0].tolist(), round(16 * radius), color, -1, cv2.LINE_AA, shift=4)

    def flag(self, at: Points, pole: Color) -> None:
        self.line(at + np.array([(0, 0), (0, 50)]), pole)
        self.polygon(at + np.array([(0, 50), (0, 40), (25, 45)]), YELLOW)

    def _fixed(self, points: Points) -> NDArray[np.int32]:
        """Row and column in sixteenths of a pixel, clipped, because a diverged dream may give distant
        points."""
        down = np.stack([points[:, 0], len(self.frame) - 1 - points[:, 1]], axis=1)
        fixed: NDArray[np.int32] = np.round(16 * np.clip(down, -2000, 2000)).astype(np.int32)
        return fixed


def _box(left: float, right: float, bottom: float, top: float) -> Points:
    return np.array([(left, bottom), (left, top), (right, top), (right, bottom)])


def _turn(points: Points, angle: float, to: Points) -> Points:
    """`points` rotated counterclockwise about the origin and then translated by `to`."""
    cos, sin = np.cos(angle), np.sin(angle)
    turned: Points = points @ np.array([(cos, sin), (-sin, cos)]) + to
    return turned


def _cart_pole(canvas: _Canvas, obs: Points) -> None:
    at = np.array([300 + 125 * obs[0], 100])  # 4.8 m are 600 pixels.
    axle = at + np.array([0, 7.5])
    canvas.line(np.array([(0, 100), (600, 100)]), BLACK)
    canvas.polygon(_box(-25, 25, -15, 15) + at, BLACK)
    canvas.polygon(_turn(_box(-5, 5, -5, 120), -obs[2], axle), (202, 152, 101))
    canvas.circle(axle, 5, (129, 132, 203))


def _acrobot(canvas: _Canvas, obs: Points) -> None:
    scale = 500 / 4.4
    first, second = np.arctan2(obs[1], obs[0]), np.arctan2(obs[3], obs[2])
    canvas.line(np.array([(0, 363), (500, 363)]), BLACK)  # The target height.
    joint = np.array([250.0, 250.0])
    for angle in (first - np.pi / 2, first + second - np.pi / 2):
        canvas.polygon(_turn(_box(0, scale, -0.1 * scale, 0.1 * scale), angle, joint), (0, 204, 204))
        canvas.circle(joint, 0.1 * scale, YELLOW)
        joint = _turn(np.array([(scale, 0)]), angle, joint)[0]


def _pendulum(canvas: _Canvas, obs: Points) -> None:
    scale, red = 500 / 4.4, (204, 77, 77)
    angle, axle = np.arctan2(obs[1], obs[0]) + np.pi / 2, np.array([250.0, 250.0])
    canvas.polygon(_turn(_box(0, scale, -0.1 * scale, 0.1 * scale), angle, axle), red)
    for end in (axle, _turn(np.array([(scale, 0)]), angle, axle)[0]):
        canvas.circle(end, 0.1 * scale, red)
    canvas.circle(axle, 0.05 * scale, BLACK)


def _mountain_car(canvas: _Canvas, obs: Points) -> None:
    scale = 600 / 1.8

    def on_hill(x: Any) -> Points:
        return np.stack([(x + 1.2) * scale, (np.sin(3 * x) * 0.45 + 0.55) * scale], axis=-1)

    canvas.line(on_hill(np.linspace(-1.2, 0.6, 100)), BLACK)
    at, slope = on_hill(obs[0]) + np.array([0, 10]), np.cos(3 * obs[0])
    canvas.polygon(_turn(_box(-20, 20, 0, 20), slope, at), BLACK)
    for wheel in _turn(np.array([(10, 0), (-10, 0)]), slope, at):
        canvas.circle(wheel, 8, GRAY)
    canvas.flag(on_hill(0.5), BLACK)


def _lunar_lander(canvas: _Canvas, obs: Points) -> None:
    at, angle = np.array([300 + 300 * obs[0], 118 + 200 * obs[1]]), obs[4]
    canvas.polygon(_box(0, 600, 0, 400), BLACK)
    canvas.polygon(_box(0, 600, 0, 100), GRAY)  # The observation does not contain the terrain.
    canvas.polygon(_box(240, 360, 0, 100), WHITE)
    hull = np.array([(-14, 17), (-17, 0), (-17, -10), (17, -10), (17, 0), (14, 17)])
    canvas.polygon(_turn(hull, angle, at), (128, 102, 230))
    for side, contact in ((1, obs[6]), (-1, obs[7])):  # The right leg comes first.
        # Legs as in the air, where their springs hold them rotated by 0.4 about the centre of the hull.
        leg = _turn(_box(-2, 2, -8, 8) + np.array([20 * side, -18]), 0.4 * side, np.zeros(2))
        canvas.polygon(_turn(leg, angle, at), (80, 220, 80) if contact > 0.5 else (128, 102, 230))
    for x in (240, 360):
        canvas.flag(np.array([x, 100]), WHITE)


class _Drawing(NamedTuple):
    """How to draw the observations (dim,) of an environment."""

    dim: int
    size: tuple[int, int]
    """Width and height of the frames of the real renderer."""
    draw: Callable[[_Canvas, Points], None]

    def frame(self, obs: Points) -> Frame:
        canvas = _Canvas(*self.size)
        self.draw(canvas, obs)
        frame: Frame = canvas.frame
        return frame


DRAWINGS = {
    "CartPole": _Drawing(4, (600, 400), _cart_pole),
    "Acrobot": _Drawing(6, (500, 500), _acrobot),
    "Pendulum": _Drawing(3, (500, 500), _pendulum),
    "MountainCar": _Drawing(2, (600, 400), _mountain_car),
    "MountainCarContinuous": _Drawing(2, (600, 400), _mountain_car),
    "LunarLander": _Drawing(8, (600, 400), _lunar_lander),
    "LunarLanderContinuous": _Drawing(8, (600, 400), _lunar_lander),
}
"""By id without the version."""


def _known(env_id: str | None, space: gym.Space[Any]) -> _Drawing | None:
    drawing = DRAWINGS.get((env_id or "").split(":")[-1].rsplit("-v", 1)[0])
    if drawing is not None and space.shape == (drawing.dim,):
        return drawing
    return None


def _to_unit(space: gym.Space[Any], rows: Points) -> Points:
    """Values scaled to [-1, 1]: linear between the bounds of the space, by tanh if unbounded."""
    low, high = (np.ravel(getattr(space, name, np.inf)).astype(np.float64) for name in ("low", "high"))
    bounded = (high > low) & (high - low < 1e6)  # Some spaces use the largest float as a bound.
    low, width = np.where(bounded, low, 0.0), np.where(bounded, high - low, 1.0)
    return np.where(bounded, np.clip(2 * (rows - low) / width - 1, -1, 1), np.tanh(rows))


def _bars(unit: Points) -> Frame:
    """A bar chart of (D,) values in [-1, 1], around the centre of each line, with as many lines as
    necessary. Wide bars have the index of their value below them."""
    lines = -(-len(unit) // BARS)
    per_line = -(-len(unit) // lines)
    values = np.pad(unit, (0, lines * per_line - len(unit))).reshape(lines, per_line)
    y, x = (np.arange(SIDE) + 0.5) * lines / SIDE, (np.arange(SIDE) + 0.5) * per_line / SIDE
    value = values[y.astype(int)][:, x.astype(int)]
    height = 1 - 2 * (y % 1)[:, None]  # 1 at the top of a line, -1 at its bottom.
    lit = (abs(height) < abs(value)) & (height * value > 0) & (x % 1 < 0.9)
    frame = np.full((SIDE, SIDE, 3), WHITE, np.uint8)
    frame[(abs(height) < 2 * lines / SIDE)[:, 0]] = GRAY
    frame[lit] = np.where((value > 0)[..., None], (80, 80, 200), (204, 77, 77))[lit]
    if SIDE / per_line >= LABEL_WIDTH:
        _label(frame, len(unit), lines, per_line)
    return frame


def _label(frame: Frame, num: int, lines: int, per_line: int) -> None:
    """Write the index of its value below every bar."""
    for i in range(num):
        line, column = divmod(i, per_line)
        at = round((column + 0.1) * SIDE / per_line), (line + 1) * SIDE // lines - 4
        cv2.putText(frame, str(i), at, cv2.FONT_HERSHEY_SIMPLEX, 0.35, BLACK, 1, cv2.LINE_AA)
