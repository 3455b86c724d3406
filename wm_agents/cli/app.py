"""`wm`: a table of commands. Each is a function, and its flags are the arguments of the function.

Heavy modules are imported only when a command runs, so `wm --help` is fast.
"""

from __future__ import annotations

import os
import select
import signal
import sys
from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from importlib import import_module
from importlib.metadata import version
from io import TextIOWrapper
from itertools import groupby
from typing import TYPE_CHECKING, Any, NamedTuple

from wm_agents.cli.brief import BRIEFS
from wm_agents.errors import EXIT_ERROR, EXIT_STOPPED, describe, did_you_mean
from wm_agents.system.pulse import Pulse

if TYPE_CHECKING:
    from wm_agents.cli.flags import Parser


class Command(NamedTuple):
    """A command of `wm`; places are `module:name` in wm_agents.cli."""

    topic: str
    about: str
    target: str
    """A function, or a table of functions by verb. The function returns the exit code, or None for 0."""
    parser: str | None = None
    """If some flags exist only for certain values of others: a function that takes the flags and returns the parser."""
    resumes: bool = False
    """The same command resumes an interrupted run."""
    error: int = EXIT_ERROR
    """Exit code after an error; 3 for commands whose exit code 1 is a result, such as `wm verify`: not verified."""
    usage: int = EXIT_STOPPED
    """Exit code after invalid flags."""


COMMANDS = {
    "init": Command(
        "projects",
        "create a project folder for an environment, with all settings in wm.toml",
        "project:init",
    ),
    "train": Command(
        "projects",
        "like improve, with the settings of wm.toml in this folder",
        "project:train",
        "project:TrainParser",
        resumes=True,
    ),
    "verify": Command(
        "projects",
        "check that a model predicts held-out real episodes",
        "project:verify",
        error=3,
    ),
    "improve": Command(
        "training",
        "collect real episodes, train a model, train a controller in its dream, evaluate, repeat",
        "commands:improve",
        "commands:ImproveParser",
        resumes=True,
    ),
    "curriculum": Command(
        "training",
        "train models and controllers for a list of tasks, each until its mean return reaches a threshold",
        "curriculum:curriculum",
        "curriculum:CurriculumParser",
        resumes=True,
        error=3,
        usage=3,
    ),
    "sweep": Command(
        "training",
        "run improve with several seeds, tasks and settings; a table and a plot at the end",
        "sweep:sweep",
        "sweep:SweepParser",
        resumes=True,
    ),
    "evolve": Command(
        "training",
        "train a linear controller with CMA-ES, in a dream or in the real environment",
        "commands:evolve",
        resumes=True,
    ),
    "demo": Command(
        "training", "train a controller in Dream-CarRacing-v0 and drive the real CarRacing-v3 with it", "commands:demo"
    ),
    "evaluate": Command(
        "evaluation", "score a model's policy in the real environment and in its dream", "commands:evaluate"
    ),
    "transfer": Command(
        "evaluation",
        "train new controllers in a model's dream and score each in the real environment",
        "commands:transfer",
        resumes=True,
    ),
    "fidelity": Command(
        "evaluation",
        "measure how closely a model's dream matches reality",
        "commands:fidelity",
    ),
    "video": Command(
        "evaluation",
        "record a video of a real episode beside its dream",
        "commands:video",
    ),
    "play": Command(
        "browser",
        "play a dream and the real environment side by side in the browser",
        "web:play",
    ),
    "export": Command(
        "browser",
        "export a dream as ONNX graphs, or as a web page without a server",
        "web:export",
    ),
    "dashboard": Command(
        "browser",
        "show runs in the browser: curves as they grow, returns, videos, disk space",
        "web:dashboard",
    ),
    "collect": Command(
        "data",
        "record episodes of a real environment",
        "commands:collect",
        resumes=True,
    ),
    "data": Command("data", "describe, convert and check recorded episodes: info, convert, verify", "data:VERBS"),
    "bench": Command(
        "maintenance",
        "measure the speed of dreams, training and data on this machine",
        "bench:bench",
    ),
    "doctor": Command(
        "maintenance",
        "check this installation and say how to fix it",
        "doctor:doctor",
    ),
    "config": Command("maintenance", "print, compare and check settings: show, diff, validate, schema", "config:VERBS"),
    "models": Command(
        "maintenance", "list, describe, download and upload models: list, info, pull, push", "models:VERBS"
    ),
}
"""All commands, in the order of `wm --help`."""


def main(argv: list[str] | None = None) -> int:
    """Run one command. Return 0 on success and 2 after an interruption; other codes are those of the `Command`."""
    args = sys.argv[1:] if argv is None else argv
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, TextIOWrapper):
            stream.reconfigure(errors="replace")  # An ASCII terminal prints ? for other characters.
    if not args or args[0] in ("-h", "--help"):
        print(usage())
        return 0
    if args[0] == "--version":
        print(f"wm {version('dreams-as-envs')}")
        return 0
    name, *flags = args
    if name not in COMMANDS:
        hint = did_you_mean(name, COMMANDS) or f"; expected one of {', '.join(COMMANDS)}"
        print(f"wm: unknown command {name!r}{hint}", file=sys.stderr)
        return EXIT_STOPPED
    try:
        here = os.getcwd()
    except FileNotFoundError:
        print("wm: the working directory was removed; change to another one", file=sys.stderr)
        return EXIT_ERROR
    if here not in sys.path:
        sys.path.append(here)  # `--env module:Id-v0` finds modules in the working directory, as python does.
    if name not in ("doctor", "curriculum") and not any(os.environ.get(x) for x in ("DISPLAY", "WAYLAND_DISPLAY")):
        os.environ.setdefault("SDL_VIDEODRIVER", "dummy")  # Else SDL complains where frames are rendered to memory.
    return _run(name, flags)


