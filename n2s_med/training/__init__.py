"""Training on noisy scans alone."""

from n2s_med.score.patches import PatchSampler, UnitVolume
from n2s_med.training.config import TrainingConfig
from n2s_med.training.trainer import History, Trainer

__all__ = ["History", "PatchSampler", "Trainer", "TrainingConfig", "UnitVolume"]
