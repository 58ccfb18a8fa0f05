"""Denoise what a path holds: read, choose the noise, train or load, denoise, write, report."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from itertools import chain
from pathlib import Path

import numpy as np
import torch
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
from n2s_med.jobs.noise import AUTO, NoiseChoice, NoiseRequest
from n2s_med.jobs.outcome import Outcome
from n2s_med.jobs.places import names_of, sd_map_of, sd_maps, stem_of
from n2s_med.jobs.scans import Say, Scan, place_of, scans_of
from n2s_med.modalities import Modality, modality_named
from n2s_med.report import Report, Verdict, report_paths, shown, write_report
from n2s_med.score import ANY, ScoreModel, base_model
from n2s_med.tracking import Tracker, open_tracker
from n2s_med.training import ADAPTATION, TrainingConfig
from n2s_med.volumes import (
    Arrays,
    Deidentifier,
    Provenance,
    Source,
    Survey,
    Volume,
    is_nifti_name,
    nothing_usable,
    refusal_of,
    survey,
    write_sd_map,
    writing,
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

    def run(self, say: Say, surveyed: Callable[[], Survey] | None = None) -> Iterator[Result]:
        """Denoise scan by scan; each is written whole or not at all, and one that fails does not stop the rest.

        Parameters
        ----------
        say
            Takes what must be said on the way.
        surveyed
            Gives what the source holds, where somebody has begun to look.

        Raises
        ------
        N2SError
            If nothing at the path can be read, an output is refused, or the only scan fails.
        PartialError
            At the end, if some of several scans failed; why was said for each.
        """
        model = ScoreModel.load(self.model) if self.model else None
        found = surveyed() if surveyed else survey(self.source)
        left_out = list(found.refusals)
        for refusal in left_out:
            say(f"left out: {refusal}")
        failed, several = 0, len(found.sources) > 1
        for source, target in zip(found.sources, self._targets(found.sources), strict=True):
            try:
                volume = source.arrays()
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
                say(f"error: {error.at(source.path)}")
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

    def one(self, volume: Volume, target: Path, model: ScoreModel | None, say: Say) -> Result:
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
        targets = [self.output] if len(sources) == 1 else [self.output / name for name in names_of(sources)]
        for source, target in zip(sources, targets, strict=True):
            if source.format == "nifti" and not is_nifti_name(target):
                raise OutputError(
                    "the input is NIfTI, the output is no NIfTI name", remedy="end it in .nii.gz", path=target
                )
            check_free(target, overwrite=True)  # the name is usable at all
            check_apart(self.source, target)
            beside = report_paths(stem_of(target)), sd_maps(target) if self.options.sd_probes else ()
            for place in (target, *chain(*beside)):
                check_free(place, overwrite=self.overwrite)
            if target.exists() and target.is_dir() == (source.format == "nifti"):
                there = "folder" if target.is_dir() else "file"
                raise OutputError(f"a {there} is there already", remedy="choose another name", path=target)
        return targets

    def _one(
        self, volume: Volume, target: Path, modality: Modality | None, model: ScoreModel | None, say: Say
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
            times = {"training_time_s": trained - start, "denoising_time_s": done - trained}
            result = self.deliver(Outcome(scans, parts, used, times), target, modality)
            figures = parts[0].figures
            tracker.metrics({"risk": figures.risk, "step_sure": figures.step_sure}, used.card.get("steps_done", 0))
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
        if start is not None and self.config is not None and not scans[0].choice.level_told:
            return _as_it_is(start.centred(scans[0].centre), scans[0].choice)
        if self.config is not None:
            return fit(
                scans, self.config, self.compute, modality=modality, tracker=tracker, start=start, quiet=self.quiet
            )
        if start is None:
            raise ConfigurationError("a new network without training", remedy="give it time with --seconds")
        return start.centred(scans[0].centre)

    def denoise(self, scans: Sequence[Scan], model: ScoreModel) -> list[Denoised]:
        """Every time point of a scan."""
        parts: list[Denoised] = []
        with tqdm(desc="denoising", unit="plane", disable=self.quiet) as bar:
            for scan in scans:

                def show(done: int, total: int, before: int = len(parts)) -> None:
                    bar.total = total * len(scans)
                    bar.update(before * total + done - bar.n)

                spacing_mm = scan.volume.meta["spacing_mm"]
                denoiser = Denoiser(model, scan.choice.noise, self.compute, self._options, spacing_mm=spacing_mm)
                parts.append(denoiser(scan.y, scan.valid, show))
        return parts

    def deliver(self, outcome: Outcome, target: Path, modality: Modality | None) -> Result:
        """Output, SD map and report of one scan; the output is written beside its judging, where there are workers."""
        scan, part = outcome.scans[0], outcome.parts[0]
        volume, provenance = scan.volume, self._provenance(outcome)
        begun = time.perf_counter()
        estimates = outcome.estimates
        with writing(_like(volume, estimates), target, provenance=provenance, overwrite=self.overwrite):
            judged = [outcome.judged(time_point) for time_point in range(len(outcome.scans))]
            checks = list(chain.from_iterable(verdicts for _, verdicts in judged))
            figures = outcome.figures(estimates[0], judged[0][0], self._options)
            seen = shown(
                scan.y,
                estimates[0],
                spacing_mm=tuple(volume.meta["spacing_mm"]),
                units=volume.meta["units"],
                window=modality.window if modality else None,
                sd=part.sd,
                affine=volume.affine,
            )
        sd_map = None
        deviations = [p.sd for p in outcome.parts if p.sd is not None]
        if deviations:
            sd_map = write_sd_map(
                _like(volume, deviations),
                sd_map_of(volume, target),
                provenance=provenance,
                overwrite=self.overwrite,
            )
        times = {**outcome.times, "writing_time_s": time.perf_counter() - begun}
        report = Report(
            title=f"{volume.meta['label']} denoised",
            figures={**figures, "resources": outcome.resources(times)},
            verdicts=checks,
            warnings=outcome.warnings(checks),
        )
        page, _ = write_report(stem_of(target), report, seen)
        return Result(
            target, sd_map, page, volume.meta["label"], scan.choice.sentence, report.verdicts, report.warnings
        )

    @property
    def _options(self) -> DenoiseOptions:
        """As given, with the number of orientations that this job takes."""
        return replace(self.options, orientations=self._passes)

    @property
    def _passes(self) -> int:
        return self.options.passes(trained=self.config is not None)

    def _model_name(self, model: ScoreModel) -> str:
        if self.from_scratch:
            return "trained on this scan"
        start = self.model.name if self.model else "base weights"
        return f"{start}, adapted to this scan" if self.config is not None and model.card.get("best_step") else start

    def _provenance(self, outcome: Outcome) -> Provenance:
        noise = outcome.scans[0].choice.noise
        return Provenance(
            model=self._model_name(outcome.model),
            model_hash=outcome.model.hash,
            law=noise.law.name,
            parameters={
                **noise.law.parameters,
                "step": outcome.parts[0].figures.step,
                "formula": self.options.formula,
                "orientations": self._passes,
                "correlated": int(not noise.correlation.is_white),
            },
            version=n2s_med.__version__,
            deidentifier=self.deidentifier,
        )


def _as_it_is(model: ScoreModel, choice: NoiseChoice) -> ScoreModel:
    """A model that could not be adapted, as the level is not told, with a card that says so."""
    return replace(model, card={**model.card, "steps_done": 0, "best_step": 0, "level_told": choice.level_interval})


def _like(volume: Volume, parts: Sequence[Tensor]) -> Arrays:
    """A volume on the grid of ``volume``, with other values; a single part's memory is shared."""
    values = parts[0][None] if len(parts) == 1 else torch.stack(list(parts))
    meta = {key: value for key, value in volume.meta.items() if key != "affine"}
    return Arrays(values.numpy(), np.asarray(volume.affine, dtype=np.float64), meta)
