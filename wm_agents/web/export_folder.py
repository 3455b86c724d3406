"""The folder of an export: it appears completely or not at all, and replaces only an earlier export."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from wm_agents.system.replace import replacing_folder

MARK = "dream.json"
"""A file that every export contains."""


@contextmanager
def export_folder(out: Path) -> Iterator[Path]:
    """Yield an empty folder that becomes `out` when the block has ended without an error.

    Raises:
        FileExistsError: `out` contains other files.
    """
    if out.is_file() or (out.is_dir() and any(out.iterdir()) and not (out / MARK).is_file()):
        raise FileExistsError(f"{out} contains other files; choose a new folder")
    with replacing_folder(out) as folder:
        yield folder
