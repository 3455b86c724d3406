"""Windows of real episodes, dreamed again from their first real latent with the real actions."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from wm_agents.data.episode import Episode
from wm_agents.evaluation.posterior import Floats, walk
from wm_envs.action import encode_action
from wm_envs.world_model import Latent, WorldModel, can_disagree

Ints = NDArray[np.int64]


class Windows(NamedTuple):
    """S windows of H steps, or fewer if the episode ends earlier; time-first."""

    episode: Ints
    """(S,)"""
    start: Ints
    """(S,)"""
    latent: Latent
    """(S, ...) the latent after the frame at `start`."""
    act: Tensor
    """(H, S, A) encoded; the last real action is repeated after the end of an episode."""
    rew: Floats
    """(H, S), 0 after the end of an episode."""
    left: Ints
    """(S,) real steps from `start` to the end of the episode, which may be after the window."""
    term: NDArray[np.bool_]
    """(S,) whether the episode terminated after these steps."""

    @property
    def num(self) -> int:
        return len(self.start)


class Dream(NamedTuple):
    """The dreams of the windows."""

    rew: Floats
    """(H, S)"""
    over: NDArray[np.bool_]
    """(H, S) whether the dream terminates at this step; it continues regardless."""
    disagreement: Floats | None
    """(H, S)"""
    error: dict[int, Floats]
    """By steps ahead: (S,) mean squared error of the frame, in squared units of `scale`; NaN after the
    end."""


def draw_windows(
    model: WorldModel, episodes: Sequence[Episode], num: int, horizon: int, rng: np.random.Generator
) -> Windows:
    """Sample `num` windows (or all) uniformly over all steps of the episodes."""
    lengths = np.array([ep.num_steps for ep in episodes])
    ends = np.cumsum(lengths)
    picks = np.sort(rng.choice(ends[-1], min(num, int(ends[-1])), replace=False))
    episode = np.searchsorted(ends, picks, side="right")
    start = picks - (ends - lengths)[episode]
    stretches = [_stretch(model, episodes[e], t, horizon) for e, t in zip(episode, start)]
    return Windows(
        episode,
        start,
        _latents_at(model, episodes, episode, start),
        torch.from_numpy(np.stack([act for act, _ in stretches], 1)).to(model.device),
        np.stack([rew for _, rew in stretches], 1),
        lengths[episode] - start,
        np.array([episodes[e].term for e in episode]),
    )


@torch.inference_mode()
def dream(
    model: WorldModel,
    windows: Windows,
    episodes: Sequence[Episode],
    horizons: Sequence[int],
    scale: Floats | float,
    *,
    temperature: float,
    cut_off: float,
    generator: torch.Generator | None = None,
) -> Dream:
    """Dream all windows, and compare the frames at `horizons` with the real ones, multiplied by `scale`."""
    latent, rews, over, apart = windows.latent, [], [], []
    error: dict[int, Floats] = {}
    for t, act in enumerate(windows.act, 1):
        out = model.step(latent, act, temperature=temperature, generator=generator)
        if can_disagree(model):
            apart.append(model.disagreement(latent, act, out.latent).double().cpu().numpy())
        latent = out.latent
        rews.append(out.rew.double().cpu().numpy())
        over.append(out.over(cut_off).cpu().numpy())
        if t in horizons:
            error[t] = frame_error(model, latent, windows, episodes, t, scale)
    return Dream(np.stack(rews), np.stack(over), np.stack(apart) if apart else None, error)


def frame_error(
    model: WorldModel, latent: Latent, windows: Windows, episodes: Sequence[Episode], ahead: int, scale: Floats | float
) -> Floats:
    """(S,) squared error of the decoded latents against the real frames `ahead` steps after the windows' starts."""

    def decoded(rows: Ints) -> NDArray[Any]:
        index = torch.from_numpy(rows).to(model.device)
        frames: NDArray[Any] = model.decode({key: leaf[index] for key, leaf in latent.items()}).cpu().numpy()
        return frames

    return _errors(decoded, windows, episodes, ahead, scale)


def copy_error(windows: Windows, episodes: Sequence[Episode], ahead: int, scale: Floats | float) -> Floats:
    """(S,) the error of the first frame as a prediction of the frame `ahead` steps later."""

    def copied(rows: Ints) -> NDArray[Any]:
        return np.stack([episodes[windows.episode[r]].obs[windows.start[r]] for r in rows])

    return _errors(copied, windows, episodes, ahead, scale)


def obs_scale(episodes: Sequence[Episode]) -> Floats | float:
    """The factor for differences of frames: 1/255 for pixels, 1/std for vectors."""
    if episodes[0].obs.dtype == np.uint8:
        return 1 / 255
    std = np.concatenate([ep.obs for ep in episodes]).astype(np.float64).std(0)
    return np.asarray(1 / np.where(std > 1e-8, std, 1.0))


def within(horizons: Sequence[int], episodes: Sequence[Episode]) -> list[int]:
    """The sorted horizons that some episode reaches; at least the shortest."""
    kept = sorted(set(horizons))
    if not kept or kept[0] < 1:
        raise ValueError(f"horizons must contain one or more numbers of steps, each at least 1, got {list(horizons)}")
    longest = max(ep.num_steps for ep in episodes)
    return [h for h in kept if h <= longest] or kept[:1]


def _errors(
    frames: Any, windows: Windows, episodes: Sequence[Episode], ahead: int, scale: Floats | float, block: int = 128
) -> Floats:
    error = np.full(windows.num, np.nan)
    reached = np.flatnonzero(windows.left >= ahead)
    for at in range(0, len(reached), block):
        rows = reached[at : at + block]
        real = np.stack([episodes[windows.episode[r]].obs[windows.start[r] + ahead] for r in rows])
        off = (frames(rows).astype(np.float32) - real) * np.asarray(scale, np.float32)
        error[rows] = np.square(off).reshape(len(rows), -1).mean(1)
    return error


def _stretch(model: WorldModel, ep: Episode, start: int, horizon: int) -> tuple[NDArray[np.float32], Floats]:
    """(H, A) actions and (H,) rewards from `start` on."""
    index = np.arange(start, start + horizon)
    act = encode_action(model.act_space, ep.act[np.minimum(index, ep.num_steps - 1)])
    rew = np.zeros(horizon)
    rew[: ep.num_steps - start] = ep.rew[start : start + horizon]
    return act, rew


def _latents_at(model: WorldModel, episodes: Sequence[Episode], episode: Ints, start: Ints) -> Latent:
    """The latents (S, ...) at the given positions, which are sorted by episode and step."""
    place = {(int(e), int(t)): i for i, (e, t) in enumerate(zip(episode, start))}
    found: list[int] = []
    kept: list[Latent] = []
    for moment in walk(model, episodes):
        here = [(r, place[(int(e), moment.t)]) for r, e in enumerate(moment.episode) if (int(e), moment.t) in place]
        if here:
            rows = torch.tensor([r for r, _ in here], device=model.device)
            kept.append({key: leaf[rows] for key, leaf in moment.latent.items()})
            found += [i for _, i in here]
    order = torch.from_numpy(np.argsort(found)).to(model.device)
    return {key: torch.cat([latent[key] for latent in kept])[order] for key in kept[0]}
