"""State files: damage of any kind is found, named with its file and with a way out, and nothing else is refused."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from policies.cmaes import CMAConfig, Evolution
from wm_agents.system.run_folder import start_run
from wm_agents.system.state import DamagedState, read_state, read_state_tensors, write_state, write_state_tensors
from wm_agents.training.config import TrainingConfig
from wm_agents.training.trainer import Trainer

STATE = {"round": 3, "stage": "learn", "history": {"0": {"judge": {"real": 1.5, "name": "\u00fc"}}}}
TENSORS = {"x": torch.arange(6.0).reshape(2, 3), "n": torch.tensor(7), "half": torch.ones(3, dtype=torch.bfloat16)}
CMA = CMAConfig(population=4, rollouts=1, generations=9)


def test_states_come_back_and_those_without_a_checksum_too(tmp_path: Path) -> None:
    write_state(tmp_path / "a.json", STATE)
    assert read_state(tmp_path / "a.json") == STATE
    (tmp_path / "b.json").write_text(json.dumps(STATE, indent=7))
    assert read_state(tmp_path / "b.json") == STATE
    write_state_tensors(tmp_path / "a.safetensors", TENSORS, {"state": "\u00fc"})
    tensors, metadata = read_state_tensors(tmp_path / "a.safetensors")
    assert metadata == {"state": "\u00fc"} and tensors.keys() == TENSORS.keys()
    assert all(torch.equal(tensors[name], leaf) for name, leaf in TENSORS.items())
    with pytest.raises(FileNotFoundError):
        read_state(tmp_path / "none.json")
    with pytest.raises(FileNotFoundError):
        read_state_tensors(tmp_path / "none.safetensors")


def damaged(whole: bytes) -> list[bytes]:
    """A bit flipped at every third position, every third length but the whole, and worse."""
    flips = [whole[:i] + bytes([whole[i] ^ 4]) + whole[i + 1 :] for i in range(0, len(whole), 3)]
    cuts = [whole[:i] for i in range(0, len(whole) - 1, 3)]  # The last byte is a newline.
    return [*flips, *cuts, b"[1]", b"\xff\xfe", b"[" * 5000, b"null", b"PK\x03\x04", b"\x80\x02" * 50]


@pytest.mark.parametrize("name", ["s.json", "s.safetensors", "evolution.json"])
def test_whatever_is_damaged_is_named_or_does_no_harm(tmp_path: Path, name: str) -> None:
    path, read = tmp_path / name, READERS[name]
    WRITERS[name](path)
    whole, wanted = path.read_bytes(), read(path)
    found = 0
    for data in damaged(whole):
        path.write_bytes(data)
        try:
            assert repr(read(path)) == repr(wanted)  # Such as a flip in the space between two entries.
        except ValueError as error:
            assert str(error).startswith(f"{path} is damaged: ") and "restore a copy, or delete" in str(error)
            found += 1
    assert found > 0.6 * len(whole)


def write_evolution(path: Path) -> None:
    evolution = Evolution(np.zeros(3), CMA)
    evolution.ask()
    evolution.tell(np.arange(4.0))
    evolution.save(path)


WRITERS: dict[str, Callable[[Path], object]] = {
    "s.json": lambda path: write_state(path, STATE),
    "s.safetensors": lambda path: write_state_tensors(path, TENSORS, {"state": json.dumps(STATE)}),
    "evolution.json": write_evolution,
}
READERS: dict[str, Callable[[Path], object]] = {
    "s.json": lambda path: {k: v for k, v in read_state(path).items() if k in STATE},
    "s.safetensors": lambda path: (sorted(read_state_tensors(path)[0].items()), read_state_tensors(path)[1]["state"]),
    "evolution.json": lambda path: Evolution.load(path, CMA).mean,
}


def test_a_run_whose_files_are_damaged_says_which_and_stays_unlocked(tmp_path: Path) -> None:
    with start_run(tmp_path, {"a": 1}, {}) as run:
        run.update(stage="learn")
    ways_out = {"state.json": "repeat the part of the run", "run.json": "resume with the present settings"}
    for name, way_out in ways_out.items():
        whole = (tmp_path / name).read_bytes()
        (tmp_path / name).write_bytes(whole[:-9])
        for _ in range(2):
            with pytest.raises(DamagedState, match=f"{name} is damaged: .* a copy, or delete the file to {way_out}"):
                start_run(tmp_path, {"a": 1}, {})
        (tmp_path / name).unlink()
        start_run(tmp_path, {"a": 1}, {}).close()


def test_a_damaged_checkpoint_says_how_to_continue(tmp_path: Path) -> None:
    model = nn.Linear(2, 2)
    model.loss = lambda batch: None
    trainer = Trainer(model, TrainingConfig(device="cpu", output_dir=str(tmp_path)))
    last = trainer.save_checkpoint()
    data = bytearray(last.read_bytes())
    data[-1] ^= 1  # In a tensor.
    last.write_bytes(data)
    with pytest.raises(
        DamagedState, match="last.safetensors is damaged: it does not match its sha256; restore a copy, or"
    ):
        trainer.load_checkpoint()


def test_a_number_that_is_not_finite_becomes_null(tmp_path: Path) -> None:
    write_state(tmp_path / "run.json", {"scores": [(1.5, float("nan"))], "best": float("-inf")})
    assert read_state(tmp_path / "run.json") == {"scores": [[1.5, None]], "best": None}
