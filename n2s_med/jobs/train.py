"""Train a model on scans of one modality: the job of ``n2s-med train``."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch

from n2s_med import pictures
from n2s_med.compute import Compute
from n2s_med.denoise import DenoiseOptions, Denoiser
from n2s_med.errors import InputError, N2SError, NoiseLawError
from n2s_med.jobs.fit import fit
from n2s_med.jobs.folder import ModelFolder
from n2s_med.jobs.noise import NoiseRequest
from n2s_med.jobs.scans import Say, Scan, place_of, scans_of, volumes_of
from n2s_med.modalities import Modality, modality_named
from n2s_med.score import ScoreModel
from n2s_med.tracking import Tracker
from n2s_med.training import TrainingConfig


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
        folder = ModelFolder(self.out, self.overwrite)
        folder.check()
        modality = modality_named(self.modality)
        scans = self._scans(modality, say)
        with folder.run("n2s-med train", track=self.track) as tracker:
            model = fit(
                scans,
                self.config,
                self.compute,
                modality=modality,
                tracker=tracker,
                directory=self.out,
                quiet=self.quiet,
            )
            folder.keep(model)
            self._show(model, scans[0], tracker)
        return model

    def _scans(self, modality: Modality, say: Say) -> list[Scan]:
        """Every usable scan of the modality, and a line for each that is not."""
        scans: list[Scan] = []
        refused: list[N2SError] = []
        for volume in volumes_of(self.inputs, say):
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
        denoised = Denoiser(model, scan.choice.noise, self.compute, DenoiseOptions(orientations=1))(scan.y, scan.valid)
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
