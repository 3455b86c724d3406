"""bfloat16 if a trial finds it faster, float32 and one line if a device lacks it, at every entry point."""

from __future__ import annotations

import logging
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from tiny import save_tiny
from torch import Tensor, nn
from toy import BOX, Toy

from policies.cmaes import CMAConfig, read_about
from wm_agents.control import evolve as evolving
from wm_agents.control import ppo as learning
from wm_agents.control.evolve import evolve_in_dream
from wm_agents.control.ppo import PPOConfig, ppo_in_dream
from wm_agents.factory import create_world_model
from wm_agents.models.loss import LossOutput
from wm_agents.models.vmc import MDRNN, VMC, ConvVAE, VMCConfig
from wm_agents.pretrained import load_model, load_starts
from wm_agents.system.hardware import describe
from wm_agents.training.compute import _choose_precision
from wm_agents.training.config import TrainingConfig
from wm_agents.training.fit_vmc import _casting
from wm_agents.training.trainer import Trainer
from wm_envs import precision
from wm_envs.dream import DreamConfig, DreamVectorEnv
from wm_envs.precision import KINDS, Kind, bf16_runs, bf16_speedup, faster_in_bf16, kinds_of, use_bf16

CPU = torch.device("cpu")
FASTER, EQUAL, EMULATED, FAILS = 2.0, 1.0, 0.1, 0.0
Speeds = dict[str, float]
CFG = TrainingConfig(
    total_steps=6, batch_size=4, device="cpu", log_interval=2, eval_interval=3, save_interval=3, mixed_precision="auto"
)


@pytest.fixture
def speeds(monkeypatch: pytest.MonkeyPatch) -> Speeds:
    """How fast bfloat16 is taken to be, by kind and in trials of the work itself; to be changed."""
    found: Speeds = {**dict.fromkeys(KINDS, EQUAL), "trial": EQUAL}
    monkeypatch.setattr(precision, "bf16_speedup", lambda kind, device="cpu", training=False: found[kind])
    monkeypatch.setattr(precision, "_speedup", lambda run: found["trial"])
    precision._report_once.cache_clear()
    return found


@pytest.fixture
def lines(caplog: pytest.LogCaptureFixture) -> Iterator[Callable[[], list[str]]]:
    """What was reported since the last look."""
    caplog.set_level(logging.WARNING)

    def read() -> list[str]:
        found = [record.getMessage() for record in caplog.records]
        caplog.clear()
        return found

    yield read


class Line(nn.Module):
    """A linear regression: products, and everything that a trial could leave a trace in."""

    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Linear(8, 1)
        self.noise = nn.Sequential(nn.BatchNorm1d(8), nn.Dropout(0.5))

    def loss(self, x: Tensor) -> LossOutput:
        goal = 1 + np.random.standard_normal()
        loss = (self.net(self.noise(x)).float() - goal).square().mean()
        return LossOutput(loss, {"fit": loss}, {})


def batches(update: int) -> Tensor:
    return torch.from_numpy(CFG.rng(update).standard_normal((4, 8), np.float32))


def trained(path: Path, cfg: TrainingConfig = CFG, steps: int | None = None) -> Trainer:
    torch.manual_seed(0)
    trainer = Trainer(Line(), cfg, run_dir=path)
    trainer.fit(batches, num_steps=steps)
    return trainer


# The trial


def test_the_speedup_is_the_ratio_of_the_shortest_times(monkeypatch: pytest.MonkeyPatch) -> None:
    spent = {False: iter([0.009, 0.006, 0.007]), True: iter([0.002, 0.008, 0.003])}
    clock = [0.0]
    monkeypatch.setattr(precision, "time", type("Clock", (), {"thread_time": lambda: clock[0]}))

    def run(bf16: bool) -> None:
        clock[0] += next(spent[bf16])

    assert precision._speedup(run) == pytest.approx(0.006 / 0.002)


