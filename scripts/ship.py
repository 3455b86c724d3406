"""Copies a trained model to the store of the package, for `gym.make("Dream-<task>-v0")`.

    python scripts/ship.py runs/breakout/model vmc-breakout-small

A shipped model has at most 4 MB, so only some of its initial latents are kept.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from torch import Tensor

from wm_agents.checkpoint import Artifact, load_artifact, save_artifact
from wm_agents.models.saved import STORE

MOST = 4_000_000
"""Maximum size of a model in bytes."""
LEAST_STARTS = 128
"""Minimum number of initial latents."""


def ship(source: Path, target: Path) -> Artifact:
    """Copy a saved model with as many initial latents as the maximum size allows.

    Raises:
        ValueError: too few initial latents fit.
    """
    artifact = load_artifact(source)
    files = sum(file.stat().st_size for file in source.iterdir() if file.name != "starts.safetensors")
    bytes_each = sum(leaf[0].numel() * leaf.element_size() for leaf in artifact.starts.values())
    room = (MOST - files - 4096) // bytes_each  # Headers take a little.
    if room < LEAST_STARTS:
        raise ValueError(f"{source} has room for {room} starts in {MOST / 1e6:g} MB, and needs {LEAST_STARTS} at least")
    starts: dict[str, Tensor] = {name: leaf[:room].clone() for name, leaf in artifact.starts.items()}
    config = {name: value for name, value in artifact.config.items() if name not in ("files", "format_version")}
    card = (source / "README.md").read_text(encoding="utf-8")
    save_artifact(target, config, artifact.tensors, starts, card, artifact.policies)
    return load_artifact(target)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path, help="the directory of the saved model")
    parser.add_argument("name", help="name in the store, as in wm_envs/registry.py")
    args = parser.parse_args()
    shipped = ship(args.model, STORE / args.name)
    size = sum(file.stat().st_size for file in shipped.path.iterdir())
    starts = min(len(leaf) for leaf in shipped.starts.values())
    print(f"{shipped.path}: {size / 1e6:.2f} MB, {starts} starts a bank")


if __name__ == "__main__":
    main()
