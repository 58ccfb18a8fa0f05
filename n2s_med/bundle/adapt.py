"""Make the weights of a bundle: the base weights, adapted to noisy scans of its modality by its own ``train.json``.

No clean image is trained on, nor does one choose the weights. The figures on the bundle's card are from noisy scans
that were kept out, and from a phantom whose truth is known.
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
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import torch
from monai.bundle import ConfigWorkflow
from monai.data import MetaTensor
from torch import Tensor

from n2s_med.atomic import whole
from n2s_med.bundle.network import PACKAGED, settings_of
from n2s_med.bundle.transforms import NOISE, EstimateNoised, LoadScand
from n2s_med.errors import ConfigurationError, InputError, NoiseLawError
from n2s_med.jobs.noise import NoiseChoice
from n2s_med.noise import NoiseModel, law_named
from n2s_med.phantoms import brain_phantom, ct_phantom, pet_phantom, textured_volume
from n2s_med.phantoms.scene import Dice
from n2s_med.score import ScoreModel
from n2s_med.score.model import load_tensors, save_tensors

KEPT_OUT = 6
"""One in this many scans chooses the weights and is not trained on."""

PLANE = 192
"""Edge of a generated image, in pixels."""

LOOKS = (4.0, 32.0)
"""Range of the looks of generated speckle; log-uniform between these."""

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
        Number of generated images with generated speckle.
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
        usable, laws = _usable(recipe, data, measure, work / "generated")
        began = time.process_time()
        trained = _train(bundle, usable, base, {**recipe.training, "estimate": measure}, work)
        card = {
            **trained,
            "laws": dict(laws.most_common()),
            "train_time_s": time.process_time() - began,
            "scans": len(usable) - len(usable[::KEPT_OUT]),
            "scans_kept_out": len(usable[::KEPT_OUT]),
            "scans_sha256": [hashlib.sha256(path.read_bytes()).hexdigest() for path in usable],
            "attribution": recipe.attribution,
            "started_from": start.hash,
            "channels": list(start.network.channels),
            "threads": torch.get_num_threads(),
            "machine": platform.machine(),
            "torch": str(torch.__version__),
            "reference": _reference(bundle, measure, base, work),
        }
        state = load_tensors(work / "models" / "model.pt")
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
    """Measures the noise of a scan once, however often the scan is read."""

    def __init__(self, keys: str, modality: str) -> None:
        super().__init__(keys, modality)
        self.known = dict[tuple[str, ...], tuple[NoiseChoice, ...]]()

    def _choices(self, volume: MetaTensor) -> tuple[NoiseChoice, ...]:
        files = tuple(volume.meta["source"])
        if files not in self.known:
            self.known[files] = super()._choices(volume)
        return self.known[files]


def _usable(recipe: Recipe, data: Path, measure: _Once, generated: Path) -> tuple[list[Path], Counter[str]]:
    """Scans whose noise can be told, and how many have which law; why others are left out goes to the log."""
    found = [path for pattern in recipe.scans for path in sorted(data.glob(pattern))]
    if recipe.scans and not found:
        raise InputError("the recipe finds no scans here", remedy="let N2S_DATA name the folder of the data", path=data)
    usable, laws = list[Path](), Counter[str]()
    for path in [*found, *_generated(generated, recipe.generated)]:
        try:
            noise = measure(LoadScand("image")({"image": path}))["image"].meta[NOISE][0].noise
        except (InputError, NoiseLawError) as error:
            log.warning("left out: %s", error)
            continue
        usable.append(path)
        laws[noise.law.name] += 1
    if len(usable) < 2:
        raise InputError("fewer than two scans can be used", remedy="correct the recipe", path=data)
    return usable, laws


def _generated(folder: Path, count: int) -> list[Path]:
    """Write images of generated anatomy with fully developed speckle."""
    folder.mkdir()
    files = [folder / f"{number:03d}.nii.gz" for number in range(count)]
    for number, file in enumerate(files):
        dice = Dice(torch.Generator().manual_seed(number))
        plane = textured_volume((PLANE, PLANE, 8), dice.generator)[..., 4]
        x = 20 + 200 * plane.clamp(0, 1)
        _write(file, law_named("gamma", k=dice.log_uniform(*LOOKS)).sample(x, dice.generator))
    return files


def _write(file: Path, values: Tensor) -> Path:
    volume = np.atleast_3d(values.numpy()).astype(np.float32)
    nib.save(nib.Nifti1Image(volume, np.eye(4)), file)
    return file


# -- training ----------------------------------------------------------------------------------------------


def _train(bundle: Path, scans: Sequence[Path], base: Path, keys: Mapping[str, Any], work: Path) -> dict[str, Any]:
    """Train by the bundle's own configuration; the best weights are then in ``models/model.pt`` of ``work``."""
    kept_out = set(scans[::KEPT_OUT])
    listed = {
        "training": [{"image": str(path)} for path in scans if path not in kept_out],
        "validation": [{"image": str(path)} for path in scans if path in kept_out],
    }
    (work / "list.json").write_text(json.dumps(listed), encoding="utf-8")
    places = {"ckpt_dir": work / "models", "cache_dir": work / "cache", "output_dir": work / "train"}
    workflow = _run(bundle, ["train"], work / "list.json", base, **{k: str(v) for k, v in places.items()}, **keys)
    best, shown = workflow.parser.get_parsed_content("best"), workflow.parser
    return {
        "clean_free_base": best.first,
        "clean_free": best.risk,
        "steps": workflow.trainer.state.iteration,
        **{key: shown.get_parsed_content(key) for key in ("patch", "patches", "sigma_a", "learning_rate", "seed")},
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
        keys = {"output_dir": str(out), "flips": False, "estimate": measure}
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
    laws = ", ".join(f"{name} {count}" for name, count in card["laws"].items())
    patches = f"{card['steps']:,} steps of {card['patches']} patches of edge {card['patch']}"
    channels = "/".join(map(str, card["channels"]))
    minutes = card["train_time_s"] / 60
    risks, rmse = (card["clean_free_base"], card["clean_free"]), card["reference"]
    origin = f"adapted to\n{card['scans']} noisy scans; {card['scans_kept_out']} more chose them"
    if risks[1] >= risks[0]:
        origin = f"as they\nare: {card['scans_kept_out']} scans kept out do not tell that adaptation betters them"
    return f"""\
**Weights.** `models/model.pt`: the base weights of the package n2s-med (channels {channels}), {origin}.
{card["attribution"]}.
Law of the noise as measured: {laws}.
{patches}, perturbation {card["sigma_a"]:g} noise SDs, learning rate {card["learning_rate"]:g}, seed {card["seed"]};
{card["threads"]} CPU thread(s), {card["machine"]}, torch {card["torch"]}; processor time {minutes:.1f} min.
No clean image was used, in training or in choosing the weights. SHA-256 {card["sha256"]};
those of the scans and of the base weights are in `weights.json`.

| | noisy | base weights | these |
|---|---|---|---|
| scans kept out: noise variances left, by Stein's estimate | 1 | {risks[0]:.3f} | {risks[1]:.3f} |
| phantom of known truth: RMSE | {rmse["noisy"]:.4g} | {rmse["base"]:.4g} | {rmse["adapted"]:.4g} |
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
