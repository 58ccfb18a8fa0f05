"""Train a score model, with a progress bar and tracking: what all the jobs that train do."""

from __future__ import annotations

import platform
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

import n2s_med
from n2s_med.compute import Compute
from n2s_med.errors import ModelError
from n2s_med.jobs.scans import Scan
from n2s_med.modalities import Modality
from n2s_med.score import ANY, OBJECTIVES, ScoreModel
from n2s_med.score.patches import PatchSampler, PatchSource
from n2s_med.tracking import Tracker
from n2s_med.training import Trainer, TrainingConfig


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
    hashes = [unit.fingerprint() for unit in units]
    tracker.params({f"data.{i}": value for i, value in enumerate(hashes)})
    model = fit_to(source, config, compute, tracker=tracker, start=start, directory=directory, quiet=quiet)
    laws = {scan.choice.noise.law.name for scan in scans}
    return replace(
        model,
        modality=modality.name if modality else ANY,
        law=laws.pop() if len(laws) == 1 else ANY,
        card={**model.card, "data_sha256": hashes, "laws": [str(scan.choice.noise.law) for scan in scans]},
    )


def fit_to(
    source: PatchSource,
    config: TrainingConfig,
    compute: Compute,
    *,
    tracker: Tracker,
    start: ScoreModel | None = None,
    teacher: ScoreModel | None = None,
    directory: Path | None = None,
    quiet: bool = False,
) -> ScoreModel:
    """Train on a source of patches, with a progress bar and tracking; return a model of any modality and law.

    Parameters
    ----------
    source
        Where the patches come from.
    config, compute, tracker, start, directory, quiet
        As for :func:`fit`.
    teacher
        A model whose mean over all orientations is learned, see :class:`~n2s_med.training.Trainer`.

    Raises
    ------
    ModelError
        If the weights to start from, or the teacher's, were trained under another objective than they need here.
    """
    scale = OBJECTIVES[config.objective](config.sigma_a).scale
    if start is not None and start.scale != scale:
        raise ModelError(
            "the weights to start from need another objective",
            remedy="adapt them with objective total-unit-noise, or train from scratch",
        )
    if teacher is not None and not teacher.scale == scale == 1:
        raise ModelError(
            "a teacher and who learns from it need objective total-unit-noise",
            remedy="give --set objective=total-unit-noise, and a teacher that was trained so",
        )
    network, taught_by = (model.centred(source.centre).network if model else None for model in (start, teacher))
    trainer = Trainer(source, config, compute, directory=directory, network=network, teacher=taught_by)
    tracker.params({**asdict(config), "steps": trainer.steps, "device": str(compute.device), "bf16": compute.bf16})
    with tqdm(total=trainer.steps, initial=trainer.done, desc="training", unit="step", disable=quiet) as bar:

        def show(done: int, _: int, figures: Any) -> None:
            bar.update(done - bar.n)
            if figures and trainer.history.step[-1] == done:
                bar.set_postfix(loss=f"{figures['loss']:.4f}", sure=f"{figures['sure']:.4f}")
                tracker.metrics(figures, done)

        model = trainer.trained(show)
    card = {
        "version": n2s_med.__version__,
        "config": {**asdict(config), "channels": list(model.network.channels)},
        "started_from": start.hash if start else None,
        "taught_by": teacher.hash if teacher else None,
        "steps": trainer.steps,
        "steps_done": trainer.done,
        "best_step": trainer.history.step[trainer.history.best],
        "sure": trainer.history.sure[trainer.history.best],
        "sure_at_start": trainer.history.sure[0] if start else None,
        "unfit_sure": min(trainer.history.sure) if trainer.history.unfit else None,
        "train_time_s": trainer.seconds,
        "threads": torch.get_num_threads(),
        "machine": platform.machine(),
        "torch": str(torch.__version__),
    }
    return replace(model, card=card)
