"""Train base weights: the score network that every scan starts from."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from n2s_med.atomic import check_free, whole
from n2s_med.compute import Compute
from n2s_med.corpus import Corpus, Signal
from n2s_med.errors import InputError, OutputError
from n2s_med.jobs.train import Say, fit_to
from n2s_med.score import OBJECTIVES, ScoreModel
from n2s_med.tracking import open_tracker
from n2s_med.training import TrainingConfig
from n2s_med.volumes import read

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
            If the folder holds another model or run, or an input cannot be read.
        """
        file = self.out / "model.pt"
        if file.exists() and not self.overwrite:
            raise OutputError("there is a model already", remedy="give another --out or --overwrite", path=self.out)
        check_free(file, overwrite=True)
        if self.overwrite:
            (self.out / "checkpoint.pt").unlink(missing_ok=True)
        scans = self._scans(say)
        held_out = {name: signal for name, signal in scans.items() if int(name, 16) % HELD_OUT == 0}
        trained_on = {name: signal for name, signal in scans.items() if name not in held_out}
        source = Corpus(
            trained_on, held_out, spatial_dims=self.spatial_dims, edge=self.config.patch, seed=self.config.seed
        )
        with open_tracker(
            self.track, experiment="n2s-med train-base", run_name=self.out.name, directory=self.out
        ) as tracker:
            network, card = fit_to(
                source, self.config, self.compute, tracker=tracker, directory=self.out, quiet=self.quiet
            )
        card |= {
            "corpus": f"generated volumes and {len(trained_on)} noisy scans; {len(held_out)} more chose the weights",
            "corpus_sha256": source.fingerprint(),
            "scans_sha256": sorted(trained_on),
            "held_out_sha256": sorted(held_out),
            "attribution": self.attribution,
            "spatial_dims": self.spatial_dims,
        }
        objective = OBJECTIVES[self.config.objective](self.config.sigma_a)
        model = ScoreModel(network, scale=objective.scale, card=card)
        model.save(file)
        card["sha256"] = model.hash
        for name, text in (("card.json", json.dumps(card, indent=2) + "\n"), ("MODEL_CARD.md", model_card(card))):
            with whole(self.out / name, overwrite=True) as partial:
                partial.write_text(text, encoding="utf-8")
        (self.out / "checkpoint.pt").unlink(missing_ok=True)
        return model

    def _scans(self, say: Say) -> Mapping[str, Signal]:
        """Every usable volume of the inputs, by the SHA-256 of its values."""
        signals: dict[str, Signal] = {}
        for path in self.inputs:
            contents = read(path)
            for refusal in contents.refusals:
                say(f"left out: {refusal}")
            for volume in contents.volumes:
                y = volume.as_tensor()[0]
                try:
                    signal = Signal.of_scan(y, volume.meta["spacing_mm"])
                except InputError as error:
                    say(f"left out: {volume.meta['label']}: {error}")
                    continue
                signals[hashlib.sha256(y.contiguous().numpy().tobytes()).hexdigest()] = signal
        return signals


def model_card(card: Mapping[str, Any]) -> str:
    """The card as a page, for whoever is handed the weights."""
    config = card["config"]
    passed, minutes = card["steps_done"] * config["patches"], card["train_time_s"] / 60
    return f"""\
# Base weights of n2s-med

| | |
|---|---|
| network | score UNet, channels {"/".join(str(c) for c in config["channels"])}; sees noise of variance one |
| weights | SHA-256 {card["sha256"]} |
| trained on | {card["corpus"]} |
| objective | {config["objective"]}, perturbation {config["sigma_a"]:g} noise SDs; no clean volume is shown |
| noise | Gaussian, white or correlated, and counts; contrast of the volumes 6 to 250 noise SDs |
| training | {card["steps_done"]:,} steps, {passed:,} patches of edge {config["patch"]}; seed {config["seed"]} |
| hardware | {card["threads"]} CPU thread(s), {card["machine"]}, torch {card["torch"]}; {minutes:.0f} min |
| clean-free figure | {card["sure"]:.3f} noise variances left, by Stein's estimate on held-out noisy volumes |

**Intended use.** Research: a start for denoising PET, CT, MR and ultrasound in the unit-noise domain, as it is or
adapted to the scan at hand. Not for diagnosis.

**Limits.** Anatomy and texture unlike those above, structure at the scale of one voxel and contrast below a few noise
SDs are smoothed. Read the trust checks, the difference picture and the SD map of each result.

**Data.** {card["attribution"] or "Generated volumes alone."} SHA-256 of every scan's values: `card.json`. Made again by
`n2s-med train-base SCANS --config configs/base-{card["spatial_dims"]}d.json --dims {card["spatial_dims"]} --out DIR`.
"""