def _run(name: str, flags: list[str]) -> int:
    """Parse the flags of a command and call it; errors are one line on stderr, and an exit code."""
    command = COMMANDS[name]
    debug = "--debug" in flags
    flags = _trusting([flag for flag in flags if flag != "--debug"])
    if name in BRIEFS and {"-h", "--help"} & set(flags):
        print(BRIEFS[name].text(f"wm {name}"))
        return 0
    flags = ["--help" if flag.replace("_", "-") == "--help-all" else flag for flag in flags]
    # SIGTERM cleans up and ends as Ctrl-C does.
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        try:
            with _alive(name):  # Imports and environments may take a while.
                target, parser, flags = parser_of(name, flags)
                arguments = parser.arguments(flags)
        except SystemExit as stop:
            return command.usage if stop.code else 0
        with _alive(name), _output(arguments):
            status: int | None = target(**arguments)
        sys.stdout.flush()
        return status or 0
    except SystemExit as stop:
        print(f"wm {name}: an environment, or another library, raised SystemExit({stop.code!r})", file=sys.stderr)
        return command.error
    except KeyboardInterrupt:
        then = "resume" if command.resumes else "start over"
        print(f"wm {name}: interrupted; run the same command to {then}", file=sys.stderr)
        return EXIT_STOPPED
    except Exception as error:
        if isinstance(error, BrokenPipeError) and _nobody_reads():
            return EXIT_ERROR
        if debug:
            raise
        print(f"wm {name}: {describe(error)}", file=sys.stderr)
        return command.error
    finally:
        signal.signal(signal.SIGTERM, before)


def _alive(name: str) -> AbstractContextManager[object]:
    """Prints a line when a command has been silent for five seconds, except for commands that serve a web page."""
    return nullcontext() if COMMANDS[name].topic == "browser" else Pulse(f"wm {name}", sys.stderr)


def _output(arguments: dict[str, Any]) -> AbstractContextManager[None]:
    """With `--json`, stdout is one JSON object and nothing else."""
    if not arguments.get("as_json"):
        return nullcontext()
    from wm_agents.cli.printing import json_alone

    return json_alone()


def _trusting(flags: list[str]) -> list[str]:
    """Trust the modules of `--trust-module NAME`, which every command takes; return the other flags."""
    from wm_envs.trust import trust

    others: list[str] = []
    words = iter(flags)
    for word in words:
        name, equals, value = word.partition("=")
        if name.replace("_", "-") != "--trust-module":
            others.append(word)
            continue
        trust(value if equals else next(words, ""))
    return others


def parser_of(name: str, flags: list[str]) -> tuple[Any, Parser, list[str]]:
    """The function of a command, its parser, and the flags without the verb.

    Raises:
        SystemExit: help for a command with verbs, or an unknown verb.
    """
    from wm_agents.cli.flags import Parser, about

    command, prog = COMMANDS[name], f"wm {name}"
    target: Any = _load(command.target)
    if command.parser is not None:
        return target, _load(command.parser)(flags, prog), flags
    if isinstance(target, Mapping):
        verb, *flags = flags or ["--help"]
        if verb in ("-h", "--help"):
            width = max(map(len, target))
            rows = "\n".join(f"  {verb:<{width}}  {about(of).splitlines()[0]}" for verb, of in target.items())
            print(f"usage: {prog} VERB [flags]\n\n{rows}\n\n`{prog} VERB --help` lists the verb's flags.")
            raise SystemExit(0)
        if verb not in target:
            hint = did_you_mean(verb, target) or f"; expected one of {', '.join(target)}"
            print(f"{prog}: unknown verb {verb!r}{hint}", file=sys.stderr)
            raise SystemExit(EXIT_STOPPED)
        target, prog = target[verb], f"{prog} {verb}"
    return target, Parser(target, prog=prog), flags


def _load(place: str) -> Any:
    module, name = place.split(":")
    return getattr(import_module(f"wm_agents.cli.{module}"), name)


def usage() -> str:
    """The text of `wm --help`."""
    width = max(map(len, COMMANDS))
    topics = groupby(COMMANDS.items(), key=lambda item: item[1].topic)
    rows = [
        f"{topic}\n" + "".join(f"  {name:<{width}}  {command.about}\n" for name, command in group)
        for topic, group in topics
    ]
    resumable = ", ".join(name for name, command in COMMANDS.items() if command.resumes)
    return (
        "usage: wm COMMAND [flags]\n\n"
        "A model is a world model of a Gymnasium environment. Its dream is the model used as an environment.\n\n"
        + "\n".join(rows)
        + "\n`wm COMMAND --help` explains the flags of a command. These flags work with every command:\n"
        "  --debug              print the traceback of an error\n"
        "  --trust-module NAME  import this module if a saved model or dataset names it (this runs its code)\n\n"
        f"After an interruption, the same command resumes: {resumable}."
    )


def _nobody_reads() -> bool:
    """Whether stdout was closed, as by `| head`; if so, further output is discarded."""
    try:
        out = sys.stdout.fileno()
    except OSError:
        return False
    ask = select.poll()
    ask.register(out, 0)
    if not any(event & select.POLLERR for _, event in ask.poll(0)):
        return False
    os.dup2(os.open(os.devnull, os.O_WRONLY), out)
    return True
