"""Times several implementations alternately, each in its own process, which runs `stopwatch`."""

from __future__ import annotations

import json
import os
import re
import statistics
import subprocess
import tempfile
from typing import Any, NamedTuple

from ports.stopwatch import Job


class Contender(NamedTuple):
    """What is timed, and how."""

    name: str
    """The name, such as V small, dreamerv3:size1m or tdmpc2:1m plan."""
    by: str
    """This package, or a port."""
    job: Job
    command: tuple[str, ...]
    frames: int
    """Images or frames per call."""


class Speed(NamedTuple):
    """The measurements of one implementation."""

    rounds_ms: list[float]
    """The median of each round."""
    cpu_rounds_ms: list[float]
    ms: float
    """The median of all calls."""
    cpu_ms: float
    peak_mb: float
    process_mb: float
    params: int
    loss: float | None


class Worker:
    """The process that times one implementation."""

    def __init__(self, contender: Contender) -> None:
        threads = str(contender.job.threads)
        env = {**os.environ, "OMP_NUM_THREADS": threads, "PYTHONDONTWRITEBYTECODE": "1", "PYTHONWARNINGS": "ignore"}
        command = [*contender.command, json.dumps(contender.job._asdict())]
        self.log = tempfile.TemporaryFile("w+", encoding="utf-8")  # noqa: SIM115
        self.process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self.log, text=True, env=env
        )
        self.failed = ""
        self.facts = self._answer()
        self.rounds: list[dict[str, Any]] = []

    def time(self, seconds: float) -> None:
        """One round."""
        if self.failed or (self.rounds and self.rounds[-1]["ms"][0] > 1e4 * seconds):
            return  # Once is enough.
        assert self.process.stdin is not None
        print(seconds, file=self.process.stdin, flush=True)
        if answer := self._answer():
            self.rounds.append(answer)

    def close(self) -> Speed | str:
        """The measurements, or the reason why there are none."""
        self.process.communicate()
        self.log.close()
        if self.failed:
            return self.failed
        ms, cpu_ms = ([x for spell in self.rounds for x in spell[key]] for key in ("ms", "cpu_ms"))
        last = self.rounds[-1]
        return Speed(
            [statistics.median(spell["ms"]) for spell in self.rounds],
            [statistics.median(spell["cpu_ms"]) for spell in self.rounds],
            statistics.median(ms), statistics.median(cpu_ms), last["peak_mb"], last["process_mb"],
            self.facts["params"], self.facts["loss"],
        )  # fmt: skip

    def _answer(self) -> dict[str, Any]:
        assert self.process.stdout is not None
        answer: dict[str, Any] = json.loads(self.process.stdout.readline() or "{}")
        if not answer:
            self.log.seek(0)
            named = [line.strip() for line in self.log if re.match(r"[\w.]+(Error|Exception)\b", line)]
            killed = self.process.wait() == -9
            self.failed = "does not fit" if killed else f"failed: {named[-1] if named else 'without a word'}"
        self.failed = self.failed or answer.get("failed", "")
        return {} if self.failed else answer


def compare(contenders: list[Contender], seconds: float, repeats: int) -> list[Speed | str]:
    """Time all implementations, alternately if there are ports, so that other processes slow all equally."""
    together = [contenders] if any(c.by != "ours" for c in contenders) else [[c] for c in contenders]
    speeds: list[Speed | str] = []
    for group in together:
        workers = [Worker(contender) for contender in group]
        for _ in range(repeats):
            for worker in workers:
                worker.time(seconds / repeats)
        speeds += [worker.close() for worker in workers]
    return speeds


def ratios(mine: Speed, ports: dict[str, Speed]) -> tuple[str, float, float] | None:
    """The fastest port, and its time relative to this package: wall time and CPU time."""
    if not ports:
        return None
    by = min(ports, key=lambda name: ports[name].ms)
    its = ports[by]
    pairs = (its.rounds_ms, mine.rounds_ms), (its.cpu_rounds_ms, mine.cpu_rounds_ms)
    clock, cpu = (statistics.median(a / b for a, b in zip(*pair)) for pair in pairs)
    return by, clock, cpu
