"""Put a finished model into the package's store, where `gym.make("Dream-<task>-v0")` finds it.

    python scripts/ship.py runs/breakout/model vmc-breakout-small

A shipped model has 4 MB at the most: of the latents that dreams start from as many are kept as fit.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from torch import Tensor

from wm_agents.checkpoint import Artifact, load_artifact, save_artifact
from wm_agents.models.saved import STORE

MOST = 4_000_000
"""Bytes of a model."""
LEAST_STARTS = 128
"""Fewer would be few moments to dream from."""


def ship(source: Path, target: Path) -> Artifact:
    """Copy an artifact, with as many starts as fit.

    Raises:
        ValueError: too few fit.
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
    parser.add_argument("model", type=Path, help="the directory that a run has left")
    parser.add_argument("name", help="of the model in the store, as wm_envs/registry.py has it")
    args = parser.parse_args()
    shipped = ship(args.model, STORE / args.name)
    size = sum(file.stat().st_size for file in shipped.path.iterdir())
    starts = min(len(leaf) for leaf in shipped.starts.values())
    print(f"{shipped.path}: {size / 1e6:.2f} MB, {starts} starts a bank")


if __name__ == "__main__":
    main()
