"""Laws of the interface: rows never mix, imagining is repeated stepping, an observer keeps in step with the frames."""

from __future__ import annotations

import pickle

import numpy as np
import pytest
import torch
from gymnasium import spaces
from toy import Toy

from wm_agents.models.vmc import VMC, VMCConfig
from wm_envs.noise import RowStreams, draw_normal
from wm_envs.world_model import Observer, feat_space, imagine


def make_streams(seeds: list[int], block: int = 32) -> RowStreams:
    streams = RowStreams([np.random.default_rng(seed) for seed in seeds], block)
    for row in range(len(seeds)):
        streams.restart(row)
    return streams


def draw(streams: RowStreams, calls: int, dim: int = 5) -> torch.Tensor:
    return torch.stack([streams.normal(dim) for _ in range(calls)], 1)  # (N, calls, dim)


def test_a_row_draws_the_same_alone_and_among_any_others() -> None:
    many = draw(make_streams([3, 4, 5]), 20)
    assert torch.equal(many[:1], draw(make_streams([3]), 20))
    assert torch.equal(many[1:2], draw(make_streams([9, 4]), 20)[1:])
    assert not torch.equal(many[0], many[1])


@pytest.mark.parametrize("before", [1, 6, 7, 50])
def test_a_restart_leaves_the_other_rows_alone(before: int) -> None:
    streams, plain = make_streams([3, 4]), make_streams([3, 4])
    draw(streams, before), draw(plain, before)
    streams.restart(0)
    got, want = draw(streams, 20), draw(plain, 20)
    assert torch.equal(got[1], want[1]) and not torch.equal(got[0], want[0])


def test_what_follows_a_restart_does_not_depend_on_what_was_drawn_before() -> None:
    long, short = make_streams([3]), make_streams([3])
    draw(long, 33), draw(short, 2)
    long.restart(0), short.restart(0)
    assert torch.equal(draw(long, 20), draw(short, 20))


def test_rows_keep_to_themselves_when_a_step_draws_several_widths() -> None:
    many, one = make_streams([3, 4]), make_streams([4])
    many.normal(2)
    many.restart(1), one.restart(0)  # Row 0 is in the middle of its episode when row 1 opens the next.
    for dim in (3, 30, 1, 7, 31, 32, 5):
        assert torch.equal(many.normal(dim)[1], one.normal(dim)[0])


@pytest.mark.parametrize("num", [1, 3])
@pytest.mark.parametrize("drawn", [0, 9])
def test_pickled_streams_continue_as_the_original(num: int, drawn: int) -> None:
    streams = make_streams(list(range(num)))
    draw(streams, drawn) if drawn else None
    sent = pickle.loads(pickle.dumps(streams))
    assert torch.equal(draw(sent, 30), draw(streams, 30))


@pytest.mark.parametrize("apart", [False, True])
def test_a_row_draws_the_same_while_others_pause(apart: bool) -> None:
    streams, alone = make_streams([3, 4, 5]), make_streams([5])
    draw(streams, 5), draw(alone, 5)  # 25 of a block of 32.
    if apart:
        streams.restart(0)
    streams.active = np.array([0, 2])
    got = draw(streams, 20)
    assert got.shape == (2, 20, 5) and torch.equal(got[1:], draw(alone, 20))
    streams.active = np.arange(3)
    plain = make_streams([4])
    draw(plain, 5)
    assert torch.equal(streams.normal(5)[1], plain.normal(5)[0])  # Where it left off.


def test_streams_are_standard_normals_without_repeats() -> None:
    x = draw(make_streams(list(range(50)), block=64), 100).flatten()
    assert abs(x.mean()) < 0.02 and abs(x.std() - 1) < 0.02
    assert x.unique().numel() > 0.999 * x.numel()


def test_more_numbers_than_a_block_holds_are_rejected() -> None:
    with pytest.raises(ValueError, match="dim must be at most 32, got 33; make RowStreams with a larger block"):
        make_streams([0]).normal(33)


def test_numbers_given_out_are_not_drawn_over() -> None:
    streams = make_streams([0])
    first = streams.normal(5)
    kept = first.clone()
    draw(streams, 20)
    assert torch.equal(first, kept)


def test_normals_come_from_whatever_source_is_given() -> None:
    cpu = torch.device("cpu")
    a, b = (draw_normal(4, 3, torch.Generator().manual_seed(1), cpu) for _ in range(2))
    torch.manual_seed(1)
    assert torch.equal(a, b) and torch.equal(a, draw_normal(4, 3, None, cpu))
    assert torch.equal(draw_normal(2, 3, make_streams([3, 4]), cpu), make_streams([3, 4]).normal(3))


def small_vmc() -> VMC:
    torch.manual_seed(0)
    act_space = spaces.Box(-1, 1, (2,), np.float32)
    return VMC(VMCConfig("identity", hidden=8), spaces.Box(-9, 9, (3,), np.float32), act_space)


