"""A strict flag parser that reads TOML files and takes its help from the docstrings of config fields."""

from __future__ import annotations

import sys
from difflib import get_close_matches
from pathlib import Path
from typing import Any, NoReturn

import jsonargparse

jsonargparse.set_parsing_settings(docstring_parse_attribute_docstrings=True)


class Parser(jsonargparse.ArgumentParser):
    """Reads TOML, accepts no abbreviations, and suggests the nearest flag for an unknown one."""

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(allow_abbrev=False, parser_mode="toml", **kwargs)
        self.usually: dict[str, str] = {}
        """What to give instead of a required flag, by flag."""

    def parse_args(self, args: Any = None, *more: Any, **named: Any) -> Any:
        """Parse `args`; report a missing `--config` file as such."""
        file = value_of("--config", list(args or []))
        # The value may also be inline TOML.
        is_path = file is not None and file != "-" and not {"=", "\n"} & set(file)
        if is_path and not Path(str(file)).expanduser().exists():
            self.error(f"--config: there is no file {file!r}")
        return super().parse_args(args, *more, **named)

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        known = [flag for action in self._actions for flag in action.option_strings]
        text = " ".join(message.split())
        wrong = text.partition("unrecognized arguments: ")[2].split(" ")[0].partition("=")[0]
        near = get_close_matches(wrong, known, n=1)
        hint = f"did you mean {near[0]}? " if near else ""
        if "required" in text:
            hint += "".join(f"{instead}; " for flag, instead in self.usually.items() if flag in text)
        print(f"{self.prog}: {text}; {hint}`{self.prog} --help` lists the flags", file=sys.stderr)
        raise SystemExit(2)


def value_of(flag: str, args: list[str]) -> str | None:
    """The value of `flag` in `args`, before they are parsed."""
    pairs = [a.partition("=") for a in args]
    after = [args[i + 1] for i, a in enumerate(args[:-1]) if a == flag]
    return next((value for key, _, value in pairs if key == flag and value), after[0] if after else None)


def flat(values: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested defaults under dotted names; free-form dicts (`kwargs`, `overrides`) stay whole."""
    dotted: dict[str, Any] = {}
    for key, value in values.items():
        if isinstance(value, dict) and key not in ("kwargs", "overrides"):
            dotted |= flat(value, f"{prefix}{key}.")
        else:
            dotted[prefix + key] = value
    return dotted
