"""References: Stable-Baselines3 in the real environment with the budget of a dream, and the random policy.

    python scripts/baselines.py --task LunarLander                       # all learners, both budgets, seed 1
    python scripts/baselines.py --task Pong --algos dqn --budgets time --seeds 1 2
    python scripts/baselines.py --task Pendulum --steps 10000 --minutes 20

Each run is scored on 100 held-out episodes, games also without sticky actions, and recorded in docs/records/<task>/.
The budgets are the means over the recorded dreams of the task, or those of its shipped dream. The same command resumes:
recorded runs are skipped. A run that raises an error is recorded as failed. Settings are rl-baselines3-zoo's, with
shorter warm-ups where the budget is short; pixels are three grey frames of 64x64, as for TD-MPC2.
"""

from __future__ import annotations

import argparse
import time
from copy import deepcopy
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import gymnasium as gym
import numpy as np
import torch
from gymnasium.wrappers import TransformReward
from records import RECORDS, Record, without_folders, write_record
from result_tables import Results
from results import read_results
from sb3_contrib import TQC
from stable_baselines3 import DQN, PPO, SAC
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.policies import BasePolicy
from stable_baselines3.common.utils import LinearSchedule

from policies.policy import RandomPolicy
from policies.rollout import EVAL_SEED
from policies.sb3 import SB3Policy
from wm_agents.evaluation.evaluate import evaluate_real
from wm_agents.system.run_folder import provenance
from wm_envs.real import make_real
from wm_envs.registry import TASKS, RealSpec, has_sticky_actions, protocol_of, without_sticky_actions

SPECS = {
    **{name: task.real for name, task in TASKS.items()},
    "Pendulum": RealSpec("Pendulum-v1", max_episode_steps=200),
    "MountainCarContinuous": RealSpec("MountainCarContinuous-v0", max_episode_steps=999),
}
POINTS = 30
"""Points of a learning curve."""


class Setting(NamedTuple):
    """How an algorithm is trained on a task."""

    algo: type[BaseAlgorithm]
    num_envs: int
    kwargs: dict[str, Any]
    policy: str = "MlpPolicy"


_WIDE = {"net_arch": [256, 256]}
_DQN = {
    "learning_rate": 6.3e-4, "batch_size": 128, "buffer_size": 50_000, "learning_starts": 0, "gradient_steps": -1,
    "exploration_fraction": 0.12, "exploration_final_eps": 0.1, "target_update_interval": 250, "train_freq": 4,
    "policy_kwargs": _WIDE,
}  # fmt: skip
_CAR_SAC = {
    "learning_rate": 3e-4, "buffer_size": 50_000, "batch_size": 512, "ent_coef": 0.1, "train_freq": 32,
    "gradient_steps": 32, "gamma": 0.9999, "tau": 0.01, "learning_starts": 0, "use_sde": True,
    "policy_kwargs": {"log_std_init": -3.67, "net_arch": [64, 64]},
}  # fmt: skip
_GAME_DQN = {
    "learning_rate": 1e-4, "batch_size": 32, "buffer_size": 50_000, "learning_starts": 5_000, "train_freq": 4,
    "gradient_steps": 1, "target_update_interval": 1_000, "exploration_fraction": 0.1, "exploration_final_eps": 0.01,
}  # fmt: skip
_GAME_PPO = {
    "n_steps": 128, "batch_size": 256, "n_epochs": 4, "learning_rate": LinearSchedule(2.5e-4, 0, 1),
    "clip_range": LinearSchedule(0.1, 0, 1), "ent_coef": 0.01,
}  # fmt: skip
_GAME = {"dqn": Setting(DQN, 1, _GAME_DQN, "CnnPolicy"), "ppo": Setting(PPO, 8, _GAME_PPO, "CnnPolicy")}
_PENDULUM_PPO = {"n_steps": 1024, "gamma": 0.9, "learning_rate": 1e-3, "use_sde": True, "sde_sample_freq": 4}
SETTINGS: dict[str, dict[str, Setting]] = {
    "CartPole": {
        "dqn": Setting(DQN, 1, {
            "learning_rate": 2.3e-3, "batch_size": 64, "buffer_size": 100_000, "learning_starts": 1_000,
            "target_update_interval": 10, "train_freq": 256, "gradient_steps": 128, "exploration_fraction": 0.16,
            "exploration_final_eps": 0.04, "policy_kwargs": _WIDE,
        }),
        "ppo": Setting(PPO, 8, {
            "n_steps": 32, "batch_size": 256, "gae_lambda": 0.8, "gamma": 0.98, "n_epochs": 20, "learning_rate": 1e-3,
        }),
    },
    "Acrobot": {
        "dqn": Setting(DQN, 1, _DQN),
        "ppo": Setting(PPO, 16, {"n_steps": 256, "gae_lambda": 0.94, "n_epochs": 4, "ent_coef": 0.0}),
    },
    "LunarLander": {
        "dqn": Setting(DQN, 1, _DQN),
        "ppo": Setting(PPO, 16, {
            "n_steps": 1024, "batch_size": 64, "gae_lambda": 0.98, "gamma": 0.999, "n_epochs": 4, "ent_coef": 0.01,
        }),
    },
    "Pendulum": {
        "sac": Setting(SAC, 1, {"learning_rate": 1e-3}),
        "tqc": Setting(TQC, 1, {"learning_rate": 1e-3}),
        "ppo": Setting(PPO, 4, _PENDULUM_PPO),
    },
    "MountainCarContinuous": {"sac": Setting(SAC, 1, _CAR_SAC), "tqc": Setting(TQC, 1, _CAR_SAC)},
    "CarRacing": {
        "ppo": Setting(PPO, 8, {
            "n_steps": 512, "batch_size": 128, "n_epochs": 10, "learning_rate": LinearSchedule(1e-4, 0, 1),
            "use_sde": True, "sde_sample_freq": 4,
            "policy_kwargs": {"log_std_init": -2.0, "ortho_init": False, "net_arch": [256]},
        }, "CnnPolicy"),
    },
    "Pong": _GAME,
    "Breakout": _GAME,
}  # fmt: skip
BUDGETS = {"steps": "equal steps", "time": "equal time"}


