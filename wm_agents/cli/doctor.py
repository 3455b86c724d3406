"""`wm doctor`: check this machine and this installation, and say how to fix the problems found."""

from __future__ import annotations

import os
import platform
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from importlib import metadata
from pathlib import Path
from typing import Literal, NamedTuple

from packaging.requirements import Requirement

from wm_agents.cli.printing import print_json, table

PACKAGE = "dreams-as-envs"
OLDEST = (3, 10)
GB = 1e9
ENOUGH_DISK, ENOUGH_MEMORY = 2 * GB, 1.5 * GB
CPU_FLAGS = {"avx2": "AVX2", "avx512f": "AVX-512"}
FOUNDED_ON = {"classic": "CartPole-v1", "box2d": "LunarLander-v3", "atari": "ALE/Pong-v5", "mujoco": "HalfCheetah-v5"}
"""One environment of each extra of Gymnasium; all except MuJoCo's are required."""
CLASHES = (("opencv-python", "opencv-python-headless"), ("pygame", "pygame-ce"))
"""Pairs of packages that overwrite each other's files."""


class Check(NamedTuple):
    """Result of one check."""

    what: str
    state: Literal["ok", "absent", "wrong"]
    """`absent` marks an optional part that is not installed or does not work."""
    found: str
    hint: str = ""
    """How to fix it."""


def doctor(as_json: bool = False) -> int:
    """Check versions, hardware, environments, video, disk and the shipped models, and say how to fix
    problems.

    The exit code is 1 if a required part is missing or broken. Parts marked absent are optional.

    Args:
        as_json: print one JSON object on stdout.
    """
    checks = [check for look in LOOKS for check in look()]
    wrong = sum(check.state == "wrong" for check in checks)
    if as_json:
        print_json({"ok": not wrong, "checks": [check._asdict() for check in checks]})
        return int(wrong > 0)
    table(("check", "state", "found"), ((c.what, c.state, c.found) for c in checks))
    if wrong:
        print(f"{wrong} problem{'s' if wrong > 1 else ''}:")
        advise(check for check in checks if check.state == "wrong")
    absent = [check for check in checks if check.state == "absent"]
    if not wrong:
        print("no problems" + ("; optional parts that are absent:" if absent else ""))
    elif absent:
        print("optional parts that are absent:")
    advise(absent)
    return int(wrong > 0)


def advise(checks: Iterable[Check]) -> None:
    """Print the hints as shell input: one command per line, never wrapped, and all other text after a #."""
    for check in checks:
        command = check.hint.startswith("pip ")
        print(f"  # {check.what}: {check.found if command or not check.hint else check.hint}")
        if command:
            print(f"  {check.hint}")


def look_at_versions() -> Iterator[Check]:
    """Check the versions of Python and of every required and optional package."""
    here = platform.python_version()
    if sys.version_info >= OLDEST:
        yield Check("Python", "ok", here, "")
    else:
        yield Check("Python", "wrong", here, f"use {'.'.join(map(str, OLDEST))} or newer")
    wanted = [Requirement(text) for text in metadata.requires(PACKAGE) or []]
    extras = metadata.metadata(PACKAGE).get_all("Provides-Extra", [])
    yield from (_required(part, _version(part.name)) for part in wanted if not any(_is_for(part, e) for e in extras))
    for extra in sorted(extras):
        missing = [part.name for part in wanted if _is_for(part, extra) and not _is_met(part)]
        if missing:
            hint = f"pip install '{PACKAGE}[{extra}]'"
            yield Check(f"extra {extra}", "absent", f"missing {', '.join(missing)}", hint)
        else:
            yield Check(f"extra {extra}", "ok", "installed", "")
    for one, other in CLASHES:
        if _version(one) and _version(other):
            hint = f"pip uninstall -y {one} {other} && pip install {other}"
            yield Check(one, "wrong", f"overwrites files of {other}", hint)


def _is_for(wanted: Requirement, extra: str) -> bool:
    marker = wanted.marker
    return marker is not None and marker.evaluate({"extra": extra}) and not marker.evaluate({"extra": ""})


def _is_met(wanted: Requirement) -> bool:
    found = _version(wanted.name)
    return found is not None and wanted.specifier.contains(found, prereleases=True)


def _required(wanted: Requirement, found: str | None) -> Check:
    if found is None or not wanted.specifier.contains(found, prereleases=True):
        return Check(wanted.name, "wrong", found or f"not installed, {wanted.specifier} needed", _pip(wanted))
    return Check(wanted.name, "ok", found)


def _pip(wanted: Requirement) -> str:
    extras = f"[{','.join(sorted(wanted.extras))}]" if wanted.extras else ""
    return f"pip install '{wanted.name}{extras}{wanted.specifier}'"


