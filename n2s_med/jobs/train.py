"""Train a model on scans: one job for ``n2s-med train``, one step of ``n2s-med denoise``."""

from __future__ import annotations

import json
import platform
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from monai.data import MetaTensor
from torch import Tensor
from tqdm import tqdm

import n2s_med
from n2s_med import pictures
from n2s_med.atomic import check_free, whole
from n2s_med.compute import Compute
from n2s_med.denoise import DenoiseOptions, Denoiser, to_unit
from n2s_med.errors import InputError, ModelError, N2SError, NoiseLawError, OutputError
from n2s_med.jobs.noise import AUTO, NoiseChoice, NoiseRequest, choose_noise
from n2s_med.modalities import Modality, modality_named
from n2s_med.score import ANY, OBJECTIVES, ScoreModel, ScoreUNet
from n2s_med.score.patches import PatchSampler, PatchSource, UnitVolume
from n2s_med.tracking import Tracker, open_tracker
from n2s_med.training import Trainer, TrainingConfig
from n2s_med.volumes import read, valid_mask

Say = Callable[[str], None]
"""Takes a line for the log."""


@dataclass(frozen=True)
class Scan:
    """One three-dimensional volume of a scan, its noise, and whence it came.

    Attributes
    ----------
    y
        Float32 (X, Y, Z), in the units of the scan.
    valid
        Boolean, same shape.
    choice
        Its noise.
    volume
        The volume it is a part of.
    """

    y: Tensor
    valid: Tensor
    choice: NoiseChoice
    volume: MetaTensor

    @property
    def spatial_dims(self) -> int:
        """2 for a single slice, else 3."""
        return 2 if self.y.shape[-1] == 1 else 3

    def unit(self, seed: int) -> UnitVolume:
        """The volume in the unit-noise domain, as training sees it."""
        shape, noise = self.y.shape[: self.spatial_dims], self.choice.noise
        y = self.y.reshape(shape)
        valid = self.valid.reshape(shape) & noise.admits(y)
        generator = torch.Generator().manual_seed(seed)
        spacing = tuple(self.volume.meta["spacing_mm"])[: self.spatial_dims]
        return UnitVolume(to_unit(y, valid, noise, generator), valid, noise, spacing)


def scans_of(volume: MetaTensor, modality: Modality | None, request: NoiseRequest) -> list[Scan]:
    """The volumes of a scan (one per time point), with their noise.

    It is measured on the first and holds for all, unless the times of acquisition differ: then each has its own.
    Values that are counts of events as acquired have a gain of exactly one, and white noise.

    Raises
    ------
    N2SError
        If the noise cannot be told or the data lie outside its law; see
        :func:`n2s_med.jobs.noise.choose_noise`.
    """
    plain, valid = volume.as_tensor(), torch.as_tensor(valid_mask(volume))
    spacing = volume.meta["spacing_mm"]
    if modality is not None and volume.meta.get("component", "magnitude") != "magnitude":
        modality = replace(modality, magnitude=False)
    if volume.meta.get("counts") and request.law == AUTO:
        request = NoiseRequest("poisson", {"gain": 1.0}, "white")
    alike = len(set(volume.meta.get("durations_s") or [None])) == 1
    choices: list[NoiseChoice] = []
    for y, inside in zip(plain, valid, strict=True):
        if alike and choices:
            choices[0].noise.law.check(y[inside])
            choices.append(choices[0])
        else:
            choices.append(choose_noise(y, inside, spacing, modality, request))
    return [Scan(*parts, volume) for parts in zip(plain, valid, choices, strict=True)]


def place_of(volume: MetaTensor) -> Path:
    """The file of a volume, or the folder of its files: what an error about it names."""
    files = [Path(name) for name in volume.meta["source"]]
    return files[0] if len(set(files)) == 1 else files[0].parent


