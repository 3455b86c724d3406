"""The artifact: what is saved comes back, and nothing else gets in."""

from __future__ import annotations

import hashlib
import json
import pickle
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from wm_agents import checkpoint
from wm_agents.checkpoint import (
    FORMAT_VERSION,
    ArtifactError,
    load_artifact,
    load_weights,
    model_card,
    read_tensors,
    save_artifact,
)

CONFIG = {"family": "vmc", "real": {"id": "CarRacing-v3"}, "sizes": [1, 2.5, None]}


def save(path: Path, half: bool = False, scale: float = 1.0) -> Path:
    weight = torch.arange(6.0).reshape(2, 3) * scale / 3
    tensors = {"net.weight": weight, "net.unit": torch.ones(2), "steps": torch.tensor(5)}
    policies = {"linear": ({"params": torch.arange(4.0) / 3}, {"kind": "linear"}), "bare": {"w": torch.ones(1)}}
    return save_artifact(path, CONFIG, tensors, {"begin/z": torch.ones(3, 2)}, "# card\n", policies, half)


def test_what_is_saved_comes_back(tmp_path: Path) -> None:
    artifact = load_artifact(save(tmp_path / "model"))
    assert {k: artifact.config[k] for k in CONFIG} == CONFIG
    assert artifact.config["format_version"] == FORMAT_VERSION
    assert torch.equal(artifact.tensors["net.weight"], torch.arange(6.0).reshape(2, 3) / 3)
    assert artifact.tensors["steps"].dtype == torch.int64
    assert torch.equal(artifact.starts["begin/z"], torch.ones(3, 2))
    params, metadata = artifact.policies["linear"]
    assert torch.equal(params["params"], torch.arange(4.0) / 3) and metadata == {"kind": "linear"}
    assert artifact.policies["bare"][1] == {}
    assert (tmp_path / "model" / "README.md").read_text() == "# card\n"


def test_half_precision_is_for_matrices_of_the_model_alone(tmp_path: Path) -> None:
    artifact = load_artifact(save(tmp_path / "model", half=True))
    assert artifact.tensors["net.weight"].dtype == torch.float16
    assert artifact.tensors["net.unit"].dtype == artifact.starts["begin/z"].dtype == torch.float32
    assert artifact.tensors["steps"].dtype == torch.int64
    assert artifact.policies["linear"][0]["params"].dtype == torch.float32


def test_saving_again_replaces_the_whole_directory(tmp_path: Path) -> None:
    save(tmp_path / "model")
    (tmp_path / "model" / "policy_old.safetensors").write_bytes(b"x")
    save(tmp_path / "model", scale=2.0)
    artifact = load_artifact(tmp_path / "model")
    assert "old" not in artifact.policies and artifact.tensors["net.weight"][1, 2] == 10 / 3
    assert [p.name for p in tmp_path.iterdir()] == ["model"]


def test_a_save_that_fails_leaves_the_old_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save(tmp_path / "model")

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(checkpoint, "write_text", full)
    with pytest.raises(OSError, match="No space"):
        save(tmp_path / "model", scale=2.0)
    assert load_artifact(tmp_path / "model").tensors["net.weight"][1, 2] == 5 / 3
    assert [p.name for p in tmp_path.iterdir()] == ["model"]


def test_a_folder_that_is_not_an_artifact_is_not_replaced(tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").write_text("years of work")
    with pytest.raises(ArtifactError, match=r"has no config.json; only a saved model may be replaced"):
        save(tmp_path)


def test_the_config_of_another_program_is_not_overwritten(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"model_type": "bert"}')
    with pytest.raises(ArtifactError, match=r"has no config.json of a saved model; only a saved model may be replaced"):
        save(tmp_path)
    assert [entry.name for entry in tmp_path.iterdir()] == ["config.json"]


def test_what_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match="nowhere does not exist; a saved model is a directory"):
        load_artifact(tmp_path / "nowhere")
    (tmp_path / "file").write_text("")
    with pytest.raises(ArtifactError, match="file is a file; a saved model is a directory"):
        load_artifact(tmp_path / "file")
    save(tmp_path / "model")
    (tmp_path / "model" / "starts.safetensors").unlink()
    with pytest.raises(ArtifactError, match=r"starts.safetensors is listed in config.json but missing"):
        load_artifact(tmp_path / "model")


def test_a_listed_policy_that_is_gone_is_named(tmp_path: Path) -> None:
    save(tmp_path / "model")
    (tmp_path / "model" / "policy_linear.safetensors").unlink()
    with pytest.raises(ArtifactError, match=r"policy_linear.safetensors is listed in config.json but missing"):
        load_artifact(tmp_path / "model")


def test_a_pickle_is_rejected_unread(tmp_path: Path) -> None:
    class Bomb:
        def __reduce__(self) -> tuple[object, ...]:
            return (Path.touch, (tmp_path / "exploded",))

    weights = save(tmp_path / "model") / "model.safetensors"
    weights.write_bytes(pickle.dumps(Bomb()))
    with pytest.raises(ArtifactError, match="is a pickle file of torch.save, not safetensors"):
        load_artifact(tmp_path / "model")
    torch.save({"net.weight": Bomb()}, weights)
    with pytest.raises(ArtifactError, match="is a zip file of torch.save, not safetensors"):
        load_artifact(tmp_path / "model")
    assert not (tmp_path / "exploded").exists()