@pytest.mark.parametrize(("full", "half"), [(0.001, 0.01), (0.15, 0.1)], ids=["emulated", "long"])
def test_what_is_emulated_or_takes_long_is_timed_once(
    monkeypatch: pytest.MonkeyPatch, full: float, half: float
) -> None:
    clock, calls = [0.0], []
    monkeypatch.setattr(precision, "time", type("Clock", (), {"thread_time": lambda: clock[0]}))

    def run(bf16: bool) -> None:
        calls.append(bf16)
        clock[0] += half if bf16 else full

    assert precision._speedup(run) == pytest.approx(full / half) and calls == [False, True]


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("kind", KINDS)
def test_a_trial_leaves_no_trace(kind: Kind, training: bool) -> None:
    torch.set_num_threads(2)
    try:
        before = torch.get_rng_state()
        with torch.inference_mode():  # Planners ask in here.
            speed = bf16_speedup.__wrapped__(kind, "cpu", training)
            assert torch.is_inference_mode_enabled()
        assert speed > 0 or kind == "lstm"  # Which fails on CPUs without bfloat16.
        assert torch.equal(torch.get_rng_state(), before) and torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(1)


class Broken(nn.Linear):
    """A layer that goes wrong in bfloat16."""

    def __init__(self, wrong: Callable[[Tensor], Tensor]) -> None:
        super().__init__(8, 8)
        self.wrong = wrong

    def forward(self, x: Tensor) -> Tensor:
        out = super().forward(x)
        return self.wrong(out) if torch.is_autocast_enabled("cpu") else out


def refuse(out: Tensor) -> Tensor:
    raise RuntimeError("could not create a primitive descriptor")


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("wrong", [refuse, lambda out: out * torch.nan, lambda out: out * 1.5])
def test_a_kernel_that_raises_or_is_wrong_has_no_speed(
    monkeypatch: pytest.MonkeyPatch, wrong: Callable[[Tensor], Tensor], training: bool
) -> None:
    net = Broken(wrong)
    monkeypatch.setattr(precision, "_example", lambda kind, device: (net, torch.ones(4, 8)))
    assert bf16_speedup.__wrapped__("product", "cpu", training) == 0
    net.wrong = lambda out: out
    assert bf16_speedup.__wrapped__("product", "cpu", training) > 0


def test_on_cuda_the_gpu_is_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    for has in (True, False):
        monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation, has=has: has)
        bf16_speedup.cache_clear()
        assert use_bf16("auto", KINDS, torch.device("cuda")) == use_bf16(True, KINDS, torch.device("cuda")) == has
    bf16_speedup.cache_clear()


def test_other_accelerators_are_not_timed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(precision, "_speedup", lambda run: pytest.fail("timed"))
    monkeypatch.setattr(precision, "_example", lambda kind, device: (nn.Linear(8, 8), torch.ones(4, 8)))
    assert bf16_speedup.__wrapped__("product", "mps") == 1
    monkeypatch.setattr(precision, "bf16_speedup", lambda kind, device, training: 1.0)
    for name, want in (("cuda", True), ("mps", False)):
        assert faster_in_bf16(lambda: pytest.fail("run"), {"product"}, torch.device(name)) == want


def test_what_fails_in_bfloat16_is_not_faster_in_it(speeds: Speeds) -> None:
    net = Broken(refuse)
    assert not faster_in_bf16(lambda: net(torch.ones(4, 8)), {"product"}, CPU)


# The choice


@pytest.mark.parametrize(
    ("speed", "auto", "asked"),
    [(FASTER, True, True), (EQUAL, False, True), (0.6, False, True), (EMULATED, False, False), (FAILS, False, False)],
)
def test_auto_wants_a_gain_and_asking_wants_it_to_run(
    speeds: Speeds, lines: Callable[[], list[str]], speed: float, auto: bool, asked: bool
) -> None:
    speeds |= {"product": FASTER, "lstm": speed}
    both: set[Kind] = {"product", "lstm"}
    assert use_bf16("auto", both, CPU) == auto and not use_bf16(False, both, CPU) and not lines()
    assert use_bf16(True, both, CPU) == bf16_runs(both, CPU) == asked and len(lines()) == (not asked)
    assert use_bf16(True, both, CPU) == asked and not lines()  # One line is enough.
    assert use_bf16("auto", {"product"}, CPU)


def test_the_line_reports_what_is_missing_and_what_is_used(speeds: Speeds, lines: Callable[[], list[str]]) -> None:
    speeds |= {"product": 0.125, "lstm": 0.0}
    assert not use_bf16(True, KINDS, CPU)
    assert lines() == [
        "bfloat16 is not supported on this cpu (lstm fails, product 8 times as slow); float32 is used instead"
    ]


