"""`wm doctor`: what is wrong is found, said with what to do, and tells in the exit code; what is absent does not."""

from __future__ import annotations

import json
import sys
from collections import namedtuple
from importlib import metadata
from pathlib import Path
from typing import Any

import pytest
from tiny import save_tiny

from wm_agents.cli import app as cli
from wm_agents.cli import doctor
from wm_agents.cli.doctor import Check
from wm_agents.loops import preflight
from wm_envs import precision
from wm_envs.registry import RealSpec


def found(look: Any) -> dict[str, Check]:
    return {check.what: check for check in look()}


@pytest.fixture
def installed(monkeypatch: pytest.MonkeyPatch) -> dict[str, str | None]:
    """Versions by name, to be changed; those of this installation to begin with."""
    changed: dict[str, str | None] = {}
    real = doctor._version
    monkeypatch.setattr(doctor, "_version", lambda name: changed.get(name, real(name)))
    return changed


def test_all_that_is_required_here_is_there_and_fits(installed: dict[str, str | None]) -> None:
    checks = found(doctor.look_at_versions)
    assert {"Python", "gymnasium", "torch", "extra hub", "extra minari"} <= checks.keys()
    assert not [check for check in checks.values() if check.state == "wrong"]


def test_a_package_that_lacks_or_is_too_old_is_wrong_and_the_hint_installs_it(installed: dict[str, str | None]) -> None:
    installed.update({"gymnasium": "0.29.1", "cma": None})
    checks = found(doctor.look_at_versions)
    assert checks["gymnasium"] == Check("gymnasium", "wrong", "0.29.1", "pip install 'gymnasium[atari,box2d]<2,>=1.4'")
    assert checks["cma"].state == "wrong" and checks["cma"].hint == "pip install 'cma>=4.4'"
    assert checks["torch"].state == "ok"


def test_every_extra_is_listed_once_with_all_that_it_lacks(installed: dict[str, str | None]) -> None:
    extras = metadata.metadata(doctor.PACKAGE).get_all("Provides-Extra")
    installed["huggingface-hub"] = None
    checks = [check for check in doctor.look_at_versions() if check.what.startswith("extra ")]
    assert [check.what for check in checks] == [f"extra {name}" for name in sorted(extras)]
    lacking = {check.what for check in checks if "huggingface-hub" in check.found}
    assert lacking == {"extra hub", "extra dev"}  # Both need it.


def test_an_extra_is_only_absent(installed: dict[str, str | None]) -> None:
    installed["huggingface-hub"] = None
    hub = found(doctor.look_at_versions)["extra hub"]
    assert hub == Check("extra hub", "absent", "missing huggingface-hub", "pip install 'dreams-as-envs[hub]'")
    installed["huggingface-hub"] = "1.2"
    assert found(doctor.look_at_versions)["extra hub"].state == "ok"


def test_two_packages_over_one_another_are_wrong(installed: dict[str, str | None]) -> None:
    installed["opencv-python"] = "4.10"
    clash = found(doctor.look_at_versions)["opencv-python"]
    assert clash.state == "wrong" and "pip uninstall -y opencv-python opencv-python-headless" in clash.hint


def test_an_old_python_is_wrong(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "OLDEST", (4, 0))
    assert found(doctor.look_at_versions)["Python"].hint == "use 4.0 or newer"


def test_hardware_is_reported_and_little_memory_is_wrong(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "_cpu", lambda: {"model name": "Abacus", "flags": "avx2 mmx"})
    speeds = {"product": 2.0, "convolution": 0.125, "lstm": 0.0}
    monkeypatch.setattr(precision, "bf16_speedup", lambda kind, device, training: speeds[kind])
    monkeypatch.setattr(preflight, "free_memory", lambda: 9e8)
    checks = found(doctor.look_at_hardware)
    assert checks["CPU"].found.startswith("Abacus, ") and checks["CPU"].found.endswith("AVX2")
    told = "trains {} faster on this CPU (speed relative to float32: product {}, convolution 0.1, lstm fails)"
    assert checks["bfloat16"][1:3] == ("ok", told.format("product", "2.0"))
    assert checks["torch"].found == "computes on cpu"
    assert checks["memory"][1:3] == ("wrong", "0.9 GB free, at least 1.5 GB needed")
    speeds["product"] = 1.0
    assert found(doctor.look_at_hardware)["bfloat16"][1:3] == ("ok", told.format("nothing", "1.0"))
    monkeypatch.setattr(preflight, "free_memory", lambda: None)
    assert found(doctor.look_at_hardware)["memory"].state == "ok"


