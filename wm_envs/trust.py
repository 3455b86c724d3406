"""Which modules a file that somebody else made may have imported: `real.id = "module:Id-v0"` runs the module."""

from __future__ import annotations

import re
import sys
from importlib.metadata import packages_distributions

_trusted: set[str] = set()
OURS = re.compile(r"(Dream|Real)-")


class UntrustedModule(ValueError):
    """A file names a module that is not installed as a package, not imported, and not trusted by name."""


def trust(*modules: str) -> None:
    """Let files of this process name environments of these modules, as `--trust-module` does."""
    _trusted.update(modules)


def check_trusted(env_id: str, source: object) -> None:
    """Check, before anything is imported, that the environment that a file names may be made.

    A module may be imported if it already is, if an installed package holds it, or if it is trusted by name; modules
    that only lie in the working directory are not.

    Args:
        source: the file, for the message.

    Raises:
        UntrustedModule: importing it would run code that nobody vouched for.
        ValueError: the id is a dream's.
    """
    module, _, name = env_id.rpartition(":")
    if OURS.match(name):
        raise ValueError(f"{source} names {env_id!r} as its real environment, which is a dream; do not use this file")
    if not module or module in sys.modules or _trusted & {module, module.partition(".")[0]}:
        return
    if module.partition(".")[0] in packages_distributions():
        return
    raise UntrustedModule(
        f"{source} names the environment {env_id}, and making it would run the module {module}, which no installed "
        f"package holds; if you trust it, give --trust-module {module}, or call wm_envs.trust.trust({module!r})"
    )
