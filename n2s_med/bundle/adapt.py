"""Make the weights of a bundle: the base weights, adapted to noisy scans of its modality by its own ``train.json``.

No clean image is trained on. Scans whose noise follows no law that is found are left out: there the clean-free figure
of the base weights is no error between none and all of the noise. Of the others some are trained on, some choose the
weights, and some judge them. Where these do not find the adapted weights better than the base weights, or none of them
is a scanner's, the bundle gets the base weights, and its card says so. A phantom of known truth is measured, but for
the card alone.
"""

from __future__ import annotations

import difflib
import hashlib
import json
import logging
import platform
import tempfile
import time
from collections import Counter
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from types import MappingProxyType
from typing import Any

import nibabel as nib
import numpy as np
import torch
from monai.bundle import ConfigWorkflow
from monai.data import MetaTensor
from torch import Tensor

from n2s_med.atomic import whole
from n2s_med.bundle.inferers import RiskInferer
from n2s_med.bundle.network import score_network, settings_of
from n2s_med.bundle.transforms import EstimateNoised, HeldOutd, LoadScand, ToPatchesd
from n2s_med.errors import ConfigurationError, InputError, NoiseLawError
from n2s_med.jobs.noise import NoiseChoice, NoiseRequest
from n2s_med.noise import NoiseModel, law_named
from n2s_med.phantoms import brain_phantom, ct_phantom, pet_phantom, textured_volume
from n2s_med.phantoms.scene import Dice
from n2s_med.phantoms.shapes import SCENES
from n2s_med.score import ScoreModel
from n2s_med.score.model import PACKAGED, load_tensors, save_tensors
from n2s_med.tracking import environment

SHARES = 5
"""One in this many scans chooses the weights, another judges them, and the others are trained on."""

HELD_OUT = 0.2
"""Fraction of the voxels of a scan that chooses or judges, by which it does."""

PLANE, EDGE = 192, 48
"""Edge of a generated image, in pixels, and of a generated volume, in voxels."""

LOW, RANGE = 20.0, 200.0
"""Least intensity of what is generated, and how far above it the largest is."""

LEVELS: Mapping[str, tuple[str, tuple[float, float]]] = MappingProxyType(
    {
        "gaussian": ("sigma", (RANGE / 100, RANGE / 6)),
        "poisson": ("gain", (RANGE / 400, RANGE / 10)),
        "gamma": ("k", (4.0, 32.0)),
    }
)
"""Parameter of a law and its range for what is generated; log-uniform between these."""

KINDS: Mapping[str, Sequence[str]] = MappingProxyType(
    {"ct": ("trunk",), "pet": ("uptake",), "mr": ("head", "trunk_mr"), "us": tuple(SCENES)}
)
"""Kinds of generated anatomy by modality; none is drawn for ultrasound, which takes all."""

ROWS = {"scans": "scans kept out", "generated": "generated scans kept out"}
"""What the card calls the scans that judge."""

SHOWN = ("patch", "patches", "sigma_a", "kept_counts", "learning_rate", "seed")
"""Keys of the training that the card shows."""

BEGIN, END = "<!-- weights -->", "<!-- /weights -->"
"""Around the part of a bundle's card that tells of its weights."""

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Recipe:
    """What a bundle's weights are made of.

    Attributes
    ----------
    scans
        Patterns of paths below the folder of the data.
    attribution
        Where the scans come from and under which licence, for the card.
    generated
        Number of generated volumes (images, for ultrasound) with noise of the modality's usual law, known exactly.
    training
        Keys of the bundle's ``train.json``.
    """

    scans: Sequence[str] = ()
    attribution: str = ""
    generated: int = 0
    training: Mapping[str, Any] = field(default_factory=dict)

    @classmethod
    def read(cls, file: Path, bundle: str) -> Recipe:
        """Read the recipe of a bundle from a file with one for each.

        Raises
        ------
        ConfigurationError
            If it has none, or an unknown key.
        """
        try:
            content = json.loads(file.read_text(encoding="utf-8"))
            recipe: Mapping[str, Any] = content[bundle]
        except (OSError, ValueError, LookupError, TypeError) as error:
            raise ConfigurationError(f"no recipe for {bundle}", remedy="give it one", path=file) from error
        known = [key.name for key in fields(cls)]
        for key in recipe:
            if key not in known:
                near = difflib.get_close_matches(key, known, n=1, cutoff=0.0)[0]
                raise ConfigurationError(f"unknown key {key!r}", remedy=f"did you mean {near!r}?", path=file)
        return cls(**recipe)


