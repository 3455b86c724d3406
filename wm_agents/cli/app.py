"""`wm`: every command is a function, its flags are the function's arguments.

Nothing heavy is imported before there is a command to run, so `wm --help` stays quick.
"""

from __future__ import annotations

import os
import select
import signal
import sys
from difflib import get_close_matches
from importlib import import_module
from importlib.metadata import version
from io import TextIOWrapper

GROUPS = {
    "a project": {
        "init": "write a new project: wm.toml, train.py, inference.py, dataset.py",
        "train": "train the model of the project in this folder, as wm.toml says",
        "verify": "hold a model against reality, on real episodes that no training has seen",
    },
    "learn": {
        "improve": "collect, learn, dream and judge in rounds",
        "curriculum": "take tasks in order, each from nothing to promoted, with reports and films",
        "evolve": "evolve a linear controller in a model's dream, or in the real environment",
        "demo": "train a controller in the shipped dream, drive the real car with it, film both",
    },
    "judge": {
        "evaluate": "score a model's policy over held-out real episodes, beside its dream score",
        "fidelity": "measure how far a model's dream is what really comes, as a page and as JSON",
        "video": "record a real episode beside the dream of it",
    },
    "data": {
        "collect": "record episodes of a real environment",
        "data": "info | convert | verify: recorded episodes, to and from Minari and npz",
    },
    "look after": {
        "bench": "how fast dreams, training and data are here",
        "doctor": "whether this machine can do all this, and what to do if not",
        "config": "show | diff | validate | schema: presets, saved models and wm.toml",
        "models": "list | info | pull | push: presets, saved models, models on the Hub",
    },
}
"""What `wm --help` lists, by what one wants to do."""
COMMANDS = {name: about for group in GROUPS.values() for name, about in group.items()}
RESUMABLE = ("train", "improve", "curriculum", "collect", "evolve")
APART = {"curriculum": "wm_agents.cli.curriculum"}
"""Commands with flags, signals and exit codes of their own."""
TOOLS = {name: f"wm_agents.cli.{name}" for name in ("models", "data", "config", "doctor", "bench")}
"""Commands in modules of their own, whose `main(flags, prog)` gives the exit code."""
TOOLS |= dict.fromkeys(("init", "train", "verify"), "wm_agents.cli.project")
EXIT_ERROR, EXIT_STOPPED = 1, 2
ERRORS = {"verify": 3}
"""Exit codes of errors where 1 has a meaning of its own: a model that was judged and not verified."""
CLEAR = (ValueError, OSError, RuntimeError, ArithmeticError)
"""Errors that say in plain words what is wrong; any other is named, for it may be ours."""


def main(argv: list[str] | None = None) -> int:
    """Run one command; 0 is success, 1 a clear error on one line, 2 an interruption or wrong flags."""
    args = sys.argv[1:] if argv is None else argv
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, TextIOWrapper):
            stream.reconfigure(errors="replace")  # A terminal that knows ASCII alone gets a ? for what is not.
    if not args or args[0] in ("-h", "--help"):
        print(usage())
        return 0
    if args[0] == "--version":
        print(f"wm {version('dreams-as-envs')}")
        return 0
    name, *flags = args
    if name not in COMMANDS:
        near = get_close_matches(name, COMMANDS, n=1)
        hint = f"did you mean {near[0]!r}?" if near else f"expected one of {', '.join(COMMANDS)}"
        print(f"wm: unknown command {name!r}; {hint}", file=sys.stderr)
        return EXIT_STOPPED
    if os.getcwd() not in sys.path:
        sys.path.append(os.getcwd())  # `--env module:Id-v0` finds a module that lies here, as python itself would.
    if name in APART:
        status: int = import_module(APART[name]).main(flags, f"wm {name}")
        return status
    debug = "--debug" in flags
    if name != "doctor" and not any(os.environ.get(shown) for shown in ("DISPLAY", "WAYLAND_DISPLAY")):
        os.environ.setdefault("SDL_VIDEODRIVER", "dummy")  # Else SDL complains where pictures are drawn to memory.
    # SIGTERM cleans up and ends as Ctrl-C does.
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        flags = [flag for flag in flags if flag != "--debug"]
        if name in TOOLS:
            status = import_module(TOOLS[name]).main(flags, f"wm {name}")
            sys.stdout.flush()
            return status
        import_module("wm_agents.cli.commands").run(name, flags)
        sys.stdout.flush()
    except KeyboardInterrupt:
        then = "goes on from what was done" if name in RESUMABLE else "starts afresh"
        print(f"wm {name}: interrupted; the same command {then}", file=sys.stderr)
        return EXIT_STOPPED
    except Exception as error:
        if isinstance(error, BrokenPipeError) and _nobody_reads():
            return EXIT_ERROR
        if debug:
            raise
        print(f"wm {name}: {describe(error)}", file=sys.stderr)
        return ERRORS.get(name, EXIT_ERROR)
    finally:
        signal.signal(signal.SIGTERM, before)
    return 0


def usage() -> str:
    """What `wm --help` prints."""
    width = max(map(len, COMMANDS))
    rows = (
        f"{title}\n" + "".join(f"  {name:<{width}}  {about}\n" for name, about in group.items())
        for title, group in GROUPS.items()
    )
    return (
        "usage: wm COMMAND [flags]\n\n" + "\n".join(rows) + "\n"
        f"{', '.join(RESUMABLE)}: the same command goes on where it was stopped.\n"
        "`wm COMMAND --help` lists the command's flags; --debug shows where an error came from; `wm --version`."
    )


def describe(error: Exception) -> str:
    """The error in words."""
    text = str(error)
    if (isinstance(error, CLEAR) and text) or (isinstance(error, ImportError) and "pip install" in text):
        return text
    return f"{type(error).__name__}: {text} (--debug shows where)"


def _nobody_reads() -> bool:
    """Whether stdout was closed, as by `| head`; what is still to come goes nowhere then."""
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


if __name__ == "__main__":
    sys.exit(main())