@pytest.mark.parametrize("model", [Toy(), Toy(noise=0.5), small_vmc()], ids=["exact", "noisy", "vmc"])
def test_imagine_is_repeated_step(model: Toy | VMC) -> None:
    start = {key: torch.randn(4, leaf.shape[1]) for key, leaf in model.initial(1).items()}
    acts = torch.rand(6, 4, model.act_space.shape[0])
    with torch.no_grad():
        got = imagine(model, start, acts, temperature=1.3, generator=torch.Generator().manual_seed(2))
        generator, latent = torch.Generator().manual_seed(2), start
        for t in range(6):
            latent, rew, cont, *_ = model.step(latent, acts[t], temperature=1.3, generator=generator)
            assert torch.equal(got.rewards[t], rew) and torch.equal(got.continues[t], cont)
            assert all(torch.equal(got.latents[t + 1][key], leaf) for key, leaf in latent.items())
    assert len(got.latents) == 7 and got.latents[0] is start
    assert got.rewards.shape == got.continues.shape == (6, 4) and torch.equal(got.acts, acts)


def test_imagine_asks_a_policy_what_to_do_at_each_latent() -> None:
    start = {"x": torch.tensor([[1.0, 0.0], [-2.0, 0.0]])}
    got = imagine(Toy(), start, lambda feat: -0.5 * feat[:, :1], 3)
    np.testing.assert_allclose(
        [latent["x"][:, 0].tolist() for latent in got.latents], [[2**-t, -2 * 2**-t] for t in range(4)]
    )
    np.testing.assert_allclose(got.rewards.sum(0), [-0.875, 1.75])


@pytest.mark.parametrize(
    ("acts", "horizon", "message"),
    [
        (lambda feat: feat, None, "horizon must be at least 1, if acts is a function, got None"),
        (lambda feat: feat, 0, "horizon must be at least 1.*got 0"),
        (torch.zeros(3, 1, 1), 4, "horizon must be from 1 to 3, the number of acts, got 4"),
    ],
)
def test_a_wrong_horizon_is_named(acts: object, horizon: int | None, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        imagine(Toy(), Toy().initial(1), acts, horizon)


def frames(*x: float) -> np.ndarray:
    return np.array([[value, 0] for value in x], np.float32)


def test_an_observer_pairs_each_frame_with_the_action_before_it() -> None:
    observer = Observer(Toy(act_space=spaces.Discrete(3)))  # Moves -1, 0 and 1.
    np.testing.assert_array_equal(observer.observe(frames(5, 6), None), [[5, 0], [6, 0]])
    np.testing.assert_array_equal(observer.observe(frames(7, 8), np.array([0, 2])), [[7, -1], [8, 1]])
    np.testing.assert_array_equal(observer.observe(frames(1, 2), np.array([1, 0])), [[1, 0], [2, -1]])
    observer.reset()
    np.testing.assert_array_equal(observer.observe(frames(3), np.array([2])), [[3, 0]])


def test_an_observer_carries_the_memory_along() -> None:
    model, rng = small_vmc(), np.random.default_rng(0)
    observer, latent = Observer(model), None
    obs, act = rng.normal(size=(5, 2, 3)).astype(np.float32), rng.uniform(-1, 1, (5, 2, 2)).astype(np.float32)
    for t in range(5):
        got = observer.observe(obs[t], act[t - 1] if t else None)
        with torch.no_grad():
            latent = model.encode(torch.from_numpy(obs[t]), latent, torch.from_numpy(act[t - 1]))
        np.testing.assert_allclose(got, model.feat(latent), atol=1e-6)
    assert np.abs(got[:, 3:]).max() > 0


def test_writing_in_what_an_observer_gave_does_not_change_its_memory() -> None:
    observer = Observer(Toy())
    observer.observe(frames(5), None)[:] = 77
    assert observer.latent["x"].tolist() == [[5, 0]]


@pytest.mark.parametrize(
    ("obs", "message"),
    [
        (
            np.zeros((40, 40, 3), np.uint8),
            r"obs must be \(N, 40, 40, 3\) uint8 for this model, got \(40, 40, 3\) uint8",
        ),
        (np.zeros((1, 64, 64, 3), np.uint8), r"got \(1, 64, 64, 3\) uint8; make_real\(spec\) gives the environment"),
        (np.zeros((1, 40, 40, 3), np.float32), r"obs must be .* uint8 for this model, got \(1, 40, 40, 3\) float32"),
    ],
)
def test_a_wrong_frame_is_named(obs: np.ndarray, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Observer(Toy(pixels=True)).observe(obs, None)


def test_a_wrong_action_along_real_frames_is_named() -> None:
    observer = Observer(Toy())
    observer.observe(frames(5), None)
    with pytest.raises(ValueError, match=r"act must be \(N, 1\) for Box.*got \(1, 2\)"):
        observer.observe(frames(5), np.zeros((1, 2)))


def test_the_space_of_feat_holds_every_finite_feat() -> None:
    space = feat_space(Toy())
    assert space.shape == (2,) and space.dtype == np.float32
    assert space.contains(np.array([-3e38, 3e38], np.float32)) and np.isfinite(space.sample()).all()
    assert not space.contains(np.array([0, np.inf], np.float32))
