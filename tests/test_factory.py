"""`create_world_model` and its companions: names, shapes and fields, and what is said where they are wrong."""

from __future__ import annotations

import inspect
import json
import math
import pickle
import runpy
from collections.abc import Callable, Sequence
from copy import deepcopy
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium import spaces

from wm_agents import (
    ConfigurationError,
    DreamerV3Config,
    EnsembleConfig,
    TDMPC2Config,
    VMCConfig,
    WorldModelConfig,
    create_world_model,
    get_config,
    get_model_info,
    list_models,
)
from wm_agents.checkpoint import ArtifactError
from wm_agents.models.config import TRAINING_FIELDS
from wm_agents.models.dreamerv3 import DreamerV3
from wm_agents.models.families import ALIASES, FAMILIES, load, resolve
from wm_agents.models.vision import Identity
from wm_agents.models.vmc import VMC
from wm_agents.training.config import TrainingConfig
from wm_envs.world_model import Trajectory

ROOT = Path(__file__).parents[1]
CONFIGS = [VMCConfig, EnsembleConfig, DreamerV3Config, TDMPC2Config]


# Names


@pytest.mark.parametrize("alias", ALIASES)
def test_every_alias_is_a_preset(alias: str) -> None:
    preset = resolve(alias)
    assert preset is not None and ":".join(preset) == ALIASES[alias] and ALIASES[alias] in list_models()


def test_a_family_may_be_called_by_its_short_name() -> None:
    assert resolve("dreamer:size50m") == ("dreamerv3", "size50m") and resolve("tdmpc:19m") == ("tdmpc2", "19m")


def test_all_presets_and_shipped_models_are_listed_and_described() -> None:
    infos = list_models(verbose=True)
    assert list(infos) == list_models() and {info["family"] for info in infos.values()} == set(FAMILIES)
    assert "dreamerv3:size400m" in infos and "tdmpc2:317m" in infos and "vmc-carracing-small" in infos
    assert infos["vmc-carracing-small"]["size"] == "stored"
    assert get_model_info("dreamer") == infos["dreamerv3:size12m"]
    assert all(info["description"] and info["parameters"] > 0 for info in infos.values())


@pytest.mark.parametrize("name", ["vmc:ci", "ensemble:ci", "dreamerv3:ci", "tdmpc2:ci"])
def test_parameters_are_those_of_a_model_that_is_made(name: str) -> None:
    info = get_model_info(name)
    model = create_world_model(name, obs_shape=info["obs_shape"], action_dim=info["action_dim"])
    assert info["parameters"] == sum(p.numel() for p in model.parameters() if p.requires_grad)


def test_the_card_of_a_saved_model_counts_as_the_list_does(tmp_path: Path) -> None:
    model = create_world_model("tdmpc2:ci", obs_shape=(5,), action_dim=2)
    card = (model.save_pretrained(tmp_path / "m") / "README.md").read_text()
    assert f"| parameters | {get_model_info(str(tmp_path / 'm'))['parameters']:,} |" in card


# Shapes


@pytest.mark.parametrize("family", ["vmc", "dreamerv3", "tdmpc2"])
def test_frames_keep_the_order_of_their_channels(family: str) -> None:
    for shape in [(64, 64, 3), (3, 64, 64), (1, 64, 64)]:
        model = create_world_model(f"{family}:ci", obs_shape=shape, action_dim=2)
        assert model.obs_space == spaces.Box(0, 255, shape, np.uint8) and model.cfg.obs_shape == shape
        frames = torch.zeros(2, *shape, dtype=torch.uint8)
        assert model.decode(model.encode(frames)).shape == frames.shape


@pytest.mark.parametrize("family", sorted(FAMILIES.keys() - {"objects"}))  # It refuses vectors.
def test_vectors_never_reach_a_convolution(family: str) -> None:
    model = create_world_model(f"{family}:ci", obs_shape=(7,), action_dim=2)
    assert not [m for m in model.modules() if isinstance(m, torch.nn.Conv2d | torch.nn.ConvTranspose2d)]
    assert model.decode(model.encode(torch.randn(3, 7))).shape == (3, 7)


