"""Result tables: every figure comes from a record or a card, and every run is printed."""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

sys.path.insert(0, str(Path(__file__).parents[1] / "scripts"))

from curves import digest_of, write_curves
from keep_run import keep
from records import RECORDS, Record, read_records, without_folders, write_record
from result_tables import (
    BLOCKS,
    Card,
    Results,
    aggregate,
    interval,
    iqm,
    references,
    seeds,
    shipped,
    transfers,
    with_curves,
)
from results import BLOCK, PAGES, read_results, rewrite

CPU = {"cpu": "Some CPU", "cores": 2}
STARTED = {"started_at": "now", "versions": {}, "hardware": CPU}
CARD = Card("CartPole", "ensemble, PPO", 480.0, 20.0, 4.0, 470.0, 1500, 600.0, "Some CPU")


def score(mean: float) -> dict[str, Any]:
    return {"mean": mean, "std": 1.0, "ci95": 0.2, "returns": [mean, mean]}


def run(seed: int, mean: float | None, task: str = "CartPole", kind: str = "dream", **more: Any) -> Record:
    outcome: dict[str, Any] = {"failed": "out of memory"} if mean is None else {"real": score(mean)}
    values = {"agent": "ensemble, PPO", "real_steps": 1_000 * seed, "wall_s": 60.0 * seed, "hardware": CPU}
    return Record(task, f"{task}-v1", kind, seed=seed, **{**values, **outcome, **more})


def results_of(*records: Record) -> Results:
    return Results(list(records), [CARD], {"CartPole": "published 499"})


def test_the_pages_are_what_the_script_writes() -> None:
    """`python scripts/results.py` leaves every file as it is."""
    results = read_results()
    for page in PAGES:
        assert rewrite(page.read_text(), results) == page.read_text()
    for task in with_curves(results):
        digest = digest_of(results.of(task, "dream"), results.of(task, "reference"))
        assert digest in (RECORDS / task / "curve.svg").read_text()


def test_the_pages_have_every_block_once() -> None:
    assert sorted(name for page in PAGES for _, name, _ in BLOCK.findall(page.read_text())) == sorted(BLOCKS)


def test_the_interquartile_mean_is_that_of_the_middle_half() -> None:
    assert iqm([0.0, 4.0, 6.0, 1000.0]) == 5.0
    assert iqm([1.0, 2.0, 6.0]) == 3.0  # Too few to leave any out.


def test_the_interval_resamples_each_task_by_itself() -> None:
    assert interval([[3.0, 3.0], [7.0, 7.0]]) == (5.0, 5.0)  # Resampling all four would give 3 to 7.
    low, high = interval([[1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0, 8.0]]) or (0.0, 0.0)
    assert 1.0 < low < 4.5 < high < 8.0
    assert interval([[1.0], [1.0, 2.0]]) is None


def test_every_seed_is_printed_and_failures_too() -> None:
    text = seeds(results_of(run(1, 500.0), run(2, None), run(3, 400.0)))
    assert "500.0, FAILED: out of memory, 400.0" in text
    assert "| 450.0 | 450.0 | 400.0 to 500.0 | 1,000 to 3,000 | 1 min to 3 min | Some CPU |" in text
    assert "| FAILED: out of memory | – | – | – |" in seeds(results_of(run(1, None)))
    assert seeds(results_of()) == "No run is recorded yet.\n"


def test_the_aggregate_is_normalised_by_the_random_policy_and_the_threshold() -> None:
    """CartPole is solved at 475, Acrobot at -100."""
    runs = [run(1, 475.0), run(2, 475.0), run(1, -100.0, "Acrobot"), run(2, -100.0, "Acrobot")]
    chance = [run(0, 25.0, kind="random"), run(0, -500.0, "Acrobot", "random")]
    assert "4 runs of CartPole, Acrobot" in aggregate(results_of(*runs, *chance))
    assert "IQM **1.00**, 95 % interval 1.00 to 1.00" in aggregate(results_of(*runs, *chance))
    half = [run(1, 250.0), run(2, 250.0), chance[0]]
    assert "IQM **0.50**" in aggregate(results_of(*half))
    assert "No task has two seeds" in aggregate(results_of(run(1, 250.0), chance[0]))


