"""Files made to harm: nothing of them runs, leads elsewhere, leaks or fills the memory, and the file is named."""

from __future__ import annotations

import json
import shutil
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gymnasium as gym
import h5py
import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny import work_here

from wm_agents.checkpoint import ArtifactError, load_artifact, save_artifact, sha256
from wm_agents.cli.app import main as wm
from wm_agents.data.dataset import Dataset, write_shard
from wm_agents.data.episode import Episode
from wm_agents.data.npz import _action_space
from wm_agents.data.replay import ReplayBuffer
from wm_agents.data.shard import ShardError, read_info
from wm_agents.errors import ConfigurationError
from wm_agents.factory import create_world_model, get_model_info
from wm_agents.models.families import FAMILIES, config_class
from wm_agents.models.saved import STORE, load_model
from wm_agents.pretrained import real_spec
from wm_agents.system.files import parse_json
from wm_envs.trust import UntrustedModule, check_trusted

Change = Callable[[dict[str, Any]], object]


def artifact(folder: Path, change: Change = lambda facts: None, name: str = "ensemble-cartpole") -> Path:
    """A copy of a shipped model with another config.json."""
    path = folder / "model"
    shutil.copytree(STORE / name, path)
    facts = json.loads((path / "config.json").read_text())
    change(facts)
    (path / "config.json").write_text(json.dumps(facts))
    return path


def listed(path: Path) -> None:
    """Have config.json list the tensor files as they are now."""
    facts = json.loads((path / "config.json").read_text())
    facts["files"] |= {name: sha256(path / name) for name in facts["files"]}
    (path / "config.json").write_text(json.dumps(facts))


@pytest.mark.parametrize("name", ["../../victim", "/etc/passwd", "a/b", "..", ".", "", "a\\b", "a\0b"])
def test_files_lists_names_of_the_folder_alone(name: str, tmp_path: Path) -> None:
    path = artifact(tmp_path, lambda facts: facts["files"].update({name: "0" * 64}))
    with pytest.raises(ArtifactError, match=r"config.json: .files. may name only files in .*do not use this model"):
        load_artifact(path)


@pytest.mark.parametrize("files", [None, [], ["model.safetensors"], {"model.safetensors": 3}, "x"])
def test_files_is_an_object_of_hashes(files: Any, tmp_path: Path) -> None:
    path = artifact(tmp_path, lambda facts: facts.update(files=files))
    with pytest.raises(ArtifactError, match=".files. must map file names to sha256"):
        load_artifact(path)


def test_every_tensor_file_that_is_read_has_its_hash_checked(tmp_path: Path) -> None:
    path = artifact(tmp_path, lambda facts: facts.update(files={}))
    with pytest.raises(ArtifactError, match=r".files. does not list model.safetensors, policy_mlp.safetensors, starts"):
        load_artifact(path)


def test_links_out_of_the_folder_are_rejected_and_the_hubs_cache_is_not(tmp_path: Path) -> None:
    path = artifact(tmp_path)
    shutil.move(path / "README.md", tmp_path / "secret")
    (path / "README.md").symlink_to(tmp_path / "secret")
    with pytest.raises(ArtifactError, match=r"README.md is a link to .*secret; replace the link with a copy"):
        load_artifact(path)
    snapshot, blobs = tmp_path / "repo" / "snapshots" / "abc", tmp_path / "repo" / "blobs"
    shutil.copytree(STORE / "ensemble-cartpole", snapshot)
    blobs.mkdir()
    for number, file in enumerate(list(snapshot.iterdir())):
        shutil.move(file, blobs / str(number))
        file.symlink_to(Path("..", "..", "blobs", str(number)))
    assert load_artifact(snapshot).policies.keys() == {"mlp"}


