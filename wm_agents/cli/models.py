"""`wm models`: what there is to build or load, and what one of them is; to and from the Hub."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

from wm_agents.cli.printing import say, table
from wm_agents.errors import ConfigurationError, did_you_mean


def list_all(as_json: bool = False) -> None:
    """List the presets and the models that ship.

    Args:
        as_json: one JSON object on stdout, by name.
    """
    from wm_agents.factory import list_models
    from wm_agents.models.families import FAMILIES

    found = list_models(verbose=True)
    scores = {name: _score(name) for name in found}
    if as_json:
        print(json.dumps({name: {**about, "real_score": scores[name]} for name, about in found.items()}))
        return
    rows = (
        (name, f"{a['parameters']:,}", "x".join(map(str, a["obs_shape"])), f"{a['action_dim']}", scores[name] or "")
        for name, a in found.items()
    )
    table(("model", "parameters", "observations", "actions", "real score"), rows)
    for name, family in FAMILIES.items():
        say(f"{name}: {family.about}")
    say(
        "Parameters are counted for these observations and actions. create_world_model(name, env=...) builds a preset, "
        "and loads a model that ships, as those with a score do."
    )


def info(name: str, as_json: bool = False) -> None:
    """Tell what a preset or a saved model is.

    Args:
        name: a preset as family:size, an alias, a model directory, a shipped model or dream, or org/name on the Hub.
        as_json: one JSON object on stdout.
    """
    found = describe(name)
    if as_json:
        print(json.dumps(found))
        return
    card = found.pop("card", "")
    rows = ((k, v if isinstance(v, str) else json.dumps(v)) for k, v in found.items() if k != "versions")
    table(("what", "value"), rows)
    say(card)


def describe(name: str) -> dict[str, Any]:
    """What `info` shows, as JSON values."""
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
    from wm_agents.pretrained import cut_off_of

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
        found |= {"cut_off": cut_off_of(artifact), "starts": starts}
    return {**found, "versions": facts.get("versions"), "card": (artifact.path / "README.md").read_text()}


def find(name: str) -> Path:
    """The directory of a saved model.

    Raises:
        ConfigurationError: nothing has this name; the nearest of all names stands with it.
        FileNotFoundError: what it names is no model.
    """
    from wm_agents.factory import list_models
    from wm_agents.models.families import ALIASES
    from wm_agents.models.saved import UnknownModel, model_path
    from wm_envs.registry import TASKS

    try:
        return model_path(name)
    except UnknownModel:
        hint = did_you_mean(name, [*ALIASES, *list_models(), *(task.dream_id for task in TASKS.values())])
        text = f"no preset, saved model or folder {name!r}{hint or ';'} `wm models list` has all names"
        raise ConfigurationError(text) from None


def pull(repo: str, out: str | None = None) -> None:
    """Fetch a model from the Hub, check it, and print where it lies.

    Args:
        repo: org/name or org/name@revision.
        out: a directory to copy it to; without one it stays in the Hub's cache, where org/name finds it.
    """
    from wm_agents.hub import resolve
    from wm_agents.models.saved import load_model

    path = resolve(repo)
    load_model(path)
    if out is not None:
        if Path(out).exists():
            raise FileExistsError(f"{out} exists; give another directory")
        shutil.copytree(path, out)
    print(out or path)


def push(folder: str, repo: str, private: bool = False, message: str | None = None) -> None:
    """Upload a saved model to the Hub, and print the address of its page.

    Args:
        folder: the model's directory.
        repo: org/name; made where it is new.
        private: seen by its owners alone, where it is new.
        message: of the commit.
    """
    from wm_agents.hub import push_to_hub

    print(push_to_hub(folder, repo, private=private, commit_message=message))


def _score(name: str) -> str | None:
    """The real score on the card of a model that ships."""
    from wm_agents.hub import SCORE
    from wm_agents.models.saved import STORE

    card = STORE / name / "README.md"
    found = SCORE.search(card.read_text()) if card.is_file() else None
    return None if found is None else f"{float(found[1]):.1f} ± {float(found[2]):.1f}"


VERBS = {"list": list_all, "info": info, "pull": pull, "push": push}
