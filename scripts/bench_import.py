"""The time of `import wm_envs` and `wm --help`, compared with `import gymnasium`.

python scripts/bench_import.py                five times each, alternately; medians and their ratios
python scripts/bench_import.py --repeats 15   more precise on a busy machine
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys
import time
from pathlib import Path

from rich.console import Console
from rich.table import Table

ROOT = Path(__file__).parents[1]
REFERENCE = "import gymnasium"
HELP = "from wm_agents.cli.app import main; main(['--help'])"
CASES = {"import gymnasium": REFERENCE, "import wm_envs": "import wm_envs", "wm --help": HELP}


def seconds(code: str) -> float:
    """Wall time of a new Python process that runs `code`."""
    began = time.perf_counter()
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, stdout=subprocess.DEVNULL, check=True)
    return time.perf_counter() - began


def measure(repeats: int) -> dict[str, float]:
    """Median seconds of each case minus those of an empty Python process."""
    cases = {"": "pass", **CASES}
    turns = [{name: seconds(code) for name, code in cases.items()} for _ in range(repeats + 1)][1:]  # Disk caches.
    return {name: statistics.median(turn[name] - turn[""] for turn in turns) for name in CASES}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repeats", type=int, default=5, help="number of measurements, of which the median is printed")
    found = measure(parser.parse_args().repeats)
    table = Table("what", "seconds", f"times `{REFERENCE}`")
    for name, took in found.items():
        table.add_row(name, f"{took:.3f}", f"{took / found[REFERENCE]:.2f}")
    Console().print(table)


if __name__ == "__main__":
    main()
