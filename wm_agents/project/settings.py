"""Strict reading of a wm.toml: all errors are reported at once, with their lines, before any work is done."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any, NamedTuple

from wm_agents.errors import ConfigurationError, did_you_mean
from wm_agents.models.families import FAMILIES, config_class, resolve
from wm_agents.project.absent import ABSENT
from wm_agents.project.lines import find_lines, line_of
from wm_agents.project.schema import ONLINE_TRAINING, OPEN_SECTIONS, SECTIONS, TOP, UNUSED, Project
from wm_agents.system.files import PROJECT_FILE, read_toml
from wm_agents.training.config import TrainingConfig
from wm_envs.fields import FieldError, check_value
from wm_envs.trust import trust

Values = Mapping[str, Any]


class ProjectError(ConfigurationError):
    """All errors of a wm.toml."""


class _Problem(NamedTuple):
    """One error."""

    key: str
    """Dotted."""
    text: str


def load_project(path: str | Path = PROJECT_FILE, flags: Values | None = None) -> Project:
    """Read and check a wm.toml.

    Args:
        path: the file, or a folder that contains one.
        flags: values by dotted name that override the file, such as {"training.total_steps": 500}.

    Raises:
        FileNotFoundError: the file does not exist.
        ProjectError: the file has errors; the message lists all of them.
    """
    path = Path(path)
    if path.is_dir():
        path = path / PROJECT_FILE
    if not path.is_file():
        raise FileNotFoundError(f"{path} does not exist; create it with `wm init FOLDER --env ID`, or give --config")
    values = read_toml(path)
    for name, value in (flags or {}).items():
        _put(values, name.split("."), value)
    lines = find_lines(path.read_text(encoding="utf-8-sig"))
    if problems := Review(values).problems:
        raise ProjectError(_told(path, lines, flags or {}, problems))
    places = {name: f"line {line}" for name, line in lines.items()} | {name: f"--{name}" for name in flags or {}}
    trust(str(values["environment"]).rpartition(":")[0])  # Running a project runs its code anyway.
    return _build_project(values, path.resolve().parent, places)


def _build_project(values: Values, root: Path, places: Mapping[str, str]) -> Project:
    """The project of checked values."""
    family, size = resolve(values["model"]) or ("", "")
    parts = {name: section(**_with_tuples(values.get(name, {}))) for name, section in SECTIONS.items()}
    return Project(
        environment=values["environment"],
        model=values["model"],
        family=family,
        size=size,
        root=root,
        project_name=values.get("project_name", root.name),
        architecture=_with_tuples(values.get("architecture", {})),
        training=dict(values.get("training", {})),
        given=frozenset(f"{name}.{key}" for name in (*SECTIONS, *OPEN_SECTIONS) for key in values.get(name, {})),
        places=places,
        **parts,
    )


class Review:
    """Finds all errors in the values of a wm.toml that can be found without the environment."""

    def __init__(self, values: Values) -> None:
        self.values = values
        self.problems: list[_Problem] = []
        self.sections: dict[str, dict[str, Any]] = {k: part for k, part in values.items() if isinstance(part, dict)}
        self._top()
        for name, section in SECTIONS.items():
            self._known_keys(name, section)
        self._open("training", TrainingConfig, lambda given: TrainingConfig().replace(**given))
        if (found := self._model()) is not None:
            family, size = found
            kind = config_class(family)
            self._open("architecture", kind, lambda given: kind.from_size(size, **_with_tuples(given)))
            self._family(family)
            self._online(family)

    def say(self, key: str, text: str) -> None:
        self.problems.append(_Problem(key, text))

    def _top(self) -> None:
        known = (*TOP, *OPEN_SECTIONS, *SECTIONS)
        for name, value in self.values.items():
            if name not in known:
                self.say(name, _unknown(name, known))
            elif name in TOP and not (isinstance(value, str) and value):
                self.say(name, f"must be a text, got {value!r}")
            elif name not in TOP and not isinstance(value, dict):
                self.say(name, f"must be a section, [{name}], got {value!r}")
        if "environment" not in self.values:
            self.say("environment", 'is missing; for example environment = "CartPole-v1"')

    def _open(self, name: str, section: type, make: Callable[[dict[str, Any]], object]) -> None:
        """Check a section with the fields of a config: create the config, and repeat without each invalid
        field."""
        given = {key: self.sections[name][key] for key in self._known_keys(name, section)}
        while given:
            try:
                make(given)
                return
            except FieldError as error:
                self.say(f"{name}.{error.name}", error.problem)
                if error.name not in given:
                    return
                given.pop(error.name)
            except (ValueError, TypeError) as error:
                self.say(name, str(error))
                return

    def _known_keys(self, name: str, section: type) -> list[str]:
        """The keys of a section that exist, with values of the right type and range."""
        known = [f.name for f in fields(section)]
        right = []
        for key, value in self.sections.get(name, {}).items():
            if key not in known:
                self.say(f"{name}.{key}", _unknown(f"{name}.{key}", [f"{name}.{other}" for other in known]))
            elif (expected := check_value(section, key, value)) is not None:
                self.say(f"{name}.{key}", f"must be {expected}, got {value!r}")
            else:
                right.append(key)
        return right

    def _model(self) -> tuple[str, str] | None:
        """Family and size."""
        model = self.values.get("model")
        try:
            if isinstance(model, str) and (found := resolve(model)) is not None:
                return found
        except ConfigurationError as error:
            self.say("model", str(error))
            return None
        if "model" not in self.values or isinstance(model, str):
            hint = ""
            if isinstance(model, str):
                hint = did_you_mean(model, FAMILIES)
            got = ", and is missing"
            if model is not None:
                got = f"; got {model!r}{hint}"
            self.say("model", f'must be a preset such as "ensemble:default", "vmc:small" or "dreamerv3:ci"{got}')
        return None

    def _family(self, family: str) -> None:
        row = FAMILIES[family]
        for where, why in {**UNUSED[row.learns], **row.unused}.items():
            name, key = where.split(".")
            if key in self.sections.get(name, {}):
                self.say(where, f"has no effect for {family} ({why}); remove it")

    def _online(self, family: str) -> None:
        """Check the settings of online collection."""
        data, online, training = (self.sections.get(name, {}) for name in ("data", "online_collection", "training"))
        if online.get("enabled") is not True:
            return
        if data.get("source") == "random":
            self.say(
                "online_collection.enabled",
                'cannot be true with source = "random" in [data], because it needs the environment',
            )
        total, warmup = (
            part.get(key, _default(section, key))
            for part, section, key in ((data, "data", "num_steps"), (online, "online_collection", "warmup_transitions"))
        )
        if type(total) is type(warmup) is int and warmup >= total > 0:
            self.say(
                "online_collection.warmup_transitions", f"must be less than data.num_steps ({total}), got {warmup}"
            )
        if FAMILIES[family].learns != "online":
            return
        if "episode_length" in data:
            self.say("data.episode_length", f"has no effect while {family} collects online; use max_episode_steps")
        if "total_steps" in training:
            self.say(
                "training.total_steps",
                "is determined by data.num_steps and collect_steps_per_update while online_collection.enabled is true; "
                "remove it",
            )
        useful = {*ONLINE_TRAINING, "total_steps"}
        for key in (training.keys() & {f.name for f in fields(TrainingConfig)}) - useful:
            self.say(f"training.{key}", f"has no effect while {family} collects online; remove it")


def _unknown(where: str, siblings: Iterable[str]) -> str:
    """The message for an unknown key: the reason, or the nearest known key."""
    if where in ABSENT:
        return f"is not supported: {ABSENT[where]}"
    key, near = _last(where), [_last(name) for name in siblings]
    elsewhere = {_last(name): name for name in _every_key()}
    if key in elsewhere:
        return f"is unknown; did you mean {elsewhere[key]!r}?"
    hint = did_you_mean(key, near) or did_you_mean(key, elsewhere)
    return f"is unknown{hint or '; known keys: ' + ', '.join(sorted(near))}"


def _last(name: str) -> str:
    return name.rpartition(".")[2]


def _every_key() -> list[str]:
    """All keys of [training] and of the sections that do not depend on the family, dotted."""
    kinds = {**SECTIONS, "training": TrainingConfig}
    return [f"{name}.{f.name}" for name, kind in kinds.items() for f in fields(kind)]


def _default(section: str, key: str) -> Any:
    return {f.name: f.default for f in fields(SECTIONS[section])}[key]


def _with_tuples(values: Values) -> dict[str, Any]:
    return {key: tuple(value) if isinstance(value, list) else value for key, value in values.items()}


def _put(values: dict[str, Any], path: list[str], value: Any) -> None:
    for name in path[:-1]:
        values = values.setdefault(name, {})
    values[path[-1]] = value


def _told(path: Path, lines: Mapping[str, int], flags: Values, problems: list[_Problem]) -> str:
    """All errors, those of flags first, then in the order of their lines."""

    def place(problem: _Problem) -> tuple[int, str]:
        if problem.key in flags:
            return 0, f"--{problem.key}"
        line = line_of(dict(lines), problem.key)
        if line is not None:
            return (line, f"line {line}")
        return (0, path.name)

    told = sorted((*place(problem), f"{problem.key} {problem.text}") for problem in problems)
    count = "1 error"
    if len(told) > 1:
        count = f"{len(told)} errors"
    return "\n".join([f"{path} has {count}", *(f"  {where}: {text}" for _, where, text in told)])
