"""Counts the parameters of every preset, without allocating weights, and prints the table of docs/models.md.

    python scripts/model_sizes.py

For DreamerV3 the actor and the critic of `wm improve --family dreamerv3` are counted too. For TD-MPC2 the policy and
the Q functions are part of the model.
"""

from __future__ import annotations

import torch

from wm_agents import get_config, get_model_info, list_models
from wm_agents.models.dreamerv3 import DreamerV3
from wm_agents.models.families import build
from wm_agents.spaces import action_space_of, space_of
from wm_agents.training.dreamer_agent import DreamerLearner


def main() -> None:
    """Print the table as Markdown."""
    print("| preset | parameters | with actor and critic | observations | actions |\n| --- | --- | --- | --- | --- |")
    for name in list_models():
        info = get_model_info(name)
        if info["size"] != "stored":
            beside = learned_beside(name, info["obs_shape"], info["action_dim"])
            both = f"{info['parameters'] + beside:,}" if beside else ""
            print(f"| `{name}` | {info['parameters']:,} | {both} | {info['obs_shape']} | {info['action_dim']} |")


def learned_beside(name: str, obs_shape: tuple[int, ...], action_dim: int) -> int:
    """Parameters of the actor and the critic that are trained with a model of preset `name`."""
    see, do = space_of(obs_shape), action_space_of(action_dim)
    with torch.device("meta"):
        model = build(name.partition(":")[0], get_config(name, obs_shape=obs_shape, action_dim=action_dim), see, do)
        if not isinstance(model, DreamerV3):
            return 0
        behaviour = DreamerLearner(model).behaviour
    return sum(p.numel() for p in behaviour.parameters() if p.requires_grad)


if __name__ == "__main__":
    main()
