"""Train base weights: the score network that every scan starts from."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from n2s_med.compute import Compute
from n2s_med.corpus import Corpus, Signal
from n2s_med.errors import ConfigurationError, InputError
from n2s_med.jobs.fit import fit_to
from n2s_med.jobs.folder import ModelFolder
from n2s_med.jobs.scans import Say, volumes_of
from n2s_med.score import ANY, ScoreModel
from n2s_med.training import TrainingConfig

HELD_OUT = 10
"""One in this many scans, chosen by its hash, is kept for the clean-free figure."""


@dataclass(frozen=True)
class BaseJob:
    """Train base weights on noisy scans and on generated noisy volumes.

    Attributes
    ----------
    inputs
        Files and folders of scans; none at all trains on generated volumes alone.
    out
        Folder for ``model.pt``, ``card.json`` and, while training, ``checkpoint.pt``.
    config
        How to train.
    spatial_dims
        2 or 3.
    start
        Model whose weights are trained on; new ones by default.
    teacher
        Model whose mean over all orientations is learned, in one pass.
    attribution
        Where the scans come from and under which licence, for the card.
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
    config: TrainingConfig
    spatial_dims: int = 3
    start: Path | None = None
    teacher: Path | None = None
    attribution: str = ""
    compute: Compute = field(default_factory=Compute.choose)
    overwrite: bool = False
    track: bool = True
    quiet: bool = False

    def run(self, say: Say) -> ScoreModel:
        """Train, or take up a run that was killed; return the model, which is then in the folder.

        Raises
        ------
        N2SError
            If the folder holds another model or run, or an input or a model cannot be read or used.
        """
        folder = ModelFolder(self.out, self.overwrite)
        folder.check()
        start, teacher = self._model(self.start), self._model(self.teacher)
        if start and start.network.channels != self.config.channels:
            raise ConfigurationError(
                f"the weights to start from have channels {start.network.channels}, not {self.config.channels}",
                remedy="give --set channels=... as theirs are",
            )
        trained_on, held_out = self.signals(say)
        source = Corpus(
            trained_on, held_out, spatial_dims=self.spatial_dims, edge=self.config.patch, seed=self.config.seed
        )
        with folder.run("n2s-med train-base", track=self.track) as tracker:
            fitted = fit_to(
                source,
                self.config,
                self.compute,
                tracker=tracker,
                start=start,
                teacher=teacher,
                directory=self.out,
                quiet=self.quiet,
            )
            made_of = f"generated volumes and {len(trained_on)} noisy scans; {len(held_out)} more chose the weights"
            corpus = {
                "corpus": made_of,
                "corpus_sha256": source.fingerprint(),
                "scans_sha256": sorted(trained_on),
                "held_out_sha256": sorted(held_out),
                "attribution": self.attribution,
                "spatial_dims": self.spatial_dims,
                "teacher": dict(teacher.card) if teacher else None,
            }
            model = replace(fitted, card={**fitted.card, **corpus})
            folder.keep(model, model_card)
        return model

    def _model(self, path: Path | None) -> ScoreModel | None:
        """A model of volumes or slices, as is trained here, if one is named."""
        if path is None:
            return None
        model = ScoreModel.load(path)
        model.check_fits(modality=None, law=ANY, spatial_dims=self.spatial_dims)
        return model

    def signals(self, say: Say) -> tuple[Mapping[str, Signal], Mapping[str, Signal]]:
        """Every usable volume of the inputs, by the SHA-256 of its values: those trained on, those held out."""
        signals: dict[str, Signal] = {}
        for volume in volumes_of(self.inputs, say):
            y = volume.as_tensor()[0]
            try:
                signal = Signal.of_scan(y, volume.meta["spacing_mm"])
            except InputError as error:
                say(f"left out: {volume.meta['label']}: {error}")
                continue
            signals[hashlib.sha256(y.contiguous().numpy().tobytes()).hexdigest()] = signal
        held_out = {name: signal for name, signal in signals.items() if int(name, 16) % HELD_OUT == 0}
        return {name: signal for name, signal in signals.items() if name not in held_out}, held_out


def model_card(card: Mapping[str, Any], name: str) -> str:
    """The card as a page, for whoever is handed the weights; ``name`` is theirs and their configuration's."""
    config = card["config"]
    steps = f"{card['steps_done']:,} steps"
    passed, minutes = card["steps_done"] * config["patches"], card["train_time_s"] / 60
    objective = f"{config['objective']}, perturbation {config['sigma_a']:g} noise SDs; no clean volume is shown"
    made_again = f"--config configs/{name}.json --dims {card['spatial_dims']} --out DIR"
    if card["taught_by"]:
        objective = f"""\
in one pass the mean of a teacher over all orientations, of volumes perturbed by up to {config["sigma_a"]:g} noise \
SDs; no clean volume is shown |
| teacher | SHA-256 {card["taught_by"]}; its own card is in `card.json`"""
        made_again = f"--teacher DIR {made_again}"
    if card["started_from"]:
        steps = f"{steps} from weights with SHA-256 {card['started_from']}"
        made_again = f"--start DIR {made_again}"
    return f"""\
# Base weights of n2s-med

| | |
|---|---|
| network | score UNet, channels {"/".join(str(c) for c in config["channels"])}; sees noise of variance one |
| weights | SHA-256 {card["sha256"]} |
| trained on | {card["corpus"]} |
| objective | {objective} |
| noise | Gaussian, white or correlated, and counts; contrast of the volumes 6 to 250 noise SDs |
| training | {steps}, {passed:,} patches of edge {config["patch"]}; seed {config["seed"]} |
| hardware | {card["threads"]} CPU thread(s), {card["machine"]}, torch {card["torch"]}; {minutes:.0f} min |
| clean-free figure | {card["sure"]:.3f} noise variances left, by Stein's estimate on held-out noisy volumes |

**Intended use.** Research: a start for denoising PET, CT, MR and ultrasound in the unit-noise domain, as it is or
adapted to the scan at hand. Not for diagnosis.

**Limits.** Anatomy and texture unlike those above, structure at the scale of one voxel and contrast below a few noise
SDs are smoothed. Read the trust checks, the difference picture and the SD map of each result.

**Data.** {card["attribution"] or "Generated volumes alone."} SHA-256 of every scan's values: `card.json`. Made again by
`n2s-med train-base SCANS {made_again}`.
"""
