"""The speed of training updates of every family, with the real trainer, on random data in memory.

    python scripts/bench_train_speed.py [--family vmc ensemble dreamerv3 tdmpc2] [--preset size1m 5m] [--device cuda]
    python scripts/bench_train_speed.py --port sheeprl=PATH --port tdmpc2=PATH --port-python VENV/bin/python

An update is loss, backward pass and optimizer step, with the optimizer of online training. Batches: 64 images for V of
V-M-C, 64 windows of 64 steps for M, 256 steps for an ensemble, 16 windows of 64 frames 64x64x3 for DreamerV3, 256
windows of 3 steps of vectors without termination for TD-MPC2. Updates are timed in fp32, and in bf16 if the device
supports it, with the loss of the same batch in both. TD-MPC2's planning of one row, always in fp32, is timed too.

Each measurement runs in its own process. It reports the median over all updates, the slowest and fastest of `--repeats`
parts, CPU time, which other processes hardly change, and peak memory. Cases that do not fit into memory are reported as
such.

`--port NAME=PATH` alternates with the update of a public implementation in a checkout at PATH, with equal sizes and
batches: dreamerv3-torch (github.com/NM512), sheeprl, or tdmpc2 (nicklashansen). `--port-python` is the interpreter for
it.

Goals on two free cores: small V 2,000 images/s, M 60,000 frames/s, DreamerV3 size1m twice as fast as the fastest port,
TD-MPC2 5m 1.5 times as fast as the official code, a plan of 1m in 60 ms.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any, NamedTuple

import gymnasium as gym
import numpy as np
import torch
from ports.contest import Contender, Speed, compare, ratios
from ports.stopwatch import Job, Timed
from ports.stopwatch import main as serve
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn

from policies.mppi import MPPI
from wm_agents.data.replay import Batch
from wm_agents.errors import ConfigurationError
from wm_agents.loops.driver import make_learner
from wm_agents.loops.recipes import DYNAMICS, MEMORY, VISION
from wm_agents.models.config import WorldModelConfig
from wm_agents.models.ensemble import Ensemble, Moves
from wm_agents.models.families import FAMILIES, build, config_class
from wm_agents.models.loss import LossOutput
from wm_agents.models.tdmpc2 import TDMPC2
from wm_agents.models.vmc import VMC
from wm_agents.spaces import space_of
from wm_agents.system.hardware import check_threads, describe, find_device, num_cores
from wm_agents.training.config import TrainingConfig
from wm_agents.training.fit_vmc import LatentSet, Windows, sample_windows
from wm_agents.training.trainer import Trainer
from wm_envs.action import act_dim
from wm_envs.precision import Kind, use_bf16

WINDOW = 64
"""Steps per window of M."""
BATCH = {"dreamerv3": (16, 64), "tdmpc2": (256, 3)}
"""Number of windows and steps per window, as published."""
EPISODES = 200
PLAN = " plan"
"""Suffix of the names of planners."""
BARS = {"V small": 2_000, "M": 60_000}
"""Images or frames per second."""
RATIO_BARS = {"dreamerv3:size1m": 2.0, "tdmpc2:5m": 1.5}
MS_BARS = {f"tdmpc2:1m{PLAN}": 60.0}


class Port(NamedTuple):
    """A public implementation."""

    family: str
    script: str
    ways: tuple[tuple[str, bool], ...]
    """Its supported (precision, compiled)."""
    plans: bool = False


PORTS = {
    "dreamerv3-torch": Port("dreamerv3", "drive_dreamerv3_torch.py", (("fp32", False),)),
    "sheeprl": Port("dreamerv3", "drive_sheeprl.py", (("fp32", False), ("bf16", False))),
    "tdmpc2": Port("tdmpc2", "drive_tdmpc2.py", (("fp32", False), ("fp32", True)), plans=True),
}


# What is trained.


class Part(NamedTuple):
    """The model that is trained, its batches and settings."""

    module: nn.Module
    loss: Callable[[Any], LossOutput] | None
    """Default: that of the module."""
    batches: Callable[[int], Any]
    cfg: dict[str, Any]
    """Settings of the training."""


def make_part(name: str, device: str) -> Part:
    torch.manual_seed(0)
    if name.startswith(("V", "M")):
        return make_vmc_part(*part_of_vmc(name))
    family, _, size = name.partition(":")
    model = build(family, config_of(family, size), *spaces_of(family))
    if isinstance(model, Ensemble):
        return make_ensemble_part(model)
    row = FAMILIES[family]
    batch = make_batch(model.obs_space, model.act_space, *BATCH[family]).to(find_device(device))
    names = ("optimizer", "learning_rate", "grad_clip", "warmup_steps")
    return Part(make_learner(model), None, lambda i: batch, {name: row.online[name] for name in names})  # type: ignore[arg-type]


def part_of_vmc(name: str) -> tuple[bool, str]:
    """Whether it is V, and its size: "V small", "M ci"; "M" alone has the size small."""
    kind, _, size = name.partition(" ")
    return kind == "V", size or "small"


def make_vmc_part(vision: bool, size: str) -> Part:
    cfg = config_of("vmc", size)
    model = build("vmc", cfg, *spaces_of("vmc"))
    assert isinstance(model, VMC)
    settings = VISION if vision else MEMORY
    training = {"grad_clip": settings.grad_clip, "learning_rate": settings.learning_rate}
    if not vision:
        data, among = make_latents(model.cfg.z_dim), np.arange(EPISODES)

        def windows(i: int) -> Windows:
            return sample_windows(data, settings.batch_size, WINDOW, np.random.default_rng(i), among)

        return Part(model.memory, lambda w: model.memory_loss(*w), windows, training)
    frames = torch.from_numpy(np.random.default_rng(0).integers(0, 256, (2048, 64, 64, 3), np.uint8))

    def images(i: int) -> Tensor:
        return frames[torch.from_numpy(np.random.default_rng(i).integers(0, len(frames), settings.batch_size))]

    return Part(model.vision, model.vision_loss, images, training)


def make_latents(z_dim: int, steps: int = 250) -> LatentSet:
    """Encoded episodes."""
    num = EPISODES * (steps + 1)
    mu, zeros = torch.randn(num, z_dim).half(), torch.zeros(num)
    offset = np.arange(EPISODES) * (steps + 1)
    sigma = torch.full_like(mu, -2.0)
    return LatentSet(mu, sigma, torch.rand(num, 3) * 2 - 1, torch.randn(num), zeros, offset, np.full(EPISODES, steps))


def make_ensemble_part(model: Ensemble) -> Part:
    """Each member has its own steps, as in training."""
    shape = (model.cfg.members, DYNAMICS.batch_size)
    obs, act = torch.randn(*shape, model.feat_dim), torch.rand(*shape, model.actions) * 2 - 1
    moves = Moves(obs, act, torch.randn(shape), torch.zeros(shape), obs + 0.1 * torch.randn_like(obs))
    cfg = {"grad_clip": DYNAMICS.grad_clip, "learning_rate": DYNAMICS.learning_rate}
    return Part(model, model.moves_loss, lambda i: moves, cfg)


def config_of(family: str, size: str) -> WorldModelConfig:
    """The preset, as published: without termination, which the tasks of TD-MPC2's paper do not have."""
    return config_class(family).from_size(size, **({"episodic": False} if family == "tdmpc2" else {}))


