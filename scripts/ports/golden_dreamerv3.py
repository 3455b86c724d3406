"""Losses of the official DreamerV3 (github.com/danijar/dreamerv3, e3f0224), for given outputs of its networks: the
numbers of tests/test_golden.py.

    python scripts/ports/golden_dreamerv3.py CHECKOUT     # needs jax
"""

from __future__ import annotations

import ast
import json
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
from golden_tdmpc2 import fill

ROWS, STEPS, ACTIONS, BINS, GROUPS, CLASSES = 3, 5, 4, 255, 6, 5
UNIMIX = 0.01


def inputs() -> dict[str, np.ndarray]:
    """What networks and replay give, rows first; H steps have H + 1 states."""
    states = (ROWS, STEPS + 1)
    last = np.zeros(states, bool)
    last[0, 2] = last[1, 4] = True
    small = -np.square((np.arange(BINS) - BINS // 2) / 4, dtype=np.float32)  # The outermost bins are e^20.
    return {
        "act": fill("act", *states, ACTIONS).numpy().argmax(-1),
        "rew": fill("rew", *states).numpy(),
        "con": 1 / (1 + np.exp(-3 - fill("con", *states).numpy())),
        "policy": fill("policy", *states, ACTIONS).numpy(),
        "value": fill("value", *states, BINS).numpy() + small,
        "slow": fill("slow", *states, BINS).numpy() + small,
        "last": last,
        "term": last & (np.arange(STEPS + 1) == 2),
        "boot": fill("boot", *states).numpy(),
        "post": fill("post", ROWS, GROUPS, CLASSES).numpy(),
        "prior": fill("prior", ROWS, GROUPS, CLASSES).numpy(),
    }


def official(checkout: Path) -> SimpleNamespace:
    """The functions of the losses and the distributions, without the rest of the agent."""
    import jax
    import jax.numpy as jnp

    names: dict[str, Any] = {
        "jax": jax, "jnp": jnp, "f32": jnp.float32, "i32": jnp.int32, "sg": jax.lax.stop_gradient,
        "chex": SimpleNamespace(assert_equal_shape=lambda arrays: None),
    }  # fmt: skip
    parts = {"dreamerv3/agent.py": ast.FunctionDef, "embodied/jax/outs.py": ast.ClassDef}
    for file, kind in parts.items():
        tree = ast.parse((checkout / file).read_text(encoding="utf-8"))
        tree.body = [node for node in tree.body if isinstance(node, kind)]
        exec(compile(tree, file, "exec"), names)
    return SimpleNamespace(**names)


class Unscaled:
    """A normalisation that has just begun: the range of returns counts as 1."""

    def stats(self) -> tuple[float, float]:
        return 0.0, 1.0

    def __call__(self, values: Any, update: bool) -> tuple[float, float]:
        return self.stats()


def main(checkout: str) -> None:
    """Print the numbers as JSON."""
    code, data, plain = official(Path(checkout)), inputs(), Unscaled()
    half = np.linspace(-20, 0, BINS // 2 + 1, dtype=np.float32)
    half = np.sign(half) * (np.exp(np.abs(half)) - 1)
    bins = np.concatenate([half, -half[:-1][::-1]]).astype(np.float32)
    value, slow = (code.TwoHot(data[name], bins) for name in ("value", "slow"))
    policy = {"action": code.Categorical(data["policy"])}
    act, rew, con = {"action": data["act"]}, data["rew"].astype(np.float32), data["con"].astype(np.float32)
    imagined, _, _ = code.imag_loss(
        act, rew, con, policy, value, slow, plain, plain, plain, False, contdisc=True, slowtar=False
    )
    replayed, _ = code.repl_loss(
        data["last"], data["term"], rew, data["boot"], value, slow, plain, False, slowtar=False
    )[:2]
    post, prior = (code.Agg(code.OneHot(data[name], UNIMIX), 1, code.jnp.sum) for name in ("post", "prior"))
    found = {
        "policy": float(imagined["policy"].mean()),
        "value": float(imagined["value"].mean()),
        "repval": float(replayed["repval"].mean()),
        "kl": [float(x) for x in post.kl(prior)],
    }
    print(json.dumps(found, indent=1))


if __name__ == "__main__":
    main(sys.argv[1])
