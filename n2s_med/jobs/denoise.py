"""Denoise what a path holds: read, choose the noise, train or load, denoise, write, report."""

from __future__ import annotations

import re
import resource
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch
from monai.data import MetaTensor
from torch import Tensor
from tqdm import tqdm

import n2s_med
from n2s_med.atomic import check_apart, check_free
from n2s_med.compute import Compute
from n2s_med.denoise import Denoised, DenoiseOptions, Denoiser
from n2s_med.errors import (
    ConfigurationError,
    InputError,
    ModelError,
    N2SError,
    NoiseLawError,
    OutputError,
    PartialError,
)
from n2s_med.jobs.fit import fit
from n2s_med.jobs.noise import AUTO, NoiseRequest
from n2s_med.jobs.scans import Say, Scan, place_of, scans_of
from n2s_med.modalities import Modality, modality_named
from n2s_med.quality import Residual, quantities, residual_of, verdicts
from n2s_med.report import JSONValue, Report, Verdict, write_report
from n2s_med.score import ANY, ScoreModel, base_model
from n2s_med.tracking import Tracker, open_tracker
from n2s_med.training import ADAPTATION, TrainingConfig
from n2s_med.volumes import (
    NIFTI_SUFFIXES,
    Deidentifier,
    Provenance,
    Source,
    is_nifti_name,
    nothing_usable,
    refusal_of,
    survey,
    write,
    write_sd_map,
)

SD_PROBES = 8
"""Probes of the uncertainty map."""


@dataclass(frozen=True)
class Result:
    """One denoised scan.

    Attributes
    ----------
    output, sd_map, report
        What was written.
    label
        Short name of the scan, free of patient data.
    noise
        Its noise, in a sentence.
    verdicts
        The trust checks.
    warnings
        What must be said about it.
    """

    output: Path
    sd_map: Path | None
    report: Path
    label: str
    noise: str
    verdicts: Sequence[Verdict]
    warnings: Sequence[str]

    @property
    def trusted(self) -> bool:
        """Whether every trust check passed."""
        return all(verdict.passed for verdict in self.verdicts)