def spaces_of(family: str) -> tuple[gym.Space[Any], gym.Space[Any]]:
    """The spaces: frames with discrete actions, or vectors with continuous actions."""
    facts = FAMILIES[family]
    box = gym.spaces.Box(-1, 1, (facts.action_dim,), np.float32)
    return space_of(facts.obs_shape), gym.spaces.Discrete(facts.action_dim) if family == "dreamerv3" else box


def make_batch(obs_space: gym.Space[Any], act_space: gym.Space[Any], rows: int, steps: int) -> Batch:
    """Windows of noise; an episode starts in one of 200 frames, if there are that many."""
    rng, shape = np.random.default_rng(0), obs_space.shape or ()
    obs = rng.standard_normal((rows, steps + 1, *shape), np.float32)
    obs = rng.integers(0, 256, obs.shape, np.uint8) if obs_space.dtype == np.uint8 else obs
    act = rng.uniform(-1, 1, (rows, steps, act_dim(act_space))).astype(np.float32)
    act = (act == act.max(-1, keepdims=True)).astype(np.float32) if isinstance(act_space, gym.spaces.Discrete) else act
    first = rng.random((rows, steps + 1)) < (1 / 200 if steps > 10 else 0)
    nobodys = first[:, 1:]
    rew = rng.standard_normal((rows, steps), np.float32) * ~nobodys
    act, term, last = act * ~nobodys[..., None], np.zeros((rows, steps), bool), np.roll(first, -1, 1)
    of = torch.from_numpy
    return Batch(of(obs), of(act), of(rew), of(term), of(first), of(last))


# In a process of its own.