def fit(
    scans: Sequence[Scan],
    config: TrainingConfig,
    compute: Compute,
    *,
    modality: Modality | None,
    tracker: Tracker,
    start: ScoreModel | None = None,
    directory: Path | None = None,
    quiet: bool = False,
) -> ScoreModel:
    """Train a score model on scans, or adapt one to them.

    Parameters
    ----------
    scans
        Noisy scans, all of two or all of three dimensions.
    config
        How to train.
    compute
        Device and number type.
    modality
        Written into the model, which then refuses scans of another one.
    tracker
        Takes losses and clean-free figures.
    start
        Weights to start from; the better of these and the trained ones by the clean-free figure are kept.
    directory
        Where the checkpoint is kept; ``None`` keeps none.
    quiet
        Show no progress bar.
    """
    units = [scan.unit(config.seed + index) for index, scan in enumerate(scans)]
    source = PatchSampler(units, edge=config.patch, held_out=config.held_out, seed=config.seed)
    tracker.params({f"data.{i}": unit.fingerprint() for i, unit in enumerate(units)})
    network, card = fit_to(source, config, compute, tracker=tracker, start=start, directory=directory, quiet=quiet)
    laws = {scan.choice.noise.law.name for scan in scans}
    return ScoreModel(
        network,
        scale=OBJECTIVES[config.objective](config.sigma_a).scale,
        modality=modality.name if modality else ANY,
        law=laws.pop() if len(laws) == 1 else ANY,
        card={
            **card,
            "data_sha256": [unit.fingerprint() for unit in units],
            "laws": [str(scan.choice.noise.law) for scan in scans],
        },
    )


def fit_to(
    source: PatchSource,
    config: TrainingConfig,
    compute: Compute,
    *,
    tracker: Tracker,
    start: ScoreModel | None = None,
    directory: Path | None = None,
    quiet: bool = False,
) -> tuple[ScoreUNet, dict[str, Any]]:
    """Train on a source of patches, with a progress bar and tracking; return the network and its card.

    Parameters
    ----------
    source
        Where the patches come from.
    config, compute, tracker, start, directory, quiet
        As for :func:`fit`.

    Raises
    ------
    ModelError
        If the weights to start from were trained under an objective of another scale.
    """
    if start is not None and start.scale != OBJECTIVES[config.objective](config.sigma_a).scale:
        raise ModelError(
            "the weights to start from need another objective",
            remedy="adapt them with objective total-unit-noise, or train from scratch",
        )
    network = start.centred(source.centre).network if start else None
    trainer = Trainer(source, config, compute, directory=directory, network=network)
    tracker.params({**asdict(config), "steps": trainer.steps, "device": str(compute.device), "bf16": compute.bf16})
    began, begun = time.perf_counter(), trainer.done
    with tqdm(total=trainer.steps, initial=begun, desc="training", unit="step", disable=quiet) as bar:

        def show(done: int, _: int, figures: Any) -> None:
            bar.update(done - bar.n)
            if figures and trainer.history.step[-1] == done:
                bar.set_postfix(loss=f"{figures['loss']:.4f}", sure=f"{figures['sure']:.4f}")
                tracker.metrics(figures, done)

        best = trainer.run(show)
    return best, {
        "version": n2s_med.__version__,
        "config": {**asdict(config), "channels": list(best.channels)},
        "started_from": start.hash if start else None,
        "steps": trainer.steps,
        "steps_done": trainer.done,
        "best_step": trainer.history.step[trainer.history.best],
        "sure": trainer.history.sure[trainer.history.best],
        "sure_at_start": trainer.history.sure[0] if start else None,
        "train_time_s": time.perf_counter() - began,
        "threads": torch.get_num_threads(),
        "machine": platform.machine(),
        "torch": str(torch.__version__),
    }


