"""Each rearrangement for CPUs gives what its plain definition gives; with gradients the plain one is used."""

from __future__ import annotations

import copy
import gc
import weakref
from collections.abc import Callable, Iterator

import gymnasium as gym
import numpy as np
import pytest
import torch
from torch import Tensor

from wm_agents.models import mdrnn, mdrnn_kernels
from wm_agents.models.vmc import MDRNN, VMC, VMCConfig
from wm_envs.noise import RowStreams
from wm_envs.world_model import Latent, Step

ACT = gym.spaces.Box(-1, 1, (3,), np.float32)
VECTOR = gym.spaces.Box(-np.inf, np.inf, (4,), np.float32)
TAUS = [0.0, 0.5, 1.0, 1.3]


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    """The kernels that were called."""
    names: list[str] = []

    def spy(name: str, function: Callable) -> Callable:
        return lambda *args: (names.append(name), function(*args))[1]

    monkeypatch.setattr(mdrnn_kernels.RowStep, "draw", spy("row", mdrnn_kernels.RowStep.draw))
    monkeypatch.setattr(mdrnn, "draw_by_component", spy("component", mdrnn_kernels.draw_by_component))
    yield names


def vector_model(**fields: object) -> VMC:
    torch.manual_seed(0)
    model = VMC(VMCConfig(vision="identity", hidden=16, **fields), VECTOR, ACT)  # type: ignore[arg-type]
    with torch.no_grad():  # Large enough to tell components apart.
        model.memory.gmm_linear.weight.mul_(20)
    if model.classes is not None:
        model.classes.learn(torch.tensor([0.0, 1.0, 1.0, -5.0]))
    return model


def moments(model: VMC, rows: int) -> tuple[Latent, Tensor]:
    """A latent and actions of `rows` rows."""
    return {key: torch.randn_like(leaf) for key, leaf in model.initial(rows).items()}, torch.randn(rows, 3)


def step(model: VMC, latent: Latent, act: Tensor, tau: float) -> Step:
    """A step whose noise is the same every time."""
    return model.step(latent, act, temperature=tau, generator=torch.Generator().manual_seed(3))


def assert_equals_plain(model: VMC, latent: Latent, act: Tensor, tau: float) -> None:
    with torch.no_grad():
        fast = step(model, latent, act, tau)
    with torch.enable_grad():
        plain = step(model, latent, act, tau)
    assert plain.latent["z"].requires_grad and not fast.latent["z"].requires_grad
    for key, want in plain.latent.items():
        torch.testing.assert_close(fast.latent[key], want.detach(), atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(fast.rew, plain.rew.detach(), atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(fast.cont, plain.cont.detach(), atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("rew_head", ["mse", "classes"])
@pytest.mark.parametrize("tau", TAUS)
def test_a_single_row_is_the_plain_step(rew_head: str, tau: float, calls: list[str]) -> None:
    model = vector_model(rew_head=rew_head)
    for _ in range(20):
        assert_equals_plain(model, *moments(model, 1), tau)
    assert calls == ["row"] * 20


@pytest.mark.parametrize("tau", TAUS)
def test_a_product_for_each_component_is_the_plain_step(tau: float, calls: list[str]) -> None:
    model = vector_model()
    assert_equals_plain(model, *moments(model, 300), tau)
    with torch.no_grad():
        model.memory.gmm_linear.bias[2 * 5 * 4 + 2] = -1e9  # Nobody draws this component.
    assert_equals_plain(model, *moments(model, 300), tau)
    assert calls == ["component"] * 2


def test_few_rows_mixtures_of_each_dimension_and_bf16_take_the_plain_step(calls: list[str]) -> None:
    model = vector_model()
    assert_equals_plain(model, *moments(model, mdrnn_kernels.MANY - 1), 1.0)
    for rows in (1, 300):
        assert_equals_plain(vector_model(mixture="per_dim"), *moments(model, rows), 1.0)
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        step(model, *moments(model, 300), 1.0)
    assert not calls


def swap(param: Tensor) -> None:
    param.data = param.data * 1.5


@pytest.mark.parametrize(
    "change",
    [
        lambda model: model.memory.rnn.weight_hh_l0.data.mul_(2),
        lambda model: swap(model.memory.rnn.weight_ih_l0),
        lambda model: swap(model.memory.gmm_linear.bias),
        lambda model: model.load_state_dict(vector_model(rew_head="mse").state_dict()),
        lambda model: model.load_state_dict({k: v + 0.1 for k, v in model.state_dict().items()}, assign=True),
        lambda model: setattr(model.memory, "gmm_linear", copy.deepcopy(model.memory.gmm_linear).apply(double)),
    ],
)
def test_a_single_row_sees_every_change_of_the_weights(change: Callable[[VMC], object]) -> None:
    model = vector_model()
    with torch.no_grad():
        for param in model.parameters():
            param.add_(0.3)
        before = moments(model, 1)
        first = step(model, *before, 1.0).latent["h"]
        change(model)
        changed = step(model, *before, 1.0)
    assert_equals_plain(model, *before, 1.0)
    assert not torch.equal(first, changed.latent["h"]) or not torch.equal(first, changed.latent["z"])


def double(module: torch.nn.Module) -> None:
    for param in module.parameters():
        param.data *= 2


def test_a_copy_steps_with_weights_of_its_own() -> None:
    model = vector_model()
    latent, act = moments(model, 1)
    with torch.no_grad():
        step(model, latent, act, 1.0)
        twin = copy.deepcopy(model)
        want = step(model, latent, act, 1.0).latent["z"]
        model.memory.gmm_linear.weight.zero_()
        assert torch.equal(step(twin, latent, act, 1.0).latent["z"], want)


def test_models_are_freed() -> None:
    memory = MDRNN(4, 3, 16, 5)
    mdrnn_kernels.RowStep.of(memory)
    alive = weakref.ref(memory)
    del memory
    gc.collect()
    assert alive() is None


@pytest.mark.parametrize("size", [1e4, 1e30, -1e30])
def test_extreme_weights_give_finite_rows(size: float) -> None:
    model = vector_model()
    with torch.no_grad():
        model.memory.gmm_linear.weight.fill_(size)
        model.memory.rnn.weight_hh_l0.fill_(size)
        assert step(model, *moments(model, 1), 1.0).latent["h"].isfinite().all()


def test_a_single_row_follows_its_stream(calls: list[str]) -> None:
    model = vector_model()
    latent, act = moments(model, 300)
    with torch.no_grad():
        together = model.step(latent, act, generator=RowStreams([np.random.default_rng(i) for i in range(300)])).latent
        alone = [
            model.step(
                {key: leaf[i : i + 1] for key, leaf in latent.items()},
                act[i : i + 1],
                generator=RowStreams([np.random.default_rng(i)]),
            ).latent
            for i in (0, 7, 299)
        ]
    for i, row in zip((0, 7, 299), alone):
        for key, leaf in row.items():
            torch.testing.assert_close(leaf[0], together[key][i], atol=1e-5, rtol=1e-5)
    assert calls == ["component", "row", "row", "row"]
