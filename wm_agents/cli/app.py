"""`wm`: each command is a function, and its flags are the arguments of the function.

Heavy modules are imported only when a command runs, so `wm --help` is fast.
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

from wm_agents.errors import EXIT_ERROR, EXIT_STOPPED, describe

GROUPS = {
    "projects": {
        "init": "create a project: wm.toml, train.py, inference.py, dataset.py",
        "train": "train the model of the project in this folder",
        "verify": "check a model against held-out real episodes",
    },
    "training": {
        "improve": "collect episodes, train a model and a controller, evaluate; in rounds or online",
        "curriculum": "train a list of tasks from scratch, each until it reaches its threshold",
        "evolve": "train a linear controller with CMA-ES, in a dream or in the real environment",
        "demo": "train a controller in the shipped dream and drive the real CarRacing-v3 with it",
    },
    "evaluation": {
        "evaluate": "score a model's policy on held-out real episodes and in its dream",
        "fidelity": "measure how closely a model's dream matches reality",
        "video": "record a video of a real episode beside its dream",
    },
    "data": {
        "collect": "record episodes of a real environment",
        "data": "info | convert | verify: inspect episodes, convert them to and from npz and Minari",
    },
    "maintenance": {
        "bench": "measure the speed of dreams, training and data on this machine",
        "doctor": "check this installation and say how to fix it",
        "config": "show | diff | validate | schema: presets, saved models and wm.toml",
        "models": "list | info | pull | push: presets, saved models, models on the Hub",
    },
}
"""The commands that `wm --help` lists, by topic."""
COMMANDS = {name: about for group in GROUPS.values() for name, about in group.items()}
RESUMABLE = ("train", "improve", "curriculum", "collect", "evolve")
APART = {"curriculum": "wm_agents.cli.curriculum"}
"""Commands that parse their own flags and handle their own signals and exit codes."""
TOOLS = {name: f"wm_agents.cli.{name}" for name in ("models", "data", "config", "doctor", "bench")}
"""Commands in separate modules, whose `main(flags, prog)` returns the exit code."""
TOOLS |= dict.fromkeys(("init", "train", "verify"), "wm_agents.cli.project")
ERRORS = {"verify": 3}
"""Exit codes of errors for commands where 1 has another meaning: 1 of `wm verify` is a model that failed."""


def main(argv: list[str] | None = None) -> int:
    """Run one command. Return 0 on success, 1 after an error, 2 after an interruption or invalid flags."""
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
        near = get_close_matches(name, COMMANDS, n=1)
        hint = f"did you mean {near[0]!r}?" if near else f"expected one of {', '.join(COMMANDS)}"
        print(f"wm: unknown command {name!r}; {hint}", file=sys.stderr)
        return EXIT_STOPPED
    if os.getcwd() not in sys.path:
        sys.path.append(os.getcwd())  # `--env module:Id-v0` finds a module in the current folder.
    if name in APART:
        status: int = import_module(APART[name]).main(flags, f"wm {name}")
        return status
    debug = "--debug" in flags
    if name != "doctor" and not any(os.environ.get(shown) for shown in ("DISPLAY", "WAYLAND_DISPLAY")):
        os.environ.setdefault("SDL_VIDEODRIVER", "dummy")  # Without a display, SDL must render to memory.
    # SIGTERM cleans up and exits as Ctrl-C does.
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
        then = "to resume" if name in RESUMABLE else "to start over"
        print(f"wm {name}: interrupted; run the same command {then}", file=sys.stderr)
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
    """The text of `wm --help`."""
    width = max(map(len, COMMANDS))
    rows = (
        f"{title}\n" + "".join(f"  {name:<{width}}  {about}\n" for name, about in group.items())
        for title, group in GROUPS.items()
    )
    return (
        "usage: wm COMMAND [flags]\n\n" + "\n".join(rows) + "\n"
        "`wm COMMAND --help` lists the flags of a command. --debug prints the traceback of an error.\n"
        f"The same command resumes an interrupted {', '.join(RESUMABLE)}."
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


if __name__ == "__main__":
    sys.exit(main())