@pytest.mark.parametrize(
    "claim",
    [{"hidden": 12_000}, {"hidden": 10**9}, {"members": 10**6}, {"layers": 10**7}],
    ids=lambda claim: f"{claim}",
)
def test_a_model_larger_than_its_weights_is_rejected_before_memory_is_taken(
    claim: dict[str, int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = artifact(tmp_path, lambda facts: facts["model"].update(claim))
    with pytest.raises(ArtifactError, match=r"config.json (describes a model of more than|does not describe a model)"):
        load_model(path)


def test_another_family_s_size_is_rejected_at_once(tmp_path: Path) -> None:
    big = create_world_model("dreamerv3:ci", obs_shape=(4,), action_dim=2, action_type="discrete").cfg
    huge = big.from_size("size400m", obs_shape=(4,), action_dim=2, action_type="discrete").to_dict()
    path = artifact(tmp_path, lambda facts: facts.update(family="dreamerv3", model=huge))
    with pytest.raises(
        ArtifactError, match="describes a model of more than .* weights, but model.safetensors contains"
    ):
        load_model(path)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("shape", [(4,), (64, 64, 3)], ids=["vectors", "frames"])
def test_honest_models_of_every_family_load(family: str, shape: tuple[int, ...], tmp_path: Path) -> None:
    if family in ("ensemble", "objects") and len(shape) != (1 if family == "ensemble" else 3):
        pytest.skip("this family does not see such observations")
    size = next(iter(config_class(family).SIZES))
    model = create_world_model(f"{family}:{size}", obs_shape=shape, action_dim=2)
    loaded, _ = load_model(model.save_pretrained(tmp_path / "model"))
    assert loaded.num_parameters == model.num_parameters


@pytest.mark.parametrize("shape", [[10**9], [30_000, 30_000], [10**6, 10**6], [0], [-3]])
def test_spaces_beyond_reason_are_rejected(shape: list[int], tmp_path: Path) -> None:
    path = artifact(tmp_path, lambda facts: facts["spaces"]["obs"].update(shape=shape, low=0, high=1))
    with pytest.raises(
        ArtifactError, match=r"config.json does not describe a model.*the shape of a Box must be .* values, got"
    ):
        load_model(path)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_and_starts_that_are_not_finite_are_rejected_by_name(value: float, tmp_path: Path) -> None:
    path = artifact(tmp_path)
    tensors = load_file(path / "starts.safetensors")
    name = next(iter(tensors))
    save_file({**tensors, name: torch.full_like(tensors[name], value)}, path / "starts.safetensors")
    listed(path)
    with pytest.raises(ArtifactError, match=f"starts.safetensors: {name} has NaN or infinity"):
        load_model(path)
    path = artifact(tmp_path / "weights")
    weights = load_file(path / "model.safetensors")
    save_file(
        {**weights, "scale.obs_mean": torch.full_like(weights["scale.obs_mean"], value)}, path / "model.safetensors"
    )
    listed(path)
    with pytest.raises(ArtifactError, match="scale.obs_mean of Ensemble has NaN or infinity"):
        load_model(path)


def test_half_precision_is_left_where_it_does_not_hold_the_values(tmp_path: Path) -> None:
    tensors = {
        "small": torch.tensor([[1.5, -2.0]]),
        "large": torch.tensor([[1.0, 1e6]]),
        "bound": torch.tensor([[torch.inf]]),
    }
    save_artifact(tmp_path / "m", {}, tensors, {}, "", half=True)
    stored = load_artifact(tmp_path / "m").tensors
    assert {name: str(t.dtype) for name, t in stored.items()} == {
        "small": "torch.float16", "large": "torch.float32", "bound": "torch.float16",
    }  # fmt: skip
    assert stored["large"].equal(tensors["large"])


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("[" * 100_000 + "]" * 100_000, "nested too deeply"),
        ('{"format_version": 1, "format_version": 2}', "the key 'format_version' occurs twice"),
        (" " * 17_000_000 + "{}", "17 MB, more than 16 MB"),
        ('{"format_version": ' + "9" * 5000 + "}", "limit"),
    ],
)
def test_json_that_is_made_to_harm_is_one_line_with_the_file(text: str, reason: str, tmp_path: Path) -> None:
    path = artifact(tmp_path)
    (path / "config.json").write_text(text)
    with pytest.raises(ArtifactError, match=f"config.json is not valid JSON .*{reason}"):
        load_artifact(path)
    with pytest.raises(ValueError, match=reason):
        parse_json(path / "config.json")