class Watch(BaseCallback):
    """Records the learning curve, and ends training when its time is up."""

    def __init__(self, steps: int, seconds: float | None) -> None:
        super().__init__()
        self.steps, self.seconds, self.began = steps, seconds, time.perf_counter()
        self.curve: list[dict[str, Any]] = []

    @property
    def wall_s(self) -> float:
        return time.perf_counter() - self.began

    def _on_step(self) -> bool:
        share = self.num_timesteps / self.steps if self.seconds is None else self.wall_s / max(self.seconds, 1e-9)
        ended = [info["r"] for info in self.model.ep_info_buffer or ()]
        if ended and share >= (len(self.curve) + 1) / POINTS:
            mean = round(float(np.mean(ended)), 3)
            self.curve.append({"real_steps": self.num_timesteps, "wall_s": round(self.wall_s), "real": mean})
        return self.seconds is None or self.wall_s < self.seconds


def train(
    setting: Setting, spec: RealSpec, steps: int, seconds: float | None, seed: int
) -> tuple[BaseAlgorithm, Watch]:
    """Train for `steps` real steps, or for `seconds` of wall time.

    Schedules span the real steps, or the million steps of the published settings if the time is given.
    """
    envs = make_vec_env(partial(make_env, spec), n_envs=setting.num_envs, seed=seed)
    model = setting.algo(setting.policy, envs, seed=seed, device="cpu", **deepcopy(setting.kwargs))
    watch = Watch(steps, seconds)
    model.learn(steps if seconds is None else 1_000_000, callback=watch)
    envs.close()
    return model, watch


def make_env(spec: RealSpec) -> gym.Env[Any, Any]:
    """The real environment; rewards of games are clipped to their signs, as usual in training."""
    env = make_real(spec)
    return TransformReward(env, np.sign) if "ALE/" in spec.id else env  # type: ignore[arg-type]


class Actor(NamedTuple):
    """Makes the trained policy, in any process: SB3's own policies hold tensors that cannot be copied."""

    kind: type[BasePolicy]
    arguments: dict[str, Any]
    weights: dict[str, torch.Tensor]

    def __call__(self) -> SB3Policy:
        policy = self.kind(**self.arguments)
        policy.load_state_dict(self.weights)
        policy.set_training_mode(False)
        return SB3Policy(policy)


def actor_of(model: BaseAlgorithm) -> Actor:
    """The trained policy of an algorithm."""
    return Actor(type(model.policy), model.policy._get_constructor_parameters(), model.policy.state_dict())


def scores(spec: RealSpec, policy: Any, episodes: int, procs: int) -> dict[str, Any]:
    """The score on held-out episodes, and for games also that without sticky actions."""
    seeds = range(EVAL_SEED, EVAL_SEED + episodes)
    found = {"real": evaluate_real(spec, policy, seeds, procs).to_dict()}
    if has_sticky_actions(spec):
        found["without_sticky"] = evaluate_real(without_sticky_actions(spec), policy, seeds, procs).to_dict()
    return found


