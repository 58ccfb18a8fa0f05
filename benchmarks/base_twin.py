#!/usr/bin/env python
"""Hold base weights, which never saw a clean volume, against their supervised twin.

    n2s-med train-base $N2S_DATA/training_sts --config configs/base-3d-small-untaught.json --out WEIGHTS
    python benchmarks/base_twin.py $N2S_DATA/training_sts --model WEIGHTS --work DIR

The twin is the same network under the same configuration and seed. It is shown the same patches under the same noise
and the same perturbations, step by step, and learns the volume that the noise was put on instead of the perturbation.
Both then denoise, as they are, phantoms that neither has seen. Training takes as long as the base weights took; a run
that was killed goes on from its checkpoint in ``--work``.
"""

from __future__ import annotations

import argparse
import os
import statistics
import sys
import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import torch
from arms import Settings
from arms.ours import as_they_are
from arms.twins import expected_unit
from cases import COLUMNS, Volume, phantom, scan_of
from records import cell, grid, psnr, write_between_markers
from torch import Tensor
from tqdm import tqdm

from n2s_med.compute import Compute, set_threads
from n2s_med.corpus import Corpus, Signal
from n2s_med.errors import InputError, N2SError
from n2s_med.jobs.base import BaseJob
from n2s_med.noise.scan import ScanNoise
from n2s_med.phantoms.scene import Dice
from n2s_med.score import ScoreModel
from n2s_med.score.objectives import TotalUnitNoise
from n2s_med.score.patches import Patch
from n2s_med.training import ADAPTATION, Trainer, TrainingConfig
from n2s_med.training.trainer import Sample

VOLUMES = ("brain", "ct", "pet")


class Silent(Dice):
    """The same draws, but for noise, which is none."""

    def normal(self, *shape: int) -> Tensor:
        """Zeros."""
        return torch.zeros(shape)


class CleanCorpus(Corpus):
    """The corpus; :attr:`clean` is what its last patch was before it got noise, in the unit-noise domain."""

    clean: Tensor

    def _noisy(self, x: Tensor, signal: Signal, dice: Dice, *counts: float, **named: float) -> tuple[Tensor, ScanNoise]:
        before = dice.generator.get_state()
        self.clean, _ = super()._noisy(x, signal, Silent(dice.generator), *counts, **named)
        dice.generator.set_state(before)
        return super()._noisy(x, signal, dice, *counts, **named)

    def _counts(self, expected: Tensor, noise: ScanNoise, dice: Dice) -> Tensor:
        if isinstance(dice, Silent):
            return expected_unit(noise.law, expected)
        return super()._counts(expected, noise, dice)


class SupervisedTrainer(Trainer):
    """Our trainer, its patches and what it shows of them, told the clean volume."""

    source: CleanCorpus
    objective: TotalUnitNoise

    def _perturbed(self, patch: Patch, generator: torch.Generator) -> list[Sample]:
        clean = self.source.clean / self.objective.norm
        (_, shown, _), *_ = super()._perturbed(patch, generator)
        return [(patch, shown, lambda score: (shown + score - clean).square())]


def main(argv: Sequence[str] | None = None) -> int:
    """Train the twin, compare; the exit status."""
    options = _parser().parse_args(argv)
    os.environ["OMP_NUM_THREADS"] = str(options.threads)
    set_threads(options.threads)
    try:
        ours = ScoreModel.load(options.model)
        twin = _twin(ours, options.scans, options.work)
    except N2SError as error:
        print(f"base_twin: {error}", file=sys.stderr)
        return error.exit_code
    settings = Settings(TrainingConfig(), ADAPTATION, Compute.choose())
    models = {"learned from noisy volumes": ours, "supervised twin": twin}
    tables = [_table(phantom(name), models, options, settings) for name in options.phantom]
    write_between_markers(options.out, "\n\n".join([_words(ours, options), *tables]), "twin")
    print(f"tables: {options.out}")
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("scans", nargs="+", type=Path, help="the scans that the base weights were trained on")
    add("--work", type=Path, required=True, help="folder for the twin's checkpoint")
    add("--model", type=Path, required=True, help="the weights that train-base made of them, without a teacher")
    add("--phantom", nargs="+", choices=VOLUMES, default=list(VOLUMES), help="default: all")
    add("--columns", nargs="+", choices=tuple(COLUMNS), default=list(COLUMNS), metavar="COLUMN", help="of %(choices)s")
    add("--seeds", type=int, default=3, help="seeds of the noise that is removed (default %(default)s)")
    add("--threads", type=int, default=1, help="threads (default %(default)s)")
    add("--out", type=Path, default=Path("docs/results.md"), help="Markdown file (default %(default)s)")
    return parser


def _twin(ours: ScoreModel, scans: Sequence[Path], work: Path) -> ScoreModel:
    """Train the twin of base weights, by what their card says of them.

    Raises
    ------
    InputError
        If the scans are not those that the base weights were trained on.
    """
    config = TrainingConfig.from_mapping(ours.card["config"])
    job = BaseJob(scans, work, config, spatial_dims=ours.card["spatial_dims"])
    trained_on, held_out = job.signals(lambda line: print(line, file=sys.stderr))
    if (sorted(trained_on), sorted(held_out)) != (ours.card["scans_sha256"], ours.card["held_out_sha256"]):
        raise InputError("these are not the scans of the base weights", remedy="give the same, or train both anew")
    source = CleanCorpus(trained_on, held_out, edge=config.patch, seed=config.seed)
    work.mkdir(parents=True, exist_ok=True)
    trainer = SupervisedTrainer(source, config, Compute.choose(), directory=work)
    with tqdm(total=trainer.steps, initial=trainer.done, desc="training the twin", unit="step") as bar:
        return trainer.trained(lambda done, *_: bar.update(done - bar.n))


def _table(volume: Volume, models: Mapping[str, ScoreModel], options: argparse.Namespace, settings: Settings) -> str:
    """PSNR of the models on one volume, and their difference."""
    figures: dict[str, list[list[float]]] = {title: [] for title in models}
    for column in options.columns:
        scans = [scan_of(volume, column, seed) for seed in range(options.seeds)]
        for title, model in models.items():
            blind = [replace(scan, clean=None) for scan in scans]
            figures[title].append([psnr(as_they_are(scan, model, settings).x_hat, volume.x) for scan in blind])
            print(f"{volume.name}, {column}, {title}: {cell(figures[title][-1], 2)} dB", flush=True)
    ours, twin = figures.values()
    gaps = [[a - b for a, b in zip(*pair, strict=True)] for pair in zip(ours, twin, strict=True)]
    rows = [[title, *(cell(values, 2) for values in lists)] for title, lists in figures.items()]
    rows.append(["difference", *(f"{statistics.fmean(gap):+.2f}" for gap in gaps)])
    return f"{volume.name[0].upper()}{volume.name[1:]}:\n\n" + grid(
        ["", *(COLUMNS[c].title for c in options.columns)], rows
    )


def _words(ours: ScoreModel, options: argparse.Namespace) -> str:
    config = ours.card["config"]
    channels = "/".join(str(c) for c in config["channels"])
    words = f"""Weights `{options.model.name}`, channels {channels}, and their supervised twin, each trained for
    {config["steps"]:,} steps of {config["patches"]} patches of {config["patch"]}³: {ours.card["corpus"]}. The twin
    learns the volumes before noise was put on them. PSNR in dB of both as they are, not adapted, two orientations, on
    phantoms that neither has seen; {options.seeds} seeds of noise."""
    return textwrap.fill(" ".join(words.split()), 120)


if __name__ == "__main__":
    sys.exit(main())
