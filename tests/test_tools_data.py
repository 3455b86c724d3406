"""`wm data`: formats there and back again, and damage found wherever it is."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import h5py
import numpy as np
import pytest

from wm_agents.cli import app as cli
from wm_agents.data.dataset import Dataset, write_manifest, write_shard
from wm_agents.data.episode import Episode
from wm_agents.data.replay import ReplayBuffer
from wm_envs.registry import RealSpec

POLE = RealSpec("CartPole-v1").to_dict()


def make_episode(seed: int, steps: int, term: bool) -> Episode:
    rng = np.random.default_rng(seed)
    obs = rng.normal(size=(steps + 1, 4)).astype(np.float32)
    return Episode(obs, rng.integers(0, 2, steps), rng.normal(size=steps).astype(np.float32), term, not term, seed, {})


@pytest.fixture
def shards(tmp_path: Path) -> Path:
    """Two shards of three episodes."""
    for k in range(2):
        episodes = [make_episode(3 * k + i, 4 + 3 * k + i, i % 2 == 0) for i in range(3)]
        write_shard(tmp_path / "data", f"seed-{k:07d}", episodes, POLE)
    write_manifest(tmp_path / "data")
    return tmp_path / "data"


def wm(*args: str | Path) -> int:
    return cli.main(["data", *map(str, args)])


def same(a: Episode, b: Episode) -> bool:
    return all(np.array_equal(x, y) and x.dtype == y.dtype for x, y in zip(a[:3], b[:3])) and a[3:5] == b[3:5]


def test_shards_become_npz_and_shards_again(shards: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    npz, back = tmp_path / "all.npz", tmp_path / "back"
    assert wm("convert", shards, npz) == 0
    assert capsys.readouterr().out == f"{npz}: 6 episodes, 39 steps, actions encoded\n"
    assert (ReplayBuffer.load(npz).num_episodes, len(ReplayBuffer.load(npz))) == (6, 39)
    assert wm("convert", npz, back, "--env", "CartPole-v1") == 0
    data = Dataset(back)
    assert data.spec == POLE and data.seeds == [-1] * 6
    assert all(same(a, b) for a, b in zip(data.iter_episodes(), Dataset(shards).iter_episodes(), strict=True))


def test_shards_become_minari_and_shards_again(shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("minari")
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(tmp_path / "minari"))
    assert wm("convert", shards, "pole-v0") == 0
    assert wm("convert", "pole-v0", tmp_path / "back") == 0
    back = Dataset(tmp_path / "back")
    assert all(same(a, b) for a, b in zip(back.iter_episodes(), Dataset(shards).iter_episodes(), strict=True))


@pytest.mark.parametrize(
    ("args", "text"),
    [
        (["data", "x", "--to", "shards"], "data already contains shards"),
        (["a.npz", "x"], "a.npz does not record its environment; give it with --env ID"),
        (["a.npz", "x.npz"], "only shards can be converted to npz, but a.npz has none; convert it to shards first"),
        (["data", "there.npz"], "there.npz exists; choose another path"),
        (
            ["a.npz", "x", "--env", "Acrobot-v1"],
            "a.npz contains observations (4,) and actions of width 2, but Acrobot-v1 has (6,)",
        ),
    ],
)
def test_what_cannot_be_converted_is_said_in_one_line(
    args: list[str], text: str, shards: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(shards.parent)
    (shards.parent / "there.npz").touch()
    buffer = ReplayBuffer(10, (4,), 2)
    buffer.add_episode(np.zeros((3, 4), np.float32), np.array([0, 1]), np.ones(2), terminated=True)
    buffer.save("a.npz")
    assert wm("convert", *args) == 1
    err = capsys.readouterr().err
    assert text in err and err.count("\n") == 1
    assert not Path("x").exists()


def test_shards_that_name_no_environment_need_one(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_shard(tmp_path / "data", "a", [make_episode(0, 5, True)])
    assert wm("convert", tmp_path / "data", tmp_path / "a.npz") == 1
    assert "do not name their environment; give it with --env ID" in capsys.readouterr().err
    assert wm("convert", tmp_path / "data", tmp_path / "a.npz", "--env", "CartPole-v1") == 0


def test_info_counts_what_is_there(shards: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert wm("info", shards, "--json") == 0
    found = json.loads(capsys.readouterr().out)
    lengths = [4, 5, 6, 7, 8, 9]
    assert (found["episodes"], found["steps"], found["shards"]) == (6, sum(lengths), 2)
    assert (found["terminated"], found["truncated"], found["seeds"]) == (4, 2, [0, 5])
    assert found["length"] == {"mean": 6.5, "std": round(float(np.std(lengths)), 3), "min": 4.0, "max": 9.0}
    assert found["environment"] == "CartPole-v1" and found["spec"] == POLE
    assert wm("info", shards) == 0
    assert "6.5 ± 1.708, from 4 to 9" in capsys.readouterr().out
    wm("convert", shards, tmp_path / "a.npz")
    capsys.readouterr()
    assert wm("info", tmp_path / "a.npz", "--json") == 0
    assert json.loads(capsys.readouterr().out)["steps"] == sum(lengths)


def test_whole_data_passes(shards: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert wm("verify", shards) == 0
    assert "2 of 2 files are intact\n" in capsys.readouterr().out


def flip_a_byte(path: Path) -> None:
    """In the middle of the frames, which no scan looks at."""
    with h5py.File(path) as file:
        offset = file["obs"].id.get_chunk_info(0).byte_offset
    data = bytearray(path.read_bytes())
    data[offset + 40] ^= 0xFF
    path.write_bytes(bytes(data))


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-200])


def flip_a_bit_of(name: str) -> Callable[[Path], None]:
    """Damages the last byte of what is stored under a name, in the file itself."""

    def flip(path: Path) -> None:
        with h5py.File(path, "r") as file:
            part = file[name]
            last = part.id.get_offset() + part.id.get_storage_size() - 1
        data = bytearray(path.read_bytes())
        data[last] ^= 1
        path.write_bytes(bytes(data))

    return flip


def empty(path: Path) -> None:
    path.write_bytes(b"")


def lose_rewards(path: Path) -> None:
    with h5py.File(path, "r+") as file:
        del file["rew"]


def break_spec(path: Path) -> None:
    with h5py.File(path, "r+") as file:
        file.attrs["spec"] = b"\xff"


def change(name: str, value: object) -> Callable[[Path], None]:
    """Replaces what is stored under a name by consistent values."""

    def replace(path: Path) -> None:
        with h5py.File(path, "r+") as file:
            before = file[name][:]
            del file[name]
            file[name] = [value] * len(before)

    return replace


def put_nan(path: Path) -> None:
    with h5py.File(path, "r+") as file:
        frames = file["obs"][:]
        frames[3, 1] = np.nan
        file["obs"][...] = frames


def say_it_again(path: Path) -> None:
    write_shard(path.parent, "seed-0000007", [make_episode(3, 4, True)], POLE)


@pytest.mark.parametrize(
    ("damage", "bad", "text"),
    [
        (flip_a_byte, ["seed-0000001.h5"], "corrupt"),
        (cut, ["seed-0000001.h5"], "corrupt"),
        (empty, ["seed-0000001.h5"], "corrupt"),
        (lose_rewards, ["seed-0000001.h5"], "corrupt: KeyError"),
        (break_spec, ["seed-0000001.h5"], "corrupt"),
        (change("info", "7"), ["seed-0000001.h5"], "do not match their checksum"),
        (change("length", -1), ["seed-0000001.h5"], "corrupt"),
        *[
            (flip_a_bit_of(name), ["seed-0000001.h5"], "corrupt: actions, rewards, lengths or flags do not match")
            for name in ("rew", "act", "term", "trunc")
        ],
        (flip_a_bit_of("length"), ["seed-0000001.h5"], "corrupt"),
        (put_nan, ["seed-0000001.h5"], "episode 0: the observation of step 3 is nan at index [1] (seed 3)"),
        (Path.unlink, ["seed-0000001.h5"], "missing, but listed in manifest.json"),
        (say_it_again, ["seed-0000001.h5", "seed-0000007.h5"], "seed 3 occurs more than once in the data"),
        (lambda path: (path.parent / ".x.h5.1.0a1b2c3d.tmp").touch(), [".x.h5.1.0a1b2c3d.tmp"], "incomplete file"),
    ],
)
def test_damage_is_found_and_named(
    damage: object, bad: list[str], text: str, shards: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    damage(shards / "seed-0000001.h5")  # type: ignore[operator]
    assert wm("verify", shards, "--json") == 1
    found = json.loads(capsys.readouterr().out)
    assert not found["ok"]
    assert [file["name"] for file in found["files"] if file["problem"]] == bad
    whole = {"seed-0000000.h5", "seed-0000001.h5"} - set(bad)
    assert {file["name"] for file in found["files"]} == whole | set(bad)
    assert [ep.seed for ep in Dataset(shards).iter_episodes()][:2] == [0, 1]  # The other shard stays readable.
    assert all(text in file["problem"] for file in found["files"] if file["problem"])


def test_a_damaged_npz_is_found(shards: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    npz = tmp_path / "a.npz"
    wm("convert", shards, npz)
    assert wm("verify", npz) == 0
    whole = npz.read_bytes()
    npz.write_bytes(whole[:-200])
    assert wm("verify", npz) == 1
    assert "not a zip file" in capsys.readouterr().out
    npz.write_bytes(whole[:300] + bytes([whole[300] ^ 0xFF]) + whole[301:])
    assert wm("verify", npz) == 1
    assert "checksum" in capsys.readouterr().out
    assert wm("verify", tmp_path / "b.npz") == 1
    assert "b.npz" in capsys.readouterr().err
    assert wm("verify", tmp_path) == 1