def seen_by_networks(spec: RealSpec) -> RealSpec:
    """`spec` as convolutional networks without memory need it: three frames at once."""
    return spec if spec.size is None else replace(spec, stack=True)


def budget_of(results: Results, task: str) -> tuple[int, float]:
    """Mean real steps and seconds of the recorded runs of the task, or those of its shipped dream.

    Raises:
        ValueError: there are none.
    """
    runs = [run for run in results.of(task, "dream") if run.real is not None]
    if runs:
        return round(np.mean([run.real_steps for run in runs])), float(np.mean([run.wall_s for run in runs]))
    card = results.card(task)
    if card is None:
        raise ValueError(f"no run of {task} is recorded, so give --steps and --minutes")
    return card.real_steps, card.wall_s


def random_record(task: str, episodes: int, procs: int) -> Record:
    """The score of the random policy."""
    spec = SPECS[task]
    env = make_real(spec)
    policy = partial(RandomPolicy, env.action_space)
    env.close()
    found = scores(spec, policy, episodes, procs)
    return Record(task, spec.id, "random", "random policy", 0, protocol=protocol_of(spec), **facts(), **found)


def reference_record(
    task: str, algo: str, budget: str, steps: int, seconds: float, seed: int, episodes: int, procs: int
) -> Record:
    """Train one reference and score it; an error is recorded as the reason of its failure."""
    spec, setting = seen_by_networks(SPECS[task]), SETTINGS[task][algo]
    record = Record(
        task, spec.id, "reference", f"SB3 {algo.upper()}", seed, failed="not trained", budget=BUDGETS[budget],
        frames_a_step=spec.action_repeat, protocol=protocol_of(spec),
        config={"num_envs": setting.num_envs, "policy": setting.policy, "settings": str(setting.kwargs)},
        **facts(),
    )  # fmt: skip
    try:
        model, watch = train(setting, spec, steps, seconds if budget == "time" else None, seed)
        trained = {"real_steps": model.num_timesteps, "wall_s": round(watch.wall_s, 1), "curve": watch.curve}
        found = scores(spec, actor_of(model), episodes, procs)
    except Exception as error:
        return replace(record, failed=f"{type(error).__name__}: {error}")
    return replace(record, failed=None, **trained, **found)


def facts() -> dict[str, Any]:
    """Command, commit, versions and hardware."""
    start = provenance()
    return {**start, "command": without_folders(start["command"])}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--task", choices=SPECS, required=True)
    parser.add_argument("--algos", nargs="*", help="learners; default: all with settings for the task")
    parser.add_argument("--budgets", nargs="*", choices=BUDGETS, default=[*BUDGETS])
    parser.add_argument("--seeds", nargs="*", type=int, default=[1])
    parser.add_argument("--steps", type=int, help="real steps of the budget `steps`")
    parser.add_argument("--minutes", type=float, help="wall time of the budget `time`")
    parser.add_argument("--episodes", type=int, default=100, help="held-out episodes")
    parser.add_argument("--procs", type=int, default=2, help="processes for held-out episodes")
    parser.add_argument("--threads", type=int, default=1, help="threads of PyTorch in training")
    parser.add_argument("--out", type=Path, default=RECORDS, help="folder of the records")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    algos = [*SETTINGS[args.task]] if args.algos is None else args.algos
    if unknown := sorted(set(algos) - SETTINGS[args.task].keys()):
        raise SystemExit(f"{args.task} has settings for {', '.join(SETTINGS[args.task])}, not for {', '.join(unknown)}")
    done = {path.stem for path in (args.out / args.task).glob("*.json")}
    if "random" not in done:
        keep(random_record(args.task, args.episodes, args.procs), args.out)
    if not algos:
        return
    given = {"steps": args.steps, "time": args.minutes}
    steps, seconds = args.steps or 0, 60 * (args.minutes or 0)
    if any(given[budget] is None for budget in args.budgets):
        usual = budget_of(read_results(), args.task)
        steps, seconds = steps or usual[0], seconds or usual[1]
    for seed in args.seeds:
        for budget in args.budgets:
            for algo in algos:
                name = f"sb3-{algo}-{BUDGETS[budget].replace(' ', '-')}-seed-{seed}"
                if name not in done:
                    record = reference_record(args.task, algo, budget, steps, seconds, seed, args.episodes, args.procs)
                    keep(record, args.out)


def keep(record: Record, out: Path) -> None:
    """Write the record and print its score."""
    path, score = write_record(record, out), f"FAILED: {record.failed}"
    if record.real is not None:
        score = f"{record.real['mean']:.1f} ± {record.real['std']:.1f}"
    print(f"{path.parent.name}/{path.stem}: {score}", flush=True)


if __name__ == "__main__":
    main()