def test_fresh_policies_are_printed_with_their_spread_and_share() -> None:
    policies = [
        {"seed": 1, "real": score(380.0), "train_wall_s": 60},
        {"seed": 2, "failed": "nan"},
        {"seed": 3, "real": score(400.0), "train_wall_s": 120},
    ]
    record = Record("CartPole", "CartPole-v1", "transfer", "PPO", 1, policies=policies)
    text = transfers(results_of(record, run(0, 30.0, kind="random")))
    assert "| 380.0, FAILED: nan, 400.0 | 390.0 | 14.1 | 0.80 | 1 min to 2 min |" in text


def test_references_are_grouped_by_learner_and_budget() -> None:
    sb3 = {"kind": "reference", "agent": "SB3 DQN"}
    records = [
        run(1, 100.0, budget="equal steps", **sb3),
        run(2, 300.0, budget="equal steps", **sb3),
        run(1, 500.0, budget="equal time", **sb3),
    ]
    rows = references(results_of(*records)).splitlines()[2:]
    assert len(rows) == 2
    assert "| SB3 DQN | equal steps | 100.0, 300.0 | 200.0 | 1,000 to 2,000 | 1 min to 2 min |" in rows[0]


def test_shipped_models_are_as_their_cards_say() -> None:
    row = shipped(results_of()).splitlines()[2]
    assert "| **480.0 ± 20.0** | ± 4.0 | 470.0 | 1,500 | 10 min | Some CPU | published 499 |" in row


def test_a_record_is_read_as_it_was_written(tmp_path: Path) -> None:
    records = [run(2, None), run(1, 3.0, curve=[{"round": 0, "real_steps": 5, "real": 1.0}])]
    paths = [write_record(record, tmp_path) for record in records]
    assert [path.relative_to(tmp_path) for path in paths] == [
        Path("CartPole/seed-2.json"),
        Path("CartPole/seed-1.json"),
    ]
    assert read_records(tmp_path) == records[::-1]
    assert max(path.stat().st_size for path in RECORDS.glob("*/*.json")) < 100_000
    paths[0].write_text(paths[0].read_text().replace('"seed": 2', '"seed": 3'))
    with pytest.raises(ValueError, match=r"seed-2.json contains CartPole/seed-3.json"):
        read_records(tmp_path)
    paths[0].write_text('{"colour": 1}')
    with pytest.raises(ValueError, match="unknown entries colour"):
        read_records(tmp_path)


def test_a_record_has_a_score_or_a_reason() -> None:
    with pytest.raises(ValueError, match="either a real score or the reason"):
        replace(run(1, 3.0), failed="no")
    with pytest.raises(ValueError, match="kind must be one of dream, online"):
        replace(run(1, 3.0), kind="dreamt")


def test_a_figure_is_drawn_again_only_for_other_data(tmp_path: Path) -> None:
    curve = [
        {"round": r, "real_steps": 100 * r + 1, "wall_s": r, "real": r, "gap": -r, "collected": 0} for r in range(3)
    ]
    runs, path = [run(1, 3.0, curve=curve)], tmp_path / "curve.svg"
    assert write_curves(path, "CartPole", runs, []) and not write_curves(path, "CartPole", runs, [])
    assert path.stat().st_size < 100_000 and "ensemble, PPO seed 1" in path.read_text()
    assert write_curves(path, "CartPole", [replace(runs[0], curve=curve[:2])], [])


