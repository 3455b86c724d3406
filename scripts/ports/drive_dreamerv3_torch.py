"""One update of dreamerv3-torch (github.com/NM512/dreamerv3-torch; the algorithm of January 2023) with given sizes.

Its GRU is one dense layer and its convolutions have strides, so equal sizes are not equal work. Its model is not
compiled, whatever its config contains, because it compiles `forward`, which its update never calls.
"""

from __future__ import annotations

import sys
from importlib import import_module
from pathlib import Path
from types import SimpleNamespace

import numpy as np
from stopwatch import Job, Timed, main


def build(job: Job) -> Timed:
    """The model and behaviour of its own config, with the given sizes and batch, and `actions` discrete actions."""
    models = import_module("models")
    cfg = make_cfg(job)
    spaces = SimpleNamespace(spaces={"image": SimpleNamespace(shape=job.obs_shape)})
    model = models.WorldModel(spaces, None, 0, cfg).to(cfg.device)
    behaviour = models.ImagBehavior(cfg, model).to(cfg.device)
    data = make_data(job)

    def reward(feat, state, act):  # type: ignore[no-untyped-def]
        return model.heads["reward"](model.dynamics.get_feat(state)).mode()

    def update() -> None:
        post, _, _ = model._train({key: value.copy() for key, value in data.items()})
        behaviour._train(post, reward)

    modules = (model, behaviour.actor, behaviour.value)
    return Timed(update, sum(p.numel() for module in modules for p in module.parameters()))


def make_cfg(job: Job) -> SimpleNamespace:
    yaml = import_module("ruamel.yaml").YAML(typ="safe", pure=True)
    cfg, sizes = yaml.load(Path(job.path) / "configs.yaml")["defaults"], job.sizes
    one, three = {"layers": 1}, {"layers": 3}  # As the current algorithm has them.
    cfg["encoder"] |= {"cnn_depth": sizes["cnn_depth"]}
    cfg["decoder"] |= {"cnn_depth": sizes["cnn_depth"]}
    cfg["actor"] |= {**three, "dist": "onehot", "std": "none"}
    cfg["critic"] |= three
    cfg["reward_head"] |= one
    cfg["cont_head"] |= one
    cfg |= {
        "dyn_deter": sizes["deter_dim"],
        "dyn_hidden": sizes["hidden_dim"],
        "dyn_stoch": sizes["stoch_discrete"],
        "dyn_discrete": sizes["stoch_classes"],
        "units": sizes["units"],
        "imag_gradient": "reinforce",
        "num_actions": job.actions,
        "batch_size": job.batch,
        "batch_length": job.length,
        "device": job.device,
    }
    return SimpleNamespace(**cfg)


def make_data(job: Job) -> dict[str, np.ndarray]:
    rng, shape = np.random.default_rng(0), (job.batch, job.length)
    first = np.zeros(shape, np.float32)
    first[:, 0] = 1
    return {
        "image": rng.integers(0, 256, (*shape, *job.obs_shape), np.uint8),
        "action": np.eye(job.actions, dtype=np.float32)[rng.integers(job.actions, size=shape)],
        "reward": rng.standard_normal(shape).astype(np.float32),
        "is_first": first,
        "is_terminal": np.zeros(shape, np.float32),
    }


if __name__ == "__main__":
    main(build, sys.argv[1])
