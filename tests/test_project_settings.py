"""A wm.toml is strict: what is unknown, of the wrong type, out of range or contradictory is told at once, by line."""

from __future__ import annotations

import ast
from dataclasses import fields
from pathlib import Path
from typing import Any, Literal

import pytest

from wm_agents.cli.project_flags import keys_of, said
from wm_agents.errors import ConfigurationError
from wm_agents.models.families import FAMILIES
from wm_agents.project import schema
from wm_agents.project.absent import ABSENT
from wm_agents.project.lines import find_lines, line_of
from wm_agents.project.schema import SECTIONS, UNUSED, DataSection, Project
from wm_agents.project.settings import ProjectError, _every_key, load_project
from wm_agents.training.config import TrainingConfig
from wm_envs.fields import _describe_type, _has_type

PACKAGE = Path(schema.__file__).parent
LEAST = 'environment = "CartPole-v1"\nmodel = "ensemble:default"\n'


def load(folder: Path, text: str, flags: dict[str, Any] | None = None) -> Project:
    (folder / "wm.toml").write_text(text)
    return load_project(folder / "wm.toml", flags)


def told(folder: Path, text: str, flags: dict[str, Any] | None = None) -> list[str]:
    """What is wrong, a line each, without the first line."""
    with pytest.raises(ProjectError) as caught:
        load(folder, text, flags)
    return [line.strip() for line in str(caught.value).splitlines()[1:]]


def test_two_lines_are_a_project(tmp_path: Path) -> None:
    project = load(tmp_path, LEAST)
    assert (project.environment, project.family, project.size) == ("CartPole-v1", "ensemble", "default")
    assert project.data == DataSection() and project.training == {} and project.given == frozenset()
    assert project.project_name == tmp_path.name
    assert project.out == tmp_path / "outputs" and project.checkpoint == tmp_path / "outputs" / "model"
    assert load_project(tmp_path) == project


def test_every_section_is_read(tmp_path: Path) -> None:
    text = LEAST.replace("ensemble:default", "vmc:small") + (
        "project_name = 'mine'\n"
        "[architecture]\nz_dim = 16\nobs_shape = [64, 64, 3]\n"
        "[training]\ntotal_steps = 5\nsequence_length = 8\noutput_dir = 'out'\n"
        "[data]\nsize = 64\ncrop = [1, 2, 3, 4]\nenv_kwargs = { continuous = false }\n"
        "[online_collection]\nenabled = true\nrounds = 3\n"
        "[controller]\nkind = 'linear'\n[gameplay]\nfps = 8\n[visualization]\nenabled = false\n"
        "[inference]\ncheckpoint = 'other'\n[verify]\nmode = 'proof'\n"
    )
    project = load(tmp_path, text)
    assert project.project_name == "mine" and project.architecture == {"z_dim": 16, "obs_shape": (64, 64, 3)}
    assert project.training["total_steps"] == 5 and project.data.crop == (1, 2, 3, 4)
    assert project.data.env_kwargs == {"continuous": False} and project.online_collection.rounds == 3
    assert project.controller.kind == "linear" and project.gameplay.fps == 8 and project.verify.mode == "proof"
    assert not project.visualization.enabled
    assert project.out == tmp_path / "out" and project.checkpoint == tmp_path / "other"
    assert "data.size" in project.given and "data.num_steps" not in project.given


def test_flags_win_over_the_file(tmp_path: Path) -> None:
    text = LEAST + "[training]\ntotal_steps = 5\nbatch_size = 3\n"
    project = load(tmp_path, text, {"training.total_steps": 7, "data.num_steps": 9, "model": "vmc:ci"})
    assert project.training == {"total_steps": 7, "batch_size": 3}
    assert project.data.num_steps == 9 and project.family == "vmc"


def test_everything_that_is_wrong_is_reported_at_once_by_line(tmp_path: Path) -> None:
    text = """\
environment = "CartPole-v1"
model = "ensemble:default"
colour = 3

[architecture]
hiden = 3
layers = 0
members = "five"

[training]
total_stepz = 3
batch_size = 0
learning_rate = -1.0
scheduler = "onecicle"

[data]
num_episodes = 3
num_steps = 0
batch_size = 3
source = "gim"

[verfy]
mode = "quick"
"""
    lines = told(tmp_path, text, {"training.seed": -1})
    starts = [line.partition(":")[0] for line in lines]
    assert starts == ["--training.seed", *(f"line {n}" for n in (3, 6, 7, 8, 11, 12, 13, 14, 17, 18, 19, 20, 22))]
    expected = [
        "training.seed must be a whole number of at least 0, got -1",
        "colour is unknown; known keys: architecture, controller,",
        "architecture.hiden is unknown; did you mean 'hidden'?",
        "architecture.layers must be a whole number of at least 1, got 0",
        "architecture.members must be a whole number of at least 1, got 'five'",
        "training.total_stepz is unknown; did you mean 'total_steps'?",
        "training.batch_size must be a whole number of at least 1, got 0",
        "training.learning_rate must be a number above 0, got -1.0",
        "training.scheduler must be one of 'none', 'constant', 'linear', 'cosine', 'onecycle', 'plateau', got 'onecic",
        "data.num_episodes is not supported: set num_steps, because data are counted in real steps",
        "data.num_steps must be a whole number of at least 1, got 0",
        "data.batch_size is unknown; did you mean 'training.batch_size'?",
        "data.source must be one of 'gym', 'random', got 'gim'",
        "verfy is unknown; did you mean 'verify'?",
    ]
    for line, text in zip(lines, expected, strict=True):
        assert text in line


