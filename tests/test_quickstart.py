"""The quickstart succeeds for a reason: the held-out loss falls, the imagination is there and everything is on disk."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch

sys.path.append(str(Path(__file__).parents[1] / "scripts"))
import quickstart_cpu_success as quickstart

from policies.rollout import EVAL_SEED
from wm_agents.training import NonFiniteLoss, Trainer

SMALL = quickstart.Size(transitions=150, held_out=3, updates=3, horizon=5, batch_size=4, seq_len=5)
KEYS = [
    "scenario", "run_id", "seed", "quick", "initial_loss", "final_loss", "loss_improved", "finite", "horizon",
    "rollout_horizon", "artifacts", "success",
]  # fmt: skip


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory, learning_seed: int) -> Path:
    out = tmp_path_factory.mktemp("quickstart")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(quickstart, "QUICK", SMALL)
        assert quickstart.main(["--quick", "--output-dir", str(out), "--seed", str(learning_seed)]) == 0
    return out


def test_the_summary_has_what_it_predicts(small: Path, learning_seed: int) -> None:
    summary = json.loads((small / "summary.json").read_text())
    assert list(summary)[: len(KEYS)] == KEYS
    assert (summary["scenario"], summary["seed"], summary["quick"]) == ("quickstart_cpu", learning_seed, True)
    assert summary["final_loss"] < summary["initial_loss"] and summary["success"]
    assert summary["horizon"] == summary["rollout_horizon"] == 5
    assert summary["environment"] == "CartPole-v1" and summary["model"] == "dreamerv3:ci"
    assert summary["real_steps"] >= 150 and summary["held_out_steps"] > 20 and summary["updates"] == 3
    assert all(Path(path).is_file() for path in summary["artifacts"].values())


def test_the_images_are_of_the_imagination(small: Path) -> None:
    strip = cv2.imread(str(small / "imagination.ppm"))
    assert (small / "imagination.ppm").read_bytes().startswith(b"P6\n120 24\n255\n") and strip.shape == (24, 120, 3)
    picture = cv2.imread(str(small / "imagination.png"))
    width, height = quickstart.TILE
    assert picture.shape == (24 + 2 * height, quickstart.LABEL + 5 * width, 3)


def test_heat_goes_from_blue_to_red() -> None:
    strip = quickstart.heat(np.array([0.0, 1.0, -5.0, 9.0], np.float32), width=2)
    assert strip.shape == (24, 8, 3)
    assert strip[0, 0].tolist() == strip[0, 4].tolist() == [40, 70, 200]
    assert strip[0, 2].tolist() == strip[0, 6].tolist() == [210, 40, 40]


def test_held_out_episodes_are_on_seeds_that_nothing_is_learned_from() -> None:
    learned, aside = quickstart.collect(60, 3), quickstart.collect(sys.maxsize, EVAL_SEED + 3, 2)
    assert sum(ep.num_steps for ep in learned) >= 60 and [ep.seed for ep in learned[:2]] == [3, 4]
    assert [ep.seed for ep in aside] == [EVAL_SEED + 3, EVAL_SEED + 4]


@pytest.mark.parametrize("spoiled", ["nothing learned", "not finite", "stopped"])
def test_a_run_that_did_not_learn_is_not_a_success(
    spoiled: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def train(self: Trainer, data: object) -> None:
        if spoiled == "not finite":
            with torch.no_grad():
                next(iter(self.model.parameters())).fill_(torch.nan)
        if spoiled == "stopped":
            raise NonFiniteLoss("the loss is nan on batch 1", 1)

    monkeypatch.setattr(Trainer, "train", train)
    monkeypatch.setattr(quickstart, "FULL", SMALL)
    assert quickstart.main(["--output-dir", str(tmp_path)]) == 1
    summary = json.loads((tmp_path / "summary.json").read_text())
    assert not summary["success"] and not summary["quick"]
    assert summary["finite"] == (spoiled == "nothing learned") and not summary["loss_improved"]
    assert capsys.readouterr().out.startswith("FAILED  loss ")