def _version(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def look_at_hardware() -> Iterator[Check]:
    """Check the CPU and its fast instructions, the GPU and the memory."""
    cpu = _cpu()
    flags = cpu.get("flags", "").split()
    good_at = [name for flag, name in CPU_FLAGS.items() if flag in flags]
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    name = cpu.get("model name") or platform.processor() or platform.machine()
    yield Check("CPU", "ok", f"{name}, {cores} core(s), {', '.join(good_at) or 'no AVX2'}")
    yield _looked("torch", _torch, f"pip install --force-reinstall torch=={_version('torch') or ''}")
    yield _looked("bfloat16", _bf16, "see torch above")
    yield _looked("GPU", _gpu, "everything runs on the CPU; models above 50M parameters need a GPU", "absent")
    yield _looked("memory", _memory, "close other programs; collect and evaluate with --procs 1")


def _cpu() -> dict[str, str]:
    """Read what Linux reports about the first core, without torch, which may be broken; empty on other
    systems."""
    try:
        rows = Path("/proc/cpuinfo").read_text(encoding="utf-8").split("\n\n")[0].splitlines()
    except OSError:
        return {}
    return {key.strip(): value.strip() for key, _, value in (row.partition(":") for row in rows)}


def _torch() -> str:
    from wm_agents.loops.preflight import check_device

    return f"computes on {check_device('cpu')}"


def _bf16() -> str:
    from wm_envs.precision import GAIN, KINDS, bf16_speedup

    speeds = {kind: bf16_speedup(kind, "cpu", training=True) for kind in KINDS}
    found = ", ".join(f"{kind} {speed:.1f}" if speed else f"{kind} fails" for kind, speed in speeds.items())
    used = [kind for kind, speed in speeds.items() if speed >= GAIN]
    return f"trains {', '.join(used) or 'nothing'} faster on this CPU (speed relative to float32: {found})"


def _gpu() -> str:
    from wm_agents.loops.preflight import check_device

    return check_device("cuda")


def _memory() -> str:
    from wm_agents.loops.preflight import free_memory

    free = free_memory()
    if free is not None and free < ENOUGH_MEMORY:
        raise ValueError(f"{free / GB:.1f} GB free, at least {ENOUGH_MEMORY / GB:.1f} GB needed")
    return "free memory unknown on this system" if free is None else f"{free / GB:.1f} GB free"


def look_at_environments() -> Iterator[Check]:
    """Make one environment of each extra of Gymnasium and play a few steps."""
    for extra, env_id in FOUNDED_ON.items():
        needed = extra != "mujoco"
        hint = f"pip install 'gymnasium[{extra}]'" if extra != "classic" else "pip install --force-reinstall gymnasium"
        yield _looked(env_id, partial(_play, env_id), hint, "wrong" if needed else "absent")


def _play(env_id: str) -> str:
    from wm_agents.loops.preflight import check_env
    from wm_envs.registry import TASKS, RealSpec

    known = next((task.real for task in TASKS.values() if task.real.id == env_id), None)
    return check_env(known or RealSpec(env_id))


def look_at_files() -> Iterator[Check]:
    """Check video encoding, free disk space, write permission, windows and the shipped models."""
    yield _looked("ffmpeg", _film, "pip install --force-reinstall imageio-ffmpeg opencv-python-headless")
    yield _looked("disk", _disk, "free some space, or work in another folder")
    yield _looked("display", _display, "videos are written instead of windows", "absent")
    from wm_agents.models.saved import STORE

    for path in sorted(STORE.iterdir()):
        if (path / "config.json").is_file():
            hint = "reinstall this package with pip install --force-reinstall --no-deps"
            yield _looked(path.name, partial(_model, path), hint)


def _film() -> str:
    from wm_agents.loops.preflight import check_video

    with tempfile.TemporaryDirectory() as tmp:
        return check_video(Path(tmp))


def _disk() -> str:
    here = Path.cwd()
    with tempfile.TemporaryFile(dir=here) as file:
        file.write(b"x")
    free = shutil.disk_usage(here).free
    if free < ENOUGH_DISK:
        raise ValueError(f"{free / GB:.1f} GB free in {here}, at least {ENOUGH_DISK / GB:.0f} GB needed")
    return f"{free / GB:.1f} GB free in {here}, writable"


def _display() -> str:
    from wm_envs.window import check_display

    check_display()
    return "windows can be opened"


def _model(path: Path) -> str:
    from wm_agents.checkpoint import load_artifact

    artifact = load_artifact(path)
    size = sum(file.stat().st_size for file in path.iterdir())
    return f"{artifact.config['family']}, {size / 1e6:.1f} MB, sha256 matches"


LOOKS: tuple[Callable[[], Iterator[Check]], ...] = (
    look_at_versions,
    look_at_hardware,
    look_at_environments,
    look_at_files,
)


def _looked(what: str, look: Callable[[], str], hint: str, otherwise: Literal["absent", "wrong"] = "wrong") -> Check:
    """Run one check. `look` returns what it found, or raises; then the error message is shown with the
    hint."""
    try:
        return Check(what, "ok", look())
    except Exception as error:  # Drivers, codecs and simulators raise errors of all kinds.
        return Check(what, otherwise, " ".join(f"{error or type(error).__name__}".split()), hint)
