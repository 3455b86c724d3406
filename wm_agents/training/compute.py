"""How updates are computed: device, precision, TF32 and gradient checkpointing."""

from __future__ import annotations

import atexit
import logging
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any, Literal, TypeVar

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from wm_agents.errors import ConfigurationError
from wm_agents.models.loss import LossOutput
from wm_agents.system.hardware import find_device
from wm_agents.system.processes import num_processes
from wm_agents.training.config import TrainingConfig
from wm_agents.training.parallel import part_of, spread
from wm_envs.precision import bf16_runs, faster_in_bf16, kinds_of, use_bf16

log = logging.getLogger(__name__)

T = TypeVar("T")

Precision = Literal["float32", "bfloat16", "float16"]
HEAVY = ("encoder", "decoder", "ups")
"""Names of the parts of a model to which gradient checkpointing applies, layer by layer for a sequence."""


class Compute:
    """Where, and in which precision, a trainer computes."""

    def __init__(self, cfg: TrainingConfig, model: nn.Module) -> None:
        self.cfg, self.model = cfg, model
        precision = _choose_precision(cfg, model)
        self.undecided = precision is None
        """Whether the first batch decides the precision."""
        self._use(precision or "float32")
        self._heavy: list[nn.Module] = []
        if cfg.use_gradient_checkpointing:
            self._heavy = _heavy_parts(model)

    def _use(self, precision: Precision) -> None:
        """Set the dtype of products, convolutions and LSTMs."""
        self.precision = precision
        self.scaler: torch.amp.GradScaler | None = None
        if precision == "float16":
            self.scaler = torch.amp.GradScaler("cuda")
        self.fabric = _make_fabric(self.cfg, precision, self.scaler)
        self._averaged: Callable[[Any], LossOutput] | None = None

    @property
    def leads(self) -> bool:
        """Whether this is the first process of the run."""
        return bool(self.fabric.is_global_zero)

    @property
    def rank(self) -> int:
        """The number of this process."""
        return int(self.fabric.global_rank)

    @property
    def processes(self) -> int:
        """The number of processes of the run."""
        return int(self.fabric.world_size)

    def agree(self, value: T) -> T:
        """The value of the first process, in all processes; all must call it."""
        agreed: T = value
        if self.processes > 1:
            agreed = self.fabric.broadcast(value)
        return agreed

    def part(self, batch: T) -> T:
        """The rows of a batch that this process trains on."""
        mine: T = part_of(batch, self.rank, self.processes)
        return mine

    def whole(self, parts: dict[str, Tensor]) -> dict[str, Tensor]:
        """Join the rows of all processes, in the order of the batch."""
        if self.processes == 1:
            return parts
        return {name: self.fabric.all_gather(part).flatten(0, 1) for name, part in parts.items()}

    def averaged(self, loss: Callable[[Any], LossOutput]) -> Callable[[Any], LossOutput]:
        """`loss` with gradients that are averaged over all processes."""
        if self._averaged is None:
            self._averaged = spread(self.fabric, self.model, loss)
        return self._averaged

    @contextmanager
    def running(self) -> Iterator[None]:
        """The context for training steps: TF32 and gradient checkpointing."""
        with _fast_math(self.cfg, self.fabric.device), _recomputed(self._heavy):
            yield

    def decide(self, gradients: Callable[[], None]) -> None:
        """Train in bfloat16 if `gradients`, which computes those of a batch, is faster in it. The trial changes
        nothing else."""
        self.undecided = False
        numpy_state, buffers = np.random.get_state(), [buffer.clone() for buffer in self.model.buffers()]
        if self.agree(faster_in_bf16(gradients, kinds_of(self.model), self.fabric.device, training=True)):
            self._use("bfloat16")
        np.random.set_state(numpy_state)
        for buffer, before in zip(self.model.buffers(), buffers, strict=True):
            buffer.copy_(before)

    def resume(self, began: Precision | None, run_dir: Path) -> None:
        """Keep the precision that the run began with; log one line if the device, or a new run, requires another."""
        if began is None:
            return
        undecided, self.undecided = self.undecided, False
        if began == self.precision:
            return
        device = self.fabric.device
        runs = {
            "float32": True,
            "bfloat16": bf16_runs(kinds_of(self.model), device, training=True),
            "float16": device.type == "cuda",
        }
        if runs[began]:
            self._use(began)
        if not undecided:
            log.warning(f"{run_dir} began in {began} and resumes in {self.precision}")

    def clip(self, optimizer: torch.optim.Optimizer, limit: float | None) -> dict[str, Tensor]:
        """Clip the gradients of every clip group to norm `limit`; returns the norms before, by name."""
        if limit is None:
            return {}
        if self.scaler is not None:
            self.scaler.unscale_(optimizer)
        together: dict[str, list[Tensor]] = {}
        for group in optimizer.param_groups:
            together.setdefault(group.get("clip", ""), []).extend(group["params"])
        norms = {}
        for name, params in together.items():
            label = "grad_norm"
            if name and len(together) > 1:
                label = f"grad_norm/{name}"
            norms[label] = nn.utils.clip_grad_norm_(params, limit)
        return norms

    def step(self, optimizer: torch.optim.Optimizer) -> None:
        """Step the optimizer; with float16, unless its gradients overflowed."""
        if self.scaler is None:
            optimizer.step()
        else:
            self.scaler.step(optimizer)
            self.scaler.update()


