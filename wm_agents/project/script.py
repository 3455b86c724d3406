"""Exit codes and error messages for the scripts of a project, as for commands."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import NoReturn

from wm_agents.errors import CLEAR, EXIT_ERROR, EXIT_STOPPED


def run(main: Callable[[], None]) -> NoReturn:
    """Call `main` and exit with 0, with 1 after an error (printed in one line), or with 2 after Ctrl-C.

    With --debug, and for unexpected errors, the traceback is printed.
    """
    name = Path(sys.argv[0]).name
    try:
        main()
    except KeyboardInterrupt:
        print(f"{name}: interrupted", file=sys.stderr)
        sys.exit(EXIT_STOPPED)
    except CLEAR as error:
        if "--debug" in sys.argv or not str(error):
            raise
        print(f"{name}: {error}", file=sys.stderr)
        sys.exit(EXIT_ERROR)
    sys.exit(0)
