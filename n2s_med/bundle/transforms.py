"""MONAI dictionary transforms: from a path to a volume with its noise, to training patches, and to files."""

from __future__ import annotations

import logging
from collections.abc import Hashable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from monai.config import KeysCollection
from monai.data import MetaTensor
from monai.transforms import MapTransform, RandomizableTransform
from torch import Tensor

from n2s_med.errors import ConfigurationError, InputError, NoiseLawError
from n2s_med.jobs.denoise import DenoiseJob
from n2s_med.jobs.noise import NoiseChoice, NoiseRequest
from n2s_med.jobs.outcome import Outcome
from n2s_med.jobs.places import slug
from n2s_med.jobs.scans import Scan, place_of, scans_of
from n2s_med.modalities import modality_named
from n2s_med.score import TotalUnitNoise
from n2s_med.score.patches import PatchSampler
from n2s_med.score.splitting import KEPT, are_split, split
from n2s_med.volumes import Source, read, valid_mask

NOISE = "noise"
"""Key of a volume's ``meta`` that holds the :class:`~n2s_med.jobs.noise.NoiseChoice` of each of its time points."""

OUTCOME = "outcome"
"""Key of a denoised volume's ``meta`` that holds its :class:`~n2s_med.jobs.outcome.Outcome`."""

Data = Mapping[Hashable, Any]

log = logging.getLogger(__name__)


def outcome_of(volume: MetaTensor) -> Outcome:
    """The outcome that a denoised volume carries.

    Raises
    ------
    InputError
        If it carries none.
    """
    outcome = getattr(volume, "meta", {}).get(OUTCOME)
    if not isinstance(outcome, Outcome):
        raise InputError("the volume was not denoised here", remedy="use TweedieInferer as the inferer")
    return outcome


class LoadScand(MapTransform):  # type: ignore[misc]
    """Read scans: each key's path or :class:`~n2s_med.volumes.Source` becomes a volume (C, X, Y, Z) in physical units.

    Parameters
    ----------
    keys
        Keys of the scans.
    allow_missing_keys
        Whether an item may lack a key.
    """

    def __init__(self, keys: KeysCollection, allow_missing_keys: bool = False) -> None:
        super().__init__(keys, allow_missing_keys)

    def __call__(self, data: Data) -> dict[Hashable, Any]:
        """Read the scans of an item.

        Raises
        ------
        InputError
            If one cannot be read, or a path holds several.
        """
        loaded = dict(data)
        for key in self.key_iterator(loaded):
            source = loaded[key]
            loaded[key] = source.load() if isinstance(source, Source) else _volume_at(Path(source))
        return loaded


def _volume_at(path: Path) -> MetaTensor:
    """The one volume at a path."""
    volumes = read(path).volumes
    if len(volumes) > 1:
        raise InputError(f"{len(volumes)} scans here", remedy="give one of them", path=path)
    return volumes[0]


class EstimateNoised(MapTransform):  # type: ignore[misc]
    """Measure the noise of volumes, or take what is given; it goes along in their ``meta``.

    Parameters
    ----------
    keys
        Keys of the volumes.
    modality
        Modality of the bundle; scans of another one are refused.
    law
        A noise law's name, or ``"auto"``.
    parameters
        The law's parameters; none to have them estimated.
    correlation
        ``"auto"`` estimates it, ``"white"`` takes none.
    rician
        ``"auto"`` corrects MR magnitude for its Rician bias where it is low enough to have one, ``"off"`` never.
    """

    def __init__(
        self,
        keys: KeysCollection,
        modality: str,
        law: str = "auto",
        parameters: Mapping[str, float] | None = None,
        correlation: str = "auto",
        rician: str = "auto",
    ) -> None:
        super().__init__(keys)
        if rician not in ("auto", "off"):
            raise ConfigurationError(f"unknown rician {rician!r}", remedy="choose 'auto' or 'off'")
        if correlation not in ("auto", "white"):
            raise ConfigurationError(f"unknown correlation {correlation!r}", remedy="choose 'auto' or 'white'")
        self.modality = modality_named(modality)
        self.request = NoiseRequest(law, parameters or {}, correlation, rician)  # type: ignore[arg-type]

    def __call__(self, data: Data) -> dict[Hashable, Any]:
        """Measure the noise of an item's volumes.

        Raises
        ------
        InputError
            If the noise cannot be told, or the scan is of another modality.
        NoiseLawError
            If the values lie outside the noise law.
        """
        measured = dict(data)
        for key in self.key_iterator(measured):
            volume = measured[key]
            try:
                volume.meta[NOISE] = self._choices(volume)
            except (InputError, NoiseLawError) as error:
                raise error.at(place_of(volume)) from error.__cause__
        return measured

    def _choices(self, volume: MetaTensor) -> tuple[NoiseChoice, ...]:
        found = volume.meta["modality"]
        if found not in (None, self.modality.name):
            raise InputError(
                f"it is {found}, the bundle is for {self.modality.name}", remedy=f"use the bundle for {found}"
            )
        choices = tuple(scan.choice for scan in scans_of(volume, self.modality, self.request))
        log.info("%s: %s", volume.meta["label"], choices[0].sentence)
        for warning in choices[0].warnings:
            log.warning("%s: %s", volume.meta["label"], warning)
        return choices


