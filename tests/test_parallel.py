"""Two processes of torchrun train as one does: parts of every batch, averaged gradients, one writer."""

from __future__ import annotations

import atexit
import json
import logging
import os
import subprocess
import sys
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from wm_agents.cli import app as cli
from wm_agents.data.replay import Batch
from wm_agents.errors import ConfigurationError
from wm_agents.system.processes import check_one_process, num_processes, rank
from wm_agents.system.run_folder import read_metrics
from wm_agents.training import LossOutput, Trainer, TrainingConfig
from wm_agents.training.callbacks import LoggingCallback
from wm_agents.training.data import create_random_buffer
from wm_agents.training.parallel import part_of

TESTS = Path(__file__).parent
CFG = TrainingConfig(
    total_steps=6, batch_size=8, log_interval=2, eval_interval=3, save_interval=2, device="cpu", optimizer="sgd",
    learning_rate=0.05,
)  # fmt: skip


class Pair(NamedTuple):
    x: Tensor
    y: Tensor


class Toy(nn.Module):
    """A loss that is the mean over rows, and a layer that only some rows use."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(3)
        self.net = nn.Sequential(nn.Linear(4, 16), nn.Tanh(), nn.Linear(16, 1))
        self.rare = nn.Linear(4, 1)

    def loss(self, batch: Pair) -> LossOutput:
        out, chosen = self.net(batch.x), batch.x[:, :1] > 1
        if bool(chosen.any()):
            out = out + chosen * self.rare(batch.x)
        error = (out[:, 0] - batch.y).square().mean()
        return LossOutput(error, {"error": error}, {"out": out.mean()})


def batch_of(update: int) -> Pair:
    x = torch.from_numpy(CFG.rng(update).standard_normal((CFG.batch_size, 4), np.float32))
    return Pair(x, x.sum(1))


def train(folder: Path, steps: int = CFG.total_steps) -> Trainer:
    module = Toy()
    trainer = Trainer(module, CFG.replace(total_steps=steps), [LoggingCallback()], run_dir=folder)

    def validate() -> float:
        with open(folder / "validated", "a") as file:
            file.write(f"{rank()}\n")
        return float(module.loss(batch_of(10**6)).loss)

    trainer.fit(batch_of, validate)
    (folder / f"seed-{rank()}").write_text(str(torch.initial_seed()))
    return trainer


def torchrun(*words: str) -> subprocess.CompletedProcess[str]:
    env = {**os.environ, "PYTHONPATH": os.pathsep.join([str(TESTS.parent), str(TESTS)]), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", *words]
    return subprocess.run(command, env=env, capture_output=True, text=True, timeout=500)


@pytest.mark.cluster
def test_two_processes_with_half_the_batch_train_as_one_with_the_whole(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    whole, halves = tmp_path / "1", tmp_path / "2"
    train(whole)
    done = torchrun(__file__, str(halves), "4")
    assert done.returncode == 0, done.stderr
    with caplog.at_level(logging.WARNING):  # The rest in one process.
        train(halves)
    assert "was trained by 2 processes and resumes with 1: batches and averaged gradients stay the same" in caplog.text
    one, two = (load_file(folder / "last.safetensors") for folder in (whole, halves))
    weights = [name for name in one if name.startswith(("module/", "optimizer/"))]
    assert sum(name.startswith("optimizer/") for name in weights) >= 4  # The momenta.
    for name in weights:
        torch.testing.assert_close(two[name], one[name], rtol=1e-5, atol=1e-6)
    best = [load_file(folder / "best.safetensors") for folder in (whole, halves)]
    torch.testing.assert_close(best[1], best[0], rtol=1e-5, atol=1e-6)
    rows = [[row["step"] for row in read_metrics(folder / "metrics.jsonl")] for folder in (whole, halves)]
    assert sorted(set(rows[1])) == sorted(set(rows[0])) and len(rows[0]) == len(rows[1]) - 1  # Validated at 4, too.
    assert set((halves / "validated").read_text().split()) == {"0"}
    assert len({(halves / f"seed-{number}").read_text() for number in (0, 1)}) == 2
    # Otherwise a finished process sometimes aborts.
    assert [(halves / f"left-{number}").read_text() for number in (0, 1)] == ["True", "True"]


@pytest.mark.cluster
def test_an_online_family_improves_in_two_processes(tmp_path: Path) -> None:
    flags = (
        "--env CartPole-v1 --spec.max_episode_steps 20 --size ci --real-steps 260 --prefill 60 --ratio 8 "
        "--batch-size 4 --length 8 --eval-episodes 1 --final-episodes 2 --starts 8 --save-every 50 --procs 0"
    )
    out = tmp_path / "run"
    done = torchrun("-m", "wm_agents", "improve", "--family", "dreamerv3", *flags.split(), "--out", str(out))
    assert done.returncode == 0, done.stderr
    summary = json.loads((out / "summary.json").read_text())
    run = json.loads((out / "run.json").read_text())
    assert summary["updates"] > 10 and summary["real_steps"] == (out / "real_steps").stat().st_size <= 260
    assert len(run["starts"]) == 1 and len(summary["real"]["returns"]) == 2
    assert done.stderr.count("held-out score") == 1


def test_a_part_of_a_batch_is_its_rows() -> None:
    buffer = create_random_buffer(capacity=200, obs_shape=(3,), action_dim=2, num_episodes=5, episode_length=20, seed=0)
    batch = buffer.sample(6, 5, generator=torch.Generator().manual_seed(0))
    parts = [part_of(batch, number, 3) for number in range(3)]
    assert all(isinstance(part, Batch) and part.obs.shape == (2, 6, 3) for part in parts)
    assert torch.equal(torch.cat([part.act for part in parts]), batch.act)
    pair, rest = part_of((Pair(torch.arange(4), torch.arange(4)), {"a": [torch.arange(4)]}), 1, 2)
    assert pair.x.tolist() == pair.y.tolist() == rest["a"][0].tolist() == [2, 3]
    assert part_of("anything", 0, 1) == "anything"
    with pytest.raises(
        ValueError, match="a batch of 6 rows cannot be divided equally among 4 processes; use a batch_s"
    ):
        part_of(batch, 0, 4)
    with pytest.raises(TypeError, match="a batch of type ndarray cannot be divided among 2 processes; use tensors"):
        part_of(np.zeros(4), 0, 2)


def test_families_that_learn_in_rounds_reject_several_processes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert (num_processes(), rank()) == (1, 0)
    check_one_process("a family")
    for name, value in {"WORLD_SIZE": "2", "RANK": "1", "LOCAL_RANK": "1"}.items():
        monkeypatch.setenv(name, value)
    assert (num_processes(), rank()) == (2, 1)
    with pytest.raises(ConfigurationError, match="^a family trains in one process, got 2 from torchrun; start it with"):
        check_one_process("a family")
    assert cli.main(["improve", "--task", "CartPole", "--out", str(tmp_path / "o")]) == 1
    assert "learns in rounds trains in one process" in capsys.readouterr().err and not (tmp_path / "o").exists()


def test_a_numbered_device_is_rejected_under_torchrun(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name, value in {"WORLD_SIZE": "2", "RANK": "0", "LOCAL_RANK": "0"}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr("wm_agents.training.compute.find_device", lambda name: torch.device("cpu"))
    with pytest.raises(
        ConfigurationError, match="device must be without a number under torchrun, got 'cuda:1'; use 'cu"
    ):
        Trainer(Toy(), CFG.replace(device="cuda:1"), run_dir=tmp_path)


def main(arguments: list[str]) -> Any:
    folder = Path(arguments[0])
    folder.mkdir(parents=True, exist_ok=True)
    atexit.register(lambda: (folder / f"left-{rank()}").write_text(str(not torch.distributed.is_initialized())))
    train(folder, int(arguments[1]))


if __name__ == "__main__":
    main(sys.argv[1:])