def test_frames_in_another_order_are_explained() -> None:
    model = create_world_model("dreamerv3:ci", obs_shape=(3, 64, 64), action_dim=2)
    with pytest.raises(
        ValueError, match=r"\(B, 3, 64, 64\) uint8.*got \(1, 64, 64, 3\).*the channel axis is at the other end"
    ):
        model.encode(torch.zeros(1, 64, 64, 3, dtype=torch.uint8))
    with pytest.raises(ValueError, match=r"got \(3, 64, 64\).*one observation needs a batch axis, obs\[None\]"):
        model.encode(torch.zeros(3, 64, 64, dtype=torch.uint8))


def test_observations_may_be_arrays() -> None:
    model = create_world_model("ensemble:ci", obs_shape=(4,), action_dim=2)
    obs = np.random.default_rng(0).standard_normal((2, 4))
    assert torch.equal(model.encode(obs)["obs"], torch.from_numpy(obs).float())  # type: ignore[arg-type]


def test_actions_are_numbers_or_choices() -> None:
    continuous, discrete = (
        create_world_model("vmc:ci", obs_shape=(4,), action_dim=3, action_type=kind) for kind in (None, "discrete")
    )
    assert continuous.act_space == spaces.Box(-1, 1, (3,), np.float32) and discrete.act_space == spaces.Discrete(3)
    assert (continuous.cfg.action_type, discrete.cfg.action_type) == ("continuous", "discrete")


def test_an_environment_or_its_id_gives_the_spaces() -> None:
    env = gym.make("CartPole-v1")
    envs = gym.make_vec("CartPole-v1", num_envs=2)
    for given in (env, envs, "CartPole-v1", "Real-CartPole-v0", "Dream-CartPole-v0"):
        model = create_world_model("ensemble:ci", env=given)
        assert (model.obs_space, model.act_space) == (env.observation_space, env.action_space)
    assert (model.cfg.obs_shape, model.cfg.action_dim, model.cfg.action_type) == ((4,), 2, "discrete")
    pixels = create_world_model("vmc:ci", env="CarRacing-v3")
    assert pixels.obs_space.shape == (64, 64, 3) and pixels.actions == 3
    envs.close()


@pytest.mark.parametrize(
    "kwargs, message",
    [
        ({"obs_shape": (64, 64), "action_dim": 2}, r"\(H, W, C\) or \(C, H, W\).* got \(64, 64\); add a channel axis"),
        ({"obs_shape": (4, 84, 84), "action_dim": 2}, r"C = 1 or 3 channels, got \(4, 84, 84\)"),
        ({"obs_shape": 4, "action_dim": 2}, r"must be a tuple of positive integers, such as \(8,\) .*, got 4"),
        ({"obs_shape": (0,), "action_dim": 2}, r"positive integers, such as \(8,\) or \(64, 64, 3\), got \(0,\)"),
        ({"obs_shape": (8,)}, r"dreamerv3:ci needs action_dim, such as obs_shape=\(8,\) and action_dim=2, or env="),
        ({}, "needs obs_shape and action_dim"),
        ({"obs_shape": (8,), "action_dim": 0}, "action_dim must be a positive integer, got 0"),
        ({"obs_shape": (8,), "action_dim": 2, "action_type": "discret"}, "got 'discret'; did you mean 'discrete'"),
        ({"env": "CartPole-v1", "action_dim": 2}, "pass either env or action_dim, not both"),
        ({"env": "CartPool-v1"}, "cannot create env 'CartPool-v1': .*CartPool"),
        ({"obs_shape": (8,), "action_dim": 2, "device": "cuda:7"}, "'cuda:7' is not on this machine; use 'cpu'"),
        ({"obs_shape": (8,), "action_dim": 2, "device": "gpu"}, "device must be auto, .* or cuda:N, got 'gpu'"),
        ({"obs_shape": (8,), "action_dim": 2, "hiden_dim": 64}, "of DreamerV3Config; did you mean 'hidden_dim'"),
        ({"obs_shape": (8,), "action_dim": 2, "batch_size": 4}, "DreamerV3Config; it is a field of TrainingConfig"),
        ({"obs_shape": (8,), "action_dim": 2, "lerning_rate": 1e-3},
         r"of DreamerV3Config; did you mean 'learning_rate'\? \(it is a field of TrainingConfig\)"),
        ({"obs_shape": (8,), "action_dim": 2, "encoder_type": "mlp"},
         "'encoder_type' of DreamerV3Config; the observation shape determines encoder and decoder"),
        ({"obs_shape": (8,), "action_dim": 2, "foo": 1}, "unknown field 'foo' of DreamerV3Config; it has action_dim, "),
        ({"obs_shape": (8,), "action_dim": 2, "unimix": 2.0}, r"DreamerV3Config.unimix must be .*, got 2.0"),
        ({"obs_shape": (8,), "action_dim": 2, "unimix": 0.0}, r"must be a number above 0 and at most 1, got 0.0"),
    ],
)  # fmt: skip
def test_what_is_wrong_is_named(kwargs: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigurationError, match=message):
        create_world_model("dreamerv3:ci", **kwargs)


