"""Dreams as Gymnasium environments: importing this package registers `Dream-*` and `Real-*`.

The ids refer to entry points by string, so this import does not import torch.
"""

from wm_envs.registry import TASKS, RealSpec, Task, register_envs

__all__ = ["TASKS", "RealSpec", "Task", "register_envs"]

register_envs()
