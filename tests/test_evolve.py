"""Controllers evolved for a saved model: in its dream and for real, to be gone on with, the model kept as it is."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tiny import SQUASH, save_tiny, work_here

from policies.cmaes import CMAConfig
from policies.linear import LinearPolicy
from policies.play import EpisodePool, EpisodeResult, EpisodeTask
from policies.subspace import principal
from wm_agents.checkpoint import load_artifact, save_artifact, sha256
from wm_agents.control import evolve as evolving
from wm_agents.control.evolve import evolve_in_dream, evolve_in_real
from wm_agents.loops.evolve_saved import evolve_artifact
from wm_agents.pretrained import load_model, load_policy, load_starts
from wm_agents.system.progress import Bar
from wm_envs.dream import DreamConfig
from wm_envs.registry import RealSpec

CFG = CMAConfig(population=4, rollouts=2, generations=4, seed=7)
DREAM = DreamConfig(horizon=5)


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> str:
    return save_tiny(tmp_path_factory.mktemp("models") / "tiny")


@pytest.fixture(scope="module")
def echo(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A model of a real environment that takes no time."""
    spec = RealSpec("toy_env:Echo-v0", {"length": 4})
    return save_tiny(tmp_path_factory.mktemp("models") / "echo", spec, horizon=4)


def evolve(model: str, out: Path, cfg: CMAConfig = CFG, **changes: Any) -> LinearPolicy:
    settings = {"where": "dream", "dream": DREAM, "squash": SQUASH, "procs": 1}
    return evolve_artifact(model, out, cfg, **settings | changes)


def interrupt_at(number: int, patch: pytest.MonkeyPatch) -> None:
    """Stop the next evolution once generation `number` is done."""

    def update(self: Bar, done: int, text: str = "") -> None:
        if done == number:
            raise KeyboardInterrupt

    patch.setattr(Bar, "update", update)


def test_a_controller_blind_to_part_of_feat_has_zeros_there(tiny: str) -> None:
    net, artifact = load_model(tiny)
    policy = evolve_in_dream(net, load_starts(artifact), CFG, DREAM, squash=SQUASH, sees=slice(2, 6)).policy
    assert (policy.weights[:, [2, 3, 4, 5, -1]] != 0).all()
    assert (policy.weights[:, [0, 1, *range(6, 12)]] == 0).all()


