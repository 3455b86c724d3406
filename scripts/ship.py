"""Copies a trained model to the store of the package, for `gym.make("Dream-<task>-v0")`.

    python scripts/ship.py runs/breakout/model vmc-breakout-small
    python scripts/ship.py wm_agents/store/objects-pong objects-pong --transfer runs/transfer/Dream-Pong-v0

A shipped model has at most 4 MB, so only some of its initial latents are kept.
"""

from __future__ import annotations

import argparse
import re
from pathlib import Path
from typing import Any

from torch import Tensor

from wm_agents.checkpoint import Artifact, load_artifact, save_artifact
from wm_agents.loops.transfer import lines_of
from wm_agents.models.saved import STORE
from wm_agents.system.files import read_json

MOST = 4_000_000
"""Maximum size of a model in bytes."""
LEAST_STARTS = 128
"""Minimum number of initial latents."""


def ship(source: Path, target: Path, transfer: Path | None = None) -> Artifact:
    """Copy a saved model with as many initial latents as the maximum size allows.

    Args:
        transfer: run folder of `wm transfer` with this model; its scores of fresh policies go on the card.

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
    card = re.sub(r" /\S*/", " ", (source / "README.md").read_text(encoding="utf-8"))  # Folders of this machine.
    if transfer is not None:
        card = with_fresh_policies(card, read_json(transfer / "transfer.json", "the result of a transfer"))
    save_artifact(target, config, artifact.tensors, starts, card, artifact.policies)
    return load_artifact(target)


def with_fresh_policies(card: str, result: dict[str, Any]) -> str:
    """The card with a row for the scores of fresh policies, after that of the dream score; an old row is replaced."""
    row = f"| fresh policies | {'; '.join(lines_of(result))} |"
    rows = [line for line in card.splitlines() if not line.startswith("| fresh policies |")]
    at = next(number for number, line in enumerate(rows) if line.startswith("| dream score |"))
    return "\n".join([*rows[: at + 1], row, *rows[at + 1 :]]) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path, help="the directory of the saved model")
    parser.add_argument("name", help="name in the store, as in wm_envs/registry.py")
    parser.add_argument("--transfer", type=Path, help="run folder of `wm transfer`, whose scores go on the card")
    args = parser.parse_args()
    shipped = ship(args.model, STORE / args.name, args.transfer)
    size = sum(file.stat().st_size for file in shipped.path.iterdir())
    starts = min(len(leaf) for leaf in shipped.starts.values())
    print(f"{shipped.path}: {size / 1e6:.2f} MB, {starts} starts a bank")


if __name__ == "__main__":
    main()