def prepare(job: Job) -> Timed:
    """One update, or one plan, of this package."""
    if job.plan:
        return prepare_plan(job)
    part = make_part(job.part, job.device)
    cfg = TrainingConfig(
        **part.cfg, mixed_precision=job.precision == "bf16", compile_model=job.compiled,
        device=job.device,
    )  # fmt: skip
    trainer = Trainer(part.module, cfg, loss=part.loss, run_dir=tempfile.gettempdir())
    running = ExitStack()
    running.enter_context(trainer.running())

    def update() -> Tensor:
        loss = trainer.step(part.batches(trainer.update)).loss
        if trainer.update % trainer.cfg.log_interval == 0:
            trainer.log_window(1.0)
        return loss

    return Timed(update, sum(p.numel() for p in part.module.parameters() if p.requires_grad))


def prepare_plan(job: Job) -> Timed:
    """The action for the frame of one row, starting from the previous plan."""
    torch.manual_seed(0)
    family, _, size = job.part.removesuffix(PLAN).partition(":")
    model = build(family, config_of(family, size), *spaces_of(family)).to(find_device(job.device)).eval()
    assert isinstance(model, TDMPC2)
    planner = MPPI(model, model.cfg.planner(model.actions), model.propose, model.state_value)
    obs = torch.randn(1, *(model.obs_space.shape or ()))
    guess: list[Tensor | None] = [None]

    @torch.no_grad()
    def plan() -> None:
        act, guess[0] = planner.plan(model.encode(obs.to(model.device)), guess[0])
        act.cpu()

    return Timed(plan, sum(p.numel() for p in model.parameters() if p.requires_grad))


# Whom it is asked of.


def make_contenders(args: argparse.Namespace) -> Iterator[list[Contender]]:
    """The implementations that are compared with each other, in groups."""
    for name in names_of(args.family):
        plain = name.removesuffix(PLAN)
        if args.preset and not {plain, plain.rpartition(":")[2], plain.rpartition(" ")[2]} & set(args.preset):
            continue
        ways = [("fp32", False)] + [("bf16", False)] * use_bf16("auto", kinds_in(name), find_device(args.device))
        ways += [(precision, True) for precision, _ in ways] if args.compiled else []
        job, frames = describe_job(name, args.device, args.threads)
        own = (sys.executable, __file__, "--worker")
        mine = ways
        if job.plan:  # The planner computes in float32 and is not compiled.
            mine = [("fp32", False)]
        yield [Contender(name, "ours", job._replace(precision=p, compiled=c), own, frames) for p, c in mine] + [
            Contender(
                name, port, job._replace(path=path, precision=p, compiled=c),
                (args.port_python, str(Path(__file__).parent / "ports" / PORTS[port].script)), frames,
            )
            for port, path in args.port
            if PORTS[port].family == plain.partition(":")[0] and (PORTS[port].plans or not job.plan)
            for p, c in PORTS[port].ways
        ]  # fmt: skip


def names_of(families: list[str]) -> Iterator[str]:
    """All cases."""
    for family in families:
        sizes = [*config_class(family).SIZES]
        if family == "vmc":
            yield from ["V small", "V paper", "M", *(f"{kind} {size}" for size in ("ci", "doom") for kind in "VM")]
            continue
        yield from (f"{family}:{size}" for size in sizes)
        if family == "tdmpc2":
            yield from (f"{family}:{size}{PLAN}" for size in sizes)


def kinds_in(name: str) -> set[Kind]:
    """The layers of a case."""
    if name.startswith("M"):
        return {"product", "lstm"}
    return {"product", "convolution"} if name.startswith(("V", "dreamerv3")) else {"product"}


def describe_job(name: str, device: str, threads: int) -> tuple[Job, int]:
    """What to time, and the number of frames per call."""
    job = Job({}, part=name, plan=name.endswith(PLAN), device=device, threads=threads)
    if name.startswith(("V", "M")):
        vision, _ = part_of_vmc(name)
        return job, VISION.batch_size if vision else MEMORY.batch_size * WINDOW
    family, _, size = name.removesuffix(PLAN).partition(":")
    if family == "ensemble":
        return job, DYNAMICS.batch_size
    rows, length = BATCH[family]
    obs_space, act_space = spaces_of(family)
    shape, sizes = obs_space.shape or (), config_of(family, size).to_dict()
    job = job._replace(sizes=sizes, batch=rows, length=length, obs_shape=shape, actions=act_dim(act_space))
    return job, 1 if job.plan else rows * length


# What is printed.


def bar_of(name: str) -> str:
    if name in BARS:
        return f"{BARS[name]:,}/s"
    return f"{RATIO_BARS[name]:g}x" if name in RATIO_BARS else f"{MS_BARS[name]:g} ms" if name in MS_BARS else ""