def test_a_module_is_of_the_kinds_of_its_layers() -> None:
    assert kinds_of(Toy()) == kinds_of(nn.LSTMCell(2, 3)) == {"product"}
    assert kinds_of(MDRNN(4, 1, 8, 2)) == {"product", "lstm"}
    assert kinds_of(ConvVAE(3, 4, "small", 32)) == {"product", "convolution"}
    for preset in ("dreamerv3:ci", "tdmpc2:ci"):
        assert kinds_of(create_world_model(preset, obs_shape=(64, 64, 3), action_dim=2)) == {"product", "convolution"}
        assert kinds_of(create_world_model(preset, obs_shape=(8,), action_dim=2)) == {"product"}


def test_what_gains_stands_beside_every_number(speeds: Speeds) -> None:
    speeds |= {"convolution": FASTER, "lstm": FAILS}
    assert describe()["bf16"] == ["convolution"]


# The trainer


@pytest.mark.parametrize(
    ("asked", "kind", "trial", "want"),
    [
        ("auto", EQUAL, FASTER, "bfloat16"), ("auto", EQUAL, EQUAL, "float32"), ("auto", EMULATED, FASTER, "float32"),
        ("auto", FAILS, FASTER, "float32"), (True, EQUAL, EQUAL, "bfloat16"), (True, EMULATED, FASTER, "float32"),
        (True, FAILS, FASTER, "float32"), (False, FASTER, FASTER, "float32"),
    ],
)  # fmt: skip
def test_training_runs_compute_in_what_was_found(
    tmp_path: Path,
    speeds: Speeds,
    lines: Callable[[], list[str]],
    asked: Any,
    kind: float,
    trial: float,
    want: str,
) -> None:
    speeds |= {"product": kind, "trial": trial}
    dtypes: list[torch.dtype] = []
    trainer = Trainer(Line(), CFG.replace(mixed_precision=asked), run_dir=tmp_path)
    trainer.model.net.register_forward_hook(lambda layer, args, out: dtypes.append(out.dtype))
    trainer.fit(batches)
    assert trainer.precision == want and set(dtypes[-CFG.total_steps :]) == {getattr(torch, want)}
    assert len(lines()) == (asked is True and want == "float32")


def test_the_trial_of_a_training_leaves_no_trace(tmp_path: Path, speeds: Speeds) -> None:
    for trial, asked in ((FASTER, True), (EQUAL, False)):
        speeds["trial"] = trial
        ways = {f"{trial} {how}": CFG.replace(mixed_precision=how) for how in ("auto", asked)}
        tried, plain = (trained(tmp_path / name, cfg) for name, cfg in ways.items())
        want = plain.model.state_dict()
        assert all(torch.equal(weight, want[name]) for name, weight in tried.model.state_dict().items())


def test_compiled_losses_are_not_tried(speeds: Speeds) -> None:
    compiled = CFG.replace(compile_model=True)
    assert _choose_precision(CFG, Line()) is None and _choose_precision(compiled, Line()) == "float32"
    speeds["product"] = FASTER
    assert _choose_precision(compiled, Line()) == "bfloat16"


def test_a_memory_is_trained_in_float32_where_lstms_fail(speeds: Speeds) -> None:
    speeds["lstm"] = FAILS
    model = VMC(VMCConfig(z_dim=4, hidden=8), gym.spaces.Box(0, 255, (32, 32, 3), np.uint8), BOX)
    assert _choose_precision(CFG, model.memory) == "float32" and _choose_precision(CFG, model.vision) is None


def test_a_resumed_training_keeps_the_precision_it_began_with(
    tmp_path: Path, speeds: Speeds, lines: Callable[[], list[str]]
) -> None:
    for began, later in ((FASTER, EQUAL), (EQUAL, FASTER)):
        speeds["trial"] = began
        whole = trained(tmp_path / f"{began} whole")
        trained(tmp_path / f"{began}", steps=3)
        speeds["trial"] = later
        again = trained(tmp_path / f"{began}")
        assert again.precision == whole.precision and torch.equal(again.model.net.weight, whole.model.net.weight)
    assert not lines()


def test_a_training_killed_before_its_trial_is_tried_when_it_resumes(tmp_path: Path, speeds: Speeds) -> None:
    Trainer(Line(), CFG, run_dir=tmp_path).save_checkpoint()
    speeds["trial"] = FASTER
    assert trained(tmp_path).precision == "bfloat16"


