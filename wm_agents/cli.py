"""`wm`: every command is a function, its flags are the function's arguments.

Only the command that is called is imported, so `wm --help` stays quick.
"""

from __future__ import annotations

import sys
from importlib import import_module

COMMANDS = {
    "improve": "collect, learn, dream and judge in rounds; resumes where it was stopped",
    "collect": "record episodes of a real environment",
    "evolve": "evolve a linear controller in a model's dream, or in the real environment",
    "evaluate": "score a model's policy over held-out real episodes, beside its dream score",
    "video": "record a real episode beside the dream of it",
    "demo": "train a controller in the shipped dream, drive the real car with it, film both",
}
EXIT_ERROR, EXIT_INTERRUPTED = 1, 2


def main(argv: list[str] | None = None) -> int:
    """Run one command; 0 is success, 1 a clear error on one line, 2 an interruption or wrong flags."""
    args = sys.argv[1:] if argv is None else argv
    if not args or args[0] in ("-h", "--help"):
        width = max(map(len, COMMANDS))
        rows = "\n".join(f"  {name:<{width}}  {about}" for name, about in COMMANDS.items())
        print(f"usage: wm COMMAND [flags]\n\n{rows}\n\n`wm COMMAND --help` lists the command's flags.")
        return 0
    name, *rest = args
    if name not in COMMANDS:
        from difflib import get_close_matches

        near = get_close_matches(name, COMMANDS, n=1)
        print(f"wm: unknown command {name!r}" + (f"; did you mean {near[0]!r}?" if near else ""), file=sys.stderr)
        return EXIT_INTERRUPTED
    debug = "--debug" in rest
    commands = import_module("wm_agents.commands")
    try:
        commands.run(name, [arg for arg in rest if arg != "--debug"])
    except KeyboardInterrupt:
        print("wm: interrupted; what was done is kept, the same command goes on from there", file=sys.stderr)
        return EXIT_INTERRUPTED
    except (ValueError, OSError, RuntimeError, ArithmeticError) as error:
        if debug:
            raise
        print(f"wm {name}: {error}", file=sys.stderr)
        return EXIT_ERROR
    return 0


if __name__ == "__main__":
    sys.exit(main())
