"""Models and policies on the Hugging Face Hub, by `org/name` or `org/name@revision`.

push_to_hub("runs/mine/model", "org/name")          upload a saved model with its card
resolve("org/name@v1")                              download a model; returns its directory in the cache
push_sb3("policy.zip", "org/ppo-CartPole-v1", ...)  upload an SB3 policy in the layout of huggingface_sb3
fetch_sb3("org/ppo-CartPole-v1")                    download its zip, for `policies.sb3.load_sb3`

Only JSON, safetensors and the card of a model are downloaded, and checked as for any saved model. Nothing is
unpickled. Cached models work offline.
"""

from __future__ import annotations

import json
import re
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any

from wm_agents.checkpoint import load_artifact, sha256

PREFIX = "hf://"
REPO = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*(@[\w./-]+)?")
FILES = ["config.json", "*.safetensors", "README.md"]
EXTRA = "pip install huggingface-hub (the extra `hub` of this package)"
SCORE = re.compile(r"\| real score \| (-?[\d.]+) ± ([\d.]+)")
"""The score in the card of a trained model."""


class HubError(FileNotFoundError):
    """A repository is not accessible; the message gives the reason and what to do."""


def is_repo_id(name: str) -> bool:
    """Whether `name` can be a repository: `hf://org/name`, or `org/name` without a local directory `org`."""
    if name.startswith(PREFIX):
        return True
    return REPO.fullmatch(name) is not None and not Path(name).parent.exists()


def resolve(name: str, token: str | None = None) -> Path:
    """The local directory of the model `org/name` or `org/name@revision`, downloaded unless it is cached.

    Args:
        token: access token for private models; default: that of `hf auth login` or HF_TOKEN.

    Raises:
        HubError: there is no such model, or the Hub is not reachable and the model is not cached.
    """
    repo, revision = _parts(name)
    hub = _hub(name)
    with _explained(repo, revision):
        path = Path(hub.snapshot_download(repo, revision=revision, allow_patterns=FILES, token=token))
    if missing := [file for file in ("config.json", "model.safetensors") if not (path / file).is_file()]:
        raise HubError(
            f"{name} on the Hub is not a model of this package: {', '.join(missing)} missing; "
            "for a Stable-Baselines3 policy use wm_agents.hub.fetch_sb3 and policies.sb3.load_sb3"
        )
    return path


def push_to_hub(
    folder: str | Path,
    repo_id: str,
    *,
    token: str | None = None,
    private: bool = False,
    commit_message: str | None = None,
) -> str:
    """Upload a saved model to the repository `repo_id` and return the URL of its page.

    The repository is created if necessary. The card gets the metadata that the Hub expects: the environment,
    the family and the real score, if the card has one. Weights of an earlier upload that this model lacks are
    deleted.

    Args:
        private: create a new repository as private.

    Raises:
        ArtifactError: `folder` does not contain a valid model.
        HubError: the Hub rejected the upload.
    """
    artifact = load_artifact(folder)
    facts = artifact.config
    about = _front_matter(facts, (artifact.path / "README.md").read_text(encoding="utf-8"), repo_id.split("/")[-1])
    with tempfile.TemporaryDirectory() as tmp:
        for name in facts["files"]:
            shutil.copyfile(artifact.path / name, Path(tmp) / name)
        card = Path(tmp) / "README.md"
        if not card.read_text(encoding="utf-8").startswith("---"):
            card.write_text(about + card.read_text(encoding="utf-8"), encoding="utf-8")
        files = {**facts["files"], card.name: sha256(card)}
        (Path(tmp) / "config.json").write_text(json.dumps({**facts, "files": files}, indent=2) + "\n", encoding="utf-8")
        return _upload(Path(tmp), repo_id, token, private, commit_message or f"Upload {facts['family']} model", FILES)


def push_sb3(
    path: str | Path,
    repo_id: str,
    *,
    algo: str,
    env_id: str,
    mean: float | None = None,
    std: float | None = None,
    episodes: int | None = None,
    token: str | None = None,
    private: bool = False,
    commit_message: str | None = None,
) -> str:
    """Upload a zip file of `model.save(path)` of SB3 and return the URL of its page.

    The layout is that of huggingface_sb3: `<algo>-<env>.zip`, README.md and, with a score, results.json.

    Args:
        algo: the algorithm, such as "ppo".
        mean, std, episodes: the real score; all three or none.

    Raises:
        ValueError: the file is not a zip of SB3, or the score is incomplete.
        HubError: the Hub rejected the upload.
    """
    from policies.sb3 import read_weights

    read_weights(Path(path))
    score = [mean, std, episodes]
    if None in score and score != [None] * 3:
        raise ValueError(f"mean, std and episodes must be given together, got {mean}, {std}, {episodes}")
    name = sb3_name(algo, env_id)
    usage = (
        "```python\nfrom stable_baselines3 import " + algo.upper() + "\n"
        "from policies.sb3 import load_sb3\nfrom wm_agents.hub import fetch_sb3\n\n"
        f'model = load_sb3(fetch_sb3("{repo_id}"), {algo.upper()}, env)\n```\n'
    )
    tags = [env_id, "deep-reinforcement-learning", "reinforcement-learning", "stable-baselines3"]
    header: dict[str, Any] = {"library_name": "stable-baselines3", "tags": tags}
    if mean is not None:
        header["model-index"] = _model_index(algo.upper(), env_id, f"{mean:.2f} +/- {std:.2f}")
    with tempfile.TemporaryDirectory() as tmp:
        shutil.copyfile(path, Path(tmp) / f"{name}.zip")
        (Path(tmp) / "README.md").write_text(
            _yaml(header) + f"# {algo.upper()} playing {env_id}\n\n{usage}", encoding="utf-8"
        )
        if mean is not None:
            results = {"mean_reward": mean, "std_reward": std, "is_deterministic": True, "n_eval_episodes": episodes}
            (Path(tmp) / "results.json").write_text(json.dumps(results, indent=2) + "\n", encoding="utf-8")
        return _upload(Path(tmp), repo_id, token, private, commit_message or f"Upload {name}", None)


