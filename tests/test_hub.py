"""Models on the Hub, against a stand-in that speaks its protocol; its client is the real one."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path

import gymnasium as gym
import numpy as np
import pytest
import torch
from stable_baselines3 import PPO
from stand_in_hub import Hub, running
from tiny import save_tiny

from policies.sb3 import load_sb3
from wm_agents import create_world_model, get_model_info, hub
from wm_agents.checkpoint import ArtifactError, load_artifact, sha256
from wm_agents.errors import ConfigurationError
from wm_agents.models.saved import model_path
from wm_agents.models.vmc import VMC
from wm_agents.pretrained import load_model, load_policy
from wm_envs.registry import RealSpec

client = pytest.importorskip("huggingface_hub")
constants = pytest.importorskip("huggingface_hub.constants")

POLE = RealSpec("CartPole-v1", max_episode_steps=60)
CARD = "# tiny\n\n| what | value |\n| --- | --- |\n| real score | 12.5 ± 3.25 (95 %), 100 episodes |\n"


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = Path(save_tiny(tmp_path_factory.mktemp("models") / "pole", POLE))
    (path / "README.md").write_text(CARD)
    config = json.loads((path / "config.json").read_text())
    config["files"]["README.md"] = sha256(path / "README.md")
    (path / "config.json").write_text(json.dumps(config))
    return path


@pytest.fixture
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HF_TOKEN", "good")
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    pytest.importorskip("huggingface_hub.utils").disable_progress_bars()
    with running(Hub()) as served:
        ask(served.url, monkeypatch)
        yield served
    client.close_session()


def ask(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """What HF_ENDPOINT does, had it been set before the client was imported."""
    monkeypatch.setattr(constants, "ENDPOINT", url)
    template = "{endpoint}/{repo_id}/resolve/{revision}/{filename}".replace("{endpoint}", url)
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)


def test_a_model_goes_up_and_comes_back_the_same(server: Hub, tiny: Path) -> None:
    assert hub.push_to_hub(tiny, "org/pole") == f"{server.url}/org/pole"
    (_, files), *_ = reversed(server.repos["org/pole"])
    assert set(files) == {
        "README.md", "config.json", "model.safetensors", "starts.safetensors", "policy_linear.safetensors",
    }  # fmt: skip
    mine, theirs = load_artifact(tiny), load_artifact(hub.resolve("org/pole"))
    assert all(torch.equal(mine.tensors[name], theirs.tensors[name]) for name in mine.tensors)
    assert {**theirs.config, "files": 0} == {**mine.config, "files": 0}
    assert theirs.policies.keys() == {"linear"} and theirs.starts.keys() == mine.starts.keys()


def test_whatever_takes_a_model_takes_a_repository(server: Hub, tiny: Path) -> None:
    hub.push_to_hub(tiny, "org/pole")
    net, artifact = load_model("org/pole")
    assert load_policy(net, artifact).weights.shape[0] == 2
    assert create_world_model("org/pole").family == "vmc"
    assert get_model_info("org/pole")["obs_shape"] == (4,)
    assert model_path("hf://org/pole") == model_path("org/pole")
    env = gym.make("wm_envs:Dream-v0", model="org/pole")
    envs = gym.make_vec("wm_envs:Dream-v0", num_envs=3, model="org/pole")
    obs, _ = env.reset(seed=5)
    assert np.allclose(envs.reset(seed=5)[0][0], obs)
    env.close(), envs.close()


def test_the_card_is_filled_in_from_the_run(server: Hub, tiny: Path) -> None:
    hub.push_to_hub(tiny, "org/pole")
    card = client.ModelCard(server.repos["org/pole"][-1][1]["README.md"].decode())
    assert card.data.tags == ["world-model", "gymnasium", "reinforcement-learning", "vmc", "CartPole-v1"]
    (result,) = card.data.eval_results
    assert (result.dataset_type, result.metric_type, result.metric_value) == (
        "CartPole-v1",
        "mean_reward",
        "12.5 +/- 3.25",
    )
    assert card.text.strip() == CARD.strip()


def test_a_revision_stays_what_it_was(server: Hub, tiny: Path) -> None:
    hub.push_to_hub(tiny, "org/pole")
    first = server.repos["org/pole"][-1][0]
    bare = create_world_model("vmc:small", obs_shape=(4,), action_dim=2, action_type="discrete")
    bare.push_to_hub("org/pole", commit_message="A larger one")
    again = VMC.from_pretrained("org/pole")
    assert all(torch.equal(a, b) for a, b in zip(bare.state_dict().values(), again.state_dict().values(), strict=True))
    assert load_artifact(hub.resolve("org/pole")).policies == {}, "the first one's controller does not stay behind"
    assert load_artifact(hub.resolve(f"org/pole@{first}")).policies.keys() == {"linear"}
    with pytest.raises(hub.HubError, match="org/pole has no revision 'v9' on http"):
        hub.resolve("org/pole@v9")


def test_offline_the_cache_serves_and_else_the_error_reports_what_to_do(
    server: Hub, tiny: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hub.push_to_hub(tiny, "org/pole")
    kept = hub.resolve("org/pole")
    ask("http://127.0.0.1:9", monkeypatch)  # Nothing listens there.
    assert hub.resolve("org/pole") == kept
    with pytest.raises(hub.HubError, match="is not reachable, and org/other is not in .*cache; connect to download it"):
        load_model("org/other")
    with pytest.raises(ConfigurationError, match=r"no model 'org/other': .* is not reachable"):
        create_world_model("org/other")
    with pytest.raises(hub.HubError, match=r"could not reach http://127.0.0.1:9 for org/pole"):
        hub.push_to_hub(tiny, "org/pole")


def test_a_repository_that_is_not_there_is_named_with_what_to_do(server: Hub, tiny: Path) -> None:
    with pytest.raises(hub.HubError, match="there is no org/nothing on http.* and no such directory; if it is pri"):
        load_model("org/nothing")
    server.commit("org/zip", {"a.bin": b"PK", "config.json": b"{}"})
    with pytest.raises(hub.HubError, match="is not a model of this package: model.safetensors missing"):
        load_model("org/zip")


def test_what_is_private_needs_a_token(server: Hub, tiny: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    hub.push_to_hub(tiny, "org/secret", private=True)
    monkeypatch.delenv("HF_TOKEN")
    with pytest.raises(hub.HubError, match="if it is private, sign in with `hf auth login` or HF_TOKEN"):
        hub.resolve("org/secret")
    assert hub.resolve("org/secret", token="good").is_dir()
    with pytest.raises(hub.HubError, match=r"answered 401 for org/mine; sign in with `hf auth login` or HF_TOKEN"):
        hub.push_to_hub(tiny, "org/mine")


def test_nothing_but_json_safetensors_and_the_card_is_fetched(server: Hub, tiny: Path) -> None:
    hub.push_to_hub(tiny, "org/pole")
    server.commit("org/pole", {**server.repos["org/pole"][-1][1], "model.pt": b"\x80\x04pickle", "run.py": b"boom"})
    path = hub.resolve("org/pole")
    assert {file.suffix for file in path.iterdir()} == {".json", ".safetensors", ".md"}
    assert not [asked for asked in server.asked if asked.endswith(("model.pt", "run.py"))]


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ({"model.safetensors": b"PK\x03\x04torch zip"}, "zip file of torch.save, not safetensors"),
        ({"README.md": b"# changed\n"}, "was changed: sha256 expected"),
    ],
)
def test_what_comes_from_the_hub_is_checked_as_any_artifact(
    server: Hub, tiny: Path, change: dict[str, bytes], text: str
) -> None:
    hub.push_to_hub(tiny, "org/pole")
    server.commit("org/pole", {**server.repos["org/pole"][-1][1], **change})
    with pytest.raises(ArtifactError, match=text):
        load_model("org/pole")


def test_a_damaged_model_is_not_uploaded(server: Hub, tiny: Path, tmp_path: Path) -> None:
    path = Path(save_tiny(tmp_path / "m", POLE))
    (path / "README.md").write_text("other")
    with pytest.raises(ArtifactError, match="sha256"):
        hub.push_to_hub(path, "org/pole")
    assert server.repos == {}


def test_paths_are_not_asked_for_on_the_hub(server: Hub, tmp_path: Path) -> None:
    (tmp_path / "runs").mkdir()
    for name in ("runs/typo", "./a/b", "/a/b", "a", "a/b/c", "../a/b", "Dream-Car"):
        assert not hub.is_repo_id(name), name
        with pytest.raises(FileNotFoundError, match="model must be a directory with a config.json"):
            model_path(name)
    assert server.asked == []


def test_without_the_extra_the_error_names_the_pip_command(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(hub.HubError, match=r"there is no directory org/pole.*, pip install huggingface-hub"):
        load_model("org/pole")


def test_an_sb3_policy_goes_up_in_the_usual_layout_and_comes_back_unpickled(server: Hub, tmp_path: Path) -> None:
    made = PPO("MlpPolicy", "CartPole-v1", seed=0, device="cpu", n_steps=8, batch_size=8)
    made.save(tmp_path / "policy.zip")
    name = hub.sb3_name("ppo", "CartPole-v1")
    hub.push_sb3(
        tmp_path / "policy.zip", f"org/{name}", algo="ppo", env_id="CartPole-v1", mean=20.0, std=1.5, episodes=10
    )
    files = server.repos[f"org/{name}"][-1][1]
    assert files.keys() == {"ppo-CartPole-v1.zip", "README.md", "results.json"}
    assert json.loads(files["results.json"])["mean_reward"] == 20.0
    card = client.ModelCard(files["README.md"].decode())
    assert card.data.library_name == "stable-baselines3" and "CartPole-v1" in card.data.tags
    assert card.data.eval_results[0].metric_value == "20.00 +/- 1.50"
    theirs = load_sb3(hub.fetch_sb3(f"org/{name}"), PPO, "CartPole-v1", device="cpu")
    obs = np.random.default_rng(0).normal(size=(50, 4)).astype(np.float32)
    assert np.array_equal(theirs.predict(obs, deterministic=True)[0], made.predict(obs, deterministic=True)[0])
    with pytest.raises(hub.HubError, match=r"org/ppo-CartPole-v1 on http.* has no file best\.zip"):
        hub.fetch_sb3(f"org/{name}", "best")
    with pytest.raises(ValueError, match="mean, std and episodes must be given together"):
        hub.push_sb3(tmp_path / "policy.zip", "org/x", algo="ppo", env_id="CartPole-v1", mean=1.0)


def test_slashes_in_an_environment_become_dashes() -> None:
    assert hub.sb3_name("dqn", "ALE/Pong-v5") == "dqn-ALE-Pong-v5"
