"""The processes of a training run under torchrun; without torchrun, there is one."""

from __future__ import annotations

import os

from wm_agents.errors import ConfigurationError


def num_processes() -> int:
    """The number of processes that torchrun has started on all machines."""
    return int(os.environ["WORLD_SIZE"]) if "LOCAL_RANK" in os.environ else 1


def rank() -> int:
    """The number of this process among them; the first one, 0, writes files and prints."""
    return int(os.environ["RANK"]) if "LOCAL_RANK" in os.environ else 0


def check_one_process(what: str) -> None:
    """Check that this is not one of several processes.

    Raises:
        ConfigurationError: torchrun has started several.
    """
    if num_processes() > 1:
        raise ConfigurationError(
            f"{what} trains in one process, got {num_processes()} from torchrun; start it without torchrun. Only "
            "online training (DreamerV3 and TD-MPC2) and your own Trainer(...) support several processes"
        )