def adapt(bundle: Path, recipe: Recipe, data: Path) -> list[Path]:
    """Adapt the base weights to the scans of a recipe; return the weights and the card.

    Parameters
    ----------
    bundle
        Folder of the bundle.
    recipe
        What to train on, and how.
    data
        Folder of the scans.

    Raises
    ------
    N2SError
        If the recipe finds no scan that can be used, or the training fails.
    """
    settings = settings_of(bundle)
    base = PACKAGED / f"base-{settings['spatial_dims']}d" / "model.pt"
    start = ScoreModel.load(base)
    with tempfile.TemporaryDirectory() as made:
        work = Path(made)
        measure = _Once("image", settings["modality"])
        judge = _Judge(measure, settings)
        scans = [*_real(recipe, data, judge, base), *_generated(work / "generated", recipe.generated, measure)]
        if len(scans) < 3:
            raise InputError("fewer than three scans can be used", remedy="correct the recipe", path=data)
        choosing, judging = scans[::SHARES], scans[1::SHARES]
        learning = [path for path in scans if path not in {*choosing, *judging}]
        began = time.process_time()
        trained = _train(bundle, learning, choosing, base, {**recipe.training, "estimate": measure}, work)
        spent = time.process_time() - began
        adapted = work / "models" / "model.pt"
        judged = _judged(judge, judging, work / "generated", {"base": base, "adapted": adapted})
        reference = _reference(bundle, measure, base, work)
        kept = _better(judged)
        card = {
            **trained,
            "adapted": kept,
            "judged": judged,
            "laws": dict(Counter(measure.law(path) for path in scans).most_common()),
            "train_time_s": spent,
            "scans": {"trained": len(learning), "chose": len(choosing), "judged": len(judging)},
            "generated": recipe.generated,
            "scans_sha256": [hashlib.sha256(file.read_bytes()).hexdigest() for path in scans for file in _files(path)],
            "attribution": recipe.attribution,
            "started_from": start.hash,
            "channels": list(start.network.channels),
            "threads": torch.get_num_threads(),
            "machine": platform.machine(),
            "torch": str(torch.__version__),
            "commit": environment.commit(),
            "reference": reference,
        }
        state = load_tensors(adapted) if kept else start.network.state_dict()
    card["sha256"] = _hash_of(state)
    weights, told, page = (bundle / name for name in ("models/model.pt", "docs/weights.json", "docs/README.md"))
    weights.parent.mkdir(exist_ok=True)
    save_tensors(state, weights)
    _replace(told, json.dumps(card, indent=2) + "\n")
    before, rest = page.read_text(encoding="utf-8").split(BEGIN)
    _replace(page, f"{before}{BEGIN}\n{weights_section(card)}{END}{rest.split(END)[1]}")
    return [weights, told, page]


# -- scans -------------------------------------------------------------------------------------------------


class _Once(EstimateNoised):
    """Measures the noise of a scan once, however often the scan is read; that of a generated one is known."""

    def __init__(self, keys: str, modality: str) -> None:
        super().__init__(keys, modality)
        self.asked, self.given = self.request, dict[tuple[str, ...], NoiseRequest]()
        self.known = dict[tuple[str, ...], tuple[NoiseChoice, ...]]()

    def know(self, path: Path, law: NoiseModel) -> None:
        """Take the noise of a file to be white and of a law."""
        level = {name: float(value) for name, value in law.parameters.items()}
        self.given[(str(path),)] = NoiseRequest(law.name, level, "white")

    def law(self, path: Path) -> str:
        """Name of the law of a scan that was measured or is known."""
        files = next(files for files in self.known if files[0] == str(path) or Path(files[0]).parent == path)
        return self.known[files][0].noise.law.name

    def _choices(self, volume: MetaTensor) -> tuple[NoiseChoice, ...]:
        files = tuple(volume.meta["source"])
        if files not in self.known:
            self.request = self.given.get(files, self.asked)
            self.known[files] = super()._choices(volume)
        return self.known[files]


class _Judge:
    """The clean-free figure of weights on scans that they were not trained on."""

    def __init__(self, measure: _Once, settings: Mapping[str, Any]) -> None:
        self.made_as = settings["spatial_dims"], settings["architecture"]
        self.steps = (LoadScand("image"), measure, ToPatchesd("image", held_out=HELD_OUT), HeldOutd("image"))

    def __call__(self, scans: Sequence[Path], weights: Path) -> float:
        """Remaining error over the held-out voxels of scans, in noise variances."""
        network, infer = score_network(*self.made_as, str(weights)).eval(), RiskInferer("cpu", "auto")
        sums = torch.stack([infer(self._held_out(path), network) for path in scans]).double().sum(0)
        return float(sums[0] / sums[1])

    def _held_out(self, path: Path) -> Mapping[str, Any]:
        item: dict[Hashable, Any] = {"image": path}
        for step in self.steps:
            item = step(item)
        held_out: Mapping[str, Any] = item["image"]
        return held_out


