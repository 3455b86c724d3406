"""The files of a new project."""

from __future__ import annotations

import json
import textwrap
from collections.abc import Iterator, Mapping
from dataclasses import fields
from typing import Any

from wm_agents.models.families import config_class, resolve
from wm_agents.project.schema import OPEN_SECTIONS, SECTIONS, TOP
from wm_agents.training.config import TrainingConfig
from wm_envs.fields import field_docs

Values = Mapping[str, Any]
SHOWN: dict[str, tuple[str, ...]] = {
    "gameplay": ("enabled", "max_frames"),
    "visualization": ("enabled",),
    "inference": ("horizon",),
    "verify": ("mode", "episodes", "proof_episodes"),
}
"""Keys that a new file contains with their defaults."""
WIDTH = 118
TOLD = {
    "training.total_steps": "Updates of each network, in each round.",
    "training.batch_size": "Rows per batch.",
    "training.seed": "Random seed of the run: collection, weights, training.",
    "training.output_dir": "Output folder, relative to this file.",
}
"""Descriptions of keys that have a more specific meaning in a project."""


def toml_text(values: Values, notes: Mapping[str, str] | None = None) -> str:
    """The text of a wm.toml with `values`. Each key has its description as a comment, after its note if it has one.

    Args:
        notes: notes by dotted name, such as `training.batch_size`.
    """
    top = [f"{name} = {_literal(values[name])}" for name in TOP if name in values]
    head = "# Settings of `wm train` in this folder. Unknown keys are errors; `wm train --help` lists all keys.\n"
    told = {name: f"{text} " for name, text in (notes or {}).items()}
    sections = [_section(name, values.get(name, {}), values["model"], told) for name in (*OPEN_SECTIONS, *SECTIONS)]
    return head + "\n".join([*top, "", *filter(None, sections)])


def files(values: Values) -> dict[str, str]:
    """The files of a project besides wm.toml, by name."""
    facts = {"name": values["project_name"], "environment": values["environment"], "model": values["model"]}
    readme = README.format(**facts)
    return {"train.py": TRAIN, "inference.py": INFERENCE, "dataset.py": DATASET, "README.md": readme}


def _section(name: str, values: Values, model: str, notes: Mapping[str, str]) -> str:
    family, _ = resolve(model) or ("", "")
    kind = {"architecture": config_class(family), "training": TrainingConfig, **SECTIONS}[name]
    defaults = {f.name: f.default for f in fields(kind)}
    shown = {**{key: defaults[key] for key in SHOWN.get(name, ())}, **values}
    if not shown:
        return ""
    told = field_docs(kind)
    lines = [f"[{name}]"]
    if name == "architecture":
        others = [f.name for f in fields(kind) if f.name not in values]
        lines += _comment(f"Overrides {model}. Further fields of {kind.__name__}: {', '.join(others)}.")
    for key, value in shown.items():
        about = TOLD.get(f"{name}.{key}", told[key])
        lines += [*_comment(notes.get(f"{name}.{key}", "") + about), f"{key} = {_literal(value)}"]
    return "\n".join(lines) + "\n"


def _comment(text: str) -> Iterator[str]:
    yield from textwrap.wrap(" ".join(text.split()), WIDTH, initial_indent="# ", subsequent_indent="# ")


def _literal(value: Any) -> str:
    """A value in TOML syntax."""
    if isinstance(value, dict):
        return "{ " + ", ".join(f"{json.dumps(key)} = {_literal(part)}" for key, part in value.items()) + " }"
    if isinstance(value, list | tuple):
        return "[" + ", ".join(map(_literal, value)) + "]"
    if isinstance(value, float):
        return repr(value)
    return json.dumps(value, ensure_ascii=False)


TRAIN = '''\
"""Train the model of this project: the same as `wm train`, with its flags. An interrupted run resumes."""

import sys
from pathlib import Path

from wm_agents.cli.app import main

# Worker processes import this file.
if __name__ == "__main__":
    sys.exit(main(["train", "--config", str(Path(__file__).parent), *sys.argv[1:]]))
'''

INFERENCE = '''\
"""Run the policy of the trained model in its dream, and record a video."""

from pathlib import Path

import gymnasium as gym

import wm_envs  # Registers Dream-v0.
from wm_agents.pretrained import load_model, load_policy
from wm_agents.project import script
from wm_agents.project.settings import load_project
from wm_agents.video import write_video


def main() -> None:
    project = load_project(Path(__file__).parent)
    model, artifact = load_model(project.checkpoint)
    policy = load_policy(model, artifact)
    env = gym.make("Dream-v0", model=str(project.checkpoint), obs="latent", render_mode="rgb_array")

    obs, _ = env.reset(seed=0)
    policy.reset(1, seed=0)
    frames, total = [env.render()], 0.0
    for _ in range(project.inference.horizon):
        obs, reward, terminated, truncated, _ = env.step(policy.act(obs[None])[0])
        frames.append(env.render())
        total += float(reward)
        if terminated or truncated:
            break
    write_video(project.out / "dream.mp4", iter(frames), env.metadata["render_fps"])
    print(f"dreamed {len(frames) - 1} steps, return {total:.1f}: {project.out / 'dream.mp4'}")


if __name__ == "__main__":
    script.run(main)
'''

DATASET = '''\
"""The training episodes of this project, for your own analysis or training."""

from pathlib import Path

import numpy as np

from wm_agents.data.dataset import Dataset
from wm_agents.data.replay import ReplayBuffer
from wm_agents.project import script
from wm_agents.project.translate import spaces_of, spec_of
from wm_agents.project.settings import load_project
from wm_envs.action import act_dim


def load_dataset() -> Dataset:
    """All episodes: obs[t], act[t] -> rew[t], obs[t+1], including the last frame."""
    return Dataset(load_project(Path(__file__).parent).out / "data")


def load_buffer(capacity: int = 100_000) -> ReplayBuffer:
    """The most recent episodes as windows: load_buffer().sample(batch_size=16, seq_len=10)."""
    project = load_project(Path(__file__).parent)
    obs_space, act_space = spaces_of(project, spec_of(project))
    buffer = ReplayBuffer(capacity, obs_space.shape, act_dim(act_space), obs_space.dtype)
    for episode in load_dataset().iter_episodes():
        buffer.add(episode, act_space)
    return buffer


def main() -> None:
    data = load_dataset()
    print(f"{data.num_episodes} episodes, {data.num_steps:,} steps of {data.obs_shape} in {data.root}")
    print(f"returns {np.mean(data.returns):.1f} on average, from {data.returns.min():.1f} to {data.returns.max():.1f}")
    print(load_buffer())


if __name__ == "__main__":
    script.run(main)
'''

README = """\
# {name}

A dream of {environment}, by {model}.

    wm train                                    # trains as wm.toml says; resumes an interrupted run
    wm verify --target outputs/model            # checks the model against held-out real episodes
    wm evaluate outputs/model --episodes 20     # scores the policy in the real environment and in the dream

`outputs/run_manifest.json` records settings, versions, data and scores. `python train.py` is the same as `wm train`,
`python dataset.py` describes the episodes, `python inference.py` records a video of a dream.
"""
