"""Run the tests that train something with many seeds on several instruction sets, and print how often each passed.

python scripts/learning_tests.py                                          20 seeds, all nine settings: takes hours
python scripts/learning_tests.py --settings default/SSE41 own/DEFAULT     two settings
python scripts/learning_tests.py --seeds 5 tests/test_tdmpc2.py           further arguments are those of pytest

A setting is ATEN_CPU_CAPABILITY/ONEDNN_MAX_CPU_ISA; "own" is the best instruction set of this machine.
"""

from __future__ import annotations

import argparse
import os
import re
import subprocess
import sys
import tempfile
import xml.etree.ElementTree as ET
from collections import Counter
from itertools import product
from pathlib import Path

from rich.console import Console
from rich.table import Table

ROOT = Path(__file__).parents[1]
SETTINGS = [f"{aten}/{onednn}" for aten, onednn in product(("default", "avx2", "own"), ("SSE41", "AVX2", "DEFAULT"))]


def environment(setting: str) -> dict[str, str]:
    """The environment variables of a setting."""
    aten, onednn = setting.split("/")
    chosen = {"ONEDNN_MAX_CPU_ISA": onednn} | ({} if aten == "own" else {"ATEN_CPU_CAPABILITY": aten})
    inherited = {name: value for name, value in os.environ.items() if name != "ATEN_CPU_CAPABILITY"}
    return inherited | chosen


def passes(report: Path) -> tuple[Counter[str], Counter[str]]:
    """How often each test of a JUnit file ran and how often it passed, over all seeds."""
    ran: Counter[str] = Counter()
    passed: Counter[str] = Counter()
    for case in ET.parse(report).getroot().iter("testcase"):
        if case.find("skipped") is None:
            name = re.sub(r"\[seed\d+\]|seed\d+-", "", f"{case.get('classname')}::{case.get('name')}")
            ran[name] += 1
            passed[name] += case.find("failure") is None and case.find("error") is None
    return ran, passed


def run(setting: str, seeds: int, more: list[str]) -> tuple[Counter[str], Counter[str]]:
    """Run all tests marked `learns` under `setting`."""
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder) / "report.xml"
        command = [sys.executable, "-m", "pytest", "-q", "-m", "learns", f"--learning-seeds={seeds}"]
        subprocess.run([*command, f"--junitxml={report}", *more], cwd=ROOT, env=environment(setting), stdout=sys.stderr)
        return passes(report)


def main() -> int:
    """Print the table and return 1 if a test failed with any seed."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, default=20, help="seeds of every test")
    parser.add_argument("--settings", nargs="+", default=SETTINGS, choices=SETTINGS, metavar="ATEN/ONEDNN")
    args, more = parser.parse_known_args()
    results = {setting: run(setting, args.seeds, more) for setting in args.settings}
    table = Table("test", *args.settings)
    names = sorted(set().union(*(ran for ran, _ in results.values())))
    for name in names:
        table.add_row(name, *(f"{passed[name]} of {ran[name]}" for ran, passed in results.values()))
    Console(width=None if sys.stdout.isatty() else 200).print(table)
    return int(any(ran != passed for ran, passed in results.values()))


if __name__ == "__main__":
    sys.exit(main())