def way(job: Job) -> str:
    return f"{job.precision}, compiled" if job.compiled else job.precision


def report(contenders: list[Contender], speeds: list[Speed | str], table: Table) -> list[dict[str, Any]]:
    """The rows of the table, and the same as JSON."""
    theirs = {
        f"{c.by} {way(c.job)}": speed
        for c, speed in zip(contenders, speeds)
        if c.by != "ours" and isinstance(speed, Speed)
    }
    results = []
    for c, speed in zip(contenders, speeds):
        label = c.name if c.by == "ours" else f"  {c.by}"
        entry: dict[str, Any] = {"part": c.name, "by": c.by, "precision": c.job.precision, "compiled": c.job.compiled}
        if isinstance(speed, str):
            table.add_row(label, way(c.job), "", speed)
            results.append({**entry, "failed": speed})
            continue
        found = ratios(speed, theirs) if c.by == "ours" else None
        per_s = [1e3 * c.frames / ms for ms in (speed.ms, max(speed.rounds_ms), min(speed.rounds_ms))]
        table.add_row(
            label,
            way(c.job),
            f"{speed.params:,}",
            f"{speed.ms:,.1f}",
            f"{speed.cpu_ms:,.1f}",
            *(f"{x:,.0f}" if x > 100 else f"{x:.1f}" for x in per_s),
            f"{speed.peak_mb:,.0f}",
            bar_of(c.name) if c.by == "ours" else "",
            "" if speed.loss is None else f"{speed.loss:.4f}",
            "" if found is None else f"{found[1]:.2f}x, cpu {found[2]:.2f}x of {found[0]}",
        )
        spread = {"per_s": per_s[0], "spread": per_s[1:]}
        ratio = {} if found is None else dict(zip(("fastest_port", "ratio", "cpu_ratio"), found))
        results.append({**entry, **spread, **speed._asdict(), **ratio})
    return results


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--family", nargs="+", choices=[*FAMILIES], default=[*FAMILIES])
    parser.add_argument("--preset", nargs="+", help="only these: size1m, dreamerv3:ci, small")
    parser.add_argument("--device", default="cpu", help="cpu, cuda, cuda:1")
    parser.add_argument("--seconds", type=float, default=10.0, help="for each measurement")
    parser.add_argument("--repeats", type=int, default=5, help="number of parts of each measurement")
    parser.add_argument("--threads", type=int, default=num_cores())
    parser.add_argument("--compiled", action="store_true", help="also time compiled losses")
    parser.add_argument("--port", type=port_of, nargs="+", action="extend", default=[], metavar="NAME=PATH",
                        help=f"checkouts of {', '.join(PORTS)} to compare with")  # fmt: skip
    parser.add_argument(
        "--port-python", default=sys.executable, help="Python interpreter with the packages of the ports"
    )
    parser.add_argument("--json", metavar="FILE", help="write the JSON to this file instead of stdout")
    args = parser.parse_args()
    try:
        find_device(args.device)
        check_threads(args.threads)
    except ConfigurationError as error:
        parser.error(str(error))
    return args


def port_of(text: str) -> tuple[str, str]:
    """NAME=PATH of a supported port."""
    name, _, path = text.partition("=")
    if name not in PORTS:
        raise argparse.ArgumentTypeError(f"NAME must be one of {', '.join(PORTS)}, got {name!r} of {text!r}")
    if not Path(path).is_dir():
        raise argparse.ArgumentTypeError(f"{text!r} needs the folder of a checkout after '=', got {path!r}")
    return name, str(Path(path).resolve())


def main() -> None:
    args = parse()
    table = Table("model", "precision", "parameters", "ms", "cpu ms", "frames/s", "slowest", "fastest", "peak MB",
                  "bar", "loss", "fastest port takes")  # fmt: skip
    results, console = [], Console(stderr=True, width=160)
    for contenders in make_contenders(args):
        console.print(contenders[0].name, highlight=False)
        results += report(contenders, compare(contenders, args.seconds, args.repeats), table)
    hardware = describe()
    console.print(
        f"{hardware['gpu'] if args.device != 'cpu' else hardware['cpu']}, {args.threads} thread(s) on "
        f"{hardware['cores']} core(s), torch {torch.__version__}",
        table,
    )
    text = json.dumps({"hardware": hardware, "threads": args.threads, "torch": torch.__version__, "results": results})
    if args.json:
        Path(args.json).write_text(text + "\n", encoding="utf-8")
    else:
        print(text)


if __name__ == "__main__":
    if sys.argv[1:2] == ["--worker"]:
        serve(prepare, sys.argv[2])
    else:
        main()
