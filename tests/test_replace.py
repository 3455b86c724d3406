"""Files and folders are replaced whole, whenever the writer is killed, and orphans do not stay."""

from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import save

from wm_agents.checkpoint import load_artifact, read_tensors, save_artifact
from wm_agents.system import replace
from wm_agents.system.files import write_tensors, write_text
from wm_agents.system.replace import orphans, replacing, replacing_folder, restore, tidy
from wm_agents.system.run_folder import start_run

KILLED = """
import os, signal, sys
from pathlib import Path
from wm_agents.system import replace

where, swap, rename = sys.argv[2], replace._swap, os.rename
die = lambda *args: os.kill(os.getpid(), signal.SIGKILL)
if where == "before the swap":
    replace._swap = die
if where == "after the swap":
    replace._swap = lambda *args: (swap(*args), die())
if where == "between two renames":
    replace._exchange = lambda a, b: False
    os.rename = lambda *args: (rename(*args), die())
with replace.replacing_folder(Path(sys.argv[1])) as tmp:
    (tmp / "a").write_text("new")
    if where == "while writing":
        die()
    (tmp / "b").write_text("new")
"""


def killed(path: Path, where: str) -> None:
    done = subprocess.run([sys.executable, "-c", KILLED, str(path), where], check=False)
    assert done.returncode == -signal.SIGKILL


def content(path: Path) -> list[str]:
    return [(path / name).read_text() for name in ("a", "b")]


def fill(path: Path, text: str) -> None:
    with replacing_folder(path) as tmp:
        for name in ("a", "b"):
            (tmp / name).write_text(text)


@pytest.mark.parametrize(
    "where, left",
    [("while writing", "old"), ("before the swap", "old"), ("after the swap", "new"), ("between two renames", "old")],
)
def test_a_folder_is_the_old_or_the_new_one_wherever_its_writer_is_killed(
    tmp_path: Path, where: str, left: str
) -> None:
    path = tmp_path / "m"
    fill(path, "old")
    killed(path, where)
    assert path.exists() == (where != "between two renames")
    restore(path)
    assert content(path) == [left] * 2
    fill(path, "last")
    assert content(path) == ["last"] * 2 and [entry.name for entry in tmp_path.iterdir()] == ["m"]


def test_a_folder_that_was_moved_away_is_restored_when_a_run_resumes(tmp_path: Path) -> None:
    path = tmp_path / "round-00" / "model"
    fill(path, "old")
    killed(path, "between two renames")
    start_run(tmp_path, {}, {}).close()
    assert content(path) == ["old"] * 2 and [entry.name for entry in path.parent.iterdir()] == ["model"]


