"""V, M and the model that joins them: sizes, laws, losses against plain NumPy, extreme inputs."""

from __future__ import annotations

import math
from dataclasses import replace

import gymnasium as gym
import numpy as np
import pytest
import torch
from torch import Tensor, nn

from wm_agents.data.replay import Batch
from wm_agents.models.loss import LossOutput
from wm_agents.models.mdrnn import MDRNN, MDRNNCell, _MDRNNBase, gmm_loss
from wm_agents.models.rewards import RewardClasses
from wm_agents.models.vision import ConvVAE, Identity, conv_vae_loss, kl_divergence, to_input
from wm_agents.models.vmc import VMC, VMCConfig, sizes
from wm_envs.action import act_dim
from wm_envs.noise import RowStreams
from wm_envs.precision import bf16_runs
from wm_envs.real import make_real
from wm_envs.registry import RealSpec
from wm_envs.world_model import imagine

ACT = gym.spaces.Box(-1, 1, (3,), np.float32)
VECTOR = gym.spaces.Box(-np.inf, np.inf, (4,), np.float32)
MIXTURES = ["joint", "per_dim"]


def pixels(size: int = 64, channels: int = 3) -> gym.spaces.Box:
    return gym.spaces.Box(0, 255, (size, size, channels), np.uint8)


def count(module: nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())


def vector_model(hidden: int = 16, act_space: gym.Space = ACT, **fields: object) -> VMC:
    torch.manual_seed(0)
    return VMC(VMCConfig(vision="identity", hidden=hidden, **fields), VECTOR, act_space)


# Sizes


@pytest.mark.parametrize("z_dim, want", [(32, 4_348_547), (64, 4_446_915)])
def test_papers_vision_has_the_papers_number_of_parameters(z_dim: int, want: int) -> None:
    assert count(ConvVAE(latent_size=z_dim)) == want


def test_memory_has_the_known_numbers_of_parameters() -> None:
    heads = 2 * (256 + 1)  # Reward and end, which the authors' car model goes without.
    assert count(MDRNN(32, 3, 256, 5)) == count(MDRNNCell(32, 3, 256, 5)) == 384_071
    assert count(MDRNN(32, 3, 256, 5, "per_dim")) - heads == 423_392
    assert MDRNN(32, 3, 256, 5).gmm_linear.out_features == (2 * 32 + 1) * 5 + 2


def test_small_vision_has_half_the_width() -> None:
    paper, small = ConvVAE(variant="paper"), ConvVAE(variant="small")
    widths = [[conv.out_channels for conv in v.encoder.convs] for v in (paper, small)]
    assert widths == [[32, 64, 128, 256], [16, 32, 64, 128]]
    assert count(small) < count(paper) / 5


# V


@pytest.mark.parametrize("variant, size", [("paper", 64), ("small", 32), ("small", 64), ("small", 96)])
@pytest.mark.parametrize("z_dim", [16, 32, 64])
def test_vision_shapes_and_range(variant: str, size: int, z_dim: int) -> None:
    vae = ConvVAE(3, z_dim, variant, size)  # type: ignore[arg-type]
    x = torch.rand(4, 3, size, size)
    mu, logsigma = vae.encoder(x)
    recon, *posterior = vae(x)
    assert mu.shape == logsigma.shape == (4, z_dim)
    assert [p.shape for p in posterior] == [(4, z_dim)] * 2
    for image in (recon, vae.decoder(torch.randn(4, z_dim) * 10)):
        assert image.shape == x.shape and image.min() >= 0 and image.max() <= 1
    frames = vae.decode_obs(mu)
    assert frames.shape == (4, size, size, 3) and frames.dtype == torch.uint8 and frames.is_contiguous()


def test_every_vision_parameter_gets_a_gradient() -> None:
    vae = ConvVAE(variant="small", size=32)
    x = torch.rand(4, 3, 32, 32)
    recon, mu, _ = vae(x)
    ((recon - x).square().mean() + mu.square().mean()).backward()
    assert not [name for name, p in vae.named_parameters() if p.grad is None or not p.grad.any()]


def test_reconstruction_is_stochastic() -> None:
    vae = ConvVAE(variant="small", size=32)
    x = torch.rand(4, 3, 32, 32)
    assert not torch.allclose(vae(x)[0], vae(x)[0])


def test_vision_loss_is_the_squared_error_at_a_standard_posterior() -> None:
    recon, x = torch.rand(2, 16, 3, 8, 8)
    zeros = torch.zeros(16, 32)
    loss = conv_vae_loss(recon, x, zeros, zeros)
    assert loss.shape == () and torch.equal(loss, (recon - x).square().sum())
    assert conv_vae_loss(x, x, zeros, zeros) == 0 < loss


def test_vision_loss_reaches_every_input() -> None:
    parts = [torch.rand(2, 3, 8, 8, requires_grad=True) for _ in range(2)]
    parts += [torch.randn(2, 5, requires_grad=True) for _ in range(2)]
    conv_vae_loss(*parts).backward()
    assert all(p.grad is not None and p.grad.any() for p in parts)


def test_kl_equals_the_integral() -> None:
    mu, logsigma = 0.7, -0.4
    sigma = math.exp(logsigma)
    x = np.linspace(-12, 12, 200_001)
    density = np.exp(-0.5 * ((x - mu) / sigma) ** 2) / sigma / math.sqrt(2 * math.pi)
    log_ratio = -0.5 * ((x - mu) / sigma) ** 2 - logsigma + 0.5 * x**2
    want = float((density * log_ratio).sum() * (x[1] - x[0]))
    got = kl_divergence(torch.tensor([[mu, mu]]), torch.tensor([[logsigma, logsigma]]))
    assert got.tolist() == pytest.approx([2 * want], rel=1e-5)


def pressed(out: LossOutput) -> float:
    return float((out.loss - out.components["rec"]).detach())


def test_free_bits_press_only_what_is_above_them() -> None:
    torch.manual_seed(0)
    model = VMC(VMCConfig(z_dim=8, free_bits=0.5), pixels(32), ACT)
    frames = torch.randint(0, 256, (4, 32, 32, 3), dtype=torch.uint8)
    heads = [model.vision.encoder.fc_mu, model.vision.encoder.fc_logsigma]  # type: ignore[union-attr]
    for head in heads:
        nn.init.zeros_(head.weight)
        nn.init.zeros_(head.bias)
    out = model.vision_loss(frames)
    assert out.components["kl"] == 0
    assert pressed(out) == pytest.approx(0.5 * 8, abs=1e-3)
    nn.init.constant_(heads[0].bias, 3.0)  # KL of 4.5 in each dimension.
    out = model.vision_loss(frames)
    assert float(out.components["kl"].detach()) == pytest.approx(36, rel=1e-5)
    assert pressed(out) == pytest.approx(36, rel=1e-3)