def fetch_sb3(name: str, filename: str | None = None, token: str | None = None) -> Path:
    """Download the zip of an SB3 policy; `policies.sb3.load_sb3` reads it without unpickling.

    Args:
        name: `org/name` or `org/name@revision`.
        filename: name in the repository; default: `<name>.zip`, as in huggingface_sb3.

    Raises:
        HubError: there is no such repository or file, or the Hub is not reachable and the file is not cached.
    """
    repo, revision = _parts(name)
    filename = filename or f"{repo.split('/')[-1]}.zip"
    filename += "" if filename.endswith(".zip") else ".zip"
    hub = _hub(name)
    with _explained(repo, revision, filename):
        return Path(hub.hf_hub_download(repo, filename, revision=revision, token=token))


def sb3_name(algo: str, env_id: str) -> str:
    """The name of a policy in huggingface_sb3, such as `ppo-CartPole-v1`, with dashes for slashes."""
    return f"{algo}-{env_id.replace('/', '-')}"


def _parts(name: str) -> tuple[str, str | None]:
    """Repository and revision."""
    repo, _, revision = name.removeprefix(PREFIX).partition("@")
    if not REPO.fullmatch(repo):
        raise HubError(f"the name of a model on the Hub must be org/name or org/name@revision, got {name!r}")
    return repo, revision or None


def _hub(name: str) -> ModuleType:
    try:
        import huggingface_hub
    except ImportError as error:
        raise HubError(f"there is no directory {name}; to load models from the Hugging Face Hub, {EXTRA}") from error
    assert isinstance(huggingface_hub, ModuleType)
    return huggingface_hub


@contextmanager
def _explained(repo: str, revision: str | None, filename: str | None = None) -> Iterator[None]:
    """Convert errors of the Hub client to a HubError with one line that says what to do."""
    from huggingface_hub import constants, errors

    at = f"{repo}@{revision}" if revision else repo
    signed_in = "sign in with `hf auth login` or HF_TOKEN"
    try:
        yield
    except errors.GatedRepoError as error:
        raise HubError(
            f"access to {repo} is restricted; request it on {constants.ENDPOINT}/{repo}, then {signed_in}"
        ) from error
    except errors.RepositoryNotFoundError as error:
        raise HubError(
            f"there is no {repo} on {constants.ENDPOINT} and no such directory; if it is private, {signed_in}"
        ) from error
    except errors.RevisionNotFoundError as error:
        raise HubError(f"{repo} has no revision {revision!r} on {constants.ENDPOINT}") from error
    except errors.LocalEntryNotFoundError as error:
        raise HubError(
            f"{constants.ENDPOINT} is not reachable, and {at} is not in {constants.HF_HUB_CACHE}; connect to "
            "download it, or give the directory of a copy"
        ) from error
    except errors.EntryNotFoundError as error:
        raise HubError(f"{at} on {constants.ENDPOINT} has no file {filename}") from error
    except errors.HFValidationError as error:
        raise HubError(f"{at} is not a valid repository name: {error}") from error
    except errors.HfHubHTTPError as error:
        status = error.response.status_code
        hint = ""
        if status in (401, 403):
            hint = f"; {signed_in}"
        raise HubError(f"{constants.ENDPOINT} answered {status} for {at}{hint}: {_one_line(error)}") from error
    except HubError:
        raise
    except Exception as error:  # The errors of its HTTP client differ between versions.
        if not isinstance(error, OSError) and "http" not in type(error).__module__:
            raise
        raise HubError(f"could not reach {constants.ENDPOINT} for {at}: {_one_line(error)}") from error


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())


def _upload(
    folder: Path, repo_id: str, token: str | None, private: bool, message: str, replaces: list[str] | None
) -> str:
    repo, revision = _parts(repo_id)
    if revision:
        raise HubError(f"the name of the repository must be org/name, got {repo_id!r}")
    hub = _hub(repo)
    with _explained(repo, None):
        api = hub.HfApi(token=token)
        url = api.create_repo(repo, private=private, exist_ok=True)
        api.upload_folder(repo_id=repo, folder_path=folder, commit_message=message, delete_patterns=replaces)
    return str(url)


def _front_matter(facts: dict[str, Any], card: str, name: str) -> str:
    env_id = facts.get("real", {}).get("id")
    tags = ["world-model", "gymnasium", "reinforcement-learning", facts["family"], *([env_id] if env_id else [])]
    header: dict[str, Any] = {"library_name": "dreams-as-envs", "tags": tags}
    if env_id and (score := SCORE.search(card)):
        header["model-index"] = _model_index(name, env_id, f"{score[1]} +/- {score[2]}")
    return _yaml(header)


def _model_index(name: str, env_id: str, value: str) -> list[dict[str, Any]]:
    """A score in the metadata format of the Hub."""
    task = {"type": "reinforcement-learning", "name": "reinforcement-learning"}
    metric = {"type": "mean_reward", "name": "mean_reward", "value": value, "verified": False}
    return [
        {"name": name, "results": [{"task": task, "dataset": {"name": env_id, "type": env_id}, "metrics": [metric]}]}
    ]


def _yaml(header: dict[str, Any]) -> str:
    """Front matter; JSON values are YAML."""
    return "---\n" + "".join(f"{key}: {json.dumps(value)}\n" for key, value in header.items()) + "---\n"
