"""The sweep over seeds and instruction sets counts right; `make test-oldest` runs every test that trains."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

sys.path.append(str(Path(__file__).parents[1] / "scripts"))
import learning_tests as sweep

ROOT = Path(__file__).parents[1]

REPORT = """<testsuites><testsuite name="pytest">
<testcase classname="tests.test_a" name="test_x[seed0]"/>
<testcase classname="tests.test_a" name="test_x[seed1]"><failure message="0.8 &gt; 0.9"/></testcase>
<testcase classname="tests.test_a" name="test_y[seed0-dot]"/>
<testcase classname="tests.test_a" name="test_y[seed1-dot]"><error/></testcase>
<testcase classname="tests.test_a" name="test_y[seed2-dot]"/>
<testcase classname="tests.test_a" name="test_z[seed0]"><skipped/></testcase>
</testsuite></testsuites>"""


def test_passes_are_counted_by_test_whatever_the_seed(tmp_path: Path) -> None:
    (tmp_path / "report.xml").write_text(REPORT)
    ran, passed = sweep.passes(tmp_path / "report.xml")
    assert ran == {"tests.test_a::test_x": 2, "tests.test_a::test_y[dot]": 3}
    assert passed == {"tests.test_a::test_x": 1, "tests.test_a::test_y[dot]": 2}


def test_a_setting_names_the_instruction_sets_of_torch_and_onednn(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ATEN_CPU_CAPABILITY", "avx2")
    oldest, own = sweep.environment("default/SSE41"), sweep.environment("own/DEFAULT")
    assert (oldest["ATEN_CPU_CAPABILITY"], oldest["ONEDNN_MAX_CPU_ISA"]) == ("default", "SSE41")
    assert "ATEN_CPU_CAPABILITY" not in own and own["ONEDNN_MAX_CPU_ISA"] == "DEFAULT"
    assert len(sweep.SETTINGS) == len(set(sweep.SETTINGS)) == 9


def test_the_table_shows_each_setting_and_failures_fail(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def run(setting: str, seeds: int, more: list[str]) -> tuple[dict[str, int], dict[str, int]]:
        assert more == ["tests/test_a.py"]
        return {"test_x": seeds}, {"test_x": seeds - (setting == "default/SSE41")}

    monkeypatch.setattr(sweep, "run", run)
    flags = ["--seeds", "3", "tests/test_a.py", "--settings", "own/DEFAULT"]
    monkeypatch.setattr(sys, "argv", ["learning_tests.py", *flags])
    assert sweep.main() == 0
    monkeypatch.setattr(sys, "argv", ["learning_tests.py", *flags, "default/SSE41"])
    assert sweep.main() == 1
    assert "3 of 3" in (shown := capsys.readouterr().out) and "2 of 3" in shown and "default/SSE41" in shown


def test_every_test_that_trains_runs_on_the_oldest_instruction_set() -> None:
    recipe = (ROOT / "Makefile").read_text().split("NUMERICAL :=")[1].split("))")[0]
    files = {file.stem.removeprefix("test_"): file.read_text() for file in (ROOT / "tests").glob("test_*.py")}
    train = {name for name, text in files.items() if "learning_seed: int" in text} - {"learning_tests"}
    assert len(train) > 8 and train <= set(recipe.split())