def test_the_first_line_names_the_file_and_counts(tmp_path: Path) -> None:
    with pytest.raises(ProjectError, match=r"wm.toml has 1 error\n  line 3: verify must be a section, \[verify\]"):
        load(tmp_path, LEAST + "verify = 3\n")
    with pytest.raises(ProjectError, match="wm.toml has 2 errors"):
        load(tmp_path, LEAST + "verify = 3\ndata = 4\n")
    with pytest.raises(FileNotFoundError, match="create it with `wm init FOLDER --env ID`"):
        load_project(tmp_path / "nowhere")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('environment = "A-v0"\n', 'wm.toml: model must be a preset such as "ensemble:default", "vmc:small"'),
        ('model = "ensemble:default"\n', 'wm.toml: environment is missing; for example environment = "CartPole-v1"'),
        ('environment = 3\nmodel = "vmc:small"\n', "line 1: environment must be a text, got 3"),
        ('environment = "A-v0"\nmodel = "ensembl:default"\n', "family must be one of"),
        ('environment = "A-v0"\nmodel = "ensemble:defualt"\n', "did you mean 'default'?"),
        ('environment = "A-v0"\nmodel = "ensemble"\n', None),
        ('environment = "A-v0"\nmodel = "ensembles"\n', "; got 'ensembles'; did you mean 'ensemble'?"),
    ],
)
def test_environment_and_model_must_be_there(text: str, message: str | None, tmp_path: Path) -> None:
    if message is None:
        assert load(tmp_path, text).size == "default"
        return
    (line,) = told(tmp_path, text)
    assert message in line


def test_what_is_not_a_toml_says_where(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match=r"wm.toml is not valid TOML: .*line 3"):
        load(tmp_path, LEAST + "x = = 3\n")
    with pytest.raises(ConfigurationError, match=r"not valid TOML: .*\n  line 4: num_steps = 20 00$"):
        load(tmp_path, LEAST + "[data]\n  num_steps = 20 00\n")
    with pytest.raises(ConfigurationError, match=r"not valid TOML: [^\n]*$"):
        load(tmp_path, LEAST + 'x = """\n')  # Only at the end does it lack something.


@pytest.mark.parametrize(
    ("model", "text", "message"),
    [
        (
            "ensemble:ci",
            "[training]\nsequence_length = 5",
            "training.sequence_length has no effect for ensemble",
        ),
        ("vmc:ci", "[data]\nbuffer_capacity = 5", "data.buffer_capacity has no effect for vmc"),
        (
            "tdmpc2:ci",
            "[controller]\nkind = 'ppo'",
            "controller.kind has no effect for tdmpc2 (it has its own",
        ),
        ("dreamerv3:ci", "[online_collection]\nrounds = 3", "online_collection.rounds has no effect for dreamerv3"),
        ("vmc:ci", "[online_collection]\nnum_envs = 2", "online_collection.num_envs has no effect for vmc"),
        (
            "vmc:ci",
            "[online_collection]\nenabled = true\n[data]\nsource = 'random'",
            'online_collection.enabled cannot be true with source = "random"',
        ),
        (
            "vmc:ci",
            "[online_collection]\nenabled = true\nwarmup_transitions = 2000",
            "warmup_transitions must be less than data.num_steps (2000), got 2000",
        ),
        (
            "tdmpc2:ci",
            "[online_collection]\nenabled = true\n[training]\ntotal_steps = 5",
            "training.total_steps is determined by data.num_steps and collect_steps_per_update",
        ),
        (
            "dreamerv3:ci",
            "[online_collection]\nenabled = true\n[training]\nscheduler = 'cosine'",
            "training.scheduler has no effect while dreamerv3 collects online",
        ),
        (
            "dreamerv3:ci",
            "[online_collection]\nenabled = true\n[data]\nepisode_length = 50",
            "data.episode_length has no effect while dreamerv3 collects online",
        ),
    ],
)
def test_what_would_do_nothing_is_rejected(model: str, text: str, message: str, tmp_path: Path) -> None:
    (line,) = told(tmp_path, f'environment = "A-v0"\nmodel = "{model}"\n{text}\n')
    assert message in line and line.startswith("line ")


