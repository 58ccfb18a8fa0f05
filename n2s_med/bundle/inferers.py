"""MONAI inferers: the Tweedie step for scans, and what training and its clean-free figure need."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import torch
from monai.data import MetaTensor
from monai.inferers import Inferer
from torch import Tensor, nn

from n2s_med.bundle.network import learned_counts
from n2s_med.bundle.processes import unwrapped
from n2s_med.bundle.transforms import OUTCOME, scans_with_noise
from n2s_med.compute import Compute, PrecisionName
from n2s_med.denoise import DenoiseOptions
from n2s_med.errors import ModelError
from n2s_med.jobs.denoise import SD_PROBES, DenoiseJob
from n2s_med.jobs.outcome import Outcome
from n2s_med.modalities import modality_named
from n2s_med.score import ScoreModel, ScoreUNet
from n2s_med.score.patches import HeldOut
from n2s_med.score.splitting import KEPT, are_counts, held_out_risk
from n2s_med.tracking import open_tracker
from n2s_med.training import ADAPTATION, TrainingConfig


def denoising(
    modality: str,
    output_dir: str,
    *,
    ckpt_path: str | None = None,
    adaptation: Mapping[str, Any] | None = None,
    device: str | torch.device = "auto",
    precision: PrecisionName = "auto",
    orientations: int | None = None,
    formula: Literal["mean", "published"] = "mean",
    chunk_voxels: int = 1_000_000,
    sd_map: bool = False,
    seed: int = 0,
    overwrite: bool = False,
) -> DenoiseJob:
    """Return how a bundle denoises and writes, as the job of ``n2s-med denoise``.

    Parameters
    ----------
    modality
        Modality of the bundle.
    output_dir
        Folder for the results.
    ckpt_path
        The network's weights: for the record that goes with the results, and for what they were learned from.
    adaptation
        Training keys of the adaptation to each scan; ``None`` takes the network as it is, ``{}`` the default.
    device, precision
        As for :meth:`n2s_med.compute.Compute.choose`.
    orientations, formula, chunk_voxels, seed
        As for :class:`n2s_med.denoise.DenoiseOptions`.
    sd_map
        Write the standard deviation of each voxel too.
    overwrite
        Replace results that exist.
    """
    return DenoiseJob(
        source=Path(),
        output=Path(output_dir),
        model=Path(ckpt_path) if ckpt_path else None,
        modality=modality_named(modality).name,
        config=None if adaptation is None else TrainingConfig.from_mapping(adaptation, ADAPTATION),
        options=DenoiseOptions(
            orientations=orientations,
            formula=formula,
            chunk_voxels=chunk_voxels,
            sd_probes=SD_PROBES if sd_map else 0,
            seed=seed,
        ),
        compute=Compute.choose(str(device), precision),
        overwrite=overwrite,
        quiet=True,
    )


class TweedieInferer(Inferer):  # type: ignore[misc]
    """From a noisy volume and a score network to the denoised volume.

    Parameters
    ----------
    job
        What :func:`denoising` gives.
    """

    def __init__(self, job: DenoiseJob) -> None:
        super().__init__()
        self.job, self.learned_counts = job, job.model is not None and learned_counts(job.model)

    def __call__(self, inputs: MetaTensor, network: nn.Module, *_: Any, **__: Any) -> MetaTensor:
        """Denoise.

        Parameters
        ----------
        inputs
            One volume (1, C, X, Y, Z) in its physical units, its noise in its ``meta``.
        network
            A :class:`~n2s_med.score.ScoreUNet`.

        Returns
        -------
        MetaTensor
            The denoised volume, same shape, units and grid; its ``meta`` holds the
            :class:`~n2s_med.jobs.outcome.Outcome`.

        Raises
        ------
        InputError
            If the volume does not tell its noise, or shows none.
        ModelError
            If the network is no score network, or of another dimension.
        """
        start = ScoreModel(_score_network(network), learned_counts=self.learned_counts)
        scans = scans_with_noise(inputs[0])
        began = time.perf_counter()
        with torch.enable_grad(), open_tracker(False, experiment="", run_name="", directory=Path()) as tracker:
            model = self.job.fitted(scans, start, modality_named(str(self.job.modality)), tracker)
        fitted = time.perf_counter()
        parts = self.job.denoise(scans, model)
        times = {"training_time_s": fitted - began, "denoising_time_s": time.perf_counter() - fitted}
        outcome = Outcome(scans, parts, model, times)
        denoised = torch.stack(outcome.estimates)[None].to(inputs.device)
        return MetaTensor(denoised, affine=inputs.affine, meta={**inputs.meta, OUTCOME: outcome})


def _score_network(network: nn.Module) -> ScoreUNet:
    """The score network itself, of one that DDP may wrap."""
    inner = unwrapped(network)
    if not isinstance(inner, ScoreUNet):
        raise ModelError(
            f"the Tweedie step needs a ScoreUNet, got {type(inner).__name__}",
            remedy="use models/model.pt; exported networks hold no halo and no correlation",
        )
    return inner


class ScoreInferer(Inferer):  # type: ignore[misc]
    """One pass of the network over a batch of patches, in the number type of choice.

    Parameters
    ----------
    device, precision
        As for :meth:`n2s_med.compute.Compute.choose`.
    """

    def __init__(self, device: str | torch.device = "auto", precision: PrecisionName = "auto") -> None:
        super().__init__()
        self.compute = Compute.choose(str(device), precision)

    def __call__(self, inputs: Tensor, network: Callable[..., Tensor], *args: Any, **kwargs: Any) -> Tensor:
        """Return the network's scores (N, 1, spatial) in float32.

        Parameters
        ----------
        inputs
            Unit-noise patches (N, 1, spatial).
        network
            The score network.
        args, kwargs
            The noise's traits (N, 4 or 6), and whatever else the network takes.
        """
        with self.compute.autocast():
            scores = network(self.compute.place(inputs), *args, **kwargs)
        return scores.float()


class RiskInferer(Inferer):  # type: ignore[misc]
    """The clean-free figure of held-out blocks, summed: Stein's unbiased risk estimate, or that by count splitting.

    Parameters
    ----------
    device, precision
        As for :meth:`n2s_med.compute.Compute.choose`.
    seed
        Seed of the probes: the same at every check, so that checks compare.
    kept_counts
        Share of few whole counts that the network is shown; 0 splits none.
    """

    def __init__(
        self,
        device: str | torch.device = "auto",
        precision: PrecisionName = "auto",
        seed: int = 0,
        kept_counts: float = KEPT,
    ) -> None:
        super().__init__()
        self.score, self.seed, self.kept = ScoreInferer(device, precision), seed, kept_counts

    def __call__(self, inputs: Mapping[str, Any], network: Callable[..., Tensor], *_: Any, **__: Any) -> Tensor:
        """Return the summed squared error and noise variance in one unit, the blocks of whole counts, and all blocks.

        Parameters
        ----------
        inputs
            ``blocks`` and ``centre``, as :class:`~n2s_med.bundle.HeldOutd` gives them.
        network
            The score network.
        """
        generator = torch.Generator().manual_seed(self.seed)
        blocks: Sequence[HeldOut] = inputs["blocks"]
        sums = [self._risk(block, inputs["centre"], network, generator) for block in blocks]
        return torch.stack(sums).sum(0) if sums else torch.zeros(4)

    def _risk(
        self, block: HeldOut, centre: float, network: Callable[..., Tensor], generator: torch.Generator
    ) -> Tensor:
        traits = block.noise.correlation.traits[None].to(self.score.compute.device)

        def g(v: Tensor) -> Tensor:
            return self.score(v - centre, network, traits).cpu()

        with torch.no_grad():
            error, variance = held_out_risk(g, block, self.kept, generator)
        unit = variance.mean()
        risk = [(term[block.inside] / unit).sum() for term in (error, variance)]
        return torch.stack([*risk, torch.tensor(float(are_counts(block, self.kept))), torch.ones(())])