def shard(folder: Path, change: Callable[[h5py.File], object]) -> Path:
    episode = Episode(np.zeros((5, 4), np.float32), np.zeros(4, np.int64), np.ones(4, np.float32), True, False, 0, {})
    write_shard(folder, "seed-0000000", [episode])
    path = folder / "seed-0000000.h5"
    with h5py.File(path, "r+") as file:
        change(file)
    return path


def as_link(file: h5py.File) -> None:
    del file["obs"]
    file["obs"] = h5py.ExternalLink("other.h5", "s")


def as_soft_link(file: h5py.File) -> None:
    file["obs2"] = file["obs"]
    del file["obs"]
    file["obs"] = h5py.SoftLink("/obs2")


def as_group(file: h5py.File) -> None:
    del file["info"]
    file.create_group("info")["x"] = h5py.ExternalLink("other.h5", "s")


def as_window(file: h5py.File) -> None:
    del file["obs"]
    layout = h5py.VirtualLayout((5, 4), np.float32)
    layout[:] = h5py.VirtualSource("other.h5", "s", (5, 4))
    file.create_virtual_dataset("obs", layout)


def as_external_storage(file: h5py.File) -> None:
    del file["obs"]
    plist = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
    plist.set_external(b"/etc/hostname", 0, h5py.h5f.UNLIMITED)
    h5py.h5d.create(file.id, b"obs", h5py.h5t.NATIVE_UINT8, h5py.h5s.create_simple((5, 4)), plist)


def as_endless(file: h5py.File) -> None:
    del file["length"]
    file.create_dataset("length", (10**12,), np.int64, chunks=(1024,))


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (as_link, "obs is a link to other data"),
        (as_soft_link, "obs is a link to other data"),
        (as_group, "info must be a dataset, got Group"),
        (as_window, "obs is stored in another file"),
        (as_external_storage, "obs is stored in another file"),
        (as_endless, "length has shape .1000000000000,.; a shard has at most"),
    ],
)
def test_shards_with_links_to_other_data_are_rejected_unread(
    change: Callable[[h5py.File], object], reason: str, tmp_path: Path
) -> None:
    path = shard(tmp_path, change)
    with pytest.raises(ShardError, match=f"rejected: {reason}"):
        read_info(path)
    data = Dataset(tmp_path)
    assert list(data.iter_episodes()) == [] and data.skipped.keys() == {path.name}


def test_an_npz_that_unpacks_to_a_thousand_times_its_size_is_rejected(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("wm_agents.data.replay_file.MAX_UNPACKED", 10**6)
    path = tmp_path / "bomb.npz"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("obs.npy", b"\0" * 3_000_000)
    with pytest.raises(ValueError, match=r"bomb.npz is not a valid npz \(its .* bytes unpack to 3,000,000, more th"):
        ReplayBuffer.load(path)


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"obs": None}, "bad.npz is not a valid npz"),  # Its header claims 10^12 rows.
        ({"capacity": np.ones(3)}, "bad.npz: capacity and action_dim must be single numbers, got"),
        ({"action_dim": np.ones((2, 1))}, "bad.npz: capacity and action_dim must be single numbers, got"),
    ],
)
def test_an_npz_with_impossible_sizes_is_named(tmp_path: Path, changes: dict[str, Any], reason: str) -> None:
    rows = {"obs": np.zeros((4, 2)), "actions": np.zeros((4, 1)), "rewards": np.zeros(4), "dones": np.zeros(4)}
    about = {"obs_shape": np.array([2]), "action_dim": np.array(1), "capacity": np.array(9)}
    np.savez(
        tmp_path / "bad.npz", **{name: value for name, value in (rows | about | changes).items() if value is not None}
    )
    if "obs" in changes:
        with zipfile.ZipFile(tmp_path / "bad.npz", "a") as archive, archive.open("obs.npy", "w") as file:
            np.lib.format.write_array_header_1_0(file, {"descr": "<f4", "fortran_order": False, "shape": (10**12, 4)})
    with pytest.raises(ValueError, match=reason):
        ReplayBuffer.load(tmp_path / "bad.npz")


