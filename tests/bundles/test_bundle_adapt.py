"""Weights of a bundle by recipe: what they are made of is on the card, and nothing clean is among it."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
import torch
from bundle_runs import BUNDLES, TINY, network_of, small_bundle, write_scan

from n2s_med.bundle import adapt as module
from n2s_med.bundle.__main__ import main
from n2s_med.bundle.adapt import Recipe
from n2s_med.bundle.transforms import EstimateNoised
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
    for seed in range(3):
        write_scan("ct_gaussian", base / "data" / f"{seed}.nii.gz", seed=seed)
    (base / "data" / "flat.nii.gz").write_bytes(b"no image")
    file = recipe_file(base, "ct_gaussian", scans=["*.nii.gz"])
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
    assert (card["scans"], card["scans_kept_out"], len(card["scans_sha256"])) == (2, 1, 3)
    assert sum(card["laws"].values()) == 3
    assert len([file for file in measured if Path(file).parent.name == "data"]) == 3  # once each
    assert card["clean_free"] <= card["clean_free_base"]
    assert card["reference"]["noisy"] == pytest.approx(10, rel=0.05)
    page = written[2].read_text(encoding="utf-8")
    assert "(channels 4/8), adapted to\n2 noisy scans" in page
    assert card["sha256"] in page
    assert str(base) not in page + json.dumps(card)
    kept = module.weights_section({**card, "clean_free": -0.1, "clean_free_base": -0.1})
    assert "as they\nare: 1 scans kept out" in kept
    assert "adapted to" not in kept


def test_generated_speckle_is_noisy_and_of_known_law(tmp_path):
    files = module._generated(tmp_path / "generated", 2)
    again = module._generated(tmp_path / "again", 1)
    assert [file.read_bytes() for file in files[:1]] == [file.read_bytes() for file in again]
    assert files[0].read_bytes() != files[1].read_bytes()


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
    weights, card = BUNDLES / name / "models" / "model.pt", BUNDLES / name / "docs" / "weights.json"
    page = (BUNDLES / name / "docs" / "README.md").read_text(encoding="utf-8")
    told = re.search(r"SHA-256 ([0-9a-f]{64})", page)
    assert weights.exists() == card.exists() == bool(told)
    if told:
        state = torch.load(weights, weights_only=True)
        assert module._hash_of(state) == told[1] == json.loads(card.read_text(encoding="utf-8"))["sha256"]
        assert weights.stat().st_size < 7_000_000
