"""What the MONAI bundles run: their configurations in ``bundles/`` name these classes and hold only options.

::

    LoadScand → EstimateNoised → TweedieInferer → SaveScand                        inference.json
                               → ToPatchesd → DrawPatchesd → ScoreInferer          train.json, the patches
                                            → HeldOutd → RiskInferer               train.json, the clean-free figure
                               → TweedieInferer → MeasureScand                     evaluate.json

A volume carries its noise in its ``meta``, so the inferer needs nothing but the image and the network, as MONAI's
consumers call it. It denoises by the steps of :class:`n2s_med.jobs.denoise.DenoiseJob`: bundle and command line give
the same values.
"""

from n2s_med.bundle.check import bundle_root, check_config
from n2s_med.bundle.data import scan_dataset, scan_items
from n2s_med.bundle.figures import FigureMean, FiguresSaver, HeldOutRisk, WholeCounts, is_lower, one_scan, only
from n2s_med.bundle.inferers import RiskInferer, ScoreInferer, TweedieInferer, denoising
from n2s_med.bundle.keeping import Best, BestHandler, CheckpointHandler, ResumeHandler
from n2s_med.bundle.learning import Averaged, AveragingHandler, EpochOptimizer, PatchLoss, patch_batch
from n2s_med.bundle.network import DenoisingNetwork, best_file, bundle_network, score_network, weights_of
from n2s_med.bundle.processes import join_processes, local_device, part_processes, rank, run_name
from n2s_med.bundle.track import TrackingHandler, close
from n2s_med.bundle.transforms import (
    DrawPatchesd,
    EstimateNoised,
    HeldOutd,
    LoadScand,
    MeasureScand,
    SaveScand,
    ToPatchesd,
)

__all__ = [
    "Averaged",
    "AveragingHandler",
    "Best",
    "BestHandler",
    "CheckpointHandler",
    "DenoisingNetwork",
    "DrawPatchesd",
    "EpochOptimizer",
    "EstimateNoised",
    "FigureMean",
    "FiguresSaver",
    "HeldOutRisk",
    "HeldOutd",
    "LoadScand",
    "MeasureScand",
    "PatchLoss",
    "ResumeHandler",
    "RiskInferer",
    "SaveScand",
    "ScoreInferer",
    "ToPatchesd",
    "TrackingHandler",
    "TweedieInferer",
    "WholeCounts",
    "best_file",
    "bundle_network",
    "bundle_root",
    "check_config",
    "close",
    "denoising",
    "is_lower",
    "join_processes",
    "local_device",
    "one_scan",
    "only",
    "part_processes",
    "patch_batch",
    "rank",
    "run_name",
    "scan_dataset",
    "scan_items",
    "score_network",
    "weights_of",
]
