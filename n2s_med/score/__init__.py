"""The score network, its training objectives and its file."""

from n2s_med.score.model import ANY, ScoreModel, base_model
from n2s_med.score.network import ScoreUNet
from n2s_med.score.objectives import OBJECTIVES, ArDae, Dsm, Objective, TotalUnitNoise, annealed
from n2s_med.score.optimizer import ScoreOptimizer

__all__ = [
    "ANY",
    "OBJECTIVES",
    "ArDae",
    "Dsm",
    "Objective",
    "ScoreModel",
    "ScoreOptimizer",
    "ScoreUNet",
    "TotalUnitNoise",
    "annealed",
    "base_model",
]
