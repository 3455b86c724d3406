"""Every real step is counted once, whoever takes it and whoever is killed."""

from __future__ import annotations

import multiprocessing as mp
import os
import pickle
import signal
from pathlib import Path

from policies.step_count import StepCount


def step_and_die(count: StepCount, num: int) -> None:
    for _ in range(num):
        count.add(1)
    os.kill(os.getpid(), signal.SIGKILL)


def test_processes_that_are_killed_lose_no_step_and_no_other_process_waits(tmp_path: Path) -> None:
    count = StepCount(tmp_path / "real_steps")
    spawn = mp.get_context("spawn")
    workers = [spawn.Process(target=step_and_die, args=(count, num)) for num in (1000, 2500)]
    for worker in workers:
        worker.start()
    count.add(7)
    for worker in workers:
        worker.join()
    assert count.value == 3507


def test_a_count_continues_in_its_file(tmp_path: Path) -> None:
    path = tmp_path / "real_steps"
    assert StepCount(path).value == 0 and not path.exists()
    count = StepCount(path, start=40)
    count.add(2)
    copy = pickle.loads(pickle.dumps(count))
    copy.add(3)
    count.close()
    count.add(1)
    assert StepCount(path, start=99).value == copy.value == 46
