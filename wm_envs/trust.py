"""Which modules a foreign file may import: an environment id `module:Id-v0` or a wrapper `module:function` in a saved
model runs the module."""

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


def check_trusted(env_id: str, source: object, wrapper: str | None = None) -> None:
    """Check that the environment and the wrapper in a file may be used, before anything is imported.

    A module may be imported if it is already imported, belongs to an installed package, or is trusted by name. Modules
    in the working directory are not trusted. Python's own modules are not trusted as wrappers.

    Args:
        source: the file, for the message.

    Raises:
        UntrustedModule: a module is not trusted.
        ValueError: the id is that of a dream.
    """
    module, _, name = env_id.rpartition(":")
    if OURS.match(name):
        raise ValueError(f"the real environment in {source} is itself a dream ({env_id!r}); the file is invalid")
    if module:
        _check_module(module, f"{source} names the environment {env_id}")
    if wrapper is not None:
        _check_module(str(wrapper).partition(":")[0], f"{source} names the wrapper {wrapper}", of_python=False)


def _check_module(module: str, found: str, of_python: bool = True) -> None:
    top = module.partition(".")[0]
    if _trusted & {module, top} or top in packages_distributions():
        return
    if module in sys.modules and (of_python or top not in sys.stdlib_module_names):
        return
    raise UntrustedModule(
        f"{found}, whose module {module} would be run, but belongs to no installed package; if you trust it, give "
        f"--trust-module {module}, or call wm_envs.trust.trust({module!r})"
    )
