"""The loop that takes gradients, its configuration and its callbacks."""

from wm_agents.training.config import TrainingConfig
from wm_agents.training.loss import LossOutput
from wm_agents.training.trainer import NonFiniteLoss, Trainer, TrainingResult

__all__ = ["LossOutput", "NonFiniteLoss", "Trainer", "TrainingConfig", "TrainingResult"]
