"""`wm models`: list and describe presets and saved models, and exchange them with the Hugging Face Hub."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

from wm_agents.cli.printing import print_json, say, table
from wm_agents.errors import ConfigurationError, did_you_mean


def list_all(as_json: bool = False) -> None:
    """List the presets and the shipped models.

    Args:
        as_json: print one JSON object on stdout, by name.
    """
    from wm_agents.factory import list_models
    from wm_agents.models.families import FAMILIES

    found = list_models(verbose=True)
    scores = {name: _score(name) for name in found}
    if as_json:
        print_json({name: {**about, "real_score": scores[name]} for name, about in found.items()})
        return
    rows = (
        (name, f"{a['parameters']:,}", "x".join(map(str, a["obs_shape"])), f"{a['action_dim']}", scores[name] or "")
        for name, a in found.items()
    )
    table(("model", "parameters", "observations", "actions", "real score"), rows)
    for name, family in FAMILIES.items():
        say(f"{name}: {family.about}")
    say(
        "Parameters are counted for these observations and actions. create_world_model(name, env=...) builds "
        "a preset or loads a shipped model; shipped models have a score."
    )


def info(name: str, as_json: bool = False) -> None:
    """Describe a preset or a saved model.

    Args:
        name: a preset (family:size), an alias, a model directory, a shipped model or dream, or org/name on
            the Hub.
        as_json: print one JSON object on stdout.
    """
    found = describe(name)
    if as_json:
        print_json(found)
        return
    card = found.pop("card", "")
    rows = ((k, v if isinstance(v, str) else json.dumps(v)) for k, v in found.items() if k != "versions")
    table(("what", "value"), rows)
    say(card)


def describe(name: str) -> dict[str, Any]:
    """Return what `info` shows, as JSON values."""
    from wm_agents.factory import get_config, get_model_info
    from wm_agents.models.families import resolve

    preset = resolve(name) is not None
    if not preset:
        find(name)
    found: dict[str, Any] = {**get_model_info(name)}
    if preset:
        shapes = {key: found[key] for key in ("obs_shape", "action_dim")}
        return {**found, "config": get_config(name, **shapes).to_dict()}
    from wm_agents.models.saved import load_model
    from wm_agents.pretrained import dream_of

    net, artifact = load_model(name)
    facts = artifact.config
    found |= {
        "path": str(artifact.path),
        "bytes": sum(file.stat().st_size for file in artifact.path.iterdir()),
        "observations": str(net.obs_space),
        "actions": str(net.act_space),
        "controllers": sorted(artifact.policies),
        "dreams": "real" in facts and bool(artifact.starts),
        "config": net.cfg.to_dict(),
    }
    if found["dreams"]:
        starts = {key.split("/")[0]: len(leaf) for key, leaf in artifact.starts.items()}
        found |= {name: facts[name] for name in ("real", "temperature", "horizon", "fps")}
        found |= {"cut_off": dream_of(artifact).cut_off, "starts": starts}
    return {
        **found,
        "versions": facts.get("versions"),
        "card": (artifact.path / "README.md").read_text(encoding="utf-8"),
    }


def find(name: str) -> Path:
    """Return the directory of a saved model.

    Raises:
        ConfigurationError: nothing has this name; the message suggests the nearest name.
        FileNotFoundError: the folder contains no model.
    """
    from wm_agents.factory import list_models
    from wm_agents.models.families import ALIASES
    from wm_agents.models.saved import UnknownModel, model_path
    from wm_envs.registry import TASKS

    try:
        return model_path(name)
    except UnknownModel:
        hint = did_you_mean(name, [*ALIASES, *list_models(), *(task.dream_id for task in TASKS.values())])
        text = f"no preset, saved model or folder {name!r}{hint or ';'} `wm models list` lists all names"
        raise ConfigurationError(text) from None


def pull(repo: str, out: str | None = None) -> None:
    """Download a model from the Hub, check it and print its directory.

    Args:
        repo: org/name or org/name@revision.
        out: directory to copy the model to; by default it stays in the Hub's cache and can be loaded as
            org/name.
    """
    from wm_agents.hub import resolve
    from wm_agents.models.saved import load_model

    path = resolve(repo)
    load_model(path)
    if out is not None:
        if Path(out).exists():
            raise FileExistsError(f"{out} exists; choose another directory")
        shutil.copytree(path, out)
    print(out or path)


def push(folder: str, repo: str, private: bool = False, message: str | None = None) -> None:
    """Upload a saved model to the Hub and print the URL of its page.

    Args:
        folder: the model's directory.
        repo: org/name; created if it does not exist.
        private: create the repository as a private one.
        message: commit message.
    """
    from wm_agents.hub import push_to_hub

    print(push_to_hub(folder, repo, private=private, commit_message=message))


def _score(name: str) -> str | None:
    """Return the real score on the card of a shipped model."""
    from wm_agents.hub import SCORE
    from wm_agents.models.saved import STORE

    card = STORE / name / "README.md"
    found = SCORE.search(card.read_text(encoding="utf-8")) if card.is_file() else None
    return None if found is None else f"{float(found[1]):.1f} ± {float(found[2]):.1f}"


VERBS = {"list": list_all, "info": info, "pull": pull, "push": push}