def test_a_shard_whose_spec_is_no_object_is_skipped(tmp_path: Path) -> None:
    path = shard(tmp_path, lambda file: file.attrs.update(spec="[1]") or file.attrs.pop("sha256"))
    assert Dataset(tmp_path).skipped == {path.name: "corrupt: spec must be a JSON object, got a list"}


def test_a_model_without_spaces_is_named(tmp_path: Path) -> None:
    path = artifact(tmp_path, lambda facts: facts.pop("spaces"))
    with pytest.raises(ConfigurationError, match=r"config.json does not describe a saved model: KeyError\('spaces'\)"):
        get_model_info(str(path))


@pytest.fixture
def evil(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working directory with a module that leaves a mark where it is imported."""
    lines = "from pathlib import Path", f"Path({str(tmp_path / 'mark')!r}).touch()", "import gymnasium"
    register = "gymnasium.register('Evil-v0', 'gymnasium.envs.classic_control.cartpole:CartPoleEnv')"
    (tmp_path / "evil_module.py").write_text("\n".join([*lines, register]))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    monkeypatch.setattr("wm_envs.trust._trusted", set())
    yield tmp_path
    sys.modules.pop("evil_module", None)
    gym.registry.pop("Evil-v0", None)


def test_an_environment_of_a_foreign_model_is_not_imported_unless_it_is_trusted(
    evil: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    work_here(monkeypatch)
    path = artifact(evil, lambda facts: facts["real"].update(id="evil_module:Evil-v0", max_episode_steps=9))
    commands = ["evaluate", "--episodes", "1"], ["video"], ["evolve", str(evil / "out")], ["fidelity", "--quick"]
    for name, *flags in commands:
        assert wm([name, str(path), *flags]) == 1
        err = capsys.readouterr().err
        assert "whose module evil_module would be run, but belongs to no installed package" in err
        assert "--trust-module evil_module" in err and not (evil / "mark").exists()
    for spelling in (["--trust-module", "evil_module"], ["--trust_module=evil_module"]):
        assert wm(["evaluate", str(path), "--episodes", "1", *spelling]) == 0
        assert (evil / "mark").exists()


def test_shards_and_standard_modules_are_not_imported_either(evil: Path) -> None:
    with pytest.raises(UntrustedModule, match="data names the environment evil_module:Evil-v0"):
        _action_space({"id": "evil_module:Evil-v0"}, None, Path("data"))
    with pytest.raises(UntrustedModule, match="whose module this would be run"):
        check_trusted("this:CartPole-v1", "a file")
    assert not (evil / "mark").exists()
    with pytest.raises(UntrustedModule, match="a file names the wrapper evil_module:wrap, whose module evil_module"):
        check_trusted("CartPole-v1", "a file", "evil_module:wrap")
    with pytest.raises(UntrustedModule, match="wrapper os:system"):  # Imported, but Python's own.
        check_trusted("CartPole-v1", "a file", "os:system")
    check_trusted("CartPole-v1", "a file", "gymnasium.wrappers:NormalizeObservation")
    check_trusted("CartPole-v1", "a file")
    check_trusted("gymnasium:CartPole-v1", "a file")
    check_trusted("safetensors.anything:Id-v0", "a file")  # Of an installed package.


def test_a_model_cannot_name_another_dream_as_its_reality(tmp_path: Path) -> None:
    other = {"id": "Dream-v0", "kwargs": {"model": "elsewhere"}}
    path = artifact(tmp_path, lambda facts: facts["real"].update(other))
    with pytest.raises(ValueError, match=r"is itself a dream \('Dream-v0'\)"):
        real_spec(load_artifact(path))


@pytest.mark.parametrize("real", [5, None, [], {"id": 5}, {}])
def test_a_real_environment_that_is_none_is_one_line(real: Any, tmp_path: Path) -> None:
    path = artifact(tmp_path, lambda facts: facts.update(real=real))
    with pytest.raises(ArtifactError, match=r"config.json: real must describe an environment"):
        real_spec(load_artifact(path))