def test_a_training_that_cannot_keep_its_precision_reports_it(
    tmp_path: Path, speeds: Speeds, lines: Callable[[], list[str]]
) -> None:
    speeds["trial"] = FASTER
    trained(tmp_path, steps=3)
    speeds["product"] = FAILS
    assert trained(tmp_path).precision == "float32"
    assert lines() == [f"{tmp_path} began in bfloat16 and resumes in float32"]
    assert trained(tmp_path, CFG.replace(total_steps=8)).update == 8 and not lines()


def test_a_training_that_began_in_float32_stays_in_it(
    tmp_path: Path, speeds: Speeds, lines: Callable[[], list[str]]
) -> None:
    asked = CFG.replace(mixed_precision=True)
    speeds["product"] = FAILS
    trained(tmp_path, asked, steps=3)
    assert len(lines()) == 1
    speeds["product"] = FASTER
    assert trained(tmp_path, asked).precision == "float32"
    assert lines() == [f"{tmp_path} began in float32 and resumes in float32"]


# Dreams, controllers and planners


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> str:
    return save_tiny(tmp_path_factory.mktemp("models") / "tiny")


@pytest.mark.parametrize(
    ("asked", "obs", "slow", "want"),
    [
        ("auto", "latent", {}, "bf16"), ("auto", "pixels", {}, "bf16"), ("auto", "latent", {"product": FAILS}, "fp32"),
        ("auto", "latent", {"convolution": FAILS, "lstm": FAILS}, "bf16"), ("fp32", "latent", {}, "fp32"),
        ("auto", "pixels", {"lstm": FAILS}, "bf16"), ("auto", "pixels", {"convolution": FAILS}, "fp32"),
        ("bf16", "pixels", {"convolution": EQUAL}, "bf16"), ("bf16", "pixels", {"lstm": FAILS}, "bf16"),
        ("bf16", "pixels", {"convolution": EMULATED}, "fp32"), ("bf16", "latent", {"product": FAILS}, "fp32"),
    ],
)  # fmt: skip
def test_dreams_compute_in_what_was_found(
    tiny: str, speeds: Speeds, lines: Callable[[], list[str]], asked: Any, obs: Any, slow: Speeds, want: str
) -> None:
    speeds |= {**slow, "trial": FASTER}
    net, artifact = load_model(tiny)
    dreams = DreamVectorEnv(net, load_starts(artifact), 2, obs=obs, precision=asked)
    assert dreams.precision == want and len(lines()) == (asked == "bf16" and want == "fp32")


@pytest.mark.parametrize("gain", [FASTER, EQUAL])
def test_dreams_of_auto_try_a_step_of_their_own(
    tiny: str, speeds: Speeds, monkeypatch: pytest.MonkeyPatch, gain: float
) -> None:
    net, artifact = load_model(tiny)
    seen: list[Tensor] = []
    monkeypatch.setattr(precision, "_speedup", lambda run: seen.append(run(True)) or gain)
    for obs, shape in (("latent", (3, net.feat_dim)), ("pixels", (3, 32, 32, 3))):
        dreams = DreamVectorEnv(net, load_starts(artifact), 3, obs=obs, precision="auto")
        assert dreams.precision == ("bf16" if gain == FASTER else "fp32") and seen.pop().shape == shape


def test_evolutions_continue_in_the_precision_they_began_with(
    tmp_path: Path, tiny: str, speeds: Speeds, monkeypatch: pytest.MonkeyPatch
) -> None:
    net, artifact = load_model(tiny)
    used = watch_dreams(monkeypatch, evolving)
    for generations, kind, trial in ((1, EQUAL, FASTER), (2, EQUAL, EQUAL), (3, FAILS, FASTER)):
        speeds |= {"product": kind, "trial": trial}
        cfg = CMAConfig(population=4, rollouts=2, generations=generations)
        evolve_in_dream(net, load_starts(artifact), cfg, DreamConfig(horizon=2), state=tmp_path / "state.json")
    assert used == ["bf16", "bf16", "fp32"] and read_about(tmp_path / "state.json") == {"precision": "bf16"}
    assert read_about(None) == read_about(tmp_path / "none.json") == {}


