"""One grammar of flags for all commands, read from a function's signature or from a config dataclass.

Dashes and underscores are equivalent. A bool is a switch: `--x`, `--no-x`, `--x True`, `--x=no`. A tuple may
be written `0.0,0.3`. `--config FILE` reads the same names, with underscores, from a TOML file; flags override
it.
"""

from __future__ import annotations

import inspect
import json
import re
import sys
from collections.abc import Callable, Iterator
from dataclasses import is_dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import Any, NoReturn, get_args, get_origin

import docstring_parser
import jsonargparse

from wm_agents.errors import EXIT_STOPPED
from wm_envs.fields import fields_of, range_note

jsonargparse.set_parsing_settings(docstring_parse_attribute_docstrings=True)

WORDS = {"true": True, "1": True, "yes": True, "on": True, "false": False, "0": False, "no": False, "off": False}
RENAMED = {"as_json": "--json", "where": "--in"}
"""Flags that differ from the name of their argument, which would be unclear or a keyword in Python."""


class Parser(jsonargparse.ArgumentParser):
    """Reads TOML, accepts no abbreviations, and suggests the nearest flag for an unknown one."""

    def __init__(self, target: Callable[..., Any] | None = None, **kwargs: Any) -> None:
        """Create a parser with flags for `target`, a function or a dataclass; without it, the caller adds
        flags."""
        if target is not None:
            kwargs.setdefault("description", about(target))
        super().__init__(allow_abbrev=False, parser_mode="toml", **kwargs)
        self.usually: dict[str, str] = {}
        """An alternative to suggest when a required flag is missing, by flag."""
        self.also: dict[str, str] = {}
        """A second spelling, by argument."""
        self.following: list[str] = []
        """Seeds of parts that follow `--seed`, by argument."""
        self.reads_files = False
        self.kind: type = object
        """The config whose fields are the flags, if it is one."""
        if target is not None:
            self.add_flags_of(target)

    def add_config_flag(self) -> None:
        """Add `--config FILE`, which reads values from a TOML file; flags override them."""
        self.reads_files = True
        self.add_argument("--config", action="config", help="a TOML file with values for the flags, by name")

    def follow_seed(self) -> None:
        """Let the seed of every part, such as `--ppo.seed`, be that of `--seed` unless it is given."""
        self.following = [action.dest for action in self._actions if action.dest.endswith(".seed")]
        self.set_defaults(dict.fromkeys(self.following))
        for action in self._actions:
            if action.dest in self.following:
                action.help = "Random seed; null: that of `--seed`."

    def add_flags_of(self, target: Callable[..., Any]) -> None:
        """Add a flag for each argument; required arguments and a first string argument are positional."""
        params = inspect.signature(target).parameters
        if "config" not in params:
            self.add_config_flag()
        if is_dataclass(target):
            self.add_fields_of(target)
            return
        first = next(iter(params), "")
        may_lead = first not in ("", "out") and isinstance(params[first].default, str)
        optional: set[str | int] = {first} if may_lead else set()
        if optional:
            self.add_argument(first, nargs="?", default=params[first].default, help=_helps(target)[first])
        self.add_function_arguments(target, as_positional=True, fail_untyped=True, skip=optional)

    def add_fields_of(self, kind: type) -> None:
        """Add a flag for each field of a config; `build` makes the config of their values."""
        self.kind = kind
        self.add_class_arguments(kind, fail_untyped=True)
        self._add_ranges(kind)

    def build(self, values: dict[str, Any]) -> Any:
        """Return the config of `values`; an invalid one ends the program with exit code 2 and a one-line message."""
        try:
            return self.kind(**values)
        except ValueError as error:
            # The fields of the config are flags.
            text = re.sub(
                rf"\b{self.kind.__name__}\.(\w+)", lambda field: f"--{field[1]}".replace("_", "-"), str(error)
            )
            self.error(text)

    def _add_ranges(self, target: Any, prefix: str = "") -> None:
        """Add the ranges of a config's fields to the help."""
        for name, (field, hint) in fields_of(target).items():
            if is_dataclass(hint):
                self._add_ranges(hint, f"{prefix}{name}.")
            for action in self._actions:
                if action.dest == prefix + name:
                    action.help = " ".join([action.help or "", *range_note(field)]).strip()

    def parse_args(self, args: Any = None, *more: Any, **named: Any) -> Any:
        """Parse `args`, in which flags may have any of their spellings; report a missing `--config` file."""
        self.add_spellings()
        args = list(self._canonical(sys.argv[1:] if args is None else list(args)))
        file = value_of("--config", args)
        # The value may also be inline TOML.
        is_path = file is not None and file != "-" and not {"=", "\n"} & set(file)
        if is_path and not Path(str(file)).expanduser().exists():
            self.error(f"--config: no such file: {file!r}")
        return super().parse_args(args, *more, **named)

    def arguments(self, args: list[str]) -> dict[str, Any]:
        """Return the target's arguments; invalid flags end the program with exit code 2 and a one-line
        message."""
        parsed = self.parse_args(args)
        for seed in self.following:
            if parsed[seed] is None:
                parsed[seed] = parsed.seed
        values = dict(vars(self.instantiate(parsed)))
        if self.reads_files:
            values.pop("config")
        return values

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        known = [flag for action in self._actions for flag in action.option_strings]
        text = " ".join(message.split())
        wrong = text.partition("unrecognized arguments: ")[2].split(" ")[0].partition("=")[0]
        near = get_close_matches(wrong, known, n=1)
        hint = f"did you mean {near[0]}? " if near else ""
        if "required" in text:
            hint += "".join(f"{instead}; " for flag, instead in self.usually.items() if flag in text)
        print(f"{self.prog}: {text}; {hint}`{self.prog} --help` lists the flags", file=sys.stderr)
        raise SystemExit(EXIT_STOPPED)

    def add_spellings(self) -> None:
        """Show flags with dashes, and renamed flags under their new name."""
        for action in self._actions:
            if not action.option_strings or action.dest == "print_config":  # Its spelling is built in.
                continue
            flags = [flag.replace("_", "-") for flag in action.option_strings]
            if action.dest in RENAMED:
                flags = [RENAMED[action.dest]]
            if action.dest in self.also:
                flags.append(self.also[action.dest])
            action.option_strings = list(dict.fromkeys(flags))
            self._option_string_actions.update(dict.fromkeys(action.option_strings, action))
            if _hint_of(action) is bool:
                action.metavar = "True|False"

    def _canonical(self, args: list[str]) -> Iterator[str]:
        """Yield `args` with the registered names of flags, and with switches and tuples in TOML notation."""
        known = {flag: action for action in self._actions for flag in action.option_strings}
        position = 0
        while position < len(args):
            arg = args[position]
            position += 1
            name, equals, value = arg.partition("=")
            flag = name.replace("_", "-")
            if not arg.startswith("--"):
                yield arg
            elif flag.startswith("--no-") and not equals and _is_switch(known.get(f"--{flag[5:]}")):
                yield f"--{flag[5:]}=false"
            elif flag not in known:
                yield arg
            elif not equals and _is_switch(known[flag]):
                following = args[position] if position < len(args) else "--"
                takes = self._is_value_of(known[flag], following)
                position += takes
                yield f"{flag}={self._switched(flag, known[flag], following if takes else 'true')}"
            elif equals and _is_switch(known[flag]):
                yield f"{flag}={self._switched(flag, known[flag], value)}"
            elif _is_tuple(known[flag]):
                value = value if equals else "".join(args[position : position + 1])
                position += not equals
                yield f"{flag}={_listed(value, _holds_text(known[flag]))}"
            else:
                yield flag + equals + value

    def _is_value_of(self, action: Any, word: str) -> bool:
        """Return whether `word`, which follows a switch, is its value and not a separate argument."""
        if word.startswith("--"):
            return False
        positional = any(not other.option_strings for other in self._actions)
        return word.lower() in WORDS or _hint_of(action) is not bool or not positional

    def _switched(self, flag: str, action: Any, word: str) -> str:
        """Return a switch's value in TOML notation."""
        if word.lower() in WORDS:
            return str(WORDS[word.lower()]).lower()
        if _hint_of(action) is bool:
            self.error(f"{flag} must be True or False, got {word!r}")
        return word


