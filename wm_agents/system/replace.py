"""Replaces files and folders atomically: if a writer is killed, the complete old or the complete new content remains.

A writer works on a temporary file `.NAME.PID.RANDOM.tmp` beside its target and locks it. The system releases the lock
when the process ends. A temporary file without a lock is an orphan, and the next writer of the same target removes it.
"""

from __future__ import annotations

import ctypes
import fcntl
import os
import re
import secrets
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path

from wm_agents.errors import FULL_DISK

TEMPORARY = re.compile(r"\.(?P<target>.+)\.\d+\.[0-9a-f]{8}\.(?P<kind>tmp|old)")
"""Names of temporaries; `old` is the previous folder where two folders cannot be exchanged in one operation."""


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """An empty temporary file that replaces the file `path` if the block ends without an error.

    Raises:
        OSError: the disk is full; the message names `path`.
    """
    path = _prepared(path)
    tmp, lock = _claimed(path, Path.touch)
    try:
        with naming_full_disk(path):
            yield tmp
            with open(tmp, "rb") as file:
                os.fsync(file.fileno())
            os.replace(tmp, path)
    finally:
        tmp.unlink(missing_ok=True)
        os.close(lock)


@contextmanager
def replacing_folder(path: Path) -> Iterator[Path]:
    """An empty temporary folder that replaces the folder `path` and its content if the block ends without an error."""
    path = _prepared(path)
    tmp, lock = _claimed(path, Path.mkdir)
    try:
        with naming_full_disk(path):
            yield tmp
            _swap(tmp, path)
    finally:
        shutil.rmtree(tmp, ignore_errors=True)  # Now the previous content.
        os.close(lock)


@contextmanager
def naming_full_disk(path: Path) -> Iterator[None]:
    """Within this context, the error message of a full disk contains `path`."""
    try:
        yield
    except OSError as error:
        if error.errno not in FULL_DISK:
            raise
        raise OSError(error.errno, os.strerror(error.errno), str(path)) from error


def tidy(folder: Path) -> None:
    """Remove the orphans in `folder` and below it, and restore folders that a killed writer has moved away."""
    for entry in [*folder.rglob(".*.old"), *folder.rglob(".*.tmp")]:
        if found := TEMPORARY.fullmatch(entry.name):
            _tidy(entry, entry.with_name(found["target"]))


def restore(path: Path) -> None:
    """Restore the folder `path` if a killed writer has moved it away."""
    if not path.exists() and path.parent.is_dir():
        _sweep(path)


def orphans(folder: Path) -> list[Path]:
    """Temporaries of killed writers in `folder`."""
    return [entry for entry in sorted(folder.glob(".*")) if TEMPORARY.fullmatch(entry.name) and _is_orphan(entry)]


def _prepared(path: Path) -> Path:
    """The target of `path`, which may be a link, in an existing folder without orphans of `path`."""
    if path.is_symlink():
        path = path.resolve()
    path.parent.mkdir(parents=True, exist_ok=True)
    _sweep(path)
    return path


def _sweep(path: Path) -> None:
    for entry in sorted(path.parent.iterdir()):
        found = TEMPORARY.fullmatch(entry.name)
        if found and found["target"] == path.name:
            _tidy(entry, path)


def _tidy(entry: Path, target: Path) -> None:
    if not _is_orphan(entry.with_suffix(".tmp")):
        return
    if entry.suffix == ".old" and not target.exists():
        os.rename(entry, target)
    elif entry.is_dir():
        shutil.rmtree(entry, ignore_errors=True)
    else:
        entry.unlink(missing_ok=True)


def _claimed(path: Path, create: Callable[[Path], None]) -> tuple[Path, int]:
    """A new temporary for `path`, and the file descriptor that holds its lock."""
    while True:
        tmp = path.with_name(f".{path.name}.{os.getpid()}.{secrets.token_hex(4)}.tmp")
        create(tmp)
        try:
            lock = os.open(tmp, os.O_RDONLY | os.O_CLOEXEC)
        except FileNotFoundError:  # Another writer has taken it for an orphan.
            continue
        try:
            fcntl.flock(lock, fcntl.LOCK_EX)
        except OSError:  # A file system without locks; there, nothing counts as an orphan.
            return tmp, lock
        if tmp.exists():
            return tmp, lock
        os.close(lock)


def _is_orphan(tmp: Path) -> bool:
    try:
        lock = os.open(tmp, os.O_RDONLY | os.O_CLOEXEC)
    except FileNotFoundError:
        return True
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return False
    finally:
        os.close(lock)
    return True


def _swap(tmp: Path, path: Path) -> None:
    """Put the folder `tmp` in the place of `path`, and the previous folder in the place of `tmp`."""
    if _exchange(tmp, path):
        return
    if not path.exists():
        os.rename(tmp, path)
        return
    old = tmp.with_suffix(".old")
    os.rename(path, old)  # Killed after this line, `restore` moves it back.
    try:
        os.rename(tmp, path)
    except OSError:
        os.rename(old, path)
        raise
    shutil.rmtree(old, ignore_errors=True)


def _exchange(a: Path, b: Path) -> bool:
    """Exchange two names in one operation; False if this system cannot, or one does not exist."""
    exchange = 2  # RENAME_EXCHANGE in linux/fs.h
    here = -100  # AT_FDCWD in fcntl.h
    rename = _renameat2()
    return rename is not None and rename(here, os.fsencode(a), here, os.fsencode(b), exchange) == 0


@cache
def _renameat2() -> Callable[..., int] | None:
    try:
        return getattr(ctypes.CDLL(None), "renameat2", None)
    except OSError:
        return None