@pytest.mark.parametrize(
    "name, message",
    [
        ("dreamerv3:size12", "size of dreamerv3 must be one of ci, size1m, .*, got 'size12'; did you mean 'size12m'"),
        ("dreamrv3:ci", "family must be one of .*, got 'dreamrv3'; did you mean 'dreamerv3'"),
        ("tdmpc22", "no model 'tdmpc22': .*did you mean 'tdmpc2'"),
        ("ensemble-cartpol", "did you mean 'ensemble-cartpole'"),
        ("./nowhere", "no model './nowhere'.*list_models"),
    ],
)
@pytest.mark.parametrize("call", [create_world_model, get_model_info, get_config])
def test_names_that_do_not_exist_are_answered_with_the_nearest(
    call: Callable[..., Any], name: str, message: str
) -> None:
    with pytest.raises(ConfigurationError, match=message):
        call(name)


def test_a_convolution_asked_for_vectors_is_rejected() -> None:
    with pytest.raises(ValueError, match="vision='paper' needs square .*use 'identity' for vectors"):
        create_world_model("vmc:ci", obs_shape=(8,), action_dim=2, vision="paper")
    assert isinstance(create_world_model("vmc:paper", obs_shape=(8,), action_dim=2).vision, Identity)


# Saved models


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("saved") / "model"
    create_world_model("vmc:ci", obs_shape=(4,), action_dim=2, action_type="discrete").save_pretrained(path)
    return path


def test_a_directory_a_shipped_model_and_a_dream_are_loaded(saved: Path) -> None:
    assert isinstance(create_world_model(saved), VMC) and isinstance(create_world_model(str(saved)), VMC)
    shipped = create_world_model("ensemble-cartpole")
    named = create_world_model("Dream-CartPole-v0", env="CartPole-v1")
    assert all(torch.equal(a, b) for a, b in zip(shipped.parameters(), named.parameters(), strict=True))


@pytest.mark.parametrize(
    "kwargs, message",
    [
        ({"hidden": 64}, "is a saved model and keeps its config; remove hidden, or start from a preset"),
        ({"obs_shape": (5,)}, r"has obs_shape \(4,\), got \(5,\)"),
        ({"action_dim": 3}, "has action_dim 2, got 3"),
        ({"action_type": "continuous"}, "has action_type discrete, got continuous"),
        ({"env": "Pendulum-v1"}, r"has obs_shape \(4,\), got \(3,\)"),
    ],
)
def test_nothing_said_of_a_saved_model_is_dropped(saved: Path, kwargs: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigurationError, match=message):
        create_world_model(saved, **kwargs)
    create_world_model(saved, obs_shape=(4,), action_dim=2, action_type="discrete", device="auto")


def test_a_model_is_on_the_device_that_was_asked_for(saved: Path) -> None:
    for model in (saved, "ensemble-cartpole"):
        assert create_world_model(model, device="meta").device.type == "meta"
    assert create_world_model("vmc:ci", obs_shape=(4,), action_dim=2, device="meta").device.type == "meta"


def test_a_model_of_another_family_is_rejected(saved: Path) -> None:
    with pytest.raises(ConfigurationError, match="of the family 'vmc', not a DreamerV3; load it with VMC.from_pre"):
        DreamerV3.from_pretrained(saved)
    assert VMC.from_pretrained(saved).cfg == WorldModelConfig.load(saved)


def test_a_folder_that_is_not_a_model_hides_no_alias(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "tdmpc2").mkdir()
    assert resolve("tdmpc2") == ("tdmpc2", ALIASES["tdmpc2"].partition(":")[2])


def test_a_dream_of_a_model_saved_alone_reports_what_is_missing(saved: Path) -> None:
    with pytest.raises(
        ArtifactError, match=r"weights only; .* needs 'real' in config.json.*starts. Save it with .*save_model"
    ):
        gym.make("wm_envs:Dream-v0", model=str(saved))