def test_without_exchange_folders_are_replaced_by_two_renames(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(replace, "_exchange", lambda a, b: False)
    for text in ("old", "new"):
        fill(tmp_path / "m", text)
    assert content(tmp_path / "m") == ["new"] * 2 and [entry.name for entry in tmp_path.iterdir()] == ["m"]


def test_this_system_exchanges_folders_in_one_operation(tmp_path: Path) -> None:
    for name in "xy":
        (tmp_path / name).mkdir()
        (tmp_path / name / name).touch()
    assert replace._exchange(tmp_path / "x", tmp_path / "y") and (tmp_path / "x" / "y").exists()
    assert not replace._exchange(tmp_path / "x", tmp_path / "not there")


def test_only_temporaries_without_a_living_writer_are_removed(tmp_path: Path) -> None:
    orphan, foreign, other = (tmp_path / n for n in (".x.7.0a1b2c3d.tmp", ".x.tmp", ".y.7.0a1b2c3d.tmp"))
    for path in (orphan, foreign, other):
        path.touch()
    with replacing(tmp_path / "x") as first:
        assert orphans(tmp_path) == [other]
        first.write_text("one")
        write_text(tmp_path / "x", "two")  # A second writer leaves the first one alone.
    assert (tmp_path / "x").read_text() == "one" and {p.name for p in tmp_path.iterdir()} == {"x", ".x.tmp", other.name}
    tidy(tmp_path.parent)
    assert {p.name for p in tmp_path.iterdir()} == {"x", ".x.tmp"}


def test_a_link_keeps_its_place_and_its_target_is_replaced(tmp_path: Path) -> None:
    fill(tmp_path / "real", "old")
    (tmp_path / "link").symlink_to("real")
    fill(tmp_path / "link", "new")
    assert (tmp_path / "link").is_symlink() and content(tmp_path / "real") == ["new"] * 2
    (tmp_path / "file").write_text("old")
    (tmp_path / "f").symlink_to("file")
    write_text(tmp_path / "f", "new")
    assert (tmp_path / "f").is_symlink() and (tmp_path / "file").read_text() == "new"


def test_a_full_disk_is_named_with_the_file_and_what_to_do(tmp_path: Path) -> None:
    write_text(tmp_path / "x.json", "old")
    with pytest.raises(OSError, match=r"No space left on device: '.*x.json'"):  # noqa: SIM117
        with replacing(tmp_path / "x.json"):
            raise OSError(errno.ENOSPC, "No space left on device")
    assert (tmp_path / "x.json").read_text() == "old" and len(list(tmp_path.iterdir())) == 1


@pytest.mark.drill
def test_a_model_is_readable_while_another_process_saves_it_again(tmp_path: Path) -> None:
    path = tmp_path / "m"
    save_artifact(path, {}, {}, {}, "card")
    script = (
        "import sys\nfrom wm_agents.checkpoint import save_artifact\n"
        "for number in range(10**6): save_artifact(sys.argv[1], {}, {}, {}, 'x' * number)"
    )
    seen = set()
    with subprocess.Popen([sys.executable, "-c", script, str(path)]) as writer:
        try:
            while len(seen) < 50:
                seen.add(load_artifact(path).config["files"]["README.md"])
        finally:
            writer.kill()
    load_artifact(path)
    save_artifact(path, {}, {}, {}, "card")
    assert [entry.name for entry in tmp_path.iterdir()] == ["m"]


@pytest.mark.parametrize("links", [True, False], ids=["hard links", "no hard links"])
def test_saving_a_model_keeps_what_else_is_in_its_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, links: bool
) -> None:
    def fail(*args: object, **kwargs: object) -> None:
        raise OSError(errno.EXDEV, "Invalid cross-device link")

    if not links:
        monkeypatch.setattr(os, "link", fail)
    path = tmp_path / "m"
    save_artifact(path, {}, {}, {}, "card")
    (path / ".git" / "objects").mkdir(parents=True)
    (path / ".git" / "objects" / "x").write_text("kept")
    (path / "notes.txt").write_text("kept")
    (path / "lora.safetensors").write_text("kept")
    os.symlink("notes.txt", path / "link")
    save_artifact(path, {}, {}, {}, "another card")
    assert (path / ".git" / "objects" / "x").read_text() == (path / "link").read_text() == "kept"
    assert (path / "lora.safetensors").read_text() == "kept"
    assert (path / "link").is_symlink() and (path / "README.md").read_text() == "another card"
    assert set(load_artifact(path).config["files"]) == {"README.md", "model.safetensors"}


def test_equal_tensors_and_metadata_are_equal_bytes(tmp_path: Path) -> None:
    tensors = {"b": torch.arange(3), "a": torch.ones(2, 2)}
    metadata = {f"key {i}": "ü" * i for i in range(9)}
    whole = set()
    for _ in range(20):
        write_tensors(tmp_path / "x.safetensors", tensors, metadata)
        whole.add((tmp_path / "x.safetensors").read_bytes())
    assert len(whole) == 1
    read, found = read_tensors(tmp_path / "x.safetensors")
    assert found == metadata and all(torch.equal(read[name], leaf) for name, leaf in tensors.items())
    assert len({save(tensors, metadata) for _ in range(20)}) > 1  # What the library writes.
