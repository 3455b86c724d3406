"""Proximal policy optimisation (Schulman et al. 2017) by Stable-Baselines3, in a batch of dreams.

Rewards are divided by the standard deviation of the discounted return, so that one learning rate suits every scale. The
learning rate falls linearly to 0.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
from stable_baselines3 import PPO
from stable_baselines3.common.logger import Logger
from stable_baselines3.common.running_mean_std import RunningMeanStd
from stable_baselines3.common.vec_env import VecEnv, VecMonitor, VecNormalize
from torch import Tensor, nn

from policies.mlp import MLPPolicy
from policies.sb3 import DreamVecEnv, Whitened, to_mlp, unit_actions
from wm_agents.checkpoint import load_weights
from wm_agents.system.state import read_state_tensors, write_state_tensors
from wm_envs.dream import DreamConfig, DreamVectorEnv
from wm_envs.fields import above, at_least, at_most, check_fields, fail
from wm_envs.world_model import Latent, WorldModel

ACTIVATIONS = {"tanh": nn.Tanh, "relu": nn.ReLU, "silu": nn.SiLU}
SCALE = ("mean", "var", "count")
"""The statistics of discounted returns."""
LEAST_STD = 1e-3
"""Minimum standard deviation for whitening."""


@dataclass(frozen=True)
class PPOConfig:
    """Settings of PPO. An iteration is `envs` x `steps` dreamed steps and `epochs` passes over them."""

    iterations: int = field(default=60, metadata=at_least(1))
    """Iterations of PPO."""
    envs: int = field(default=256, metadata=at_least(1))
    """Dreams in parallel."""
    steps: int = field(default=64, metadata=at_least(1))
    """Steps per dream and iteration."""
    batch_size: int = field(default=2048, metadata=at_least(2))
    """Dreamed steps per gradient step."""
    epochs: int = field(default=4, metadata=at_least(1))
    """Passes over the steps of an iteration."""
    lr: float = field(default=5e-4, metadata=above(0))
    """Initial learning rate; falls linearly to 0 over the iterations."""
    gamma: float = field(default=0.99, metadata=above(0) | at_most(1))
    """Discount."""
    gae_lambda: float = field(default=0.95, metadata=above(0) | at_most(1))
    """λ of generalised advantage estimation."""
    ent_coef: float = 0.01
    """Weight of the entropy bonus."""
    net: tuple[int, ...] = field(default=(64, 64), metadata=at_least(1))
    """Hidden units of actor and critic."""
    activation: Literal["tanh", "relu", "silu"] = "tanh"
    """Activation of actor and critic."""
    whiten: bool = False
    """Normalise feat by its mean and standard deviation over the first initial latents."""
    seed: int = 0
    """Random seed."""

    def __post_init__(self) -> None:
        check_fields(self)
        if self.envs * self.steps < 2:
            fail(self, "steps", "at least 2 if envs is 1")


class Iteration(NamedTuple):
    """The progress after an iteration."""

    number: int
    mean: float
    """Mean return of the last 2 x `envs` finished dreams."""
    wall_s: float
    policy: MLPPolicy


def ppo_in_dream(
    model: WorldModel,
    starts: dict[str, Latent],
    cfg: PPOConfig,
    dream: DreamConfig,
    *,
    state: Path,
    before: Path | None = None,
    on_iteration: Callable[[Iteration], bool | None] | None = None,
    start: str = "begin",
) -> Iteration:
    """Train an MLP on latents for `cfg.iterations` and return it.

    Args:
        state: file for resuming: networks and the number of iterations, without the optimizer state.
        before: the state file of an earlier run, whose networks are the initial ones.
        on_iteration: returns True to stop.
        start: the initial latents of dreams, "begin" or "anywhere".
    """
    resumed = state.exists()
    tensors, about = _earlier(state, before)
    precision: Any = about.get("precision", "auto")  # A trial for every training could choose differently.
    envs = DreamVectorEnv(model, starts, cfg.envs, dream, obs="latent", start=start, precision=precision)
    learner = _make(cfg, envs, model.feat(starts["anywhere"]).cpu())
    if tensors:
        load_weights(learner.policy, tensors)
        _load_scale(learner, about)
    number, mean = (int(about["iterations"]), float(about["mean"])) if resumed else (0, np.nan)
    iteration = Iteration(number, mean, 0.0, to_mlp(learner, model.act_space))
    # A run that was killed before the callback of this iteration calls it now.
    stopped = resumed and on_iteration is not None and bool(on_iteration(iteration))
    while iteration.number < cfg.iterations and not stopped:
        began = time.perf_counter()
        learner.lr_schedule = _constant(cfg.lr * (1 - iteration.number / cfg.iterations))
        learner.learn(cfg.envs * cfg.steps, reset_num_timesteps=False)  # One rollout and its update.
        wall_s, number = time.perf_counter() - began, iteration.number + 1
        iteration = Iteration(number, _mean_return(learner), wall_s, to_mlp(learner, model.act_space))
        about = {"iterations": str(number), "mean": repr(iteration.mean), "precision": envs.precision}
        about |= _scale(learner)
        write_state_tensors(state, learner.policy.state_dict(), about)
        stopped = on_iteration is not None and bool(on_iteration(iteration))
    return iteration


def _earlier(state: Path, before: Path | None) -> tuple[dict[str, Tensor], dict[str, str]]:
    """What to continue from: this training if it was interrupted, else the earlier one; empty if there is none."""
    for file in (state, before):
        if file is not None and file.exists():
            return read_state_tensors(file)
    return {}, {}


def _make(cfg: PPOConfig, envs: DreamVectorEnv, feats: Tensor) -> PPO:
    values = asdict(cfg)
    names = {"steps": "n_steps", "epochs": "n_epochs", "lr": "learning_rate"}
    for name in ("iterations", "envs", "net", "activation", "whiten"):
        values.pop(name)
    net: dict[str, Any] = {"net_arch": list(cfg.net), "activation_fn": ACTIVATIONS[cfg.activation]}
    if cfg.whiten:
        scale = {"mean": feats.mean(0), "std": feats.std(0) + LEAST_STD}
        net |= {"features_extractor_class": Whitened, "features_extractor_kwargs": scale}
    kwargs = {names.get(name, name): value for name, value in values.items()}
    # Average over as many dreams as reach the horizon together, because the last ones to end are a biased
    # sample.
    kwargs["stats_window_size"] = 2 * cfg.envs
    dreams: VecEnv = VecNormalize(VecMonitor(DreamVecEnv(unit_actions(envs))), norm_obs=False, gamma=cfg.gamma)
    learner = PPO("MlpPolicy", dreams, policy_kwargs=net, device="cpu", **kwargs)
    learner.set_logger(Logger(folder=None, output_formats=[]))  # Otherwise each learn() creates a folder in /tmp.
    return learner


def _constant(lr: float) -> Callable[[float], float]:
    return lambda _: lr


def _scale(learner: PPO) -> dict[str, str]:
    """The statistics by which rewards are scaled, for the state file."""
    returns = _returns(learner)
    return {f"scale_{name}": repr(float(getattr(returns, name))) for name in SCALE}


def _load_scale(learner: PPO, about: dict[str, str]) -> None:
    if "scale_var" in about:  # The states of earlier versions have none.
        returns = _returns(learner)
        for name in SCALE:
            setattr(returns, name, float(about[f"scale_{name}"]))


def _returns(learner: PPO) -> RunningMeanStd:
    dreams = learner.get_vec_normalize_env()
    assert dreams is not None
    return dreams.ret_rms


def _mean_return(learner: PPO) -> float:
    ended = [info["r"] for info in learner.ep_info_buffer or ()]
    if ended:
        return float(np.mean(ended))
    return float("nan")