def about(target: Callable[..., Any]) -> str:
    """Return the description in the docstring of a function or dataclass, without its arguments."""
    docs = docstring_parser.parse(target.__doc__ or "")
    return "\n\n".join(filter(None, (docs.short_description, docs.long_description)))


def value_of(flag: str, args: list[str]) -> str | None:
    """Return the value of `flag` in `args` before they are parsed."""
    pairs = [a.partition("=") for a in args]
    after = [args[i + 1] for i, a in enumerate(args[:-1]) if a == flag]
    return next((value for key, _, value in pairs if key == flag and value), after[0] if after else None)


def flat(values: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Flatten nested defaults to dotted names; free-form dicts (`kwargs`, `overrides`) stay whole."""
    dotted: dict[str, Any] = {}
    for key, value in values.items():
        if isinstance(value, dict) and key not in ("kwargs", "overrides"):
            dotted |= flat(value, f"{prefix}{key}.")
        else:
            dotted[prefix + key] = value
    return dotted


def _helps(target: Callable[..., Any]) -> dict[str, str]:
    params = docstring_parser.parse(target.__doc__ or "").params
    return {param.arg_name: param.description or "" for param in params}


def _hint_of(action: Any) -> Any:
    return getattr(action, "_typehint", None)


def _is_switch(action: Any) -> bool:
    return bool in (_hint_of(action), *get_args(_hint_of(action)))


def _is_tuple(action: Any) -> bool:
    hint = _hint_of(action)
    return tuple in (get_origin(hint), *map(get_origin, get_args(hint)))


def _holds_text(action: Any) -> bool:
    hint = _hint_of(action)
    return any(str in get_args(part) for part in (hint, *get_args(hint)) if get_origin(part) is tuple)


def _listed(value: str, text: bool) -> str:
    """Return `0.0,0.3`, or the words `tanh,clip`, as a TOML list."""
    plain = value[:1] not in ("[", '"', "'") and value != "null" and value != ""
    if plain and text:
        return json.dumps([word.strip() for word in value.split(",")])
    return f"[{value}]" if plain else value