def scans_with_noise(volume: MetaTensor) -> list[Scan]:
    """The time points of a volume whose noise is known.

    Raises
    ------
    InputError
        If it is not.
    """
    choices = getattr(volume, "meta", {}).get(NOISE)
    if choices is None:
        raise InputError("the image does not tell its noise", remedy="put EstimateNoised into the preprocessing")
    plain = volume.as_tensor().cpu()
    parts = zip(plain, valid_mask(volume), choices, strict=True)
    return [Scan(y, inside, choice, volume) for y, inside, choice in parts]


class ToPatchesd(MapTransform):  # type: ignore[misc]
    """Make volumes with their noise into sources of training patches, in the unit-noise domain.

    Parameters
    ----------
    keys
        Keys of the volumes.
    patch
        Edge of a patch, in voxels.
    held_out
        Fraction of the voxels kept out of the loss.
    seed
        Seed of the choice of these, and of the spread of whole counts.
    """

    def __init__(self, keys: KeysCollection, patch: int = 32, held_out: float = 0.02, seed: int = 0) -> None:
        super().__init__(keys)
        self.patch, self.held_out, self.seed = patch, held_out, seed

    def __call__(self, data: Data) -> dict[Hashable, Any]:
        """Replace an item's volumes by a :class:`~n2s_med.score.patches.PatchSampler` each."""
        made = dict(data)
        for key in self.key_iterator(made):
            units = [scan.unit(self.seed + index) for index, scan in enumerate(scans_with_noise(made[key]))]
            made[key] = PatchSampler(units, edge=self.patch, held_out=self.held_out, seed=self.seed)
        return made


class HeldOutd(MapTransform):  # type: ignore[misc]
    """Keep of sources of patches the held-out blocks alone, with their centre."""

    def __call__(self, data: Data) -> dict[Hashable, Any]:
        """Replace an item's sources by ``{"blocks", "centre"}``; the other keys go."""
        sources = {key: data[key] for key in self.key_iterator(dict(data))}
        return {key: {"blocks": source.held_out, "centre": source.centre} for key, source in sources.items()}


class DrawPatchesd(RandomizableTransform, MapTransform):  # type: ignore[misc]
    """Draw patches and perturb them, or split them where they are few whole counts; an item becomes a list.

    Each is a dictionary of ``image`` (1, spatial): what the network is shown, unit-noise data about zero; ``target``
    (4, spatial): data and perturbation ``L u`` (of split counts: those shown, and the rest), loss weight, and whether
    counts were split; ``traits``: the noise's correlation.

    Parameters
    ----------
    keys
        Key of the source of patches.
    patches
        How many to draw.
    sigma_a
        Perturbation, in standard deviations of the noise.
    kept_counts
        Share of few whole counts that is shown; 0 perturbs them as other data.
    """

    def __init__(self, keys: KeysCollection, patches: int = 4, sigma_a: float = 0.5, kept_counts: float = KEPT) -> None:
        MapTransform.__init__(self, keys)
        RandomizableTransform.__init__(self, prob=1.0)
        self.patches, self.objective, self.kept = patches, TotalUnitNoise(sigma_a), kept_counts

    def __call__(self, data: Data) -> list[dict[str, Tensor]]:
        """Draw from an item's source."""
        (key,) = self.keys
        self.randomize(None)
        generator = torch.Generator().manual_seed(int(self.R.randint(2**31 - 1)))
        return [self._draw(data[key], generator) for _ in range(self.patches)]

    def _draw(self, source: PatchSampler, generator: torch.Generator) -> dict[str, Tensor]:
        patch = source.draw(generator)
        if len(set(patch.u.shape[2:])) > 1:  # a scan shorter than the patch along an axis: patches must stack
            patch = replace(patch, order=tuple(range(source.spatial_dims)))
        counts = are_split(patch, self.kept)
        if counts:
            ((data, drawn),) = split(patch.u, self.kept, 1, generator)
            shown = data - source.centre
        else:
            drawn = patch.noise.correlation.color(torch.randn(patch.u.shape, generator=generator))
            data = patch.u - source.centre
            shown = self.objective.perturbed(data, drawn)
        told = torch.cat((shown, data, drawn, patch.weight, torch.full_like(shown, counts)), dim=1)
        turned = patch.augment(told)[0].contiguous()
        return {"image": turned[:1], "target": turned[1:], "traits": patch.noise.correlation.traits}


