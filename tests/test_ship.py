"""scripts/ship.py: a model in the store is the one that was made, with as many starts as there is room for."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny import save_tiny

from wm_agents.checkpoint import load_artifact

sys.path.append(str(Path(__file__).parents[1] / "scripts"))
import ship as shipping


def test_a_model_is_copied_with_the_starts_that_fit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = Path(save_tiny(tmp_path / "made"))
    (made, whole) = load_artifact(source), shipping.ship(source, tmp_path / "whole")
    # Hashes of files may differ: safetensors writes what stands beside the tensors in any order.
    assert whole.config | {"files": None} == made.config | {"files": None}
    assert whole.policies.keys() == made.policies.keys()
    size = sum(file.stat().st_size for file in whole.path.iterdir())
    each = sum(leaf[0].numel() * leaf.element_size() for leaf in made.starts.values())
    num = len(next(iter(made.starts.values())))
    monkeypatch.setattr(shipping, "LEAST_STARTS", 1)
    monkeypatch.setattr(shipping, "MOST", size + 4096 - each * (num // 2))
    less = shipping.ship(source, tmp_path / "less")
    kept = {name: len(leaf) for name, leaf in less.starts.items()}
    assert set(kept.values()) == {next(iter(kept.values()))} and 1 <= next(iter(kept.values())) < num
    assert all(torch.equal(leaf, made.starts[name][: len(leaf)]) for name, leaf in less.starts.items())
    assert (less.path / "README.md").read_text() == (source / "README.md").read_text()
    assert sum(file.stat().st_size for file in less.path.iterdir()) <= shipping.MOST


def test_a_model_without_room_for_starts_is_rejected(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = Path(save_tiny(tmp_path / "made"))
    monkeypatch.setattr(shipping, "MOST", 1000)
    with pytest.raises(ValueError, match="has room for -"):
        shipping.ship(source, tmp_path / "store")
    assert not (tmp_path / "store").exists()


def test_the_scores_of_fresh_policies_go_on_the_card(tmp_path: Path) -> None:
    policies = [{"seed": 1, "real": {"mean": 5.0, "std": 1.0}, "dream": {"mean": 6.0}, "train_wall_s": 60}]
    result: dict[str, Any] = {"policies": [*policies, {"seed": 2, "failed": "nan"}]}
    result["real"] = {"policies": 2, "failed": 1, "mean": 5.0, "std_between": 0.0, "min": 5.0, "max": 5.0}
    card = "# A\n\n| dream score | 3 ± 1 |\n| fresh policies | old |\n| data | 5 |\n"
    found = shipping.with_fresh_policies(card, result)
    before, row, after = found.partition("| fresh policies | ")[0], found.splitlines()[3], found.splitlines()[4]
    assert before == "# A\n\n| dream score | 3 ± 1 |\n" and after == "| data | 5 |" and "old" not in found
    assert "policy 0 (seed 1): real 5.0 ± 1.0" in row and "policy 1 (seed 2): FAILED: nan" in row
