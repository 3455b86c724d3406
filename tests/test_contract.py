"""Every family keeps the same laws, and so does the toy model: what a dream, a trainer or a policy may rely on."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from copy import deepcopy
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium.utils.env_checker import check_env
from stable_baselines3.common.env_checker import check_env as check_env_sb3
from torch import Tensor
from toy import Toy

from wm_agents.data.replay import Batch
from wm_agents.evaluation.determinism import check_seeds
from wm_agents.evaluation.subject import Subject
from wm_agents.factory import create_world_model
from wm_agents.models.dreamerv3 import DreamerV3
from wm_agents.models.model import Model
from wm_agents.models.objects import Objects
from wm_agents.pretrained import make_real_env, save_model
from wm_agents.training.dreamer_agent import DreamerLearner
from wm_envs.checker import check_vector_env
from wm_envs.dream import DreamConfig, DreamEnv, DreamVectorEnv
from wm_envs.real import make_real
from wm_envs.registry import RealSpec
from wm_envs.world_model import Latent, Step, WorldModel, imagine

B, T = 3, 6


class Case(NamedTuple):
    """A preset and what it sees and does."""

    preset: str
    obs_shape: tuple[int, ...]
    action_dim: int
    action_type: str = "continuous"
    overrides: dict[str, Any] = {}  # noqa: RUF012

    def make(self) -> Model:
        torch.manual_seed(0)
        shapes = {"obs_shape": self.obs_shape, "action_dim": self.action_dim, "action_type": self.action_type}
        model = create_world_model(self.preset, **shapes, **self.overrides)  # type: ignore[arg-type]
        if isinstance(model, Objects):
            model.eye.fit(model.pixels(frames(model.obs_space, 4)))
        return model


MODELS = {
    "vmc pixels": Case("vmc:ci", (32, 32, 3), 3),
    "vmc channels first": Case("vmc:ci", (1, 32, 32), 2, "discrete"),
    "vmc small things": Case("vmc:ci", (32, 32, 1), 3, "discrete", {"motion_weight": 9.0, "rew_head": "classes"}),
    "vmc vectors": Case("vmc:ci", (5,), 2),
    "ensemble": Case("ensemble:ci", (5,), 2),
    "ensemble choices": Case("ensemble:ci", (5,), 3, "discrete"),
    "objects": Case("objects:ci", (16, 16, 1), 3, "discrete"),
    "objects channels first": Case("objects:ci", (1, 16, 16), 2),
    "dreamerv3 pixels": Case("dreamerv3:ci", (64, 64, 3), 2),
    "dreamerv3 channels first": Case("dreamerv3:ci", (3, 64, 64), 3, "discrete"),
    "dreamerv3 vectors": Case("dreamerv3:ci", (5,), 2),
    "dreamerv3 choices": Case("dreamerv3:ci", (5,), 3, "discrete"),
    "tdmpc2 pixels": Case("tdmpc2:ci", (64, 64, 3), 2),
    "tdmpc2 channels first": Case("tdmpc2:ci", (3, 64, 64), 3, "discrete"),
    "tdmpc2 vectors": Case("tdmpc2:ci", (5,), 2),
    "tdmpc2 choices": Case("tdmpc2:ci", (5,), 3, "discrete"),
}
TOYS: dict[str, Callable[[], WorldModel]] = {
    "toy": partial(Toy, noise=0.3, act_space=gym.spaces.Discrete(3)),
    "toy pixels": partial(Toy, noise=0.3, pixels=True),
}


@pytest.fixture(params=MODELS)
def model(request: pytest.FixtureRequest) -> Model:
    """Each family in training mode, its weights moved so that no head is zero."""
    return stirred(MODELS[request.param].make())


@pytest.fixture(params=[*MODELS, *TOYS])
def dreamer(request: pytest.FixtureRequest) -> WorldModel:
    """Each family ready to dream, and the toys."""
    if request.param in TOYS:
        return TOYS[request.param]()
    return stirred(MODELS[request.param].make()).eval()


def stirred(model: Model) -> Model:
    """`model` with small noise on its weights: heads that begin at zero would hide what mixes or moves."""
    torch.manual_seed(1)
    with torch.no_grad():
        for p in model.parameters():
            p.add_(0.02 * torch.randn_like(p))
    return model


def frames(space: gym.Space[Any], *batch: int, seed: int = 0) -> Tensor:
    """Random observations (*batch, *space.shape)."""
    rng = np.random.default_rng(seed)
    shape = (*batch, *(space.shape or ()))
    if space.dtype == np.uint8:
        return torch.from_numpy(rng.integers(0, 256, shape, np.uint8))
    return torch.from_numpy(rng.standard_normal(shape, np.float32))


def acts(space: gym.Space[Any], *batch: int, seed: int = 0) -> Tensor:
    """Random encoded actions (*batch, A)."""
    rng = np.random.default_rng(seed)
    if isinstance(space, gym.spaces.Discrete):
        return torch.eye(int(space.n))[torch.from_numpy(rng.integers(space.n, size=batch))]
    return torch.from_numpy(rng.uniform(-1, 1, (*batch, *(space.shape or ()))).astype(np.float32))


def seen(model: WorldModel, num: int = B) -> Latent:
    """Latents that have taken in two frames."""
    latent = model.encode(frames(model.obs_space, num, seed=1))
    return model.encode(frames(model.obs_space, num, seed=2), latent, acts(model.act_space, num, seed=3))


def windows(model: Model) -> Batch:
    """Random windows as the family wants them; in packed ones an episode ends in the middle of row 0, by itself."""
    first, last, term = (torch.zeros(B, n, dtype=torch.bool) for n in (T + 1, T + 1, T))
    first[1, 0] = True
    term[0, 2] = last[0, 3] = True
    rew = torch.from_numpy(np.random.default_rng(5).choice([-1.0, 0.0, 1.0], (B, T)).astype(np.float32))
    act = acts(model.act_space, B, T)
    if model.packs:
        first[0, 4] = True
        act[0, 3], rew[0, 3] = 0.0, 0.0
    else:
        term[0, 2] = last[0, 3] = False
        term[0, -1] = last[0, -1] = True
    return Batch(frames(model.obs_space, B, T + 1), act, rew, term, first, last)


def assert_close(got: Latent, want: Latent, atol: float = 1e-5) -> None:
    assert got.keys() == want.keys()
    for key in want:
        torch.testing.assert_close(got[key], want[key], atol=atol, rtol=1e-4)


def row(latent: Latent, i: int) -> Latent:
    return {key: leaf[i : i + 1] for key, leaf in latent.items()}


# What a latent, a step and an observation look like


@torch.no_grad()
def test_shapes_and_dtypes_are_those_of_the_interface(dreamer: WorldModel) -> None:
    latent = seen(dreamer)
    out = dreamer.step(latent, acts(dreamer.act_space, B))
    assert {key: leaf.shape for key, leaf in latent.items()} == {k: v.shape for k, v in dreamer.initial(B).items()}
    assert out.latent.keys() == latent.keys() and all(len(leaf) == B for leaf in latent.values())
    assert out.rew.shape == out.cont.shape == (B,) and bool(((out.cont >= 0) & (out.cont <= 1)).all())
    feat, obs = dreamer.feat(latent), dreamer.decode(latent)
    assert feat.shape == (B, dreamer.feat_dim) and feat.dtype == torch.float32
    assert obs.shape == (B, *(dreamer.obs_space.shape or ())) and obs.numpy().dtype == dreamer.obs_space.dtype
    assert all(dreamer.obs_space.contains(one) for one in obs.numpy())


@pytest.mark.parametrize("family", ["vmc", "dreamerv3", "tdmpc2"])
@pytest.mark.parametrize("obs", ["pixels", "latent"])
def test_dreams_of_frames_with_their_channels_first_are_shown(family: str, obs: str) -> None:
    model = MODELS[f"{family} channels first"].make().eval()
    kwargs: dict[str, Any] = {"starts": starts_of(model), "obs": obs, "horizon": 4, "cut_off": 0.01}
    envs = DreamVectorEnv(model, num_envs=2, render_mode="rgb_array", **kwargs)
    envs.reset(seed=0)
    shown = envs.render()
    with torch.inference_mode():
        raw = model.decode(envs.latent).numpy()  # type: ignore[arg-type]
    assert shown is not None and envs.metadata["drawn"] == "decoded pixels"
    for frame, chw in zip(shown, raw, strict=True):
        np.testing.assert_array_equal(frame, np.broadcast_to(chw.transpose(1, 2, 0), frame.shape))
    check_vector_env(partial(DreamVectorEnv, model, **kwargs), partial(DreamEnv, model, **kwargs), steps=6)


@torch.no_grad()
def test_rows_of_a_batch_do_not_mix(dreamer: WorldModel) -> None:
    obs, act = frames(dreamer.obs_space, B), acts(dreamer.act_space, B)
    latent, one = seen(dreamer), torch.tensor([1])
    alone = {key: leaf[1:2] for key, leaf in latent.items()}
    assert_close(dreamer.encode(obs[one], alone, act[one]), row(dreamer.encode(obs, latent, act), 1))
    out, single = (dreamer.step(x, a, temperature=0) for x, a in ((latent, act), (alone, act[one])))
    assert_close(single.latent, row(out.latent, 1))
    torch.testing.assert_close((single.rew, single.cont), (out.rew[one], out.cont[one]), atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(dreamer.feat(alone), dreamer.feat(latent)[one], atol=1e-5, rtol=1e-4)
    far = (dreamer.decode(alone).float() - dreamer.decode(latent)[one].float()).abs().max()
    assert far <= (1 if dreamer.obs_space.dtype == np.uint8 else 1e-4)


@torch.no_grad()
def test_steps_of_rows_equal_those_of_single_dreams_in_batches_of_any_size(dreamer: WorldModel) -> None:
    starts = {"begin": dreamer.encode(frames(dreamer.obs_space, 8))}
    found = check_seeds(Subject(dreamer, starts, None, DreamConfig(horizon=8)), steps=20)
    assert found.repeats and found.rows_alone and found.worst < 0.01


def test_first_forgets_the_latent_in_its_rows_alone(dreamer: WorldModel) -> None:
    obs, act, latent = frames(dreamer.obs_space, B), acts(dreamer.act_space, B), seen(dreamer)
    got = dreamer.encode(obs, latent, act, torch.tensor([False, True, False]))
    fresh, going = dreamer.encode(obs), dreamer.encode(obs, latent, act)
    assert_close(row(got, 1), row(fresh, 1))
    for i in (0, 2):
        assert_close(row(got, i), row(going, i))


# Dreams


def starts_of(model: WorldModel) -> dict[str, Latent]:
    with torch.no_grad():
        return {"begin": model.encode(frames(model.obs_space, 8)), "anywhere": seen(model, 8)}


def test_row_i_of_a_seeded_dream_is_the_single_dream_seeded_s_plus_i(dreamer: WorldModel) -> None:
    kwargs: dict[str, Any] = {"starts": starts_of(dreamer), "obs": "latent", "horizon": 4, "cut_off": 0.1}
    envs, again = (DreamVectorEnv(dreamer, num_envs=3, **kwargs) for _ in range(2))
    envs.action_space.seed(0)
    actions = [envs.action_space.sample() for _ in range(6)]

    def play(many: DreamVectorEnv) -> list[Any]:
        return [(many.reset(seed=10)[0], np.zeros(3)), *(many.step(act)[:2] for act in actions)]

    whole = play(envs)
    for got, want in zip(play(again), whole, strict=True):
        np.testing.assert_array_equal(got[0], want[0])
        np.testing.assert_array_equal(got[1], want[1])
    env = DreamEnv(dreamer, **kwargs)
    one = [(env.reset(seed=12)[0], 0.0)]
    for act in actions:
        obs, rew, term, trunc, _ = env.step(act[2])
        one.append((env.reset()[0] if term or trunc else obs, rew))
    for (obs, rew), (want_obs, want_rew) in zip(one, whole, strict=True):
        np.testing.assert_allclose(obs, want_obs[2], atol=1e-4)
        # Rewards of stirred heads on an exponential scale are wild.
        assert np.arcsinh(rew) == pytest.approx(np.arcsinh(want_rew[2]), abs=3e-3)


def test_a_dream_at_temperature_is_not_the_likeliest_one(dreamer: WorldModel) -> None:
    """Deterministic families have one dream only; those that draw must not draw at temperature 0."""
    latent, act = seen(dreamer), acts(dreamer.act_space, B)
    still = [dreamer.step(latent, act, temperature=0).latent for _ in range(2)]
    assert_close(still[0], still[1], atol=0)
    drawn = dreamer.step(latent, act, temperature=1, generator=torch.Generator().manual_seed(0)).latent
    moved = any(not torch.equal(drawn[key], still[0][key]) for key in drawn)
    assert moved == (getattr(dreamer, "family", "toy") != "tdmpc2")


def test_imagining_is_stepping_again_and_again(dreamer: WorldModel) -> None:
    latent, actions = seen(dreamer), acts(dreamer.act_space, 4, B)
    verb = dreamer.rollout if isinstance(dreamer, Model) else partial(imagine, dreamer)
    with torch.no_grad():
        traj = verb(latent, actions, generator=torch.Generator().manual_seed(7))
        rng = torch.Generator().manual_seed(7)
        for t in range(4):
            out: Step = dreamer.step(latent, actions[t], generator=rng)
            latent = out.latent
            assert_close(traj.latents[t + 1], latent, atol=0)
            assert torch.equal(traj.rewards[t], out.rew) and torch.equal(traj.continues[t], out.cont)
    assert traj.rewards.shape == traj.continues.shape == (4, B)


# Learning


def test_a_loss_is_finite_and_reaches_the_weights(model: Model) -> None:
    out = model.loss(windows(model))
    assert out.loss.ndim == 0 and out.loss.isfinite() and out.components
    assert all(value.ndim == 0 and value.isfinite() for value in (out.components | out.metrics).values())
    out.loss.backward()
    grads = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    assert all(grad.isfinite().all() for grad in grads.values())
    trained = {name for name, p in model.named_parameters() if p.requires_grad}
    idle = {name for name in trained if name not in grads or not grads[name].any()}
    assert not idle, idle


def test_a_loss_by_name_is_the_loss(model: Model) -> None:
    model.eval()
    torch.manual_seed(3)
    out = model.loss(windows(model))
    torch.manual_seed(3)
    named = model.compute_loss(windows(model))
    assert torch.equal(named["total"], out.loss) and named.keys() == {"total", *out.components}


def test_a_loss_in_eval_mode_changes_nothing(model: Model) -> None:
    model.eval()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    batch, losses = windows(model), []
    for _ in range(2):
        torch.manual_seed(3)
        losses.append(model.loss(batch).loss)
    assert torch.equal(losses[0], losses[1])
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


# Disk and devices


def test_a_saved_model_takes_the_same_step(model: Model, tmp_path: Path) -> None:
    model.loss(windows(model))  # What training mode settles is saved too.
    model.eval().save_pretrained(tmp_path / "m")
    loaded = [create_world_model(tmp_path / "m"), type(model).from_pretrained(tmp_path / "m")]
    latent, act = seen(model), acts(model.act_space, B)
    want = model.step(latent, act, temperature=0)
    for other in loaded:
        assert type(other) is type(model) and other.cfg == model.cfg and not other.training
        assert (other.obs_space, other.act_space) == (model.obs_space, model.act_space)
        assert_close(seen(other), latent, atol=0)
        got = other.step(latent, act, temperature=0)
        assert_close(got.latent, want.latent, atol=0)
        assert torch.equal(got.rew, want.rew) and torch.equal(other.decode(latent), model.decode(latent))


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_a_gpu_takes_the_same_step_and_loss(model: Model) -> None:
    model.eval()
    batch = windows(model)
    latent, act = seen(model), acts(model.act_space, B)
    want, obs, torch_loss = model.step(latent, act, temperature=0), model.decode(latent), _mean_loss(model, batch)
    model.to("cuda")
    there = {key: leaf.cuda() for key, leaf in latent.items()}
    got = model.step(there, act.cuda(), temperature=0)
    assert_close({key: leaf.cpu() for key, leaf in got.latent.items()}, want.latent, atol=1e-3)
    torch.testing.assert_close(got.rew.cpu(), want.rew, atol=1e-3, rtol=1e-3)
    assert (model.decode(there).cpu().float() - obs.float()).abs().max() <= (1 if obs.dtype == torch.uint8 else 1e-2)
    assert model.encode(batch.obs[:, 0])[next(iter(latent))].device.type == "cuda"  # Frames are moved to the model.
    assert _mean_loss(model, batch.to("cuda")) == pytest.approx(torch_loss, rel=0.1)


@torch.no_grad()
def _mean_loss(model: Model, batch: Batch) -> float:
    """Over many draws: devices draw different numbers."""
    return float(torch.stack([model.loss(batch).loss for _ in range(20)]).mean())


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # torch's compiler meets warnings of its own.
@pytest.mark.skipif(shutil.which("c++") is None, reason="needs a compiler")
@pytest.mark.parametrize("name", ["vmc vectors", "ensemble", "dreamerv3 vectors", "tdmpc2 vectors", "tdmpc2 choices"])
def test_a_compiled_model_takes_the_same_step(name: str) -> None:
    model = stirred(MODELS[name].make()).eval()
    # The LSTM of V-M-C runs as it is, between what is compiled.
    step = torch.compile(model.step, fullgraph=model.family != "vmc")
    latent, act = seen(model), acts(model.act_space, B)
    with torch.no_grad():
        got, want = (call(latent, act, temperature=0.0) for call in (step, model.step))
    assert_close(got.latent, want.latent)
    torch.testing.assert_close((got.rew, got.cont), (want.rew, want.cont), atol=1e-5, rtol=1e-4)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
@pytest.mark.skipif(shutil.which("c++") is None, reason="needs a compiler")
@pytest.mark.parametrize("name", ["tdmpc2 vectors", "dreamerv3 vectors"])
def test_a_loss_compiled_for_training_is_the_loss_and_has_its_gradients(name: str) -> None:
    model = stirred(MODELS[name].make())
    learner: Any = DreamerLearner(model) if isinstance(model, DreamerV3) else model
    begun, found = deepcopy(learner.state_dict()), []
    # As `Trainer` does for `compile_model`; alone, the compiler would draw numbers of its own.
    for loss in (learner.loss, torch.compile(learner.loss, options={"fallback_random": True})):
        learner.load_state_dict(begun)
        learner.zero_grad()
        torch.manual_seed(3)
        out = loss(windows(model))
        out.loss.backward()
        grads = {at: p.grad.clone() for at, p in learner.named_parameters() if p.grad is not None}
        found.append((out.loss, out.components, grads))
    torch.testing.assert_close(found[1], found[0], atol=1e-5, rtol=1e-3)


# Dreams of saved models by id

REAL = {
    "pixels": RealSpec("CarRacing-v3", size=64, action_repeat=4, max_episode_steps=20),
    "vectors": RealSpec("Pendulum-v1", max_episode_steps=20),
    "choices": RealSpec("CartPole-v1", max_episode_steps=20),
}
DREAMS = [
    (family, kind, obs)
    for family in ("vmc", "ensemble", "dreamerv3", "tdmpc2")
    for kind, obs in [("pixels", "pixels"), ("vectors", "pixels"), ("vectors", "latent"), ("choices", "latent")]
    if (family, kind) != ("ensemble", "pixels")
]


@pytest.fixture(scope="module", params=DREAMS, ids=" ".join)
def dream(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What is told to make a dream of a saved model of each family: its directory and what is seen."""
    family, kind, obs = request.param
    env = make_real(REAL[kind])
    torch.manual_seed(0)
    model = create_world_model(f"{family}:ci", env=env).eval()
    env.close()
    path = tmp_path_factory.mktemp("dreams") / family
    save_model(path, model, REAL[kind], starts_of(model), horizon=20, card="# untrained\n", cut_off=0.01)
    return {"model": str(path), "obs": obs}