def _real(recipe: Recipe, data: Path, judge: _Judge, base: Path) -> list[Path]:
    """Scans whose noise is told by a law; why others are left out goes to the log."""
    found = [path for pattern in recipe.scans for path in sorted(data.glob(pattern))]
    if recipe.scans and not found:
        raise InputError("the recipe finds no scans here", remedy="let N2S_DATA name the folder of the data", path=data)
    usable = []
    for path in found:
        try:
            figure = judge([path], base)
        except (InputError, NoiseLawError) as error:
            log.warning("left out: %s", error)
            continue
        if 0 < figure < 1:
            usable.append(path)
        else:
            log.warning("left out: %s: no law of noise holds, the clean-free figure is %.2f", path, figure)
    return usable


def _files(path: Path) -> list[Path]:
    """The files of a scan."""
    return sorted(file for file in path.iterdir() if file.is_file()) if path.is_dir() else [path]


def _generated(folder: Path, count: int, measure: _Once) -> list[Path]:
    """Write generated anatomy with white noise of the modality's usual law, which is told to ``measure``."""
    folder.mkdir()
    modality = measure.modality
    name, (low, high) = LEVELS[modality.law]
    files = [folder / f"{number:03d}.nii.gz" for number in range(count)]
    for number, file in enumerate(files):
        dice = Dice(torch.Generator().manual_seed(number))
        kind = dice.pick(list(KINDS[modality.name]))
        if modality.name == "us":
            x = textured_volume((PLANE, PLANE, 8), dice.generator, kind=kind)[..., 4]
        else:
            x = textured_volume((EDGE, EDGE, EDGE), dice.generator, kind=kind)
        law = law_named(modality.law, **{name: dice.log_uniform(low, high)})
        measure.know(_write(file, law.sample(LOW + RANGE * x, dice.generator)), law)
    return files


def _write(file: Path, values: Tensor) -> Path:
    volume = np.atleast_3d(values.numpy()).astype(np.float32)
    nib.save(nib.Nifti1Image(volume, np.eye(4)), file)
    return file


# -- training ----------------------------------------------------------------------------------------------


def _train(
    bundle: Path, learning: Sequence[Path], choosing: Sequence[Path], base: Path, keys: Mapping[str, Any], work: Path
) -> dict[str, Any]:
    """Train by the bundle's own configuration; the best weights are then in ``models/model.pt`` of ``work``."""
    listed = {
        "training": [{"image": str(path)} for path in learning],
        "validation": [{"image": str(path)} for path in choosing],
    }
    (work / "list.json").write_text(json.dumps(listed), encoding="utf-8")
    places = {"ckpt_dir": work / "models", "cache_dir": work / "cache", "output_dir": work / "train"}
    telling = {"validate#preprocessing#transforms#2": ToPatchesd("image", held_out=HELD_OUT)}
    words = {name: str(place) for name, place in places.items()} | telling
    workflow = _run(bundle, ["train"], work / "list.json", base, **words, **keys)
    best, shown = workflow.parser.get_parsed_content("best"), workflow.parser
    return {
        "chosen_by": {"base": best.first, "adapted": best.risk},
        "steps": workflow.trainer.state.iteration,
        **{key: shown.get_parsed_content(key) for key in SHOWN},
    }


def _run(bundle: Path, configs: Sequence[str], data: Path, weights: Path, **keys: Any) -> ConfigWorkflow:
    workflow = ConfigWorkflow(
        [str(bundle / "configs" / f"{name}.json") for name in configs],
        workflow_type="train",
        logging_file=False,
        bundle_root=str(bundle),
        dataset_dir=str(data),
        ckpt_path=str(weights),
        **keys,
    )
    workflow.initialize()
    workflow.run()
    workflow.finalize()
    return workflow


def _judged(judge: _Judge, scans: Sequence[Path], generated: Path, weights: Mapping[str, Path]) -> dict[str, Any]:
    """Clean-free figures of weights by name, on noisy scans and on generated ones, where there are any."""
    kinds = {
        "scans": [path for path in scans if path.parent != generated],
        "generated": [path for path in scans if path.parent == generated],
    }
    return {kind: {name: judge(some, file) for name, file in weights.items()} for kind, some in kinds.items() if some}


def _better(judged: Mapping[str, Mapping[str, float]]) -> bool:
    """Whether the scans that judge find the adapted weights better; no clean image is asked.

    An error below zero judges nothing. Nor do generated scans alone: weights adapted to their own kind of image say
    nothing of a scanner's.
    """
    return "scans" in judged and all(0 < row["adapted"] < row["base"] for row in judged.values())


