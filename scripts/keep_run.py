"""Keep what matters of a finished run in the repository, for scripts/results.py.

    python scripts/keep_run.py runs/seeds/pong-1                  # -> docs/records/Pong/seed-1.json
    python scripts/keep_run.py runs/transfer/Dream-Pong-v0        # -> docs/records/Pong/transfer.json
    python scripts/keep_run.py runs/seeds/pong-2 --failed "killed by the out-of-memory handler in round 3"

Takes folders of `wm improve` and `wm transfer`. A run that failed is kept too, with the reason.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from records import RECORDS, Record, without_folders, write_record

from wm_agents.system.files import read_json
from wm_envs.registry import TASKS

FAMILIES = {"vmc": "V-M-C", "ensemble": "ensemble", "objects": "objects", "dreamerv3": "DreamerV3", "tdmpc2": "TD-MPC2"}
CONTROLLERS = {"mlp": "PPO", "linear": "CMA-ES", "actor": "actor-critic", "mppi": "MPPI"}
STARTED = ("git", "started_at", "versions", "hardware")


def keep(folder: Path, seed: int | None = None, failed: str | None = None, root: Path = RECORDS) -> Path:
    """Write the record of the run in `folder`.

    Raises:
        ValueError: the run is unfinished, and `failed` does not say why.
    """
    if (folder / "transfer.json").exists():
        return write_record(of_transfer(read_json(folder / "transfer.json", "a transfer")), root)
    run = read_json(folder / "run.json", "the folder of a run")
    summary = read_json(folder / "summary.json", "a summary") if (folder / "summary.json").exists() else None
    if (summary is None) == (failed is None):
        why = (
            "is finished, so it has not failed"
            if summary
            else "has no summary.json; resume the run, or say why with --failed"
        )
        raise ValueError(f"{folder} {why}")
    return write_record(of_run(folder, run, summary or {}, seed, failed), root)


def of_run(folder: Path, run: dict[str, Any], summary: dict[str, Any], seed: int | None, failed: str | None) -> Record:
    """The record of a folder of `wm improve`."""
    config, start = run["config"], run["starts"][-1]
    online = "ratio" in config
    state = read_json(folder / "state.json", "the state of a run") if (folder / "state.json").exists() else {}
    curve = of_evaluations(summary.get("evaluations", [])) if online else of_rounds(state.get("history", {}))
    return Record(
        task=task_of(config["spec"]["id"]),
        env=config["spec"]["id"],
        kind="online" if online else "dream",
        agent=agent_of(folder, config, summary),
        seed=run["seeds"].get("run", config["seed"]) if seed is None else seed,
        real=score_of(summary.get("real")),
        failed=failed,
        dream=score_of(summary.get("dream"), returns=False),
        without_sticky=score_of(summary.get("real_without_sticky")),
        real_steps=summary.get("real_steps", curve[-1]["real_steps"] if curve else None),
        frames_a_step=config["spec"].get("action_repeat", 1),
        wall_s=summary.get("train_wall_s", curve[-1].get("wall_s") if curve else None),
        curve=curve,
        protocol=summary.get("protocol", ""),
        command=without_folders(start["command"]),
        config=config,
        **{name: start[name] for name in STARTED},
    )


def of_transfer(result: dict[str, Any]) -> Record:
    """The record of a folder of `wm transfer`."""
    policies = [{name: value for name, value in policy.items() if name != "model"} for policy in result["policies"]]
    return Record(
        task=task_of(result["env"]),
        env=result["env"],
        kind="transfer",
        agent=CONTROLLERS["mlp" if result["controller"]["controller"] == "ppo" else "linear"],
        seed=policies[0]["seed"],
        policies=policies,
        protocol=result["protocol"],
        command=without_folders(result["command"]),
        config=result["controller"],
        **{name: result[name] for name in STARTED},
    )


def task_of(env: str) -> str:
    """The task of a real environment, or its name without namespace and version."""
    return next((task.name for task in TASKS.values() if task.real.id == env), env.split("/")[-1].rpartition("-")[0])


def agent_of(folder: Path, config: dict[str, Any], summary: dict[str, Any]) -> str:
    """Model family (with its size, if it has one) and controller, in words."""
    saved = folder / "model" / "config.json"
    family = read_json(saved, "a model")["family"] if saved.exists() else config["family"]
    size = f" `{config['size']}`" if "size" in config else ""
    usual = {"ppo": "mlp", "linear": "linear"}.get(config.get("controller", ""), "")
    controller = CONTROLLERS.get(summary.get("policy", usual), "")
    return ", ".join(filter(None, (FAMILIES.get(family, family) + size, controller)))


def score_of(score: dict[str, Any] | None, returns: bool = True) -> dict[str, Any] | None:
    """Mean, spread and interval of a score, and the returns of its episodes."""
    if score is None:
        return None
    return {name: score[name] for name in ("mean", "std", "ci95", *(("returns",) if returns else ()))}


def of_rounds(history: dict[str, Any]) -> list[dict[str, Any]]:
    """The curve of a run in rounds."""
    curve: list[dict[str, Any]] = []
    steps, wall_s = 0, 0.0
    for number, stages in sorted(history.items(), key=lambda item: int(item[0])):
        steps += sum(int(stage.get("steps", 0)) for stage in stages.values())
        wall_s += sum(stage["wall_s"] for stage in stages.values())
        judged = stages.get("judge", {})
        point = {
            "round": int(number),
            "real_steps": steps,
            "wall_s": round(wall_s),
            "collected": stages.get("collect", {}).get("return"),
            "real": judged.get("real"),
            "real_ci95": judged.get("ci95"),
            "dream": judged.get("dream"),
        }
        if judged.get("dream") is not None:
            point["gap"] = judged["dream"] - judged["real"]
        curve.append({name: rounded(value) for name, value in point.items() if value is not None})
    return curve


def of_evaluations(evaluations: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The curve of an online run."""
    return [{name: rounded(entry[name]) for name in ("real_steps", "real")} for entry in evaluations]


def rounded(value: float) -> float:
    return value if isinstance(value, int) else round(value, 3)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--seed", type=int, help="number of the run; default: its seed")
    parser.add_argument("--failed", metavar="REASON", help="keep an unfinished run as failed")
    args = parser.parse_args()
    try:
        print(keep(args.folder, args.seed, args.failed))
    except (ValueError, FileNotFoundError) as error:
        raise SystemExit(f"keep_run.py: {error}") from error


if __name__ == "__main__":
    main()