@dataclass(frozen=True)
class DenoiseJob:
    """Denoise every scan at a path.

    Attributes
    ----------
    source
        A NIfTI file, a DICOM file, or a folder of either.
    output
        A NIfTI file for one NIfTI file; else a folder, for several scans with one entry each.
    model
        Model to use; ``None`` takes the base weights that come with the package.
    from_scratch
        Train a new network on the scan alone instead.
    modality
        Modality of the scans where their files do not say.
    noise
        What is said of the noise.
    config
        How to adapt the model to the scan, or to train from scratch; ``None`` takes the model as it is.
    options
        How to denoise.
    compute
        Device and number type.
    deidentifier
        What takes the patient's identity out of what is written; ``None`` leaves it.
    overwrite
        Replace outputs that exist.
    tracking
        Folder of the MLflow store, or ``None`` to track nothing.
    quiet
        Show no progress bars.
    """

    source: Path
    output: Path
    model: Path | None = None
    from_scratch: bool = False
    modality: str | None = None
    noise: NoiseRequest = field(default_factory=NoiseRequest)
    config: TrainingConfig | None = ADAPTATION
    options: DenoiseOptions = field(default_factory=DenoiseOptions)
    compute: Compute = field(default_factory=Compute.choose)
    deidentifier: Deidentifier | None = None
    overwrite: bool = False
    tracking: Path | None = None
    quiet: bool = False

    def run(self, say: Say) -> Iterator[Result]:
        """Denoise scan by scan; each is written whole or not at all, and one that fails does not stop the rest.

        Raises
        ------
        N2SError
            If nothing at the path can be read, an output is refused, or the only scan fails.
        PartialError
            At the end, if some of several scans failed; why was said for each.
        """
        model = ScoreModel.load(self.model) if self.model else None
        found = survey(self.source)
        left_out = list(found.refusals)
        for refusal in left_out:
            say(f"left out: {refusal}")
        failed, several = 0, len(found.sources) > 1
        for source, target in zip(found.sources, self._targets(found.sources), strict=True):
            try:
                volume = source.load()
            except InputError as error:
                if not (several or left_out):
                    raise
                left_out.append(refusal_of(source, error))
                say(f"left out: {left_out[-1]}")
                continue
            try:
                result = self.one(volume, target, model, say)
            except N2SError as error:
                if not several:
                    raise
                say(f"error: {error}")
                failed += 1
            else:
                yield result
            finally:
                del volume  # before the next one is read
        tried = len(found.sources) + len(found.refusals) - len(left_out)
        if not tried:
            raise nothing_usable(self.source, left_out)
        if failed:
            kind = PartialError if failed < tried else N2SError
            raise kind(f"{failed} of {tried} scans failed", path=self.source)

    def one(self, volume: MetaTensor, target: Path, model: ScoreModel | None, say: Say) -> Result:
        """Denoise one scan into ``target``; errors name its file, or the model's."""
        found = self.modality or volume.meta["modality"]
        if found is None and model is not None and model.modality != ANY:
            found = model.modality
        try:
            return self._one(volume, target, modality_named(found) if found else None, model, say)
        except ModelError as error:
            raise error.at(self.model or target) from error.__cause__
        except (InputError, NoiseLawError) as error:
            raise error.at(place_of(volume)) from error.__cause__

    def _targets(self, sources: Sequence[Source]) -> list[Path]:
        """Where each scan goes; refused at once if something is there or the name does not fit the format."""
        targets = [self.output] if len(sources) == 1 else [self.output / name for name in _names(sources)]
        for source, target in zip(sources, targets, strict=True):
            if source.format == "nifti" and not is_nifti_name(target):
                raise OutputError(
                    "the input is NIfTI, the output is no NIfTI name", remedy="end it in .nii.gz", path=target
                )
            check_free(target, overwrite=True)  # the name is usable at all
            check_apart(self.source, target)
            for place in (target, *(sd_maps(target) if self.options.sd_probes else ())):
                check_free(place, overwrite=self.overwrite)
        return targets

    def _one(
        self, volume: MetaTensor, target: Path, modality: Modality | None, model: ScoreModel | None, say: Say
    ) -> Result:
        """Denoise one scan."""
        start, label = time.perf_counter(), volume.meta["label"]
        request = self.noise
        if request.law == AUTO and model is not None and model.law != ANY:
            request = replace(request, law=model.law)
        scans = scans_of(volume, modality, request)
        choice = scans[0].choice
        say(f"{label}: {choice.sentence}")
        tracker = open_tracker(
            self.tracking is not None,
            experiment="n2s-med denoise",
            run_name=label,
            directory=self.tracking or Path(),
        )
        with tracker:
            used = self.fitted(scans, model, modality, tracker)
            trained = time.perf_counter()
            parts = self.denoise(scans, used)
            done = time.perf_counter()
            result = self.deliver(
                scans,
                parts,
                target,
                used,
                modality,
                {
                    "training_time_s": trained - start,
                    "denoising_time_s": done - trained,
                },
            )
            tracker.metrics(
                {"risk": parts[0].figures.risk, "step_sure": parts[0].figures.step_sure},
                used.card.get("steps_done", 0),
            )
            tracker.artifact(result.report.with_suffix(".json"))
        return result

    def fitted(
        self, scans: Sequence[Scan], model: ScoreModel | None, modality: Modality | None, tracker: Tracker
    ) -> ScoreModel:
        """The model for a scan: the one given or the base weights, adapted to it; or a new one."""
        start = None
        if not self.from_scratch:
            start = model or base_model(scans[0].spatial_dims)
            start.check_fits(
                modality=modality.name if modality else None,
                law=scans[0].choice.noise.law.name,
                spatial_dims=scans[0].spatial_dims,
            )
        if self.config is not None:
            return fit(
                scans, self.config, self.compute, modality=modality, tracker=tracker, start=start, quiet=self.quiet
            )
        if start is None:
            raise ConfigurationError("a new network without training", remedy="give it time with --seconds")
        return start.centred(scans[0].unit(0).centre)

    def denoise(self, scans: Sequence[Scan], model: ScoreModel) -> list[Denoised]:
        """Every time point of a scan."""
        parts: list[Denoised] = []
        with tqdm(desc="denoising", unit="plane", disable=self.quiet) as bar:
            for scan in scans:

                def show(done: int, total: int, before: int = len(parts)) -> None:
                    bar.total = total * len(scans)
                    bar.update(before * total + done - bar.n)

                denoiser = Denoiser(model, scan.choice.noise, self.compute, self.options)
                parts.append(denoiser(scan.y, scan.valid, show))
        return parts

    def deliver(
        self,
        scans: Sequence[Scan],
        parts: Sequence[Denoised],
        target: Path,
        model: ScoreModel,
        modality: Modality | None,
        times: dict[str, float],
    ) -> Result:
        """Output, SD map and report of one scan."""
        volume, choice = scans[0].volume, scans[0].choice
        provenance = self._provenance(scans[0], parts[0], model)
        begun = time.perf_counter()
        corrected = [s.choice.corrected(p.x_hat, s.valid) for s, p in zip(scans, parts, strict=True)]
        output = write(_like(volume, corrected), target, provenance=provenance, overwrite=self.overwrite)
        stem = target.with_name(stem_name(target.name))
        sd_map = None
        deviations = [p.sd for p in parts if p.sd is not None]
        if deviations:
            sd_map = write_sd_map(
                _like(volume, deviations),
                _sd_map_of(volume, target),
                provenance=provenance,
                overwrite=self.overwrite,
            )
        times["writing_time_s"] = time.perf_counter() - begun
        residuals = [residual_of(s.y, p.x_hat, s.valid, s.choice.noise) for s, p in zip(scans, parts, strict=True)]
        checks = [
            verdict
            for scan, part, residual in zip(scans, parts, residuals, strict=True)
            for verdict in verdicts(residual, scan.y, part.x_hat, scan.valid, scan.choice.noise, part.figures)
        ]
        warnings = [
            *volume.meta.get("notes", ()),
            *choice.warnings,
            *_unadapted(model),
            *(f"{v.name} is {v.value:.3g}. {v.sentence}" for v in checks if not v.passed),
        ]
        report = Report(
            title=f"{volume.meta['label']} denoised",
            figures=self._figures(scans, parts, residuals[0], model, times),
            verdicts=checks,
            warnings=warnings,
        )
        page, _ = write_report(
            stem,
            report,
            before=scans[0].y,
            after=parts[0].x_hat,
            spacing_mm=tuple(volume.meta["spacing_mm"]),
            units=volume.meta["units"],
            window=modality.window if modality else None,
            sd=parts[0].sd,
            affine=volume.affine,
        )
        return Result(output, sd_map, page, volume.meta["label"], choice.sentence, checks, warnings)

    @property
    def _model_name(self) -> str:
        if self.from_scratch:
            return "trained on this scan"
        start = self.model.name if self.model else "base weights"
        return start if self.config is None else f"{start}, adapted to this scan"

    def _provenance(self, scan: Scan, part: Denoised, model: ScoreModel) -> Provenance:
        law = scan.choice.noise.law
        return Provenance(
            model=self._model_name,
            model_hash=model.hash,
            law=law.name,
            parameters={
                **law.parameters,
                "step": part.figures.step,
                "formula": self.options.formula,
                "flips": int(self.options.flips),
                "correlated": int(not scan.choice.noise.correlation.is_white),
            },
            version=n2s_med.__version__,
            deidentifier=self.deidentifier,
        )

    def _figures(
        self,
        scans: Sequence[Scan],
        parts: Sequence[Denoised],
        residual: Residual,
        model: ScoreModel,
        times: dict[str, float],
    ) -> dict[str, dict[str, JSONValue]]:
        scan, part = scans[0], parts[0]
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
            "quantities": quantities(scan.y, part.x_hat, scan.valid),
            "model": {
                "sha256": model.hash,
                "training_steps": int(model.card.get("steps_done", 0)),
                "best_step": int(model.card.get("best_step", 0)),
                "started_from": model.card.get("started_from"),
                "training_sure": model.card.get("sure"),
                "training_sure_at_start": model.card.get("sure_at_start"),
                "formula": self.options.formula,
                "averaged_over_flips": self.options.flips,
            },
            "resources": {
                "volumes": len(scans),
                "voxels": int(scan.y.numel()) * len(scans),
                **times,
                "peak_memory_mib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
                "threads": torch.get_num_threads(),
            },
        }