def test_a_model_saved_alone_does_not_take_the_place_of_a_dream(tmp_path: Path) -> None:
    import shutil

    from wm_agents.models.saved import STORE

    shutil.copytree(STORE / "ensemble-cartpole", tmp_path / "dream")
    with pytest.raises(ArtifactError, match="would lose its initial latents and policies. Give another directory"):
        create_world_model(tmp_path / "dream").save_pretrained(tmp_path / "dream")
    create_world_model(tmp_path / "dream").save_pretrained(tmp_path / "alone")
    create_world_model(tmp_path / "alone").save_pretrained(tmp_path / "alone")


# Imagination


def test_actions_of_another_shape_are_rejected_before_any_step() -> None:
    model = create_world_model("ensemble:ci", obs_shape=(4,), action_dim=2)
    state = model.encode(torch.zeros(3, 4))
    assert isinstance(model.rollout(state, torch.zeros(5, 3, 2)), Trajectory)
    for wrong in (torch.zeros(3, 2), torch.zeros(5, 1, 2), torch.zeros(5, 3, 1)):
        with pytest.raises(ValueError, match=r"actions must be \(H, 3, 2\), time-first, got"):
            model.imagine(state, wrong)


# Configs


@pytest.mark.parametrize("kind", CONFIGS)
def test_a_config_survives_a_file_and_a_directory(kind: type[WorldModelConfig], tmp_path: Path) -> None:
    for size in kind.SIZES:
        cfg = kind.from_size(size, obs_shape=(8,), action_dim=2, action_type="discrete")
        assert (cfg.obs_shape, cfg.action_dim) == ((8,), 2)
        cfg.save(tmp_path / f"{size}.json")
        cfg.save(tmp_path / size)
        for path in (tmp_path / f"{size}.json", tmp_path / size, tmp_path / size / "config.json"):
            loaded = WorldModelConfig.load(path)
            assert type(loaded) is kind and loaded == cfg == kind.load(path)


def test_the_config_of_a_saved_model_is_that_of_the_model(saved: Path) -> None:
    cfg = WorldModelConfig.load(saved)
    assert isinstance(cfg, VMCConfig) and cfg == create_world_model(saved).cfg == get_config(str(saved))
    with pytest.raises(ConfigurationError, match="is a VMCConfig, not a TDMPC2Config"):
        TDMPC2Config.load(saved)
    with pytest.raises(ConfigurationError, match="belongs to a saved model; give another directory"):
        cfg.save(saved)


def test_get_config_is_what_a_model_would_be_made_with() -> None:
    asked: dict[str, Any] = {"obs_shape": (3, 64, 64), "action_dim": 4, "stoch_classes": 8}
    assert get_config("dreamer-ci", **asked) == create_world_model("dreamer-ci", **asked).cfg
    assert get_config("dreamerv3:size50m") == DreamerV3Config.from_size("size50m")


@pytest.mark.parametrize(
    "make, message",
    [
        (lambda path: DreamerV3Config.from_size("50m"), "must be one of ci, .*, got '50m'; did you mean 'size50m'"),
        (lambda path: TDMPC2Config.from_size("5m", horizn=3), "'horizn' of TDMPC2Config; did you mean 'horizon'"),
        (lambda path: TDMPC2Config().replace(hidden=3), "'hidden' of TDMPC2Config; did you mean 'hidden_dim'"),
        (lambda path: DreamerV3Config(hiden_dim=3), "'hiden_dim' of DreamerV3Config; did you mean 'hidden_dim'"),
        (lambda path: VMCConfig(hiden=3), "'hiden' of VMCConfig; did you mean 'hidden'"),
        (lambda path: EnsembleConfig(member=3), "'member' of EnsembleConfig; did you mean 'members'"),
        (lambda path: TDMPC2Config(plan=True), "'plan' of TDMPC2Config; did you mean 'planning'"),
        (lambda path: VMCConfig(obs_shape=(0,)), r"obs_shape must be a tuple of positive integers.*, got \(0,\)"),
        (lambda path: VMCConfig(obs_shape=4), r"VMCConfig.obs_shape must be a tuple of .*, got 4"),
        (lambda path: VMCConfig(action_dim=-1), "action_dim must be a whole number of at least 1, or None, got -1"),
        (lambda path: WorldModelConfig.load(path / "list.json"), "got a list"),
        (lambda path: WorldModelConfig.load(path / "text.json"), "is not valid JSON"),
        (lambda path: WorldModelConfig.load(path / "other.json"), "must contain 'family' and 'model'"),
        (lambda path: WorldModelConfig.load(path / "newer.json"), "family must be one of .*, got 'jepa'"),
    ],
)  # fmt: skip
def test_wrong_configs_are_named(make: Callable[[Path], Any], message: str, tmp_path: Path) -> None:
    (tmp_path / "list.json").write_text("[]")
    (tmp_path / "text.json").write_text("hello")
    (tmp_path / "other.json").write_text('{"lr": 1}')
    (tmp_path / "newer.json").write_text(json.dumps({"family": "jepa", "model": {}}))
    with pytest.raises(ConfigurationError, match=message):
        make(tmp_path)


