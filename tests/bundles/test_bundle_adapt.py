"""Weights of a bundle by recipe: what they are made of is on the card, and nothing clean is among it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from bundle_runs import BUNDLES, DIMS, SMALL, TINY, network_of, small_bundle, write_scan

from n2s_med.bundle import adapt as module
from n2s_med.bundle.__main__ import main
from n2s_med.bundle.adapt import Recipe
from n2s_med.bundle.transforms import NOISE, EstimateNoised, LoadScand
from n2s_med.errors import ConfigurationError, InputError
from n2s_med.noise import law_named
from n2s_med.score import ScoreModel

TRAINING = {key: value for key, value in TINY.items() if key != "precision"} | {"learning_rate": 0.02}
RECIPES = json.loads((BUNDLES.parent / "configs" / "bundles.json").read_text(encoding="utf-8"))


@pytest.fixture
def base(tmp_path, monkeypatch):
    """Base weights of a moment, and phantoms of a moment."""
    for dims in (2, 3):
        ScoreModel(network_of(dims)).save(tmp_path / "packaged" / f"base-{dims}d" / "model.pt")
    monkeypatch.setattr(module, "PACKAGED", tmp_path / "packaged")
    clean = torch.full((24, 24, 20), 50.0)
    clean[6:16, 6:16, 6:16] = 100.0
    monkeypatch.setattr(module, "_phantom", lambda _: (clean, law_named("gaussian", sigma=10.0)))
    return tmp_path


def recipe_file(folder: Path, name: str, **keys: object) -> Path:
    """A recipe for one bundle."""
    file = folder / "recipe.json"
    file.write_text(json.dumps({name: {"attribution": "Made for a test", "training": TRAINING} | keys}))
    return file


def test_weights_and_card_are_made_from_the_scans(base, capsys, monkeypatch):
    measured = list[str]()
    measure = EstimateNoised._choices
    monkeypatch.setattr(
        EstimateNoised, "_choices", lambda self, y: measured.append(y.meta["source"][0]) or measure(self, y)
    )
    bundle = small_bundle("ct_gaussian", base / "ct_gaussian")
    (base / "data").mkdir()
    for seed in range(4):
        write_scan("ct_gaussian", base / "data" / f"{seed}.nii.gz", seed=seed)
    (base / "data" / "flat.nii.gz").write_bytes(b"no image")
    monkeypatch.setattr(module, "EDGE", 24)
    file = recipe_file(base, "ct_gaussian", scans=["*.nii.gz"], generated=2)
    assert main(["adapt", str(bundle), "--recipe", str(file), "--data", str(base / "data")]) == 0
    written = [Path(line) for line in capsys.readouterr().out.splitlines()]
    assert [path.relative_to(bundle).as_posix() for path in written] == [
        "models/model.pt",
        "docs/weights.json",
        "docs/README.md",
    ]
    state, start = torch.load(written[0], weights_only=True), network_of(3).state_dict()
    assert {name: tensor.shape for name, tensor in state.items()} == {name: t.shape for name, t in start.items()}
    card = json.loads(written[1].read_text(encoding="utf-8"))
    assert card["scans"] == {"trained": 3, "chose": 2, "judged": 1}
    assert len(card["scans_sha256"]) == 6
    assert card["laws"] == {"gaussian": 6}
    assert len([file for file in measured if Path(file).parent.name == "data"]) == 4  # once each
    assert card["chosen_by"]["adapted"] <= card["chosen_by"]["base"]
    assert card["judged"].keys() == {"scans"}
    better = card["judged"]["scans"]["adapted"] < card["judged"]["scans"]["base"]
    assert card["adapted"] == better
    assert better != all(torch.equal(tensor, start[name]) for name, tensor in state.items())
    assert card["reference"]["noisy"] == pytest.approx(10, rel=0.05)
    page = written[2].read_text(encoding="utf-8")
    assert ("(channels 4/8), adapted as follows" in page) == better
    assert "6, of which 2 generated: 3 trained on, 2 chose the weights, 1 judge them" in page
    assert card["sha256"] in page
    assert str(base) not in page + json.dumps(card)


@pytest.mark.parametrize(
    ("scans", "generated", "better"),
    [
        ((0.5, 0.4), None, True),
        ((0.5, 0.6), None, False),
        ((0.5, -0.1), None, False),
        ((0.5, 0.4), (0.5, 0.4), True),
        ((0.5, 0.4), (0.5, 0.6), False),
        (None, (0.5, 0.4), False),
    ],
)
def test_adapted_weights_are_better_where_scans_say_so(scans, generated, better):
    given = {"scans": scans, "generated": generated}
    told = {kind: dict(zip(("base", "adapted"), row, strict=True)) for kind, row in given.items() if row}
    assert module._better(told) == better


def test_weights_that_are_not_better_are_not_kept(base, monkeypatch):
    bundle = small_bundle("ct_gaussian", base / "ct_gaussian")
    (base / "data").mkdir()
    for seed in range(3):
        write_scan("ct_gaussian", base / "data" / f"{seed}.nii.gz", seed=seed)
    monkeypatch.setattr(module, "_judged", lambda *_: {"scans": {"base": 0.5, "adapted": 0.6}})
    module.adapt(bundle, Recipe(["*.nii.gz"], "Made for a test", 0, TRAINING), base / "data")
    state, start = torch.load(bundle / "models" / "model.pt", weights_only=True), network_of(3).state_dict()
    assert all(torch.equal(tensor, start[name]) for name, tensor in state.items())
    page = (bundle / "docs" / "README.md").read_text(encoding="utf-8")
    assert "as they\nare: adapted as follows they were not better" in page
    assert "| 1 | 0.500 | 0.600 |" in page


def test_a_scan_that_no_law_fits_is_left_out(base, monkeypatch, caplog):
    (base / "data").mkdir()
    for seed in range(3):
        write_scan("ct_gaussian", base / "data" / f"{seed}.nii.gz", seed=seed)
    figures = iter([0.4, -0.2, 1.3])
    judge = module._Judge(module._Once("image", "ct"), {"spatial_dims": 3, "architecture": SMALL})
    monkeypatch.setattr(module._Judge, "__call__", lambda *_: next(figures))
    found = module._real(Recipe(["*.nii.gz"]), base / "data", judge, base)
    assert [path.name for path in found] == ["0.nii.gz"]
    assert caplog.text.count("no law of noise holds") == 2


@pytest.mark.parametrize("modality", ["ct", "pet", "mr", "us"])
def test_generated_scans_have_noise_of_the_law_that_is_told(modality, tmp_path, monkeypatch):
    monkeypatch.setattr(module, "EDGE", 24)
    measure = module._Once("image", modality)
    files = module._generated(tmp_path / "generated", 2, measure)
    again = module._generated(tmp_path / "again", 1, module._Once("image", modality))
    assert files[0].read_bytes() == again[0].read_bytes() != files[1].read_bytes()
    (noise,) = (choice.noise for choice in measure(LoadScand("image")({"image": str(files[0])}))["image"].meta[NOISE])
    assert noise.law.name == measure.modality.law == measure.law(files[0])
    assert noise.correlation.is_white
    assert (noise.quantum > 0) == (modality == "pet")


def test_a_recipe_without_scans_or_with_an_unknown_key_is_refused(base):
    with pytest.raises(InputError, match="finds no scans"):
        module.adapt(small_bundle("ct_gaussian", base / "ct_gaussian"), Recipe(scans=["*.nii"]), base)
    file = recipe_file(base, "ct_gaussian", scan=["*.nii.gz"])
    with pytest.raises(ConfigurationError, match="Did you mean 'scans'"):
        Recipe.read(file, "ct_gaussian")
    with pytest.raises(ConfigurationError, match="no recipe for us_gamma"):
        Recipe.read(file, "us_gamma")


def test_every_shipped_bundle_has_a_recipe(name):
    recipe = Recipe.read(BUNDLES.parent / "configs" / "bundles.json", name)
    assert recipe.attribution
    assert recipe.scans or recipe.generated
    known = json.loads((BUNDLES / name / "configs" / "train.json").read_text(encoding="utf-8"))
    assert recipe.training.keys() <= known.keys()
    assert RECIPES.keys() == {folder.name for folder in BUNDLES.iterdir() if folder.is_dir()}


def test_what_ships_is_what_its_card_says(name):
    weights, file = BUNDLES / name / "models" / "model.pt", BUNDLES / name / "docs" / "weights.json"
    page = (BUNDLES / name / "docs" / "README.md").read_text(encoding="utf-8")
    card = json.loads(file.read_text(encoding="utf-8"))
    state = torch.load(weights, weights_only=True)
    assert module._hash_of(state) == card["sha256"]
    assert card["sha256"] in page
    assert card["adapted"] == module._better(card["judged"])
    assert card["judged"]
    assert all(0 < row["base"] < 1 for row in card["judged"].values())
    base = module.ScoreModel.load(module.PACKAGED / f"base-{DIMS[name]}d" / "model.pt")
    if card["started_from"] == base.hash:
        assert card["adapted"] != all(torch.equal(state[key], t) for key, t in base.network.state_dict().items())
    assert weights.stat().st_size < 7_000_000