def test_vision_stays_finite_on_extreme_weights() -> None:
    model = VMC(VMCConfig(z_dim=8), pixels(32), ACT)
    with torch.no_grad():
        for p in model.vision.encoder.parameters():  # type: ignore[union-attr]
            p.mul_(100)
    out = model.vision_loss(torch.randint(0, 256, (4, 32, 32, 3), dtype=torch.uint8))
    out.loss.backward()
    assert out.loss.isfinite() and all(p.grad is None or p.grad.isfinite().all() for p in model.parameters())


def test_frames_reach_vision_as_channels_first_in_0_to_1() -> None:
    model = VMC(VMCConfig(), pixels(32), ACT)
    frame = torch.zeros(1, 32, 32, 3, dtype=torch.uint8)
    frame[0, 5, 7, 2] = 255
    seen = []
    hook = model.vision.encoder.register_forward_pre_hook(lambda _, args: seen.append(args[0]))  # type: ignore[union-attr]
    model.encode(frame)
    hook.remove()
    assert seen[0].shape == (1, 3, 32, 32) and seen[0][0, 2, 5, 7] == 1 and seen[0].sum() == 1


@pytest.mark.parametrize(
    "cfg, space, message",
    [
        (VMCConfig(), VECTOR, "use 'identity' for vectors"),
        (VMCConfig(vision="identity"), pixels(), "use 'small' for pixels"),
        (VMCConfig(vision="identity"), gym.spaces.Discrete(4), "needs a Box of vectors, got Discrete"),
        (VMCConfig(), gym.spaces.Box(0, 1, (64, 64, 3), np.float32), "uint8 pixels, got Box"),
        (VMCConfig(), gym.spaces.Box(0, 255, (210, 160, 3), np.uint8), "square .* set size in the preprocessing"),
        (VMCConfig(), pixels(80), "32, 64 or 96 pixels, got 80"),
        (VMCConfig(vision="paper"), pixels(96), "needs images of 64x64 pixels, got 96x96"),
    ],
)
def test_what_does_not_fit_is_rejected_by_name(cfg: VMCConfig, space: gym.Space, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        VMC(cfg, space, ACT)


def test_wrong_shapes_are_rejected_with_both_sides() -> None:
    model = VMC(VMCConfig(hidden=8), pixels(32), ACT)
    latent = model.initial(2)
    frames = torch.zeros(2, 32, 32, 3, dtype=torch.uint8)
    with pytest.raises(ValueError, match=r"obs must be \(B, 32, 32, 3\) uint8.*, got \(2, 64, 64, 3\)"):
        model.encode(torch.zeros(2, 64, 64, 3, dtype=torch.uint8))
    with pytest.raises(
        ValueError, match=r"float frames must be in \[0, 1\], got values up to 255; pass uint8 or divide"
    ):
        model.encode(frames.float() + 255)
    with pytest.raises(ValueError, match="needs the act that led from latent to obs, got None"):
        model.encode(frames, latent)
    for call in (lambda act: model.encode(frames, latent, act), lambda act: model.step(latent, act)):
        for wrong in (torch.zeros(2, 2), torch.zeros(3), torch.zeros(1, 3)):
            with pytest.raises(ValueError, match=r"act must be \(2, 3\) for Box.*got .*encode_action"):
                call(wrong)
    with pytest.raises(ValueError, match="temperature must be 0 .* or above, got -1"):
        model.step(latent, torch.zeros(2, 3), temperature=-1)


# The decoder


@pytest.mark.parametrize("size, channels", [(32, 3), (64, 1), (96, 3)])
@pytest.mark.parametrize("still", [False, True])
def test_frames_are_the_decoded_images_rounded(
    size: int, channels: int, still: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("wm_agents.models.vision.DRAWN_AT_ONCE", 32)  # 40 rows are two blocks.
    torch.manual_seed(0)
    vae = ConvVAE(channels, 8, "small", size, still)
    if still:
        vae.still.copy_(torch.rand(channels, size, size))  # type: ignore[union-attr]
    z = 3 * torch.randn(40, 8)
    images = vae.decoder(z, vae.still).detach()
    assert images.shape == (40, channels, size, size)
    want = (images.clamp(0, 1) * 255).round().to(torch.uint8).permute(0, 2, 3, 1)
    with torch.no_grad():
        drawn = [(vae.decode_obs(z), want), (vae.decode_obs(z[39:]), want[39:])]
    for frames, image in drawn:
        assert frames.shape == image.shape and frames.dtype == torch.uint8
        assert int((frames.int() - image.int()).abs().max()) <= 1  # Products round differently with their size.


# V for small things that move


def test_grey_frames_are_seen_and_drawn_in_one_channel() -> None:
    model = VMC(VMCConfig(z_dim=8, hidden=8), pixels(32, 1), ACT)
    obs = torch.randint(0, 256, (2, 32, 32, 1), dtype=torch.uint8)
    latent = model.encode(obs)
    assert model.decode(latent).shape == obs.shape and model.decode(latent).dtype == torch.uint8
    assert model.vision_loss(obs).loss.isfinite()


def moving_model(**fields: object) -> VMC:
    torch.manual_seed(0)
    cfg = VMCConfig(z_dim=8, hidden=8, motion_weight=3.0, **fields)  # type: ignore[arg-type]
    model = VMC(cfg, pixels(32), ACT)
    model.vision.still.copy_(torch.rand(3, 32, 32))  # type: ignore[union-attr]
    return model


def test_what_differs_from_the_still_frame_is_seen_and_drawn_on_top_of_it() -> None:
    moving = moving_model().vision
    plain = ConvVAE(3, 8, "small", 32)
    plain.load_state_dict({k: v for k, v in moving.state_dict().items() if k != "still"})
    x = torch.rand(4, 3, 32, 32)
    assert torch.equal(moving.encode(x)[0], plain.encode(x - moving.still)[0])
    last = moving.decoder.deconvs[-1]
    nn.init.zeros_(last.weight)
    nn.init.zeros_(last.bias)
    z = torch.randn(4, 8)
    frames = moving.decode_obs(z)
    assert torch.equal(frames, (moving.still * 255).round().to(torch.uint8).permute(1, 2, 0).expand(4, -1, -1, -1))
    nn.init.constant_(last.bias, 0.5)  # Beyond white it stays white.
    assert moving.decode_obs(z).min() >= 127 and moving.decode_obs(z).max() == 255


def test_errors_weigh_more_where_a_frame_moves() -> None:
    model = moving_model(kl_weight=0.25, free_bits=0.0)
    still = (model.vision.still * 255).round().to(torch.uint8).permute(1, 2, 0)
    obs = still.expand(2, -1, -1, -1).clone()
    obs[0, 4, 5, 1] ^= 128
    moved = np.zeros((2, 1, 32, 32))
    moved[0, 0, 4, 5] = 1
    assert np.array_equal(model.vision.moving(to_input(obs)).numpy(), moved)
    model.vision.rarity[4, 5] = 0.5
    moved *= 0.5
    torch.manual_seed(1)
    out = model.vision_loss(obs)
    torch.manual_seed(1)
    recon, mu, logsigma = (x.detach().double() for x in model.vision(to_input(obs)))
    want = ((1 + 3 * moved) * (recon.numpy() - to_input(obs).double().numpy()) ** 2).sum() / 2
    assert float(out.components["rec"].detach()) == pytest.approx(want, rel=1e-5)
    assert pressed(out) == pytest.approx(0.25 * float(kl_divergence(mu, logsigma).mean()), abs=1e-3 * want)


def test_a_frame_that_moves_as_a_whole_counts_little() -> None:
    vision = moving_model().vision
    x = vision.still.repeat(3, 1, 1, 1)
    x[0] += 0.2
    x[1, :, :16] += 0.2
    x[2, :, 3, 4] += 0.2
    attention = vision.attention(x)
    assert attention[0].unique().tolist() == pytest.approx([0.1])
    assert attention[1].unique().tolist() == pytest.approx([0, 0.2])
    assert attention[2, 0, 3, 4] == 1 == attention[2].sum()


def test_pixels_that_move_often_count_less() -> None:
    vision = moving_model().vision
    still = (255 * vision.still).round().to(torch.uint8).permute(1, 2, 0)
    frames = still.repeat(800, 1, 1, 1)
    for t in range(8):
        frames[100 * t, t, t] ^= 128  # Each once: typical.
    frames[::200, 20, 20] ^= 128
    vision.watch(frames)
    want = torch.ones(32, 32)
    want[20, 20] = 0.25
    assert torch.equal(vision.rarity, want) and "rarity" not in vision.state_dict()
    vision.watch(still[None])
    assert (vision.rarity == 1).all()  # Nothing has moved.


def test_the_papers_vision_has_no_still_frame() -> None:
    model = VMC(VMCConfig(), pixels(), ACT)
    assert "vision.still" not in model.state_dict() and not [k for k in model.state_dict() if "classes" in k]
    assert sizes(VMCConfig()) != sizes(VMCConfig(motion_weight=1.0)) != sizes(VMCConfig(rew_head="classes"))
    assert sizes(VMCConfig(motion_weight=2.0)) == sizes(VMCConfig(motion_weight=1.0, kl_weight=0.1))


@pytest.mark.parametrize(
    "fields, message",
    [
        ({"motion_weight": -1.0}, "VMCConfig.motion_weight must be a number of at least 0, got -1.0"),
        ({"kl_weight": -1.0}, "kl_weight must be a number of at least 0, got -1.0"),
        ({"term_weight": math.nan}, "term_weight must be a finite number, got nan"),
        ({"rew_weight": math.inf}, "rew_weight must be a finite number, got inf"),
        ({"z_dim": -1}, "z_dim must be a whole number of at least 1, got -1"),
        ({"hidden": True}, "hidden must be a whole number of at least 1, got True"),
        ({"mixtures": 1.5}, "mixtures must be a whole number of at least 1, got 1.5"),
        ({"mixture": "each"}, "mixture must be one of 'joint', 'per_dim', got 'each'"),
        ({"vision": "huge"}, "vision must be one of 'small', 'paper', 'identity', got 'huge'"),
        ({"rew_head": "rank"}, "rew_head must be one of 'mse', 'classes', got 'rank'"),
    ],
)
def test_odd_settings_are_rejected(fields: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        VMCConfig(**fields)


# V for vectors


def test_identity_loses_nothing() -> None:
    model = vector_model()
    model.vision.mean.copy_(torch.tensor([1.0, -2.0, 0.0, 30.0]))  # type: ignore[union-attr]
    model.vision.std.copy_(torch.tensor([0.1, 3.0, 1.0, 25.0]))  # type: ignore[union-attr]
    obs = torch.randn(64, 4) * 40
    latent = model.encode(obs)
    assert torch.allclose(model.decode(latent), obs, rtol=1e-6, atol=1e-5)
    assert torch.allclose(latent["z"][:, 1], (obs[:, 1] + 2) / 3)
    mu, logsigma = model.vision.encode(obs)
    assert torch.equal(mu, latent["z"]) and logsigma.exp().max() < 1e-3


def test_dreamed_vectors_stay_in_the_observation_space() -> None:
    space = gym.spaces.Box(np.array([-4.8, -np.inf]), np.array([4.8, np.inf]), dtype=np.float64)
    vision = Identity(space)
    obs = vision.decode_obs(torch.tensor([[1e6, 1e6], [-1e6, -1e6], [0.5, 0.5]]))
    assert obs.dtype == torch.float64 and all(space.contains(row) for row in obs.numpy())
    assert obs[0].tolist() == [4.8, 1e6]
    memory = gym.spaces.Box(0, 255, (128,), np.uint8)
    model = VMC(VMCConfig(vision="identity", hidden=8), memory, ACT)
    model.vision.mean.fill_(100.3)  # type: ignore[union-attr]
    model.vision.std.fill_(41.7)  # type: ignore[union-attr]
    ram = torch.randint(0, 256, (5, 128), dtype=torch.uint8)
    assert torch.equal(model.decode(model.encode(ram)), ram)
    assert model.decode({"z": torch.full((1, 128), 1e3)}).max() == 255
    assert set(vision.state_dict()) == {"mean", "std"}  # Bounds belong to the space, not to the weights.


# M


@pytest.mark.parametrize("mixture", MIXTURES)
def test_memory_shapes(mixture: str) -> None:
    seq, cell = MDRNN(32, 3, 256, 5, mixture), MDRNNCell(32, 3, 256, 5, mixture)  # type: ignore[arg-type]
    picks = () if mixture == "joint" else (32,)
    shapes = [tuple(x.shape) for x in seq(torch.randn(10, 4, 3), torch.randn(10, 4, 32))]
    assert shapes == [(10, 4, 5, 32), (10, 4, 5, 32), (10, 4, 5, *picks), (10, 4), (10, 4)]
    hidden = cell.get_init_hidden(4)
    assert [tuple(x.shape) for x in hidden] == [(4, 256)] * 2 and not torch.cat(hidden).any()
    *out, (h, c) = cell(torch.randn(4, 3), torch.randn(4, 32), hidden)
    assert [tuple(x.shape) for x in out] == [(4, 5, 32), (4, 5, 32), (4, 5, *picks), (4,), (4,)]
    assert h.shape == c.shape == (4, 256)
    assert not torch.equal(h, hidden[0]) and not torch.equal(c, hidden[1])


@pytest.mark.parametrize("mixture", MIXTURES)
def test_sigmas_are_positive_and_components_sum_to_one(mixture: str) -> None:
    memory = MDRNN(4, 3, 16, 5, mixture)  # type: ignore[arg-type]
    with torch.no_grad():
        for p in memory.parameters():
            p.mul_(50)
    _, sigmas, logpi, _, _ = memory(torch.randn(6, 4, 3), torch.randn(6, 4, 4) * 100)
    assert sigmas.min() > 0 and sigmas.isfinite().all()
    assert torch.allclose(logpi.exp().sum(2), torch.ones(()), atol=1e-5)


def test_every_memory_parameter_gets_a_gradient() -> None:
    for memory, parts in [
        (MDRNN(4, 3, 16, 5), (torch.randn(6, 2, 3), torch.randn(6, 2, 4))),
        (MDRNNCell(4, 3, 16, 5), (torch.randn(2, 3), torch.randn(2, 4), (torch.randn(2, 16), torch.randn(2, 16)))),
    ]:
        mus, sigmas, logpi, rs, ds = memory(*parts)[:5]
        (mus.sum() + sigmas.sum() + logpi.square().sum() + rs.sum() + ds.sum()).backward()
        assert not [name for name, p in memory.named_parameters() if p.grad is None or not p.grad.any()]


def test_rows_of_a_batch_do_not_mix() -> None:
    memory = MDRNN(4, 3, 16, 5)
    act, z = torch.randn(6, 2, 3), torch.randn(6, 2, 4)
    before = memory(act, z)
    act[:, 1], z[:, 1] = 9.0, -9.0
    after = memory(act, z)
    assert all(torch.allclose(a[:, 0], b[:, 0], atol=1e-6) for a, b in zip(before, after))
    assert not torch.allclose(before[0][:, 1], after[0][:, 1])


def test_memory_does_not_see_the_future() -> None:
    memory = MDRNN(4, 3, 16, 5)
    act, z = torch.randn(6, 2, 3), torch.randn(6, 2, 4)
    before = memory(act, z)[0]
    act[3:], z[3:] = 9.0, -9.0
    assert torch.allclose(before[:3], memory(act, z)[0][:3], atol=1e-6)


def test_the_base_of_the_memories_has_no_forward() -> None:
    with pytest.raises(NotImplementedError, match="MDRNN for sequences or MDRNNCell"):
        _MDRNNBase(4, 3, 16, 5)(torch.zeros(1))


@pytest.mark.parametrize("mixture", MIXTURES)
def test_sequence_cell_and_model_are_one_memory(mixture: str) -> None:
    model = vector_model(hidden=32, mixture=mixture)
    model.rew_scale.fill_(3.0)
    memory = model.memory
    with torch.no_grad():  # Weights large enough to tell components apart.
        memory.gmm_linear.weight.mul_(20)
    cell = MDRNNCell(4, 3, 32, 5, mixture)  # type: ignore[arg-type]
    cell.load_mdrnn(memory)
    act, z = torch.randn(8, 6, 3), torch.randn(8, 6, 4)
    whole = memory(act, z)
    hidden = cell.get_init_hidden(6)
    h = c = torch.zeros(6, 32)
    for t in range(8):
        *parts, hidden = cell(act[t], z[t], hidden)
        assert all(torch.allclose(a[t], b, atol=1e-5) for a, b in zip(whole, parts))
        step = model.step({"z": z[t], "h": h, "c": c}, act[t], temperature=0)
        h, c = memory.advance(z[t], act[t], h, c)
        assert torch.allclose(h, hidden[0], atol=1e-6) and torch.allclose(c, hidden[1], atol=1e-6)
        assert torch.equal(step.latent["h"], h) and torch.equal(step.latent["c"], c)
        mus, _, logpi, rew, end = parts
        likeliest = logpi.argmax(1, keepdim=True)
        likeliest = likeliest[..., None].expand(-1, -1, 4) if mixture == "joint" else likeliest
        assert torch.allclose(step.latent["z"], mus.gather(1, likeliest)[:, 0], atol=1e-5)
        assert torch.allclose(step.rew, 3 * rew, atol=1e-5) and torch.allclose(step.cont, 1 - end.sigmoid(), atol=1e-6)


def test_weights_travel_to_the_cell_by_their_names() -> None:
    memory, cell = MDRNN(4, 3, 16, 5), MDRNNCell(4, 3, 16, 5)
    cell.load_mdrnn(memory)
    for name in ("weight_ih", "weight_hh", "bias_ih", "bias_hh"):
        assert torch.equal(getattr(cell.rnn, name), getattr(memory.rnn, f"{name}_l0"))


# Sampling


def mixture_of(memory: MDRNN, rows: int, seed: int = 0, spread: float = 1.0) -> tuple[Tensor, np.ndarray, ...]:
    """A head of `rows` equal rows, and its logits (K, Z), mus (K, Z), sigmas (K, Z) as float64."""
    rng = np.random.default_rng(seed)
    k, z = memory.gaussians, memory.latents
    mus, logsigmas = spread * rng.standard_normal((k, z)), 0.3 * rng.standard_normal((k, z)) - 0.5
    logits = 1.5 * rng.standard_normal((k, 1 if memory.mixture == "joint" else z))
    head = np.concatenate([mus.ravel(), logsigmas.ravel(), logits.ravel(), [0, 0]])
    return torch.from_numpy(head).float().expand(rows, -1), np.broadcast_to(logits, (k, z)), mus, np.exp(logsigmas)


@pytest.mark.parametrize("mixture", MIXTURES)
@pytest.mark.parametrize("tau", [0.5, 1.0, 1.3])
def test_samples_have_the_moments_of_the_mixture_at_tau(mixture: str, tau: float) -> None:
    memory = MDRNN(3, 2, 4, 4, mixture)  # type: ignore[arg-type]
    num = 200_000
    head, logits, mus, sigmas = mixture_of(memory, num)
    pi = np.exp(logits / tau) / np.exp(logits / tau).sum(0)
    mean = (pi * mus).sum(0)
    var = (pi * (tau * sigmas**2 + mus**2)).sum(0) - mean**2
    z = memory.sample(head, tau, torch.Generator().manual_seed(1)).double().numpy()
    assert np.allclose(z.mean(0), mean, atol=5 * np.sqrt(var / num).max())
    assert np.allclose(z.var(0), var, rtol=0.02)
    together = np.corrcoef(z.T)[0, 1]
    joint = (pi[:, 0] * (mus[:, 0] - mean[0]) * (mus[:, 1] - mean[1])).sum() / np.sqrt(var[0] * var[1])
    assert together == pytest.approx(joint if mixture == "joint" else 0.0, abs=0.01)


@pytest.mark.parametrize("mixture", MIXTURES)
@pytest.mark.parametrize("tau", [0.5, 1.0, 1.3])
def test_components_come_as_often_as_their_weights_say(mixture: str, tau: float) -> None:
    memory = MDRNN(3, 2, 4, 4, mixture)  # type: ignore[arg-type]
    num = 50_000
    head, logits, mus, _ = mixture_of(memory, num, spread=1000.0)  # Far apart: each sample names its component.
    z = memory.sample(head, tau, torch.Generator().manual_seed(1)).double().numpy()
    pick = np.abs(z[:, None] - mus).argmin(1)  # (num, Z)
    often = np.stack([(pick == k).mean(0) for k in range(4)])
    pi = np.exp(logits / tau) / np.exp(logits / tau).sum(0)
    assert np.allclose(often, pi, atol=5 * 0.5 / math.sqrt(num))
    same = (pick == pick[:, :1]).all(1).mean()
    assert same == 1 if mixture == "joint" else same < 0.9


def test_tau_zero_is_the_likeliest_future_and_the_limit_of_small_tau() -> None:
    memory = MDRNN(3, 2, 4, 4)
    head, _, _, _ = mixture_of(memory, 5)
    limit = memory.sample(head, 1e-8, torch.Generator().manual_seed(1))
    assert torch.allclose(memory.sample(head, 0, None), limit, atol=1e-3)


def test_samples_repeat_with_their_generator_whatever_their_neighbours() -> None:
    model = vector_model()
    latent = {key: torch.randn_like(leaf) for key, leaf in model.initial(6).items()}
    act = torch.randn(6, 3)
    a, b, other = (model.step(latent, act, generator=torch.Generator().manual_seed(s)).latent["z"] for s in (1, 1, 2))
    assert torch.equal(a, b) and not torch.equal(a, other)
    rows = [np.random.default_rng(i) for i in range(6)]
    together = model.step(latent, act, generator=RowStreams(rows)).latent["z"]
    alone = model.step(
        {key: leaf[4:5] for key, leaf in latent.items()}, act[4:5], generator=RowStreams([np.random.default_rng(4)])
    )
    assert torch.allclose(together[4:5], alone.latent["z"], atol=1e-6)


@pytest.mark.parametrize("mixture", MIXTURES)
def test_extreme_heads_give_finite_samples(mixture: str) -> None:
    memory = MDRNN(3, 2, 4, 4, mixture)  # type: ignore[arg-type]
    for size in (1e4, 1e30, -1e30):
        head = torch.randn(64, memory.gmm_linear.out_features) * size
        assert memory.sample(head, 1.0, None).isfinite().all()
        _, sigmas, logpi, _, _ = memory.split(head)
        assert sigmas.isfinite().all() and (sigmas > 0).all() and not logpi.isnan().any()


# The loss of the mixture


def gmm_reference(batch: np.ndarray, mus: np.ndarray, sigmas: np.ndarray, logpi: np.ndarray) -> np.ndarray:
    """Equation by equation, densities multiplied, no logarithm before the end."""
    x = batch[..., None, :]
    density = np.exp(-0.5 * ((x - mus) / sigmas) ** 2) / (sigmas * math.sqrt(2 * math.pi))  # (..., K, Z)
    if logpi.ndim == mus.ndim:
        return -np.log((np.exp(logpi) * density).sum(-2)).sum(-1)
    return -np.log((np.exp(logpi) * density.prod(-1)).sum(-1))


def gmm_inputs(lead: tuple[int, ...], k: int, z: int, mixture: str, seed: int = 0) -> list[np.ndarray]:
    rng = np.random.default_rng(seed)
    logits = rng.standard_normal((*lead, k) if mixture == "joint" else (*lead, k, z))
    logpi = logits - np.log(np.exp(logits).sum(len(lead), keepdims=True))
    mus, sigmas = rng.standard_normal((*lead, k, z)), np.exp(0.5 * rng.standard_normal((*lead, k, z)))
    return [rng.standard_normal((*lead, z)), mus, sigmas, logpi]


@pytest.mark.parametrize("mixture", MIXTURES)
@pytest.mark.parametrize("k", [1, 3, 5, 10])
@pytest.mark.parametrize("lead", [(4, 10), (1, 10), (7, 1), (1, 1), (5,)])
def test_gmm_loss_equals_the_densities(mixture: str, k: int, lead: tuple[int, ...]) -> None:
    parts = gmm_inputs(lead, k, 6, mixture)
    want = gmm_reference(*parts)
    got = gmm_loss(*(torch.from_numpy(p) for p in parts), reduce=False)
    assert got.shape == lead  # A batch of 1 keeps its dimension.
    assert np.allclose(got.numpy(), want, rtol=1e-10)
    mean = gmm_loss(*(torch.from_numpy(p) for p in parts))
    assert mean.shape == () and float(mean) == pytest.approx(want.mean(), rel=1e-10)


def test_gmm_loss_prefers_the_truth_and_may_be_negative() -> None:
    batch, mus, sigmas, logpi = (torch.from_numpy(p) for p in gmm_inputs((4, 10), 5, 32, "joint"))
    near = batch.unsqueeze(-2).expand_as(mus) + 1e-3
    assert gmm_loss(batch, near, sigmas, logpi) < gmm_loss(batch, mus, sigmas, logpi)
    assert gmm_loss(batch, near, sigmas * 1e-2, logpi) < 0


@pytest.mark.parametrize("mixture", MIXTURES)
def test_gmm_loss_reaches_every_input(mixture: str) -> None:
    batch, mus, raw, logits = (torch.from_numpy(p).requires_grad_() for p in gmm_inputs((2, 5), 5, 4, mixture))
    gmm_loss(batch, mus, raw.exp(), logits.log_softmax(2)).backward()
    assert all(p.grad is not None and p.grad.any() for p in (batch, mus, raw, logits))


@pytest.mark.parametrize("mixture", MIXTURES)
def test_gmm_loss_is_stable_where_densities_are_not(mixture: str) -> None:
    batch, mus, sigmas, logits = (torch.from_numpy(p).float() for p in gmm_inputs((4, 10), 5, 32, mixture))
    for far, sigma, logit in [(1e4, math.exp(-7), 1), (1e3, math.exp(5), 1e4), (0, math.exp(-7), -1e4)]:
        raw = [(batch + far).requires_grad_(), mus.clone().requires_grad_(), (logits * logit).requires_grad_()]
        loss = gmm_loss(raw[0], raw[1], torch.full_like(sigmas, sigma), raw[2].log_softmax(2))
        loss.backward()
        assert loss.isfinite() and all(p.grad is not None and p.grad.isfinite().all() for p in raw)


# The loss of M


def windows(num: int = 3, steps: int = 7, z: int = 4) -> dict[str, Tensor]:
    g = torch.Generator().manual_seed(0)
    return {
        "mu": torch.randn(num, steps + 1, z, generator=g),
        "logsigma": torch.full((num, steps + 1, z), -3.0),
        "act": torch.rand(num, steps, 3, generator=g) * 2 - 1,
        "rew": torch.randn(num, steps, generator=g),
        "term": torch.zeros(num, steps),
        "mask": torch.ones(num, steps),
    }


def memory_loss(model: VMC, batch: dict[str, Tensor], seed: int = 0) -> tuple[float, dict[str, float]]:
    torch.manual_seed(seed)
    out = model.memory_loss(**batch)
    return float(out.loss.detach()), {name: float(part.detach()) for name, part in out.components.items()}


def test_parts_of_the_memory_loss_are_what_they_say() -> None:
    model = vector_model(rew_weight=3.0, term_weight=10.0)
    model.rew_scale.fill_(4.0)
    batch = windows()
    batch["term"][0, 6] = batch["term"][1, 2] = 1.0
    batch["mask"][1, 3:] = 0.0
    batch["logsigma"].fill_(-40.0)  # z is mu.
    loss, parts = memory_loss(model, batch)
    mask = batch["mask"].numpy().astype(np.float64)
    num = mask.sum()
    out = model.memory(batch["act"].transpose(0, 1), batch["mu"][:, :-1].transpose(0, 1))
    mus, sigmas, logpi, rew, end = (x.detach().double().numpy().swapaxes(0, 1) for x in out)
    nll = (gmm_reference(batch["mu"][:, 1:].double().numpy(), mus, sigmas, logpi) * mask).sum() / num / 4
    mse = ((rew - batch["rew"].numpy() / 4) ** 2 * mask).sum() / num
    term = batch["term"].numpy()
    p = 1 / (1 + np.exp(-end))
    bce = (-(10 * term * np.log(p) + (1 - term) * np.log(1 - p)) * mask).sum() / num
    assert [parts["nll"], parts["rew"], parts["term"]] == pytest.approx([nll, mse, bce], rel=1e-4)
    assert loss == pytest.approx(nll + 3 * mse + bce, rel=1e-4)


def test_what_lies_behind_an_episodes_end_counts_for_nothing() -> None:
    model = vector_model()
    batch = windows()
    batch["mask"][0, 4:] = 0.0
    before = memory_loss(model, batch)
    for name, at in [("mu", 5), ("act", 4), ("rew", 4), ("term", 4)]:
        batch[name][0, at:] = 7.0
    assert memory_loss(model, batch) == before
    batch["mu"][0, 4] = 7.0  # The frame that the last step leads to does count.
    assert memory_loss(model, batch) != before


def test_a_window_of_short_episodes_equals_the_short_window() -> None:
    model = vector_model()
    batch = windows()
    batch["logsigma"].fill_(-40.0)
    short = {k: v[:, : 4 + (k in ("mu", "logsigma"))] for k, v in batch.items()}
    batch["mask"][:, 4:] = 0.0
    assert memory_loss(model, batch)[0] == pytest.approx(memory_loss(model, short)[0], rel=1e-5)


def test_z_is_drawn_again_for_every_batch() -> None:
    model = vector_model()
    batch = windows()
    assert memory_loss(model, batch, seed=0) == memory_loss(model, batch, seed=0) != memory_loss(model, batch, seed=1)


def test_windows_of_an_empty_mask_give_zero_not_nan() -> None:
    batch = windows()
    batch["mask"].zero_()
    assert memory_loss(vector_model(), batch)[0] == 0


def test_memory_loss_in_bf16_is_close_to_fp32() -> None:
    if not bf16_runs({"lstm"}, torch.device("cpu"), training=True):
        pytest.skip("this CPU has no bfloat16 for LSTMs")
    torch.manual_seed(0)
    model = VMC(VMCConfig(), pixels(), ACT)
    batch = windows(8, 16, 32)
    exact, _ = memory_loss(model, batch)
    with torch.autocast("cpu", torch.bfloat16):
        rough, _ = memory_loss(model, batch)
    assert rough == pytest.approx(exact, rel=0.01)


# Rewards as classes


def learned(*rewards: list[float]) -> RewardClasses:
    classes = RewardClasses()
    for rew in rewards:
        classes.learn(torch.tensor(rew))
    return classes


def test_rewards_that_occur_become_classes_and_keep_their_place() -> None:
    classes = learned([0, 0, 0, -1], [0, 0, 1, -1, 4], [-1, -1, 0])
    assert classes.values[:5].tolist() == [0, -1, 1, 4, 0]
    assert classes.weights[:5].tolist() == [3, 1, 3, 3, 0]  # The commonest of the last data counts once.
    with pytest.raises(ValueError, match=r"at most 16 different rewards, got 24; use rew_head='mse'"):
        classes.learn(torch.arange(10.0, 30.0))


def test_the_dreamed_reward_is_the_mean_with_the_weights_taken_out() -> None:
    classes = learned([0, 0, 0, -1, 1])
    order = {round(float(v)): i for i, v in enumerate(classes.values[:3])}
    chances = {0: 0.7, -1: 0.1, 1: 0.2}
    logits = torch.full((16,), 9.0)  # Free places have logits too, which mean nothing.
    for value, chance in chances.items():
        weight = 1 if value == 0 else 3
        logits[order[value]] = math.log(chance * weight)
    assert float(classes.expected(logits)) == pytest.approx(0.2 - 0.1)
    assert RewardClasses().expected(torch.randn(5, 16)).tolist() == [0] * 5


def test_chances_of_rewards_are_learned_as_they_are() -> None:
    """The minimum of the weighted loss, dreamed, is the mean of the data."""
    rew = torch.tensor([0.0] * 16 + [-1.0] * 3 + [7.0])
    classes = learned(rew.tolist())
    logits = torch.zeros(16, requires_grad=True)
    optimizer = torch.optim.LBFGS([logits], max_iter=100, line_search_fn="strong_wolfe")

    def loss() -> Tensor:
        optimizer.zero_grad()
        total = classes.loss(logits.expand(len(rew), -1), rew).sum()
        total.backward()
        return total

    optimizer.step(loss)
    assert float(classes.expected(logits.detach())) == pytest.approx(float(rew.mean()), abs=1e-3)


def test_a_memory_with_classes_is_one_memory_and_dreams_their_mean() -> None:
    model = vector_model(hidden=16, rew_head="classes")
    model.classes.learn(torch.tensor([0.0, 0.0, 1.0, -1.0]))
    seq = model.memory
    cell = MDRNNCell(4, 3, 16, 5, rewards=16)
    cell.load_mdrnn(seq)
    act, z = torch.randn(3, 2, 3), torch.randn(3, 2, 4)
    whole = seq(act, z)
    assert whole[3].shape == (3, 2, 16) and whole[4].shape == (3, 2)
    parts = cell(act[0], z[0], cell.get_init_hidden(2))
    assert all(torch.allclose(a[0], b, atol=1e-5) for a, b in zip(whole, parts))
    step = model.step({**model.initial(2), "z": z[0]}, act[0], temperature=0)
    assert torch.allclose(step.rew, model.classes.expected(parts[3]), atol=1e-5)
    assert torch.allclose(step.cont, 1 - parts[4].sigmoid(), atol=1e-6)


def test_the_reward_part_of_the_loss_is_the_weighted_cross_entropy() -> None:
    model = vector_model(rew_head="classes", rew_weight=2.0)
    batch = windows()
    batch["rew"] = torch.tensor([0.0, 1.0, 0.0, -1.0, 0.0, 0.0, 1.0]).expand(3, -1).clone()
    batch["mask"][1, 3:] = 0.0
    batch["rew"][1, 3:] = 77.0  # Behind the end.
    batch["logsigma"].fill_(-40.0)
    model.classes.learn(torch.tensor([0.0, 0.0, 1.0, -1.0]))
    loss, parts = memory_loss(model, batch)
    logits = model.memory(batch["act"].transpose(0, 1), batch["mu"][:, :-1].transpose(0, 1))[3].transpose(0, 1)
    logits, mask = logits.detach().double().numpy()[..., :3], batch["mask"].numpy()
    values = model.classes.values[:3].numpy()
    total = 0.0
    for b in range(3):
        for t in range(7):
            if mask[b, t]:
                k = int(np.flatnonzero(values == float(batch["rew"][b, t]))[0])
                total -= (1 if k == 0 else 3) * (logits[b, t, k] - np.log(np.exp(logits[b, t]).sum()))
    assert parts["rew"] == pytest.approx(total / mask.sum(), rel=1e-4)
    assert loss == pytest.approx(parts["nll"] + 2 * parts["rew"] + parts["term"], rel=1e-4)


# The model as a whole


def test_encoding_carries_memory_along_and_first_clears_it() -> None:
    model = vector_model()
    obs, act = torch.randn(5, 3, 4), torch.randn(4, 3, 3)
    latent = model.encode(obs[0])
    assert not latent["h"].any() and not latent["c"].any()
    h = c = torch.zeros(3, 16)
    for t in range(4):
        h, c = model.memory.advance(obs[t], act[t], h, c)
        latent = model.encode(obs[t + 1], latent, act[t])
        assert torch.allclose(latent["h"], h) and torch.equal(latent["z"], obs[t + 1])  # h has not seen z yet.
    assert torch.equal(model.feat(latent), torch.cat([obs[4], latent["h"]], 1))
    first = torch.tensor([False, True, False])
    again = model.encode(obs[0], latent, act[0], first)
    kept = model.encode(obs[0], latent, act[0])
    assert not again["h"][1].any() and not again["c"][1].any()
    assert torch.equal(again["h"][~first], kept["h"][~first]) and kept["h"][1].any()


def test_rewards_are_used_as_a_dream_the_environments_units() -> None:
    model = vector_model()
    latent = model.initial(2)
    act = torch.randn(2, 3)
    before = model.step(latent, act, temperature=0).rew
    model.rew_scale.fill_(50.0)
    assert torch.allclose(model.step(latent, act, temperature=0).rew, 50 * before)


def test_imagining_is_repeated_stepping() -> None:
    model = vector_model()
    start = {key: torch.randn_like(leaf) for key, leaf in model.initial(3).items()}
    acts = torch.randn(5, 3, 3)
    trajectory = imagine(model, start, acts, generator=torch.Generator().manual_seed(3))
    latent, generator = start, torch.Generator().manual_seed(3)
    for t in range(5):
        latent, rew, cont, *_ = model.step(latent, acts[t], generator=generator)
        assert torch.equal(trajectory.rewards[t], rew) and torch.equal(trajectory.continues[t], cont)
        assert torch.equal(trajectory.latents[t + 1]["z"], latent["z"])


@pytest.mark.parametrize(
    "space",
    [
        ACT,
        gym.spaces.Discrete(4, start=2),
        gym.spaces.MultiDiscrete([2, 3]),
        gym.spaces.MultiBinary(3),
        gym.spaces.Box(0, 5, (2, 2), np.float32),
    ],
)
def test_memory_takes_in_every_action_space(space: gym.Space) -> None:
    model = vector_model(act_space=space)
    out = model.step(model.initial(2), torch.zeros(2, act_dim(space)))
    assert out.latent["z"].shape == (2, 4) and out.rew.shape == out.cont.shape == (2,)


@pytest.mark.parametrize(
    "spec, vision",
    [
        (RealSpec("CartPole-v1"), "identity"),
        (RealSpec("Pendulum-v1"), "identity"),
        (RealSpec("CarRacing-v3", size=96), "small"),
        (RealSpec("CarRacing-v3", size=64, action_repeat=4), "paper"),
        (RealSpec("ale_py:ALE/Pong-v5", size=64), "small"),  # 210 x 160 before.
    ],
)
def test_real_environments_are_seen_and_dreamed(spec: RealSpec, vision: str) -> None:
    env = make_real(spec)
    model = VMC(VMCConfig(vision=vision, hidden=8), env.observation_space, env.action_space)  # type: ignore[arg-type]
    obs, _ = env.reset(seed=0)
    env.close()
    latent = model.encode(torch.from_numpy(obs[None]))
    out = model.step(latent, torch.zeros(1, act_dim(env.action_space)))
    dreamed = model.decode(out.latent).detach().numpy()
    assert env.observation_space.contains(dreamed[0])
    assert model.feat(out.latent).shape == (1, model.feat_dim) and out.cont.shape == (1,)


# One loss over windows of a replay buffer


def replayed(model: VMC, seed: int = 0) -> Batch:
    rng = np.random.default_rng(seed)
    shape, vectors = tuple(model.obs_space.shape or ()), model.obs_space.dtype != np.uint8
    numbers, bytes_ = rng.normal(3, 2, (4, 7, *shape)), rng.integers(0, 256, (4, 7, *shape), np.uint8)
    obs = numbers.astype(np.float32) if vectors else bytes_
    act, rew = rng.uniform(-1, 1, (4, 6, 3)), rng.normal(0, 5, (4, 6))
    none, no_frame = torch.zeros(4, 6, dtype=torch.bool), torch.zeros(4, 7, dtype=torch.bool)
    return Batch(
        torch.from_numpy(obs), torch.from_numpy(act).float(), torch.from_numpy(rew).float(), none, no_frame, no_frame
    )  # fmt: skip


def test_the_loss_of_windows_is_that_of_v_and_that_of_m() -> None:
    torch.manual_seed(0)
    model = VMC(VMCConfig(z_dim=8, hidden=8), pixels(32), ACT).eval()
    batch = replayed(model)
    torch.manual_seed(1)
    out = model.loss(batch)
    torch.manual_seed(1)
    vision = model.vision_loss(batch.obs.flatten(0, 1))
    mu, logsigma = (x.detach().unflatten(0, (4, 7)) for x in model.vision.encode(to_input(batch.obs.flatten(0, 1))))
    memory = model.memory_loss(mu, logsigma, batch.act, batch.rew, batch.term.float(), torch.ones(4, 6))
    assert out.loss.item() == pytest.approx((vision.loss + memory.loss).item(), rel=1e-5)
    out.loss.backward()
    got = [p.grad.clone() for p in model.vision.parameters() if p.grad is not None]
    model.zero_grad()
    vision.loss.backward()
    want = [p.grad for p in model.vision.parameters() if p.grad is not None]
    for a, b in zip(got, want, strict=True):  # M's gradients do not reach V.
        torch.testing.assert_close(a, b)


def test_nothing_behind_the_end_of_an_episode_counts_for_m() -> None:
    model = vector_model().eval()
    batch = replayed(model)
    cut = batch.first.clone()
    cut[:, 4] = True

    def loss(batch: Batch) -> dict[str, float]:
        torch.manual_seed(0)
        return {name: part.item() for name, part in model.loss(replace(batch, first=cut)).components.items()}

    wild = replace(batch, rew=batch.rew.clone(), act=batch.act.clone())
    wild.rew[:, 3:], wild.act[:, 3:] = 1e6, 1e6
    assert loss(wild) == loss(batch)
    wild.rew[:, 2] += 1
    assert loss(wild)["rew"] != loss(batch)["rew"]


def test_training_takes_its_units_from_the_first_batch_and_keeps_them() -> None:
    model = vector_model(rew_head="mse")
    batch = replayed(model)
    model.loss(batch)
    flat = batch.obs.flatten(0, 1).double()
    torch.testing.assert_close(model.vision.mean.double(), flat.mean(0))
    torch.testing.assert_close(model.vision.std.double(), flat.std(0, correction=0))
    assert float(model.rew_scale) == pytest.approx(float(batch.rew.square().mean().sqrt()))
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    model.loss(replayed(model, seed=1))
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


def test_a_unit_of_rewards_waits_for_the_first_that_is_not_zero() -> None:
    model = vector_model()
    model.loss(replace(replayed(model), rew=torch.zeros(4, 6)))
    assert float(model.rew_scale) == 1
    model.loss(replace(replayed(model), rew=torch.full((4, 6), 3.0)))
    assert float(model.rew_scale) == 3


def test_a_v_of_small_things_takes_the_median_frame_of_the_first_batch() -> None:
    model = VMC(VMCConfig(z_dim=8, hidden=8, motion_weight=9.0), pixels(32, 1), ACT)
    batch = replayed(model)
    batch.obs[:] = 40
    batch.obs[0, 0, :5] = 255
    model.loss(batch)
    assert model.vision.still is not None and bool((model.vision.still * 255).round().eq(40).all())
    assert float(model.vision.rarity.min()) <= 1
    model.loss(replayed(model))
    assert bool((model.vision.still * 255).round().eq(40).all())
