"""What denoising a scan gave: its estimates, and the figures, checks and warnings that go with them."""

from __future__ import annotations

import resource
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from n2s_med.denoise import Denoised, DenoiseOptions
from n2s_med.jobs.scans import Scan
from n2s_med.quality import Residual, quantities, residual_of, verdicts
from n2s_med.report import JSONValue, Verdict
from n2s_med.score import ScoreModel


@dataclass(frozen=True)
class Outcome:
    """What denoising a scan gave.

    Attributes
    ----------
    scans, parts
        Its time points before, and after with their figures.
    model
        The model that was used, adapted or not.
    times
        What took how long, in seconds.
    """

    scans: Sequence[Scan]
    parts: Sequence[Denoised]
    model: ScoreModel
    times: Mapping[str, float]

    @property
    def estimates(self) -> list[Tensor]:
        """The denoised time points (X, Y, Z) as they are written: where MR magnitude is Rician, without its bias."""
        return [s.choice.corrected(p.x_hat, s.valid) for s, p in zip(self.scans, self.parts, strict=True)]

    def judged(self, time_point: int) -> tuple[Residual, list[Verdict]]:
        """The residual of a time point, and the trust checks on it."""
        scan, part = self.scans[time_point], self.parts[time_point]
        noise = scan.choice.noise
        residual = residual_of(scan.y, part.x_hat, scan.valid, noise)
        interval = scan.choice.level_interval
        return residual, verdicts(residual, scan.y, part.x_hat, scan.valid, noise, part.figures, interval)

    def warnings(self, checks: Sequence[Verdict]) -> list[str]:
        """What must be said of the scan, its noise, the model and the checks that failed."""
        scan = self.scans[0]
        return [
            *scan.volume.meta.get("notes", ()),
            *scan.choice.warnings,
            *_unadapted(self.model),
            *(f"{v.name} is {v.value:.3g}. {v.sentence}" for v in checks if not v.passed),
        ]

    def figures(self, estimate: Tensor, residual: Residual, options: DenoiseOptions) -> dict[str, dict[str, JSONValue]]:
        """For the report: of the first time point, as it is written and with its residual, and of the model."""
        scan, part, model = self.scans[0], self.parts[0], self.model
        return {
            "noise": scan.choice.figures(),
            "clean-free figures": {
                "error_before_in_noise_variances": 1.0,
                "error_after_in_noise_variances": part.figures.risk,
                "step_length": part.figures.step,
                "step_length_by_sure": part.figures.step_sure,
                "residual_mean_sd": residual.mean,
                "residual_variance": residual.variance,
                "residual_neighbour_correlation": list(residual.neighbours),
                "residual_correlation_with_image": residual.with_estimate,
            },
            "quantities": quantities(scan.y, estimate, scan.valid),
            "model": {
                "sha256": model.hash,
                "training_steps": int(model.card.get("steps_done", 0)),
                "best_step": int(model.card.get("best_step", 0)),
                "started_from": model.card.get("started_from"),
                "training_sure": model.card.get("sure"),
                "training_sure_at_start": model.card.get("sure_at_start"),
                "formula": options.formula,
                "orientations": options.orientations,
            },
        }

    def resources(self, times: Mapping[str, float]) -> dict[str, JSONValue]:
        """For the report: what the run took, with ``times`` in seconds."""
        scans = self.scans
        return {
            "volumes": len(scans),
            "voxels": int(scans[0].y.numel()) * len(scans),
            **times,
            "peak_memory_mib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
            "threads": torch.get_num_threads(),
        }


def _unadapted(model: ScoreModel) -> list[str]:
    """Say so where the model could not be adapted."""
    if interval := model.card.get("level_told"):
        low, high = interval
        return [
            f"The noise level is told within {low:.2f} to {high:.2f} of what was found only: too little to choose"
            " weights by, so the model was not adapted."
        ]
    error = model.card.get("unfit_sure")
    if error is None:
        return []
    when = "while adapting" if model.card["steps_done"] else "before adapting"
    return [
        f"The error left is estimated at {error:.3f} noise variances {when}, and no error is below zero: that figure"
        " cannot choose between weights here, so the model was not adapted."
    ]