@dataclass(frozen=True)
class TrainJob:
    """Train on scans and leave the model in a folder.

    Attributes
    ----------
    inputs
        Files and folders of scans.
    out
        Folder for ``model.pt``, ``card.json`` and, while training, ``checkpoint.pt``.
    modality
        Modality of the scans; others found are left out.
    noise
        What is said of the noise.
    config
        How to train.
    compute
        Device and number type.
    overwrite
        Start anew where the folder holds a model.
    track
        Record the run with MLflow.
    quiet
        Show no progress bar.
    """

    inputs: Sequence[Path]
    out: Path
    modality: str
    noise: NoiseRequest = field(default_factory=NoiseRequest)
    config: TrainingConfig = field(default_factory=TrainingConfig)
    compute: Compute = field(default_factory=Compute.choose)
    overwrite: bool = False
    track: bool = True
    quiet: bool = False

    def run(self, say: Say) -> ScoreModel:
        """Train, or take up a run that was killed; return the model, which is then in the folder.

        Raises
        ------
        N2SError
            If an input cannot be used at all, or the folder holds another run.
        """
        model_file = self.out / "model.pt"
        if model_file.exists() and not self.overwrite:
            raise OutputError("there is a model already", remedy="give another --out or --overwrite", path=self.out)
        check_free(model_file, overwrite=True)
        modality = modality_named(self.modality)
        scans = self._scans(modality, say)
        if self.overwrite:
            for name in ("model.pt", "card.json", "checkpoint.pt", "run.json"):
                (self.out / name).unlink(missing_ok=True)
        run_file = self.out / "run.json"
        tracker = open_tracker(
            self.track,
            experiment="n2s-med train",
            run_name=self.out.name,
            directory=self.out,
            run_id=_left_run(run_file),
        )
        with tracker:
            if (started := getattr(tracker, "run_id", None)) is not None:
                _write_json(run_file, {"run_id": started})
            model = fit(
                scans,
                self.config,
                self.compute,
                modality=modality,
                tracker=tracker,
                directory=self.out,
                quiet=self.quiet,
            )
            model.save(model_file)
            _write_json(self.out / "card.json", {**model.card, "sha256": model.hash})
            self._show(model, scans[0], tracker)
        for name in ("checkpoint.pt", "run.json"):
            (self.out / name).unlink(missing_ok=True)
        return model

    def _scans(self, modality: Modality, say: Say) -> list[Scan]:
        """Every usable scan of the modality, and a line for each that is not."""
        scans: list[Scan] = []
        refused: list[N2SError] = []
        for path in self.inputs:
            contents = read(path)
            for refusal in contents.refusals:
                say(f"left out: {refusal}")
            for volume in contents.volumes:
                label, found = volume.meta["label"], volume.meta["modality"]
                if found not in (None, modality.name):
                    say(f"left out: {label}: it is {found}, not {modality.name}")
                    continue
                try:
                    new = scans_of(volume, modality, self.noise)
                except (InputError, NoiseLawError) as error:
                    refused.append(error.at(place_of(volume)))
                    say(f"left out: {refused[-1]}")
                    continue
                if scans and new[0].spatial_dims != scans[0].spatial_dims:
                    say(f"left out: {label}: single slices and volumes do not train together")
                    continue
                say(f"{label}: {new[0].choice.sentence}")
                for warning in new[0].choice.warnings:
                    say(f"warning: {label}: {warning}")
                scans += new
        if not scans and len(refused) == 1:
            raise refused[0]
        if not scans:
            raise InputError(f"no {modality.name} scan to train on was found", remedy="check the inputs and --modality")
        return scans

    def _show(self, model: ScoreModel, scan: Scan, tracker: Tracker) -> None:
        """Track the model, and a picture of what it does to the first scan."""
        denoised = Denoiser(model, scan.choice.noise, self.compute, DenoiseOptions(flips=False))(scan.y, scan.valid)
        tracker.metrics({"final_risk": denoised.figures.risk, "step_sure": denoised.figures.step_sure}, 0)
        if self.track:
            figure, _ = pictures.planes(
                scan.y,
                denoised.x_hat,
                spacing_mm=tuple(scan.volume.meta["spacing_mm"]),
                units=scan.volume.meta["units"],
                affine=scan.volume.affine,
            )
            tracker.picture(figure, "first_scan")
            shape = [min(32, n) for n in scan.y.shape[: scan.spatial_dims]]
            tracker.model(model.network.cpu(), torch.zeros(1, 1, *shape))


def _left_run(file: Path) -> str | None:
    """The tracked run that a killed training left, if its note of it is there and whole."""
    try:
        return str(json.loads(file.read_text(encoding="utf-8"))["run_id"])
    except (OSError, ValueError, LookupError, TypeError):
        return None


def _write_json(path: Path, content: dict[str, Any]) -> None:
    with whole(path, overwrite=True) as partial:
        partial.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