@pytest.mark.parametrize("kind", CONFIGS)
def test_configs_show_their_fields_and_can_be_copied(kind: type[WorldModelConfig]) -> None:
    assert inspect.signature(kind).parameters.keys() == {f.name for f in fields(kind)}
    cfg = kind(action_dim=3)
    assert pickle.loads(pickle.dumps(cfg)) == deepcopy(cfg) == cfg != kind()


def test_a_config_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="config.json does not exist; give the directory of a saved model"):
        WorldModelConfig.load(tmp_path)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_config_must_agree_with_the_spaces(family: str) -> None:
    about = FAMILIES[family]
    see, do = spaces.Box(-1, 1, (4,), np.float32), spaces.Discrete(3)
    said = [({"obs_shape": (5,)}, r"\(5,\) in the config, but \(4,\)"), ({"action_dim": 2}, "2 in the config, but 3"),
            ({"action_type": "continuous"}, "'continuous' in the config, but 'discrete'")]  # fmt: skip
    for values, message in said:
        cfg = load(about.config).from_size("ci").fitting(see).replace(**values)
        with pytest.raises(ConfigurationError, match=message):
            load(about.model)(cfg, see, do)


# The page


def test_the_page_of_models_reports_what_is_counted(capsys: pytest.CaptureFixture[str]) -> None:
    runpy.run_path(str(ROOT / "scripts" / "model_sizes.py"), run_name="__main__")
    printed = capsys.readouterr().out
    assert printed.strip() and printed.strip() in (ROOT / "docs" / "models.md").read_text()


def test_the_examples_on_the_page_of_models_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    blocks = (ROOT / "docs" / "models.md").read_text().split("```python\n")[1:]
    names: dict[str, Any] = {}
    for block in blocks:
        exec(block.split("```")[0], names)
    assert isinstance(names["model"], torch.nn.Module)


def test_one_choice_can_be_seen() -> None:
    model = create_world_model("dreamerv3:ci", env=gym.make("FrozenLake-v1"))
    assert model.encode(torch.tensor([3, 5]))["deter"].shape[0] == 2


def test_tdmpc2_looks_ahead_by_the_episodes_of_its_environment() -> None:
    for env in ("Pendulum-v1", gym.make("Pendulum-v1")):
        assert create_world_model("tdmpc2:ci", env=env).cfg.discount == pytest.approx(1 - 5 / 200)
        assert get_config("tdmpc2:ci", env=env, episode_length=400).episode_length == 400
    assert not hasattr(get_config("dreamerv3:ci", env="Pendulum-v1"), "episode_length")


@dataclass(frozen=True, kw_only=True)
class OwnConfig(WorldModelConfig):
    """Of a family of one's own: fields of any type."""

    far: float = math.inf
    folder: Path = Path("x")
    sides: Sequence[int] = (1, 2)
    act: Callable[[float], float] = math.sin


def test_a_config_of_ones_own_has_fields_of_any_type() -> None:
    assert OwnConfig(folder=Path("y")).far == math.inf
    with pytest.raises(ConfigurationError, match="OwnConfig.far must be a finite number, got nan"):
        OwnConfig(far=math.nan)
    with pytest.raises(ConfigurationError, match="OwnConfig.folder must be .*Path.*, got 3"):
        OwnConfig(folder=3)  # type: ignore[arg-type]


def test_numbers_of_numpy_are_numbers() -> None:
    cfg = EnsembleConfig(hidden=np.int64(64), action_dim=np.int64(2))  # type: ignore[arg-type]
    assert (type(cfg.hidden), type(cfg.action_dim)) == (int, int) and cfg == EnsembleConfig(hidden=64, action_dim=2)


def test_misplaced_training_fields_are_those_of_the_training_config() -> None:
    assert tuple(f.name for f in fields(TrainingConfig)) == TRAINING_FIELDS