def test_an_environment_that_cannot_be_played_is_wrong_unless_it_is_an_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(spec: RealSpec) -> str:
        if spec.id == "CartPole-v1":
            return "vectors"
        raise ImportError(f"{spec.id} is not installed\n")

    monkeypatch.setattr(preflight, "check_env", refuse)
    checks = found(doctor.look_at_environments)
    assert {name: check.state for name, check in checks.items()} == {
        "CartPole-v1": "ok", "LunarLander-v3": "wrong", "ALE/Pong-v5": "wrong", "HalfCheetah-v5": "absent",
    }  # fmt: skip
    pong = checks["ALE/Pong-v5"]
    assert (pong.found, pong.hint) == ("ALE/Pong-v5 is not installed", "pip install 'gymnasium[atari]'")


def test_a_changed_model_and_a_full_or_closed_disk_are_wrong(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("wm_agents.models.saved.STORE", tmp_path / "store")
    monkeypatch.setattr(preflight, "check_video", lambda folder: "a film")
    for name in ("good", "bad"):
        save_tiny(tmp_path / "store" / name, RealSpec("CartPole-v1"))
    (tmp_path / "store" / "bad" / "README.md").write_text("other words")
    checks = found(doctor.look_at_files)
    assert checks["good"].state == "ok" and checks["good"].found.endswith("sha256 matches")
    assert checks["bad"].state == "wrong" and "sha256 expected" in checks["bad"].found
    assert checks["bad"].hint == "reinstall this package with pip install --force-reinstall --no-deps"
    assert checks["disk"].state == checks["ffmpeg"].state == "ok"
    usage = namedtuple("usage", "free")
    monkeypatch.setattr(doctor.shutil, "disk_usage", lambda path: usage(1e9))
    disk = found(doctor.look_at_files)["disk"]
    assert disk.state == "wrong" and disk.found.endswith("at least 2 GB needed")
    monkeypatch.chdir("/proc")
    assert found(doctor.look_at_files)["disk"].state == "wrong"


def test_broken_parts_do_not_stop_the_others(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "wm_agents.loops.preflight", None)
    for look in (doctor.look_at_hardware, doctor.look_at_environments):
        states = {check.what: check.state for check in look()}
        assert "wrong" in states.values() and len(states) >= 4


def test_the_exit_code_says_whether_anything_is_wrong(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    fine, off = Check("a", "ok", "1"), Check("b", "absent", "no b", "pip install b")
    for checks, code in (([fine, off], 0), ([fine, Check("c", "wrong", "no c", "pip install c")], 1)):
        monkeypatch.setattr(doctor, "LOOKS", [lambda checks=checks: iter(checks)])
        assert cli.main(["doctor", "--json"]) == code
        out = json.loads(capsys.readouterr().out)
        assert out["ok"] == (code == 0) and out["checks"][0] == fine._asdict()
        assert cli.main(["doctor"]) == code
        out = capsys.readouterr().out
        assert f"\n  {checks[1].hint}\n" in out and ("no problems" in out) == (code == 0)


def test_commands_stand_whole_below_the_table_whatever_its_width(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    long = "pip install " + " ".join(f"'package-number-{i}>=1.{i}'" for i in range(9))
    checks = [
        Check("a", "ok", "1"),
        Check("gpu", "absent", "there is none", "everything runs on the CPU"),
        Check("extra b", "absent", "without b", long),
    ]
    optional = f"  # gpu: everything runs on the CPU\n  # extra b: without b\n  {long}\n"
    for width in ("40", "200"):
        monkeypatch.setenv("COLUMNS", width)
        monkeypatch.setattr(doctor, "LOOKS", [lambda: iter(checks)])
        assert cli.main(["doctor"]) == 0
        assert capsys.readouterr().out.endswith(f"no problems; optional parts that are absent:\n{optional}")
        monkeypatch.setattr(doctor, "LOOKS", [lambda: iter([*checks, Check("c", "wrong", "no c", "pip install c")])])
        assert cli.main(["doctor"]) == 1
        wrong = "1 problem:\n  # c: no c\n  pip install c\n"
        assert capsys.readouterr().out.endswith(f"{wrong}optional parts that are absent:\n{optional}")
    monkeypatch.setattr(doctor, "LOOKS", [lambda: iter(checks[:1])])
    assert cli.main(["doctor"]) == 0
    assert capsys.readouterr().out.endswith("\nno problems\n")


def test_what_is_required_is_what_setup_cfg_says() -> None:
    assert any(text.startswith("gymnasium") for text in metadata.requires(doctor.PACKAGE) or [])