def folder_of(path: Path, summary: bool = True) -> Path:
    """What `wm improve` leaves of a run."""
    stage = {"wall_s": 10.0}
    history = {
        "0": {"collect": {"return": 20.0, "steps": 600, **stage}, "learn": stage, "control": stage, "judge": stage},
        "1": {
            "collect": {"return": 90.0, "steps": 400, **stage}, "learn": stage, "control": {"dream": 7.0, **stage},
            "judge": {"real": 450.0, "ci95": 9.0, "dream": 480.0, "steps": 900, **stage},
        },
    }  # fmt: skip
    start = {"command": "wm improve --out /tmp/x/cartpole-3", "git": {"commit": "abc"}, **STARTED}
    config = {"spec": {"id": "CartPole-v1", "action_repeat": 1}, "family": "ensemble", "controller": "ppo", "seed": 3}
    path.mkdir()
    (path / "run.json").write_text(json.dumps({"config": config, "seeds": {"run": 3}, "starts": [start]}))
    (path / "state.json").write_text(json.dumps({"history": history}))
    if summary:
        found = {
            "real": score(470.0),
            "dream": score(480.0),
            "real_steps": 1900,
            "train_wall_s": 80,
            "protocol": "standard",
            "policy": "mlp",
            "model": "/tmp/x/model",
        }
        (path / "summary.json").write_text(json.dumps(found))
    return path


def test_a_finished_run_is_kept_with_its_curve(tmp_path: Path) -> None:
    path = keep(folder_of(tmp_path / "run"), root=tmp_path / "records")
    assert path == tmp_path / "records" / "CartPole" / "seed-3.json" and "/tmp/x" not in path.read_text()
    (record,) = read_records(tmp_path / "records")
    assert (record.kind, record.agent, record.seed, record.real) == ("dream", "ensemble, PPO", 3, score(470.0))
    assert (record.real_steps, record.wall_s, record.git) == (1900, 80, {"commit": "abc"})
    assert record.curve[0] == {"round": 0, "real_steps": 600, "wall_s": 40, "collected": 20.0}
    last = {
        "round": 1,
        "real_steps": 1900,
        "wall_s": 80,
        "collected": 90.0,
        "real": 450.0,
        "real_ci95": 9.0,
        "dream": 480.0,
    }
    assert record.curve[1] == {**last, "gap": 30.0}


def test_an_unfinished_run_is_kept_only_with_a_reason(tmp_path: Path) -> None:
    folder = folder_of(tmp_path / "run", summary=False)
    with pytest.raises(ValueError, match="has no summary.json; resume the run, or say why with --failed"):
        keep(folder, root=tmp_path / "records")
    keep(folder, failed="the disk was full", root=tmp_path / "records")
    (record,) = read_records(tmp_path / "records")
    assert (record.real, record.failed, record.real_steps) == (None, "the disk was full", 1900)
    with pytest.raises(ValueError, match="is finished, so it has not failed"):
        keep(folder_of(tmp_path / "done"), failed="no", root=tmp_path / "records")


def test_the_fresh_policies_of_a_transfer_are_kept(tmp_path: Path) -> None:
    policies = [{"seed": 1, "model": "/tmp/x/policy-00/model", "real": score(400.0), "train_wall_s": 5}]
    result = {
        "env": "ALE/Pong-v5",
        "controller": {"controller": "linear"},
        "policies": policies,
        "protocol": "standard",
        "command": "wm transfer",
        "git": None,
        **STARTED,
    }
    (tmp_path / "transfer.json").write_text(json.dumps(result))
    assert keep(tmp_path, root=tmp_path / "records") == tmp_path / "records" / "Pong" / "transfer.json"
    (record,) = read_records(tmp_path / "records")
    assert record.agent == "CMA-ES" and record.policies == [{"seed": 1, "real": score(400.0), "train_wall_s": 5}]


def test_commands_are_kept_without_the_folders_of_a_machine() -> None:
    assert without_folders("wm improve --seed 1 --out /home/me/runs/a") == "wm improve --seed 1 --out a"
