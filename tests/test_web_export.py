"""Exports compute what Python computes: ONNX graphs step by step, and the page in the browser seed by seed."""

from __future__ import annotations

import json
import shutil
import subprocess
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from tiny import SPEC, save_tiny

import wm_envs  # noqa: F401
from policies.linear import LinearPolicy
from policies.mlp import MLPPolicy
from wm_agents.cli import app as cli
from wm_agents.factory import create_world_model
from wm_agents.models.vmc import VMC, VMCConfig
from wm_agents.pretrained import load_model, load_policy, save_model
from wm_agents.web.export_folder import export_folder
from wm_agents.web.web_export import export_web
from wm_envs.action import decode_action
from wm_envs.registry import RealSpec

NODE = shutil.which("node")
CARS = "Dream-CarRacing-v0"


def save_fresh(path: Path, preset: str, env_id: str = "Pendulum-v1") -> str:
    """A model of this family that has learned nothing, with a linear policy."""
    torch.manual_seed(0)
    model = create_world_model(preset, env=gym.make(env_id))
    obs = torch.from_numpy(np.stack([model.obs_space.sample() for _ in range(8)]))
    with torch.no_grad():
        starts = {"begin": model.eval().encode(obs)}
    policy = LinearPolicy(model.act_space, np.full((model.actions, model.feat_dim + 1), 0.01))
    save_model(path, model, RealSpec(env_id), starts, horizon=50, card="# fresh\n", policy=policy)
    return str(path)


@pytest.mark.parametrize(
    "model", ["Dream-CartPole-v0", "Dream-Breakout-v0", "vmc", "ensemble:ci", "dreamerv3:ci", "tdmpc2:ci"]
)
def test_onnx_graphs_equal_pytorch(model: str, tmp_path: Path) -> None:
    pytest.importorskip("onnxruntime", reason="the extra `export` is not installed")
    pytest.importorskip("onnx", reason="the extra `export` is not installed")
    from wm_agents.models.onnx_graphs import Session
    from wm_agents.web.onnx_export import export_onnx

    if model == "vmc":
        model = save_tiny(tmp_path / "model")
    elif ":" in model:
        model = save_fresh(tmp_path / "model", model)
    made = export_onnx(model, tmp_path / "out", steps=20)
    assert {"encode", "step", "decode", "feat"} < made["difference"].keys()
    assert all(value < 1e-4 for value in made["difference"].values()), made
    about = json.loads((tmp_path / "out" / "dream.json").read_text())
    assert about["graphs"]["step"]["inputs"]["noise"]["shape"][0] in ("B", 1) and not made["skipped"]
    for name, graph in about["graphs"].items():
        session = Session(tmp_path / "out" / f"{name}.onnx")
        assert (session.inputs, session.outputs) == (list(graph["inputs"]), graph["outputs"])


def test_graphs_that_differ_are_rejected_and_leave_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("onnxruntime", reason="the extra `export` is not installed")
    pytest.importorskip("onnx", reason="the extra `export` is not installed")
    from wm_agents.models import onnx_graphs
    from wm_agents.web import onnx_export

    monkeypatch.setattr(onnx_graphs, "REPLACED", [])
    with pytest.raises(ValueError, match=r"step of ensemble cannot be exported to ONNX: .*special_ndtr"):
        onnx_export.export_onnx("Dream-CartPole-v0", tmp_path / "out")
    monkeypatch.undo()
    plain = onnx_graphs._step_ensemble
    monkeypatch.setattr(onnx_graphs, "_step_ensemble", lambda *given: plain(*given)._replace(rew=plain(*given).rew + 1))
    with pytest.raises(ValueError, match=r"graphs of ensemble differ from PyTorch by \{'step': "):
        onnx_export.export_onnx("Dream-CartPole-v0", tmp_path / "out")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("squash", ["clip", "tanh", "unit"])
def test_outputs_of_exported_policies_are_encoded_actions(squash: str) -> None:
    pytest.importorskip("onnxruntime", reason="the extra `export` is not installed")
    from wm_agents.web.onnx_export import _mlp

    space = gym.spaces.Box(-2.0, 6.0, (2,), np.float32)
    rng = torch.Generator().manual_seed(0)
    layers = [(torch.randn(2, 3, generator=rng), torch.zeros(2))]
    policy, feat = MLPPolicy(space, layers, "tanh", squash), torch.randn(50, 3, generator=rng)
    assert np.allclose(decode_action(space, _mlp(policy)(feat)[0].numpy()), policy.act(feat.numpy()), atol=1e-5)


RUN = """
import { Dream } from "./dream.js";
import { readFile } from "node:fs/promises";
const get = async (url) => {
  const file = await readFile(url);
  return file.buffer.slice(file.byteOffset, file.byteOffset + file.byteLength);
};
const dream = await Dream.load(new URL("./", import.meta.url), get);
const [seed, start, temperature, policy] = JSON.parse(process.argv[2]);
dream.temperature = temperature;
const rows = [{ obs: Array.from(dream.reset(seed, start)) }];
while (rows.length <= 20) {
  const act = dream.policies[policy](dream.feat()), { rew, cont, term } = dream.step(act);
  rows.push({ act, rew, cont, term, obs: Array.from(dream.decode()) });
  if (term) break;
}
console.log(JSON.stringify(rows));
"""