def test_settings_that_only_go_together_are_no_errors_alone(tmp_path: Path) -> None:
    text = LEAST + "[training]\nmin_lr = 1e-2\nlearning_rate = 1e-1\nscheduler = 'linear'\n"
    assert load(tmp_path, text).training["min_lr"] == 1e-2
    (line,) = told(tmp_path, text.replace("1e-1", "1e-3"))
    assert line == "line 4: training.min_lr must be at most learning_rate (0.001), got 0.01"


@pytest.mark.parametrize("key", [key for key in ABSENT if "." in key])
def test_a_key_that_is_explained_away_does_not_exist(key: str, tmp_path: Path) -> None:
    assert key not in _every_key() and key.partition(".")[0] in (*SECTIONS, "training", "architecture")
    section, name = key.split(".")
    (line,) = told(tmp_path, LEAST + f"[{section}]\n{name} = 3\n")
    assert line == f"line 4: {key} is not supported: {ABSENT[key]}"


def test_keys_for_some_families_only_exist() -> None:
    unused = [part for family in FAMILIES.values() for part in (UNUSED[family.learns], family.unused)]
    assert {key for part in unused for key in part} <= set(_every_key())


def test_lines_are_found_in_any_layout() -> None:
    text = '''\
a = 1
"b c" = """
[x]
d = 1
"""
e = [
  "]", # ]
  2,
]
[t]
f = { g = 1 } # {
h.i = 'x = 1'
[ t.u ]
j = """one""" # [
k = 1
'''
    lines = find_lines(text)
    assert lines == {"a": 1, "b c": 2, "e": 6, "t": 10, "t.f": 11, "t.h.i": 12, "t.u": 13, "t.u.j": 14, "t.u.k": 15}
    assert line_of(lines, "t.f.g") == 11 and line_of(lines, "t.z") == 10 and line_of(lines, "z.z") is None


@pytest.mark.parametrize(
    ("value", "hint", "fits"),
    [
        (1, int, True), (True, int, False), (1.0, int, False), (1, float, True), (True, float, False),
        ("x", str, True), (1, int | None, True), ("x", int | None, False), (None, int | None, True),
        ("a", Literal["a", 1], True), (True, Literal["a", 1], False), ([1, 2], tuple[int, ...], True),
        ([1, "2"], tuple[int, ...], False), ([1, 2], tuple[int, int, int], False), ({}, dict[str, Any], True),
        (3, dict[str, Any], False), (object(), Any, True),
    ],
)  # fmt: skip
def test_values_fit_the_types_of_fields(value: Any, hint: Any, fits: bool) -> None:
    assert _has_type(value, hint) is fits


def test_types_are_named_describe_type() -> None:
    assert _describe_type(tuple[int, int]) == "a list of 2 whole numbers"
    assert _describe_type(tuple[float, ...]) == "a list of numbers"
    assert _describe_type(int | None) == "a whole number"
    assert _describe_type(Literal["a", "b"]) == "one of 'a', 'b'"


def test_every_key_is_a_flag_with_help() -> None:
    keys = {key.name: key for key in keys_of("ensemble")}
    assert "architecture.hidden" in keys and "verify.mode" not in keys
    assert {f"training.{f.name}" for f in fields(TrainingConfig)} <= keys.keys()
    assert keys["data.num_steps"].about.startswith("Agent steps in the real environment")
    assert {key.name.split(".")[0] for key in keys_of(None)} == {
        "training", "data", "online_collection", "controller", "gameplay", "visualization",
    }  # fmt: skip


def test_flags_are_dotted_names() -> None:
    given = {"config": "x", "model": "m", "training": {"seed": 3}, "data": {"env_kwargs": {"a": 1}}}
    assert said(given) == {"model": "m", "training.seed": 3, "data.env_kwargs": {"a": 1}}


def test_every_key_is_read_by_something() -> None:
    """Each key of the sections is an attribute that the package reads of a section."""
    read: set[str] = set()
    for path in PACKAGE.parent.rglob("*.py"):
        if path.name == "schema.py":
            continue
        tree = ast.parse(path.read_text())
        read |= {node.attr for node in ast.walk(tree) if isinstance(node, ast.Attribute)}
    template = (PACKAGE / "template.py").read_text()
    missing = [
        f"{name}.{f.name}"
        for name, section in SECTIONS.items()
        for f in fields(section)
        if f.name not in read and f"project.{name}.{f.name}" not in template
    ]
    assert missing == []


def test_errors_of_projects_are_configuration_errors() -> None:
    assert issubclass(ProjectError, ConfigurationError) and issubclass(ProjectError, ValueError)