def _unadapted(model: ScoreModel) -> list[str]:
    """Say so where the model could not be adapted."""
    before = model.card.get("sure_at_start")
    if before is None or before > 0:
        return []
    return [
        f"The error left is estimated at {before:.3f} noise variances before adapting, and no error is below zero:"
        " that figure cannot choose between weights here, so the model was not adapted."
    ]


def _like(volume: MetaTensor, parts: Sequence[Tensor]) -> MetaTensor:
    """A volume on the grid of ``volume``, with other values."""
    out = MetaTensor(torch.stack(list(parts)), affine=volume.affine)
    out.meta.update({key: value for key, value in volume.meta.items() if key != "affine"})
    return out


def _names(sources: Sequence[Source]) -> list[str]:
    """A name for each of several scans: that of a NIfTI file, numbered where it is taken; else a label."""
    names: list[str] = []
    for index, source in enumerate(sources, start=1):
        numbered = f"{index:03d}_"
        if source.format == "nifti":
            name = slug(source.path.name)
            taken = {stem_name(other).lower() for other in names}
            names.append(numbered + name if stem_name(name).lower() in taken else name)
        else:
            names.append(numbered + slug(source.label))
    return names


def sd_maps(target: Path) -> tuple[Path, Path]:
    """Where the SD map of a result may lie: as NIfTI, and as a Parametric Map."""
    nifti, parametric = (target.with_name(stem_name(target.name) + f".sd{end}") for end in (".nii.gz", ".dcm"))
    return nifti, parametric


def _sd_map_of(volume: MetaTensor, target: Path) -> Path:
    """Where the SD map of a scan goes: a Parametric Map beside a DICOM series, else NIfTI."""
    nifti, parametric = sd_maps(target)
    return nifti if volume.meta["format"] == "nifti" or len(volume) > 1 or is_nifti_name(target) else parametric


def stem_name(name: str) -> str:
    """Return ``name`` without the ending of a NIfTI image: what the reports beside it begin with."""
    for suffix in NIFTI_SUFFIXES:
        if name.lower().endswith(suffix):
            return name[: -len(suffix)]
    return name


def slug(text: str) -> str:
    """Letters, digits, dots and dashes of ``text``."""
    return re.sub(r"[^A-Za-z0-9.]+", "-", text).strip("-")
