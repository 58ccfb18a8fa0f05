"""Training on noisy scans alone."""

from n2s_med.score.patches import PatchSampler, UnitVolume
from n2s_med.training.config import ADAPTATION, TrainingConfig
from n2s_med.training.trainer import History, Trainer

__all__ = ["ADAPTATION", "History", "PatchSampler", "Trainer", "TrainingConfig", "UnitVolume"]