def test_ppo_continues_in_the_precision_it_began_with(
    tmp_path: Path, speeds: Speeds, monkeypatch: pytest.MonkeyPatch
) -> None:
    starts = {bank: {"x": torch.zeros(2, 2)} for bank in ("begin", "anywhere")}
    used = watch_dreams(monkeypatch, learning)
    for iterations, kind, trial in ((1, EQUAL, FASTER), (2, EQUAL, EQUAL), (3, FAILS, FASTER)):
        speeds |= {"product": kind, "trial": trial}
        cfg = PPOConfig(iterations=iterations, envs=4, steps=4, batch_size=16, net=(4,))
        ppo_in_dream(Toy(), starts, cfg, DreamConfig(horizon=4), state=tmp_path / "ppo")
    assert used == ["bf16", "bf16", "fp32"]
    speeds |= {"product": FASTER, "trial": FASTER}
    ppo_in_dream(Toy(), starts, cfg, DreamConfig(horizon=4), state=tmp_path / "next", before=tmp_path / "ppo")
    assert used[3:] == ["fp32"]


def watch_dreams(monkeypatch: pytest.MonkeyPatch, module: Any) -> list[str]:
    """The precision of each batch of dreams that `module` makes from now on."""
    used: list[str] = []

    def make(*args: Any, **kwargs: Any) -> DreamVectorEnv:
        envs = DreamVectorEnv(*args, **kwargs)
        used.append(envs.precision)
        return envs

    monkeypatch.setattr(module, "DreamVectorEnv", make)
    return used


def test_planners_compute_in_float32_under_autocast_too() -> None:
    model: Any = create_world_model("tdmpc2:ci", obs_shape=(4,), action_dim=2)
    latent, types = model.encode(torch.randn(2, 4)), set()
    step = model.dynamics.forward
    model.dynamics.forward = lambda x: types.add(torch.is_autocast_enabled("cpu")) or step(x)
    with torch.autocast("cpu", torch.bfloat16):
        model.planner().plan(latent)
    assert types == {False}


def test_encoders_compute_in_what_was_found(speeds: Speeds) -> None:
    model = VMC(VMCConfig(z_dim=4, hidden=8), gym.spaces.Box(0, 255, (32, 32, 3), np.uint8), BOX)
    for product, convolution in ((FASTER, EQUAL), (FASTER, FASTER), (EQUAL, FASTER)):
        speeds |= {"product": product, "convolution": convolution}
        with _casting(model):
            assert torch.is_autocast_enabled("cpu") == (product == convolution == FASTER)


# The oldest CPU

OLDEST = """
import tempfile
import gymnasium as gym, numpy as np, torch
from wm_agents.models.vmc import VMC, VMCConfig
from wm_agents.training.config import TrainingConfig
from wm_agents.training.trainer import Trainer
from wm_envs.dream import DreamVectorEnv

model = VMC(VMCConfig(z_dim=4, hidden=8), gym.spaces.Box(0, 255, (32, 32, 3), np.uint8), gym.spaces.Box(-1, 1, (1,)))
cfg = TrainingConfig(total_steps=1, device="cpu", mixed_precision=True)
windows = [torch.zeros(2, *shape) for shape in ((5, 4), (5, 4), (4, 1), (4,), (4,), (4,))]
parts = [
    (model.vision, model.vision_loss, torch.zeros(2, 32, 32, 3, dtype=torch.uint8)),
    (model.memory, lambda batch: model.memory_loss(*batch), windows),
]
for part, loss, batch in parts:
    with tempfile.TemporaryDirectory() as folder:
        trainer = Trainer(part, cfg, loss=loss, run_dir=folder)
        trainer.fit(lambda update: batch)
        print(trainer.update, trainer.precision)
envs = DreamVectorEnv(model, {"begin": model.initial(2)}, 2, precision="bf16")
envs.reset(seed=0)
envs.step(envs.action_space.sample())
print(envs.precision)
"""


def test_the_oldest_cpu_computes_in_float32_and_reports_it_in_a_line() -> None:
    oldest = {"ATEN_CPU_CAPABILITY": "default", "ONEDNN_MAX_CPU_ISA": "SSE41", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, "-c", OLDEST], env=os.environ | oldest, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == ["1", "float32", "1", "float32", "fp32"]
    said = [line for line in done.stderr.splitlines() if "bfloat16" in line]
    assert len(said) == 3 and all(line.startswith("bfloat16 is not supported on this cpu (") for line in said)
    assert "lstm fails" in said[1] and "primitive" not in done.stderr
