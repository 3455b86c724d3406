"""`wm config`: what settings are, how they differ, whether a wm.toml is right, and its schema."""

from __future__ import annotations

import json
from dataclasses import fields
from pathlib import Path

import pytest
from tiny import save_tiny

from wm_agents.cli import app as cli
from wm_agents.cli import config
from wm_agents.factory import get_config
from wm_agents.loops.recipes import DYNAMICS, RECIPES
from wm_agents.loops.recipes import PONG_IN_PICTURES as PONG
from wm_agents.models.families import FAMILIES, config_class
from wm_agents.project.json_schema import _section_schema, _type_schema, project_schema
from wm_agents.project.schema import SECTIONS
from wm_agents.training.config import TrainingConfig
from wm_envs.fields import field_docs
from wm_envs.registry import RealSpec

TOML = 'environment = "CartPole-v1"\nmodel = "dreamerv3:ci"\n[training]\ntotal_steps = 123\n'


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "wm.toml").write_text(TOML)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def wm(*args: str) -> int:
    return cli.main(["config", *args])


def test_a_preset_is_shown_with_what_its_fields_mean(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("COLUMNS", "150")
    assert wm("show", "tdmpc2:ci", "--json") == 0
    assert json.loads(capsys.readouterr().out) == {"family": "tdmpc2", **get_config("tdmpc2:ci").to_dict()}
    assert wm("show", "tdmpc2:ci") == 0
    assert "num_bins" in (out := capsys.readouterr().out) and "Width of all networks except the encoder." in out


def test_a_saved_model_is_shown(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert wm("show", save_tiny(tmp_path / "m", RealSpec("CartPole-v1")), "--json") == 0
    shown = json.loads(capsys.readouterr().out)
    assert (shown["family"], shown["z_dim"], shown["hidden"]) == ("vmc", 4, 8)


@pytest.mark.parametrize("name", ["wm.toml", ".", None])
def test_a_project_is_shown_with_its_defaults(
    name: str | None, project: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert wm("show", *([name] if name else []), "--json") == 0
    shown = json.loads(capsys.readouterr().out)
    assert shown["training.total_steps"] == 123
    assert shown["training.optimizer"] == FAMILIES["dreamerv3"].online["optimizer"] != TrainingConfig().optimizer
    assert shown["architecture.deter_dim"] == get_config("dreamerv3:ci").to_dict()["deter_dim"]
    assert shown["verify.mode"] == "quick" and shown["environment"] == "CartPole-v1"


@pytest.mark.parametrize(
    ("environment", "model", "own"),
    [
        ("CartPole-v1", "ensemble:ci", RECIPES["CartPole"].dynamics),
        ("ALE/Pong-v5", "vmc:ci", PONG.memory.replace(sequence_length=PONG.window)),
        ("nowhere:Nothing-v0", "ensemble:ci", DYNAMICS),
    ],
)
def test_what_a_project_leaves_out_is_shown_as_its_family_has_it(
    environment: str, model: str, own: TrainingConfig, project: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    text = f'environment = "{environment}"\nmodel = "{model}"\n[training]\nbatch_size = 7\n'
    (project / "wm.toml").write_text(text)
    assert wm("show", "--json") == 0
    shown = json.loads(capsys.readouterr().out)
    assert {key: shown[f"training.{key}"] for key in own.to_dict()} == own.replace(batch_size=7, seed=1).to_dict()


def test_what_is_not_a_model_is_reported_in_one_plain_line(project: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (project / "outputs").mkdir()
    (project / "empty").mkdir()
    for name, told in (
        ("outputs", "this folder is an untrained project: run `wm train` in it; its model will be outputs"),
        ("empty", "model must be a directory with a config.json, but empty has none\n"),
        (
            "dreamer-c",
            "no preset, saved model or folder 'dreamer-c'; did you mean 'dreamer-ci'? `wm models list` lists",
        ),
        ("qqq", "no preset, saved model or folder 'qqq'; `wm models list` lists all names"),
        ("Dream-Cartpole", "no preset, saved model or folder 'Dream-Cartpole'; did you mean 'Dream-CartPole-v0'?"),
    ):
        for command in ("config show", "models info"):
            assert cli.main([*command.split(), name]) == 1
            err = capsys.readouterr().err
            assert err.startswith(f"wm {command.split()[0]}: {told}") and err.count("\n") == 1
            assert "list_models()" not in err and err.count("model must be") < 2


def test_differences_are_reported_and_exit_with_1(project: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert wm("diff", "tdmpc2:1m", "tdmpc2:1m") == 0
    assert capsys.readouterr().out == "no differences\n"
    assert wm("diff", "dreamerv3:size12m", "dreamerv3:size25m", "--json") == 1
    assert json.loads(capsys.readouterr().out)["deter_dim"] == [2048, 3072]
    (project / "b").mkdir()
    (project / "b" / "wm.toml").write_text(TOML.replace("123", "321") + "batch_size = 7\n")
    assert wm("diff", "wm.toml", "b", "--json") == 1
    default = FAMILIES["dreamerv3"].online["batch_size"]
    assert json.loads(capsys.readouterr().out) == {
        "training.total_steps": [123, 321], "training.batch_size": [default, 7], "project_name": [project.name, "b"],
    }  # fmt: skip
    assert wm("diff", "wm.toml", "dreamerv3:ci") == 0  # Of a preset, only the model can be compared.
    (project / "wm.toml").write_text(TOML + "[architecture]\nhidden_dim = 5\n")
    capsys.readouterr()
    assert wm("diff", "dreamerv3:ci", "wm.toml", "--json") == 1
    assert json.loads(capsys.readouterr().out)["hidden_dim"][1] == 5
    assert wm("diff", "vmc:ci", "ensemble:ci") == 1
    assert "members" in capsys.readouterr().out


def test_a_setting_that_only_one_has_is_a_difference(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(config, "read", lambda name: ({"a": None} if name == "one" else {}, {}))
    assert wm("diff", "one", "other") == 1
    assert "null" in capsys.readouterr().out


def test_a_right_file_is_valid_and_a_wrong_one_is_reported_by_line(
    project: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert wm("validate") == wm("validate", ".") == 0
    assert "wm.toml: dreamerv3:ci on CartPole-v1, no errors" in capsys.readouterr().out
    (project / "wm.toml").write_text(TOML.replace("total_steps", "total_stps") + 'batch_size = "many"\n')
    assert wm("validate") == 1
    err = capsys.readouterr().err
    assert "line 4: training.total_stps is unknown; did you mean 'total_steps'?" in err
    assert "line 5: training.batch_size must be a whole number of at least 1, got 'many'" in err
    assert wm("validate", "nowhere.toml") == 1
    assert "nowhere.toml does not exist; create it with `wm init" in capsys.readouterr().err


def test_the_schema_has_every_key_and_no_other(capsys: pytest.CaptureFixture[str]) -> None:
    assert wm("schema", "--model", "tdmpc2:ci") == 0
    schema = json.loads(capsys.readouterr().out)
    assert schema == project_schema("tdmpc2") and schema["additionalProperties"] is False
    kinds = {**SECTIONS, "training": TrainingConfig, "architecture": config_class("tdmpc2")}
    for name, kind in kinds.items():
        part = schema["properties"][name]
        assert part["properties"].keys() == {f.name for f in fields(kind)} and part["additionalProperties"] is False
    assert schema["properties"].keys() == {"project_name", "environment", "model", *kinds}
    assert wm("schema") == 0
    families = json.loads(capsys.readouterr().out)["properties"]["architecture"]["anyOf"]
    assert [kind["title"] for kind in families] == [
        "VMCConfig",
        "EnsembleConfig",
        "ObjectsConfig",
        "DreamerV3Config",
        "TDMPC2Config",
    ]
    assert wm("schema", "--model", "wm.toml") == 1
    assert "must be a preset such as vmc:small, got 'wm.toml'" in capsys.readouterr().err


def test_types_bounds_choices_and_defaults_are_in_the_schema() -> None:
    data = _section_schema(SECTIONS["data"])["properties"]
    assert data["source"]["enum"] == ["gym", "random"] and data["source"]["default"] == "gym"
    assert data["num_steps"]["type"] == "integer" and data["num_steps"]["minimum"] == 1
    assert data["crop"] == {
        "type": "array", "prefixItems": [{"type": "integer"}] * 4, "minItems": 4, "maxItems": 4,
        "description": field_docs(SECTIONS["data"])["crop"],
    }  # fmt: skip
    assert data["env_kwargs"]["type"] == "object"
    assert _type_schema(tuple[str, ...] | None) == {"type": "array", "items": {"type": "string"}}
    assert _type_schema(int | str) == {"anyOf": [{"type": "integer"}, {"type": "string"}]}
    with pytest.raises(TypeError, match="no JSON Schema for"):
        _type_schema(complex)