# The real environments' own spaces: pedals from 0 to 1, torques to 2, speeds without a bound.
@pytest.mark.filterwarnings("ignore:.*symmetric and normalized:UserWarning")
@pytest.mark.filterwarnings("ignore:.*A Box observation space m...mum value is -?infinity:UserWarning")
def test_a_dream_of_any_family_passes_every_checker(dream: dict[str, Any]) -> None:
    make = partial(gym.make, "Dream-v0", **dream)
    env = make()
    check_env(env.unwrapped, skip_render_check=True)
    check_env_sb3(env.unwrapped)
    shown = make(render_mode="rgb_array").unwrapped
    shown.reset(seed=0)
    assert shown.render().dtype == np.uint8 and shown.render().shape[-1] == 3
    vectors, single = partial(gym.make_vec, "Dream-v0", **dream), partial(make, max_episode_steps=3)
    check_vector_env(partial(vectors, max_episode_steps=3), single, num_envs=2, steps=6)


def test_a_dream_of_any_family_has_the_spaces_of_its_real_env(dream: dict[str, Any]) -> None:
    env, real = gym.make("Dream-v0", **dream), make_real_env(**dream)
    assert env.observation_space == real.observation_space and env.action_space == real.action_space
    assert real.observation_space.contains(real.reset(seed=0)[0])
    assert real.observation_space.contains(real.step(real.action_space.sample())[0])
    real.close()