class MeasureScand(MapTransform):  # type: ignore[misc]
    """Judge denoised volumes without a clean image, and against one where there is one.

    An item gets ``figures``: remaining error in noise variances, step length by SURE, the residual's moments, how
    many trust checks passed; with a reference also RMSE, PSNR (peak: range of the reference) and bias, before and
    after, in the scan's units.

    Parameters
    ----------
    keys
        Key of the denoised volume.
    image, reference
        Keys of the noisy volume and of the clean one, which need not be there.
    """

    def __init__(self, keys: KeysCollection, image: str = "image", reference: str = "reference") -> None:
        super().__init__(keys)
        self.image, self.reference = image, reference

    def __call__(self, data: Data) -> dict[Hashable, Any]:
        """Add the figures to an item."""
        (key,) = self.keys
        outcome = outcome_of(data[key])
        scan, part = outcome.scans[0], outcome.parts[0]
        residual, checks = outcome.judged(0)
        figures = {
            "risk": part.figures.risk,
            "step_sure": part.figures.step_sure,
            "residual_mean_sd": residual.mean,
            "residual_variance": residual.variance,
            "checks_passed": sum(check.passed for check in checks) / len(checks),
        }
        if self.reference in data:
            clean = data[self.reference].as_tensor()[0]
            figures |= _against(clean, scan.y, outcome.estimates[0], scan.valid)
        return {**data, "figures": figures, "scan": scan.volume.meta["label"]}


def _against(clean: Tensor, noisy: Tensor, x_hat: Tensor, valid: Tensor) -> dict[str, float]:
    """RMSE, PSNR and bias before and after, over the valid voxels."""
    if clean.shape != noisy.shape:
        raise InputError(
            f"the reference has {tuple(clean.shape)} voxels, the scan {tuple(noisy.shape)}",
            remedy="give a reference on the scan's grid",
        )
    truth = clean[valid].double()
    peak = float(truth.max() - truth.min())
    figures = {}
    for name, values in (("noisy", noisy), ("denoised", x_hat)):
        error = values[valid].double() - truth
        rmse = float(error.square().mean().sqrt())
        figures[f"rmse_{name}"] = rmse
        figures[f"psnr_{name}_db"] = 20 * torch.tensor(peak / rmse).log10().item() if rmse and peak else float("inf")
        figures[f"bias_{name}"] = float(error.mean())
    return figures


class SaveScand(MapTransform):  # type: ignore[misc]
    """Write denoised volumes as their sources are (DICOM series, NIfTI image), each with its report.

    Parameters
    ----------
    keys
        Keys of the denoised volumes.
    job
        What :func:`n2s_med.bundle.denoising` gives; its ``output`` is the folder.
    """

    def __init__(self, keys: KeysCollection, job: DenoiseJob) -> None:
        super().__init__(keys)
        self.job, self.taken = job, set[str]()

    def __call__(self, data: Data) -> dict[Hashable, Any]:
        """Write the denoised volumes of an item.

        Raises
        ------
        OutputError
            If a file is there already and may not be replaced, or cannot be written.
        """
        for key in self.key_iterator(dict(data)):
            outcome = outcome_of(data[key])
            target = self.job.output / self._name(outcome.scans[0].volume)
            result = self.job.deliver(outcome, target, modality_named(str(self.job.modality)))
            log.info("%s: written to %s", result.label, result.output)
            for warning in result.warnings:
                log.warning("%s: %s", result.label, warning)
        return dict(data)

    def _name(self, volume: MetaTensor) -> str:
        """The file's name for NIfTI, else the label; numbered where it is taken."""
        nifti = volume.meta["format"] == "nifti"
        plain = Path(volume.meta["source"][0]).name if nifti else volume.meta["label"]
        name = slug(plain)
        number = 1
        while (numbered := name if number == 1 else f"{number:03d}_{name}").lower() in self.taken:
            number += 1
        self.taken.add(numbered.lower())
        return numbered
