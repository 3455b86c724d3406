"""One update of sheeprl's DreamerV3 (github.com/Eclectic-Sheep/sheeprl; the algorithm of January 2023) with given
sizes.

Its GRU is one dense layer and its convolutions have strides, so equal sizes are not equal work.
"""

from __future__ import annotations

import sys
from importlib import import_module
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import torch
from stopwatch import Job, Timed, main
from torch import Tensor

GROUPS = ["exp=dreamer_v3", "algo=dreamer_v3_XS", "env=dummy"]


def build(job: Job) -> Timed:
    """The agent of its own config, with the given sizes and batch and `actions` discrete actions, and the arguments
    of its loop."""
    root = Path(job.path) / "sheeprl"
    package = ModuleType("sheeprl")  # Its own __init__ imports every algorithm it has.
    package.__path__ = [str(root)]
    sys.modules["sheeprl"] = package
    port, hydra = import_module("sheeprl.algos.dreamer_v3.dreamer_v3"), import_module("hydra")
    cfg = make_cfg(job, root)
    torch.set_float32_matmul_precision("high")  # As it is started with, and so is the next line.
    torch.distributions.Distribution.set_default_validate_args(False)
    precision = {"fp32": "32-true", "bf16": "bf16-mixed"}[job.precision]
    fabric = import_module("lightning.fabric").Fabric(accelerator=job.device, devices=1, precision=precision)
    space = SimpleNamespace(shape=(job.obs_shape[2], *job.obs_shape[:2]))
    model, actor, critic, slow, _ = port.build_agent(fabric, (job.actions,), False, cfg, {"rgb": space})
    nets, parts = (model, actor, critic), (cfg.algo.world_model, cfg.algo.actor, cfg.algo.critic)
    made = [
        hydra.utils.instantiate(p.optimizer, params=net.parameters(), _convert_="all") for net, p in zip(nets, parts)
    ]
    optimizers = fabric.setup_optimizers(*made)
    spread = cfg.algo.actor.moments
    moments = port.Moments(spread.decay, spread.max, spread.percentile.low, spread.percentile.high)
    data = {key: value.to(fabric.device) for key, value in make_data(job).items()}

    def update() -> None:
        for fast, target in zip(critic.module.parameters(), slow.parameters()):
            target.data.copy_(cfg.algo.critic.tau * fast.data + (1 - cfg.algo.critic.tau) * target.data)
        batch = {key: value.float() for key, value in data.items()}
        port.train(fabric, *nets, slow, *optimizers, batch, None, cfg, False, (job.actions,), moments)

    return Timed(update, sum(p.numel() for net in nets for p in net.parameters()))


def make_cfg(job: Job, root: Path) -> Any:
    hydra, sizes = import_module("hydra"), job.sizes
    values = {
        "algo.dense_units": sizes["units"],
        "algo.mlp_layers": 1,
        "algo.actor.mlp_layers": 3,  # As the current algorithm has them.
        "algo.critic.mlp_layers": 3,
        "algo.world_model.stochastic_size": sizes["stoch_discrete"],
        "algo.world_model.discrete_size": sizes["stoch_classes"],
        "algo.world_model.encoder.cnn_channels_multiplier": sizes["cnn_depth"],
        "algo.world_model.recurrent_model.recurrent_state_size": sizes["deter_dim"],
        "algo.world_model.transition_model.hidden_size": sizes["hidden_dim"],
        "algo.world_model.representation_model.hidden_size": sizes["hidden_dim"],
        "algo.per_rank_batch_size": job.batch,
        "algo.per_rank_sequence_length": job.length,
        "env.screen_size": job.obs_shape[0],
    }
    with hydra.initialize_config_dir(str(root / "configs"), version_base="1.3"):
        cfg = hydra.compose("config", [*GROUPS, *(f"{key}={value}" for key, value in values.items())])
    cfg.algo.mlp_keys.encoder = cfg.algo.mlp_keys.decoder = []
    plain = import_module("omegaconf").OmegaConf.to_container
    values = {key: plain(cfg[key], resolve=True) for key in ("algo", "env", "distribution")}
    return import_module("sheeprl.utils.utils").dotdict(values)


def make_data(job: Job) -> dict[str, Tensor]:
    """Time first."""
    shape = (job.length, job.batch)
    first = torch.zeros(*shape, 1)
    first[0] = 1
    choices = torch.randint(job.actions, shape)
    return {
        "rgb": torch.randint(0, 256, (*shape, job.obs_shape[2], *job.obs_shape[:2]), dtype=torch.uint8),
        "actions": torch.nn.functional.one_hot(choices, job.actions),
        "rewards": torch.randn(*shape, 1),
        "is_first": first,
        "terminated": torch.zeros(*shape, 1),
        "truncated": torch.zeros(*shape, 1),
    }


if __name__ == "__main__":
    main(build, sys.argv[1])
