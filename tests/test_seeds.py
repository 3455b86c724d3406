"""The snippets that users brought along from their first documents run here, under our names.

Where one asks for a GPU or for tens of thousands of steps, the test asks for what there is, and for a few.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch

from wm_agents import (
    ConfigurationError,
    DreamerV3Config,
    TDMPC2Config,
    WorldModelConfig,
    create_world_model,
)
from wm_agents.models.model import Model
from wm_agents.training import ReplayBuffer, Trainer, TrainingConfig, train
from wm_agents.training.callbacks import CheckpointCallback, LoggingCallback, ProgressCallback
from wm_agents.training.data import create_random_buffer

FAMILIES = ["vmc:ci", "ensemble:ci", "dreamerv3:ci", "tdmpc2:ci"]


@pytest.fixture(autouse=True)
def in_an_empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def vectors(**changes: Any) -> ReplayBuffer:
    return create_random_buffer(
        **{
            "capacity": 2000,
            "obs_shape": (8,),
            "action_dim": 2,
            "num_episodes": 40,
            "episode_length": 40,
            "seed": 0,
            **changes,
        }
    )


# Seed 000: the shortest way to a successful run on a CPU


def loss_of(model: Model, buffer: ReplayBuffer) -> float:
    """The mean over two batches, as the quick start takes it before and after training."""
    model.eval()
    with torch.no_grad():
        batches = [buffer.sample(16, 10, generator=torch.Generator().manual_seed(i)) for i in range(2)]
        torch.manual_seed(0)
        losses = [model.compute_loss(batch)["total"] for batch in batches]
    return float(torch.stack(losses).mean())


@pytest.mark.parametrize("preset", FAMILIES)
def test_eight_steps_of_training_lower_the_loss_and_the_rollout_has_the_horizon(
    preset: str, learning_seed: int
) -> None:
    torch.manual_seed(42 + learning_seed)
    buffer = vectors(seed=learning_seed)
    model = create_world_model(preset, obs_shape=(8,), action_dim=2, device="cpu")
    model.train().loss(buffer.sample(16, 10))  # Units that are taken from the first batch are no success.
    initial = loss_of(model, buffer)
    config = TrainingConfig(
        total_steps=8, batch_size=16, sequence_length=10, learning_rate=3e-4, device="cpu", seed=learning_seed
    )
    Trainer(model, config).train(buffer)
    final = loss_of(model, buffer)
    assert np.isfinite([initial, final]).all() and final < initial
    state = model.encode(buffer.sample(1, 1)["obs"][:, 0])
    assert model.rollout(state, torch.randn(10, 1, 2)).rewards.shape == (10, 1)


def test_a_rollout_of_a_vector_model() -> None:
    model = create_world_model("dreamerv3:ci", obs_shape=(8,), action_dim=2, device="cpu")
    state = model.encode(torch.randn(1, 8))
    trajectory = model.rollout(state, torch.randn(5, 1, 2))
    assert trajectory.rewards.shape == trajectory.continues.shape == (5, 1)
    assert bool(((trajectory.continues >= 0) & (trajectory.continues <= 1)).all())


def test_a_larger_model_on_the_best_device() -> None:
    device = "cuda" if torch.cuda.is_available() else "cpu"
    model = create_world_model("dreamerv3:size12m", obs_shape=(3, 64, 64), action_dim=4, device=device)
    assert model.device.type == device and model.obs_space.shape == (3, 64, 64)
    assert 8e6 < sum(p.numel() for p in model.parameters()) < 12e6


# Seed 001: train your first model


def test_episodes_of_a_real_environment_are_stored_and_saved() -> None:
    buffer = ReplayBuffer(capacity=100_000, obs_shape=(4,), action_dim=2)
    env = gym.make("CartPole-v1")
    env.action_space.seed(0)
    for episode in range(10):
        obs_list, action_list, reward_list, done_list = [], [], [], []
        obs, _ = env.reset(seed=episode)
        done = False
        while not done:
            action = env.action_space.sample()
            next_obs, reward, terminated, truncated, _ = env.step(action)
            done = terminated or truncated
            obs_list.append(obs)
            action_list.append([action])
            reward_list.append(reward)
            done_list.append(done)
            obs = next_obs
        buffer.add_episode(
            obs=np.array(obs_list),
            actions=np.array(action_list),
            rewards=np.array(reward_list),
            dones=np.array(done_list),
        )
    buffer.save("cartpole_data.npz")
    loaded = ReplayBuffer.load("cartpole_data.npz")
    assert loaded.num_episodes == buffer.num_episodes == 10 and len(loaded) == len(buffer)
    batch = loaded.sample(batch_size=4, seq_len=5)
    assert bool((batch["actions"].sum(-1) == 1).all()) and bool((batch["rewards"] == 1).all())
    for preset in FAMILIES:
        model = create_world_model(preset, obs_shape=(4,), action_dim=2, action_type="discrete")
        assert model.loss(batch).loss.isfinite()


def test_a_preset_takes_vectors_without_being_configured() -> None:
    model = create_world_model("dreamerv3:size12m", obs_shape=(4,), action_dim=2, device="cpu")
    assert f"{sum(p.numel() for p in model.parameters()):,}".count(",") == 2


@pytest.mark.parametrize("preset", FAMILIES)
def test_one_line_trains(preset: str) -> None:
    model = create_world_model(preset, obs_shape=(4,), action_dim=2)
    buffer = vectors(obs_shape=(4,))
    before = {name: p.clone() for name, p in model.named_parameters()}
    trained_model = train(model, buffer, total_steps=2, device="cpu", batch_size=4, sequence_length=10)
    assert isinstance(trained_model, type(model))
    assert any(not torch.equal(p, before[name]) for name, p in trained_model.named_parameters())


def test_full_control_evaluation_imagination_and_the_disk() -> None:
    buffer = vectors(obs_shape=(4,))
    model = create_world_model("dreamerv3:ci", obs_shape=(4,), action_dim=2, device="cpu")
    config = TrainingConfig(
        total_steps=4, batch_size=16, sequence_length=25, learning_rate=3e-4, grad_clip=100.0, log_interval=2,
        device="cpu",
    )  # fmt: skip
    trainer = Trainer(model, config)
    trainer.add_callback(ProgressCallback())
    trainer.add_callback(LoggingCallback(log_dir="./logs"))
    trainer.add_callback(CheckpointCallback(save_dir="./checkpoints", save_every=2))
    trained_model = trainer.train(buffer)
    assert (Path("logs") / "metrics.jsonl").read_text() and list(Path("checkpoints").iterdir())

    trained_model.eval()
    batch = buffer.sample(batch_size=4, seq_len=20, device="cpu")
    with torch.no_grad():
        losses = trained_model.compute_loss(batch)
    assert "total" in losses and all(np.isfinite(value.item()) for value in losses.values())

    state = trained_model.encode(batch["obs"][:, 0])
    trajectory = trained_model.imagine(state, torch.randn(15, 4, 2))
    assert trajectory.rewards.shape == (15, 4) and trajectory.rewards.mean().isfinite()

    trained_model.save_pretrained("./my_trained_model")
    loaded = create_world_model("./my_trained_model")
    again = loaded.imagine(loaded.encode(batch["obs"][:, 0]), torch.zeros(3, 4, 2), temperature=0)
    want = trained_model.imagine(state, torch.zeros(3, 4, 2), temperature=0)
    assert torch.equal(again.rewards, want.rewards)


# Seed 002: the configuration guide


def test_configs_are_sizes_with_what_is_overridden() -> None:
    dreamer_cfg = DreamerV3Config.from_size("size50m", obs_shape=(3, 64, 64), action_dim=18)
    tdmpc_cfg = TDMPC2Config.from_size("19m", obs_shape=(39,), action_dim=6)
    assert (dreamer_cfg.obs_shape, dreamer_cfg.action_dim) == ((3, 64, 64), 18)
    assert (tdmpc_cfg.obs_shape, tdmpc_cfg.action_dim) == ((39,), 6)


@pytest.mark.parametrize(
    "kind, name, value",
    [
        *((DreamerV3Config, name, value) for name, value in [
            ("deter_dim", 128), ("stoch_discrete", 8), ("stoch_classes", 8), ("hidden_dim", 48), ("cnn_depth", 8),
            ("kl_free", 2.0), ("kl_balance", 0.5),
        ]),
        *((TDMPC2Config, name, value) for name, value in [
            ("latent_dim", 128), ("hidden_dim", 48), ("num_hidden_layers", 3), ("num_q_networks", 3), ("horizon", 5),
            ("num_samples", 256), ("num_elites", 32),
        ]),
    ],
)  # fmt: skip
def test_every_tuned_field_changes_a_model_or_what_it_computes(
    kind: type[WorldModelConfig], name: str, value: Any
) -> None:
    seen, shape = [], ((64, 64, 3) if name == "cnn_depth" else (8,))
    for cfg in (kind.from_size("ci"), kind.from_size("ci", **{name: value})):
        torch.manual_seed(0)
        fields = {key: x for key, x in cfg.to_dict().items() if x is not None}
        model = create_world_model(f"{cfg.family}:ci", obs_shape=shape, action_dim=2, **fields)
        assert getattr(model.cfg, name) == getattr(cfg, name)
        seen.append(told(model, name))
    assert seen[0] != seen[1]


def told(model: Model, name: str) -> Any:
    """Something that the field must show in: the weights, the plan, or the loss."""
    if name in ("horizon", "num_samples", "num_elites"):
        return getattr(model.cfg.planner(model.actions), name)
    if name.startswith("kl_"):
        torch.manual_seed(1)
        batch = vectors().sample(4, 8, generator=torch.Generator().manual_seed(0))
        loss = model.loss(batch).loss
        return [
            loss.item(),
            torch.autograd.grad(loss, list(model.parameters()), allow_unused=True)[0].abs().sum().item(),
        ]
    return sum(p.numel() for p in model.parameters())


def test_the_factory_takes_overrides_and_rejects_what_is_not_a_field() -> None:
    shapes: dict[str, Any] = {"obs_shape": (3, 64, 64), "action_dim": 4}
    model = create_world_model("dreamerv3:size12m", **shapes, hidden_dim=320, stoch_discrete=16, stoch_classes=16)
    cfg = model.cfg
    assert (cfg.hidden_dim, cfg.stoch_discrete, cfg.stoch_classes) == (320, 16, 16)
    with pytest.raises(ConfigurationError, match="did you mean 'kl_free'"):
        create_world_model("dreamerv3:size12m", **shapes, kl_fre=1.0)


def test_training_configs_say_what_the_guide_says_and_survive_json() -> None:
    config = TrainingConfig(
        total_steps=100_000, batch_size=16, sequence_length=50, learning_rate=3e-4, grad_clip=100.0, device="auto",
        mixed_precision=False, weight_decay=1e-4, warmup_steps=10, log_interval=5, eval_interval=6, save_interval=7,
        gradient_accumulation_steps=2, optimizer="adamw", scheduler="cosine", ema_decay=0.99,
    )  # fmt: skip
    config.save("training_config.json")
    assert TrainingConfig.load("training_config.json") == config


def test_the_config_of_a_saved_model_comes_back_as_its_family_s() -> None:
    create_world_model("tdmpc2:ci", obs_shape=(39,), action_dim=6, horizon=4).save_pretrained("./my_model")
    model_cfg = WorldModelConfig.load("./my_model")
    assert isinstance(model_cfg, TDMPC2Config) and (model_cfg.horizon, model_cfg.obs_shape) == (4, (39,))


def test_models_are_made_on_the_cpu_unless_reported_otherwise() -> None:
    assert create_world_model("dreamerv3:ci", obs_shape=(4,), action_dim=2).device.type == "cpu"
