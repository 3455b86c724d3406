"""Which modules a foreign file may import: an environment id `module:Id-v0` in a saved model runs the module."""

from __future__ import annotations

import re
import sys
from importlib.metadata import packages_distributions

_trusted: set[str] = set()
OURS = re.compile(r"(Dream|Real)-")


class UntrustedModule(ValueError):
    """A file names a module that is not installed as a package, not imported, and not trusted by name."""


def trust(*modules: str) -> None:
    """Allow saved models and datasets to import these modules in this process, like `--trust-module`."""
    _trusted.update(modules)


def check_trusted(env_id: str, source: object) -> None:
    """Check that the environment id in a file may be used, before anything is imported.

    A module may be imported if it is already imported, belongs to an installed package, or is trusted by name. Modules
    in the working directory are not trusted.

    Args:
        source: the file, for the message.

    Raises:
        UntrustedModule: the module is not trusted.
        ValueError: the id is that of a dream.
    """
    module, _, name = env_id.rpartition(":")
    if OURS.match(name):
        raise ValueError(f"the real environment in {source} is itself a dream ({env_id!r}); the file is invalid")
    if not module or module in sys.modules or _trusted & {module, module.partition(".")[0]}:
        return
    if module.partition(".")[0] in packages_distributions():
        return
    raise UntrustedModule(
        f"{source} names the environment {env_id}, whose module {module} would be run, but belongs to no installed "
        f"package; if you trust it, give --trust-module {module}, or call wm_envs.trust.trust({module!r})"
    )