def test_a_header_that_only_begins_like_a_pickle_is_read(tmp_path: Path) -> None:
    path, pad = tmp_path / "x.safetensors", 0
    while pad == 0 or path.read_bytes()[:1] != b"\x80":
        pad += 1
        save_file({"a": torch.ones(1)}, path, {"pad": "x" * pad})
    assert read_tensors(path)[0]["a"] == 1


def test_a_changed_file_is_found_by_its_hash(tmp_path: Path) -> None:
    weights = save(tmp_path / "model") / "model.safetensors"
    data = bytearray(weights.read_bytes())
    data[-1] ^= 1
    weights.write_bytes(data)
    with pytest.raises(ArtifactError, match="sha256 expected [0-9a-f]{64}, got [0-9a-f]{64}; download or save"):
        load_artifact(tmp_path / "model")


def test_a_truncated_file_with_a_hash_of_its_own_is_called_corrupt(tmp_path: Path) -> None:
    path = save(tmp_path / "model")
    weights = path / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-3])
    files = json.loads((path / "config.json").read_text())["files"]
    edit(path, files={**files, weights.name: hashlib.sha256(weights.read_bytes()).hexdigest()})
    with pytest.raises(ArtifactError, match="is not a valid safetensors file"):
        load_artifact(path)


def test_a_newer_format_asks_for_an_upgrade(tmp_path: Path) -> None:
    edit(save(tmp_path / "model"), format_version=FORMAT_VERSION + 1)
    with pytest.raises(ArtifactError, match=rf"format version {FORMAT_VERSION + 1}, .* reads up to {FORMAT_VERSION}"):
        load_artifact(tmp_path / "model")


def test_foreign_and_broken_configs_are_rejected(tmp_path: Path) -> None:
    config = save(tmp_path / "model") / "config.json"
    config.write_text('{"model_type": "bert"}')
    with pytest.raises(ArtifactError, match="has no format_version"):
        load_artifact(tmp_path / "model")
    config.write_text("[1]")
    with pytest.raises(ArtifactError, match="has no format_version"):
        load_artifact(tmp_path / "model")
    config.write_text('{"format_version": ')
    with pytest.raises(ArtifactError, match="is not valid JSON"):
        load_artifact(tmp_path / "model")


def test_weights_of_a_compiled_module_fit_the_plain_one_and_back() -> None:
    plain, compiled = nn.Linear(2, 3), nn.Sequential()
    compiled.add_module("_orig_mod", nn.Linear(2, 3))
    load_weights(plain, compiled.state_dict())
    assert torch.equal(plain.weight, compiled.state_dict()["_orig_mod.weight"])
    nn.init.zeros_(plain.weight)
    load_weights(compiled, plain.state_dict())
    assert not compiled.state_dict()["_orig_mod.weight"].any()


def test_half_weights_load_into_a_float_module() -> None:
    module = nn.Linear(2, 3)
    load_weights(module, {name: t.half() for name, t in module.state_dict().items()})
    assert module.weight.dtype == torch.float32


def test_misfitting_weights_report_both_sides_and_change_nothing() -> None:
    module = nn.Sequential(nn.Linear(2, 3), nn.Linear(3, 1))
    before = {name: t.clone() for name, t in module.state_dict().items()}
    given = {"0.weight": torch.ones(3, 5), "0.bias": torch.ones(3), "1.weight": torch.ones(1, 3), "head": torch.ones(1)}
    with pytest.raises(ArtifactError) as error:
        load_weights(module, given)
    text = str(error.value)
    assert "0.weight: (3, 2) in the model, (3, 5) in the file" in text
    assert "1.bias (1,): missing in the file" in text and "head (1,): not in the model" in text
    assert all(torch.equal(before[name], t) for name, t in module.state_dict().items())


def test_tied_weights_are_saved(tmp_path: Path) -> None:
    tied = torch.ones(2)
    path = save_artifact(tmp_path / "m", {}, {"a": tied, "b": tied}, {"z": tied}, "")
    assert load_artifact(path).tensors.keys() == {"a", "b"}


def test_the_card_holds_every_fact() -> None:
    card = model_card("Dream-X-v0", {"real score": "1 +- 2", "steps": 3}, "A dream.")
    assert card.startswith("# Dream-X-v0\n\nA dream.\n") and "| real score | 1 +- 2 |\n| steps | 3 |\n" in card


def edit(path: Path, **changes: object) -> None:
    file = path / "config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), **changes}))


def test_others_may_read_what_is_saved(tmp_path: Path) -> None:
    path = save(tmp_path / "m")
    modes = {file.name: file.stat().st_mode & 0o777 for file in path.iterdir()}
    assert set(modes.values()) == {modes["config.json"]}, modes