def in_javascript(folder: Path, *how: Any) -> list[dict[str, Any]]:
    assert NODE is not None
    (folder / "package.json").write_text('{"type": "module"}')
    (folder / "run.js").write_text(RUN)
    done = subprocess.run([NODE, str(folder / "run.js"), json.dumps(how)], capture_output=True, text=True, timeout=100)
    assert done.returncode == 0, done.stderr
    rows: list[dict[str, Any]] = json.loads(done.stdout)
    return rows


@pytest.mark.skipif(NODE is None, reason="Node.js is not installed")
@pytest.mark.parametrize(
    "name, how",
    [
        (CARS, (7, "begin", 1.0, "linear")),
        ("Dream-Pong-v0", (5, "anywhere", 1.0, "mlp")),
        ("Dream-Breakout-v0", (123456789, "anywhere", 1.3, "mlp")),
        ("Dream-LunarLander-v0", (0, "begin", 0.5, "mlp")),
    ],
)
def test_the_same_seed_gives_the_same_dream_in_javascript(name: str, how: Any, tmp_path: Path) -> None:
    assert export_web(name, tmp_path / "out") == []
    rows = in_javascript(tmp_path / "out", *how)
    seed, start, temperature, kind = how
    env: Any = gym.make(name, temperature=temperature)
    net, artifact = load_model(name)
    policy = load_policy(net, artifact, kind)
    obs, _ = env.reset(seed=seed, options={"start": start})
    for t, row in enumerate(rows):
        if t:
            with torch.inference_mode():
                act = policy.act(net.feat(env.unwrapped.envs.latent).numpy())[0]
            assert np.allclose(act, row["act"] if act.shape else row["act"][0], atol=1e-4)
            obs, rew, term, _, _ = env.step(act)
            assert row["rew"] == pytest.approx(rew, abs=1e-3) and row["term"] == term
        shown = np.frombuffer(bytes(row["obs"]), obs.dtype).reshape(obs.shape)
        off = np.abs(shown.astype(np.float64) - obs)
        assert off.max() <= (1 if obs.dtype == np.uint8 else 1e-3), t
    assert len(rows) > 15


def test_the_folder_is_small_complete_and_loads_nothing_from_elsewhere(tmp_path: Path) -> None:
    export_web(CARS, tmp_path / "out")
    assert sum(file.stat().st_size for file in (tmp_path / "out").iterdir()) < 4e6
    assert len({file.stat().st_mode for file in (tmp_path / "out").iterdir()}) == 1  # Another user's server reads all.
    for file in (tmp_path / "out").glob("*.[jh]*"):
        text = file.read_text()
        for name in __import__("re").findall(r'(?:from|src=|href=) ?"\.?/?([\w.]+\.\w+)"', text):
            assert (tmp_path / "out" / name).is_file(), f"{file.name} needs {name}"
        assert "https://" not in text and "http://" not in text.replace("http://www.w3.org", "")


def test_families_without_an_onnx_form_are_named(tmp_path: Path) -> None:
    pytest.importorskip("onnxruntime", reason="the extra `export` is not installed")
    from wm_agents.web.onnx_export import export_onnx

    with pytest.raises(ValueError, match="family 'objects' cannot be exported to ONNX, because .* --web"):
        export_onnx("Dream-Pong-v0", tmp_path / "out")
    with pytest.raises(ValueError, match="family 'objects' cannot be exported to ONNX"):
        gym.make("Dream-Pong-v0", backend="onnx")
    assert not list(tmp_path.iterdir())


def test_what_the_page_cannot_run_is_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no implementation of family dreamerv3; it runs ensembles, object models"):
        export_web(save_fresh(tmp_path / "model", "dreamerv3:ci"), tmp_path / "out")
    vectors = save_tiny(tmp_path / "vectors", RealSpec("CartPole-v1"))
    with pytest.raises(ValueError, match=r"no implementation of V-M-C of vectors \(4,\); it runs .* V-M-C of images"):
        export_web(vectors, tmp_path / "out")
    images, parts = gym.spaces.Box(0, 255, (32, 32, 3), np.uint8), gym.spaces.MultiDiscrete([3, 2])
    several = VMC(VMCConfig("small", z_dim=4, hidden=8), images, parts).eval()
    save_model(tmp_path / "several", several, SPEC, {"begin": several.initial(4)}, horizon=9, card="# fresh\n")
    with pytest.raises(ValueError, match=r"no implementation of actions MultiDiscrete\(\[3 2\]\); it runs"):
        export_web(str(tmp_path / "several"), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_other_folders_are_not_overwritten(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("years of work")
    assert cli.main(["export", "Dream-CartPole-v0", str(tmp_path / "mine"), "--web"]) == 1
    assert "contains other files" in capsys.readouterr().err
    assert cli.main(["export", "Dream-CartPole-v0", str(tmp_path / "new"), "--web"]) == 0
    assert "python -m http.server -d" in capsys.readouterr().out
    assert cli.main(["export", "Dream-CartPole-v0", str(tmp_path / "new"), "--web"]) == 0  # An earlier export.
    with pytest.raises(ZeroDivisionError), export_folder(tmp_path / "new") as folder:
        (folder / "half").write_text("")
        raise ZeroDivisionError
    assert (tmp_path / "new" / "index.html").is_file() and not (tmp_path / "new" / "half").exists()