# -- figures -----------------------------------------------------------------------------------------------


def _reference(bundle: Path, measure: _Once, base: Path, work: Path) -> dict[str, float]:
    """RMSE on a phantom of known truth, in its units: noisy, by the base weights, and by the adapted ones."""
    clean, law = _phantom(measure.modality.name)
    _write(work / "clean.nii.gz", clean)
    _write(work / "noisy.nii.gz", law.sample(clean, torch.Generator().manual_seed(0)))
    rows = {"validation": [{"image": "noisy.nii.gz", "reference": "clean.nii.gz"}]}
    (work / "phantom.json").write_text(json.dumps(rows), encoding="utf-8")
    told = dict[str, float]()
    for name, weights in (("base", base), ("adapted", work / "models" / "model.pt")):
        out = work / name
        keys = {"output_dir": str(out), "orientations": 1, "estimate": measure}
        _run(bundle, ["train", "evaluate"], work / "phantom.json", weights, **keys)
        (row,) = json.loads((out / "figures.json").read_text(encoding="utf-8"))
        told |= {"noisy": row["rmse_noisy"], name: row["rmse_denoised"]}
    return told


def _phantom(modality: str) -> tuple[Tensor, NoiseModel]:
    """A clean phantom of a modality, and the noise that is put on it."""
    if modality == "pet":
        activity = pet_phantom().activity
        return activity, law_named("poisson", gain=float(activity[activity > 0].median()) / 20)
    if modality == "us":
        plane = textured_volume((PLANE, PLANE, 8), torch.Generator().manual_seed(-1))[..., 4]
        return 20 + 200 * plane.clamp(0, 1), law_named("gamma", k=8.0)
    x = ct_phantom() if modality == "ct" else brain_phantom()
    return x, law_named("gaussian", sigma=float(x.max() - x.min()) / 40)


# -- card --------------------------------------------------------------------------------------------------


def weights_section(card: Mapping[str, Any]) -> str:
    """The part of a bundle's card that tells of its weights."""
    channels, scans, chosen = "/".join(map(str, card["channels"])), card["scans"], card["chosen_by"]
    laws = ", ".join(f"{name} {count}" for name, count in card["laws"].items())
    total = sum(scans.values())
    base = "as they\nare: adapted as follows they were not better, or only generated scans could tell"
    origin = "adapted as follows" if card["adapted"] else base
    rmse = card["reference"]
    rows = "".join(
        f"| {ROWS[kind]}: noise variances left, by Stein's estimate | 1 | {row['base']:.3f} | {row['adapted']:.3f} |\n"
        for kind, row in card["judged"].items()
    )
    told = {
        "data": card["attribution"],
        "noisy scans": f"{total}, of which {card['generated']} generated: {scans['trained']} trained on,"
        f" {scans['chose']} chose the weights, {scans['judged']} judge them",
        "law of the noise": f"as measured, or known: {laws}",
        "training": f"{card['steps']:,} steps of {card['patches']} patches of edge {card['patch']},"
        f" perturbation {card['sigma_a']:g} noise SDs (few whole counts: {card['kept_counts']:g} of each shown),"
        f" learning rate {card['learning_rate']:g}, seed {card['seed']}",
        "chosen by": f"{chosen['base']:.3f} noise variances left before, {chosen['adapted']:.3f} after",
        "hardware, time": f"{card['threads']} CPU thread(s), {card['machine']}, torch {card['torch']};"
        f" processor time {card['train_time_s'] / 60:.1f} min",
        "SHA-256": f"{card['sha256']}; those of the scans and of the base weights are in `weights.json`",
    }
    made = "".join(f"| {name} | {what} |\n" for name, what in told.items())
    return f"""\
**Weights.** `models/model.pt`: the base weights of the package n2s-med (channels {channels}), {origin}.

| | |
|---|---|
{made}
No clean image was used to train or to choose. Adapted weights are kept where a scanner's scans, kept out, find them
better; the phantom is for the reader:

| | noisy | base weights | adapted |
|---|---|---|---|
{rows}| phantom of known truth: RMSE | {rmse["noisy"]:.4g} | {rmse["base"]:.4g} | {rmse["adapted"]:.4g} |
"""


def _hash_of(state: Mapping[str, Tensor]) -> str:
    """SHA-256 over tensors, in hexadecimal."""
    digest = hashlib.sha256()
    for name, tensor in sorted(state.items()):
        digest.update(name.encode())
        digest.update(tensor.contiguous().numpy().tobytes())
    return digest.hexdigest()


def _replace(file: Path, text: str) -> None:
    with whole(file, overwrite=True) as partial:
        partial.write_text(text, encoding="utf-8")
