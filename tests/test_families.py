"""A family that is added from outside, by one row of the table, trains by every command."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from toy_family import ROW, Toy, ToyAgent, ToyConfig

from wm_agents.cli.app import main
from wm_agents.models.families import FAMILIES, _add_installed
from wm_agents.pretrained import load_model, load_policy

IN_ROUNDS = (
    "--rounds 2 --random-steps 60 --round-steps 30 --shard-episodes 1 --window 3 --starts 8 --horizon 5 "
    "--dynamics.total-steps 4 --ppo.iterations 1 --ppo.envs 4 --ppo.steps 4 --ppo.batch-size 8 --judge-episodes 1 "
    "--final-episodes 2 --procs 0"
)
WM_TOML = """
environment = "CartPole-v1"
model = "toy:wide"
[training]
total_steps = 4
sequence_length = 3
[data]
num_steps = 60
max_episode_steps = 20
[controller]
kind = "ppo"
iterations = 1
"""


@pytest.fixture(autouse=True)
def toy(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setitem(FAMILIES, "toy", ROW)
    monkeypatch.chdir(tmp_path)


def test_it_improves_in_rounds() -> None:
    flags = f"--env CartPole-v1 --spec.max-episode-steps 20 --out out {IN_ROUNDS} --overrides.width 5"
    assert main(["improve", "--family", "toy", *flags.split()]) == 0
    model, artifact = load_model("out/model")
    assert isinstance(model, Toy) and model.cfg == ToyConfig(width=5)
    assert load_policy(model, artifact).about()["kind"] == "mlp"
    assert json.loads(Path("out/summary.json").read_text())["real"]["episodes"] == 2


def test_it_improves_online(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(FAMILIES, "toy", ROW._replace(learns="online", learner=ToyAgent, online={"length": 3}))
    flags = (
        "--env CartPole-v1 --spec.max-episode-steps 20 --out out --real-steps 120 --prefill 40 --ratio 2 "
        "--batch-size 2 --eval-episodes 1 --final-episodes 2 --starts 8 --procs 0"
    )
    assert main(["improve", "--family", "toy", *flags.split()]) == 0
    model, artifact = load_model("out/model")
    assert isinstance(model, Toy) and load_policy(model, artifact).about()["kind"] == "linear"


def test_it_trains_as_a_project_with_worker_processes(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.delitem(FAMILIES, "toy")
    facts = tmp_path / "toy-1.dist-info"  # As of an installed package, which workers find too.
    facts.mkdir()
    (facts / "METADATA").write_text("Metadata-Version: 2.1\nName: toy\nVersion: 1\n")
    (facts / "entry_points.txt").write_text("[wm_agents.families]\ntoy = toy_family:ROW\n")
    monkeypatch.syspath_prepend(tmp_path)
    _add_installed()
    assert FAMILIES["toy"] == ROW
    Path("wm.toml").write_text(WM_TOML)
    assert main(["config", "show"]) == 0 and "toy" in capsys.readouterr().out
    assert main(["train"]) == 0
    model, _ = load_model("outputs/model")
    assert isinstance(model, Toy) and model.cfg.width == 9
    Path("wm.toml").write_text(WM_TOML.replace("wide", "huge"))
    assert main(["config", "validate"]) == 1
    assert "size of toy must be one of tiny, wide, got 'huge'" in capsys.readouterr().err
