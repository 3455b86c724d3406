"""Short help texts with the most important flags of `wm improve` and `wm train`.

This file does not import torch, so that they appear at once.
"""

from __future__ import annotations

from textwrap import fill
from typing import NamedTuple

from wm_envs.registry import TASKS

WIDTH, INDENT = 100, 30


class Brief(NamedTuple):
    """The short help of a command."""

    usage: tuple[str, ...]
    about: str
    flags: dict[str, dict[str, str]]
    """The sections: title -> (flag with its value, such as `--seed N` -> its meaning)."""

    def text(self, prog: str) -> str:
        """The help as it is printed."""
        parts = ["usage: " + "\n       ".join(f"{prog} {form}" for form in self.usage), fill(self.about, WIDTH)]
        for title, flags in self.flags.items():
            parts.append("\n".join([f"{title}:", *(_row(flag, meaning) for flag, meaning in flags.items())]))
        return "\n\n".join(parts)


def _row(flag: str, meaning: str) -> str:
    """A flag and its meaning in two columns."""
    body = fill(meaning, WIDTH, initial_indent=" " * INDENT, subsequent_indent=" " * INDENT)
    head = f"  {flag}"
    return f"{head:<{INDENT}}{body[INDENT:]}" if len(head) < INDENT else f"{head}\n{body}"


_TIME = {
    "--budget TIME": "time for the whole run, such as 90s, 10min or 1.5h; after a short trial of this machine, the "
    "numbers of steps, updates, rounds and episodes are scaled to fit",
    "--quick": "a first result in about three minutes",
}
_MORE = {
    "--config FILE": "read flags from a TOML file; flags on the command line override it",
    "--help-all": "all flags, with their defaults",
}

IMPROVE = Brief(
    ("--env ID [flags]", "--task NAME [flags]"),
    "Collect real episodes, train a model, train a controller in its dream, evaluate it, and repeat. The same command "
    "resumes an interrupted run.",
    {
        "required, one of the two": {
            "--env ID": "a Gymnasium id, or module:Id-v0; trains with the default settings",
            "--task NAME": f"trains with the settings of a shipped dream: {', '.join(sorted(TASKS))}",
        },
        "flags": {
            "--out DIR": "run folder; default: runs/<environment>, or runs/<environment>-<family> for online training",
            **_TIME,
            "--wrapper MODULE:FUNCTION": "wrapper of the environment, before preprocessing; see docs/wrap.md",
            "--spec.kwargs JSON": "arguments of the environment, such as '{\"size\": 5}'",
            "--spec.action_repeat N": "repeat each action for N steps of the environment; these are one agent step",
            "--spec.max_episode_steps N": "episode limit in agent steps; default: that of the environment, or 1,000 if "
            "it has none",
            "--family NAME": "model family; default: auto (vmc for images, ensemble for vectors). vmc, ensemble and "
            "objects are trained in rounds, dreamerv3 and tdmpc2 online",
            "--seed N": "random seed of all parts of the run; default: 1",
            "--final_episodes N": "held-out real episodes for the score; default: 100",
            "--report_minutes X": "time limit of the fidelity report; default: 2; 0: no report",
            "--procs N": "worker processes; default: 2",
        },
        "flags for training in rounds": {
            "--rounds N": "number of rounds",
            "--random_steps N": "real steps of exploration in the first round",
            "--round_steps N": "real steps with the controller in each later round",
            "--controller NAME": "ppo (not for all action spaces) or linear (CMA-ES); the default depends on the task",
        },
        "flags for online training": {
            "--real_steps N": "budget of real steps",
            "--size NAME": "size of the model, such as size1m (dreamerv3) or 5m (tdmpc2); see `wm models list`",
        },
        "more": _MORE,
    },
)

TRAIN = Brief(
    ("[flags]",),
    "Train the model of a project with the settings in its wm.toml. The same command resumes an interrupted run. Every "
    "key of the file is also a flag, such as --training.total_steps 500.",
    {
        "flags": {
            "--config FILE": "the project's wm.toml or its folder; default: wm.toml",
            **_TIME,
            "--environment ID": "a Gymnasium id, or module:Id-v0",
            "--model NAME": "a preset (family:size); see `wm models list`",
            "--seed N": "random seed of the run",
            "--training.output_dir DIR": "folder of the results; default: outputs",
            "--training.total_steps N": "gradient updates of the model",
            "--data.num_steps N": "agent steps in the real environment",
            "--data.wrapper MODULE:FUNCTION": "wrapper of the environment, before preprocessing; see docs/wrap.md",
            "--online_collection.enabled": "collect with the learned policy, too: vmc and ensemble in rounds, "
            "dreamerv3 and tdmpc2 online",
            "--online_collection.rounds N": "rounds of collection, training and evaluation",
            "--visualization.report_minutes X": "time limit of the fidelity report; default: 2; 0: no report",
            "--allow_degraded": "train on random numbers if there is no real data, or if the settings ask for it",
        },
        "more": {"--help-all": _MORE["--help-all"]},
    },
)

BRIEFS = {"improve": IMPROVE, "train": TRAIN}
"""The short help texts, by command."""