def _make_fabric(cfg: TrainingConfig, precision: Precision, scaler: torch.amp.GradScaler | None = None) -> Any:
    """Create the Fabric for device and precision. It takes a second to import, so only training imports
    it."""
    from lightning_fabric import Fabric
    from lightning_fabric.plugins import MixedPrecision
    from lightning_fabric.strategies.ddp import DDPStrategy

    # Suppress its message about the precision, which would disturb the progress bar.
    logging.getLogger("lightning_fabric").setLevel(logging.WARNING)
    kind, _, index = cfg.device.partition(":")
    settings: dict[str, Any] = {"accelerator": kind, "devices": [int(index)] if index else 1}
    if num_processes() > 1:
        if index:
            raise ConfigurationError(
                f"device must be without a number under torchrun, got {cfg.device!r}; use {kind!r}"
            )
        local = int(os.environ.get("LOCAL_WORLD_SIZE", num_processes()))
        settings |= {"devices": local, "num_nodes": num_processes() // local}
        # A batch may lack what some parameters need, such as terminations.
        settings |= {"strategy": DDPStrategy(find_unused_parameters=True)}
    if precision != "float32":
        name: Any = {"bfloat16": "bf16-mixed", "float16": "16-mixed"}[precision]
        settings |= {"plugins": [MixedPrecision(name, find_device(cfg.device).type, scaler)]}
    fabric = Fabric(**settings)
    fabric.launch()
    if num_processes() > 1:
        atexit.register(_leave_processes)
    return fabric


def _leave_processes() -> None:
    """Destroy the process group while Python still runs; otherwise gloo may abort the finished process. Fabric does so
    for NCCL only."""
    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()


def _choose_precision(cfg: TrainingConfig, model: nn.Module) -> Precision | None:
    """The precision that `cfg` requests; None if it takes a trial on the first batch.

    Raises:
        ConfigurationError: there is no such device, or it has no float16.
    """
    device, asked = find_device(cfg.device), cfg.mixed_precision
    if cfg.mixed_precision_dtype == "float16" and asked is not False:
        if device.type == "cuda":
            return "float16"
        if asked is True:
            raise ConfigurationError(f"mixed_precision_dtype float16 needs CUDA, the device is {device}; use bfloat16")
        return "float32"
    kinds = kinds_of(model)
    # Compiling the loss for a trial would take minutes.
    if asked == "auto" and not cfg.compile_model and bf16_runs(kinds, device, training=True):
        return None
    if use_bf16(asked, kinds, device, training=True):
        return "bfloat16"
    return "float32"


def _heavy_parts(model: nn.Module) -> list[nn.Module]:
    """The layers of `model` to which gradient checkpointing applies.

    Raises:
        ConfigurationError: there are none.
    """
    found = [part for name, part in model.named_modules() if name.rpartition(".")[2] in HEAVY]
    if not found:
        raise ConfigurationError(
            f"use_gradient_checkpointing needs a part named {' or '.join(HEAVY)}, but {type(model).__name__} has none; "
            "disable it"
        )
    sequences = (nn.Sequential, nn.ModuleList)
    return [layer for part in found for layer in (part if isinstance(part, sequences) else [part])]


@contextmanager
def _recomputed(parts: list[nn.Module]) -> Iterator[None]:
    """In this context, the layers of `parts` are recomputed in the backward pass."""
    for part in parts:
        part.forward = partial(checkpoint, part.forward, use_reentrant=False)
    try:
        yield
    finally:
        for part in parts:
            del part.forward


@contextmanager
def _fast_math(cfg: TrainingConfig, device: torch.device) -> Iterator[None]:
    """Enable or disable TF32 on CUDA in this context."""
    if device.type != "cuda":
        yield
        return
    products, convolutions = torch.backends.cuda.matmul, torch.backends.cudnn
    before = products.allow_tf32, convolutions.allow_tf32
    products.allow_tf32 = convolutions.allow_tf32 = cfg.tf32
    try:
        yield
    finally:
        products.allow_tf32, convolutions.allow_tf32 = before
