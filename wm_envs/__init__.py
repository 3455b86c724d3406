"""Dreams as Gymnasium environments: importing this package registers `Dream-*` and `Real-*`.

The ids reach the code that needs torch by entry-point string alone, so this import stays light.
"""

from wm_envs.registry import TASKS, RealSpec, Task, register_envs

__all__ = ["TASKS", "RealSpec", "Task", "register_envs"]

register_envs()