@pytest.mark.parametrize("where", ["dream", "real"])
def test_a_controller_on_components_sees_their_subspace_alone(
    where: str, echo: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    work_here(monkeypatch)
    net, artifact = load_model(echo)
    with torch.inference_mode():
        axes = principal(net.feat(load_starts(artifact)["anywhere"]).numpy(), 3).axes
    cfg = replace(CFG, components=3, sigma=1.0)
    weights = evolve(echo, tmp_path / "out", cfg, where=where, squash=None).weights
    told = json.loads((tmp_path / "out.run" / "evolution.json").read_text())
    assert len(told["mean"]) == len(weights) * 4  # Three components and a bias for each action.
    on_feat = weights[:, :-1]
    assert np.abs(on_feat).max() > 0.1
    np.testing.assert_allclose(on_feat @ axes.T @ axes, on_feat, atol=1e-6)


def test_first_weights_and_generations_are_weights_on_feat_whatever_is_evolved(tiny: str) -> None:
    net, artifact = load_model(tiny)
    cfg, starts = replace(CFG, components=3, sigma=1e-9), load_starts(artifact)
    seen: list[np.ndarray] = []

    def stay_at(x0: np.ndarray) -> np.ndarray:
        how: dict[str, Any] = {
            "dream": DREAM,
            "squash": SQUASH,
            "on_generation": lambda g: seen.append(g.weights),
        }
        return evolve_in_dream(net, starts, cfg, x0=x0, **how).policy.weights.ravel().astype(np.float64)

    first = np.random.default_rng(0).normal(size=39)
    kept = stay_at(first)
    assert np.abs(kept - first).max() > 0.1  # Three components cannot say it all.
    np.testing.assert_allclose(stay_at(kept), kept, atol=1e-5)
    np.testing.assert_allclose(seen[0], kept, atol=1e-5)


def test_the_steps_of_an_evolution_are_counted(tiny: str) -> None:
    net, artifact = load_model(tiny)
    assert evolve_in_dream(net, load_starts(artifact), CFG, DREAM, squash=SQUASH).steps <= 4 * 4 * 2 * 5
    net.memory.gmm_linear.bias.data[-2] = -5.0  # No reward is ever positive.
    short = evolve_in_dream(net, load_starts(artifact), CFG, DreamConfig(horizon=5, stall=2), squash=SQUASH)
    assert short.steps == 4 * 4 * 2 * 2


def test_the_dream_return_is_the_mean_of_the_last_population(tiny: str) -> None:
    net, artifact = load_model(tiny)
    means: list[float] = []
    evolved = evolve_in_dream(
        net,
        load_starts(artifact),
        CFG,
        DREAM,
        on_generation=lambda generation: means.append(generation.mean),
    )
    assert len(means) == CFG.generations
    assert evolved.dream_return == pytest.approx(means[-1])


def test_a_later_start_and_a_hotter_dream_are_other_evolutions(tiny: str) -> None:
    net, artifact = load_model(tiny)
    starts = load_starts(artifact)

    def weights(x0: np.ndarray | None = None, **changes: Any) -> np.ndarray:
        return evolve_in_dream(net, starts, CFG, replace(DREAM, **changes), x0=x0).policy.weights

    plain = weights()
    np.testing.assert_array_equal(plain, weights())
    shifted = weights(x0=np.full(39, 5.0))
    assert abs(shifted.mean() - 5) < 1 and abs(plain.mean()) < 1
    assert not np.array_equal(plain, weights(temperature=4.0))
    assert not np.array_equal(plain, weights(horizon=2))


def test_a_dream_that_stalls_earns_nothing_more(tiny: str) -> None:
    net, artifact = load_model(tiny)
    net.memory.gmm_linear.bias.data[-2] = -5.0  # No reward is ever positive.
    means: list[float] = []
    for stall in (None, 1):
        evolved = evolve_in_dream(net, load_starts(artifact), CFG, DreamConfig(horizon=5, stall=stall))
        means.append(evolved.dream_return)
    assert means[0] == pytest.approx(5 * means[1], rel=0.2)


def test_the_model_is_kept_to_the_byte_and_the_policy_is_new(tiny: str, tmp_path: Path) -> None:
    source = load_artifact(tiny)
    shipped = tmp_path / "shipped"  # In half precision, with facts and a second policy, as a store may have it.
    config = source.config | {"temperature": 1.3, "score": 12}
    policies = source.policies | {"other": source.policies["linear"]}
    save_artifact(shipped, config, source.tensors, source.starts, "# shipped\n\n- fast", policies, half=True)
    policy = evolve(str(shipped), tmp_path / "out")
    for name in ("model.safetensors", "starts.safetensors"):
        assert sha256(shipped / name) == sha256(tmp_path / "out" / name)
    net, new = load_model(tmp_path / "out")
    assert new.policies["other"][1] == policies["other"][1]
    np.testing.assert_array_equal(new.policies["other"][0]["weights"], policies["other"][0]["weights"])
    assert {**new.config, "files": 0} == {**load_artifact(shipped).config, "files": 0}
    np.testing.assert_array_equal(load_policy(net, new).weights, policy.weights)
    assert load_policy(net, new).squash == SQUASH
    assert not np.array_equal(policy.weights, load_policy(net, source).weights)
    card = (tmp_path / "out" / "README.md").read_text()
    assert "| where | dream |" in card and "| generations | 4 |" in card and card.endswith("# shipped\n\n- fast")


@pytest.mark.parametrize("where", ["dream", "real"])
def test_a_stopped_evolution_continues_to_the_same_end(
    where: str, echo: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    work_here(monkeypatch)
    straight = evolve(echo, tmp_path / "straight", where=where, squash=None)
    with monkeypatch.context() as patch:
        interrupt_at(2, patch)
        with pytest.raises(KeyboardInterrupt):
            evolve(echo, tmp_path / "resumed", where=where, squash=None)
    assert not (tmp_path / "resumed").exists()
    assert len(json.loads((tmp_path / "resumed.run" / "evolution.json").read_text())["told"]) == 2
    resumed = evolve(echo, tmp_path / "resumed", where=where, squash=None)
    np.testing.assert_array_equal(straight.weights, resumed.weights)
    starts = json.loads((tmp_path / "resumed.run" / "run.json").read_text())["starts"]
    assert len(starts) == 2 and starts[0]["versions"]["cma"]


def test_a_finished_evolution_takes_more_generations_and_nothing_else(tiny: str, tmp_path: Path) -> None:
    longer = CMAConfig(population=4, rollouts=2, generations=6, seed=7)
    straight = evolve(tiny, tmp_path / "straight", longer)
    evolve(tiny, tmp_path / "out")
    np.testing.assert_array_equal(evolve(tiny, tmp_path / "out", longer).weights, straight.weights)
    with pytest.raises(ValueError, match=r"out\.run contains a run with other settings: config\.horizon was 5, now 6"):
        evolve(tiny, tmp_path / "out", dream=DreamConfig(horizon=6))
    other = save_tiny(tmp_path / "other", horizon=9)
    evolve(other, tmp_path / "out", longer)  # The same weights and starts, whatever their directory is called.


def test_another_model_does_not_inherit_an_evolution(tiny: str, tmp_path: Path) -> None:
    evolve(tiny, tmp_path / "out")
    source = load_artifact(tiny)
    moved = {name: leaf + 1 for name, leaf in source.starts.items()}
    save_artifact(tmp_path / "other", source.config, source.tensors, moved, "", source.policies)
    with pytest.raises(ValueError, match=r"contains a run with other settings: config\.starts\.safetensors was"):
        evolve(str(tmp_path / "other"), tmp_path / "out")


def test_settings_that_failed_do_not_bind_the_next_call(tiny: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="squash needs 3 names, .* each tanh, sigmoid or clip"):
        evolve(tiny, tmp_path / "out", squash=("clip",))
    evolve(tiny, tmp_path / "out", dream=DreamConfig(horizon=3))


def test_a_model_can_be_given_its_controller_in_place(tmp_path: Path) -> None:
    model = save_tiny(tmp_path / "model")
    policy = evolve(model, Path(model))
    np.testing.assert_array_equal(load_policy(*load_model(model)).weights, policy.weights)


def test_what_is_not_a_model_is_not_overwritten_and_no_work_is_done_first(tiny: str, tmp_path: Path) -> None:
    (tmp_path / "thesis").mkdir()
    with pytest.raises(ValueError, match="thesis exists and is not a saved model; choose another directory"):
        evolve(tiny, tmp_path / "thesis")
    assert [path.name for path in tmp_path.iterdir()] == ["thesis"]


def test_real_evolution_plays_whole_episodes_on_seeds_for_training(echo: str, monkeypatch: pytest.MonkeyPatch) -> None:
    played: list[EpisodeResult] = []

    class Watched(EpisodePool):
        def __init__(self, spec: RealSpec, make_policy: Any, procs: int) -> None:
            super().__init__(spec, make_policy, 0)

        def play(self, jobs: Iterable[EpisodeTask]) -> Iterator[EpisodeResult]:
            for episode in super().play(jobs):
                played.append(episode)
                yield episode

    monkeypatch.setattr(evolving, "EpisodePool", Watched)
    cfg = CMAConfig(population=4, rollouts=2, generations=2, sigma=0.01, seed=100)
    policy = evolve_in_real(echo, cfg, squash=("clip",))
    assert [p.seed for p in played] == [100, 101] * 4 + [102, 103] * 4
    assert {p.steps for p in played} == {4}
    assert max(p.ret for p in played) < -3  # "clip" rests at the low end.
    assert policy.squash == ("clip",) and policy.weights.shape == (1, 11) and (policy.weights != 0).all()
    with pytest.raises(ValueError, match="seeds from 1,000,000 up are for evaluation only"):
        evolve_in_real(echo, CMAConfig(population=4, rollouts=2, generations=2, seed=999_998))


def test_real_evolution_climbs_the_real_return(echo: str, monkeypatch: pytest.MonkeyPatch, learning_seed: int) -> None:
    work_here(monkeypatch)
    means: list[float] = []
    cfg = CMAConfig(population=8, rollouts=1, generations=12, sigma=0.5, seed=learning_seed)
    evolve_in_real(echo, cfg, on_generation=lambda generation: means.append(generation.mean))
    assert means[-1] > 3 > 2 > means[0]  # Reward is the action: 4 at best, 0 for the first controllers.
