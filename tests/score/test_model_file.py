"""A model goes to a file and comes back; anything else is refused in one line."""

from __future__ import annotations

import errno
import json
import os
import pickle
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from n2s_med.errors import ModelError, OutputError
from n2s_med.score import ScoreModel, ScoreUNet, base_model
from n2s_med.score.model import PACKAGED, load_tensors


def network(dims: int = 2) -> ScoreUNet:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return ScoreUNet(dims, (2, 3))


@pytest.fixture
def model() -> ScoreModel:
    return ScoreModel(network(), 1.25, "pet", "poisson", {"steps": 3, "note": "made for a test"})


@pytest.fixture
def file(model: ScoreModel, tmp_path: Path) -> Path:
    model.save(tmp_path / "model.pt")
    return tmp_path / "model.pt"


def test_round_trip(model: ScoreModel, file: Path) -> None:
    for path in (file, file.parent):
        again = ScoreModel.load(path)
        assert again.hash == model.hash
        assert (again.scale, again.modality, again.law) == (1.25, "pet", "poisson")
        assert dict(again.card) == dict(model.card)
        assert again.network.channels == (2, 3)
        v = torch.randn(1, 1, 5, 6, generator=torch.Generator().manual_seed(0))
        assert torch.equal(again.network(v), model.network(v))
    assert sorted(p.name for p in file.parent.iterdir()) == ["model.pt"]


def test_hash_follows_every_weight_and_the_scale(model: ScoreModel) -> None:
    first = model.hash
    assert ScoreModel(model.network, 1.0).hash != first
    assert ScoreModel(model.network, 1.25).hash == first
    model.network.centre.add_(1)
    assert model.hash != first


@pytest.mark.parametrize(
    ("scan", "message"),
    [
        ({"modality": "ct", "law": "poisson", "spatial_dims": 2}, "modality pet, the scan needs ct"),
        (
            {"modality": "pet", "law": "gaussian", "spatial_dims": 2},
            "noise law poisson, the scan needs gaussian",
        ),
        ({"modality": "pet", "law": "poisson", "spatial_dims": 3}, "dimension 2, the scan needs 3"),
    ],
)
def test_refuses_what_it_was_not_made_for(model: ScoreModel, scan: dict[str, object], message: str) -> None:
    with pytest.raises(ModelError, match=rf"{message}\. Give a model"):
        model.check_fits(**scan)  # type: ignore[arg-type]


def test_fits(model: ScoreModel) -> None:
    model.check_fits(modality="pet", law="poisson", spatial_dims=2)
    model.check_fits(modality=None, law="poisson", spatial_dims=2)
    ScoreModel(network(3)).check_fits(modality="mr", law="gamma", spatial_dims=3)


def test_missing(tmp_path: Path) -> None:
    for path in (tmp_path / "none.pt", tmp_path):
        with pytest.raises(ModelError, match=r"no such model file\. Give the model\.pt"):
            ScoreModel.load(path)


@pytest.mark.parametrize(
    "content",
    [
        {},
        {"format": 3},
        {"format": 3, "network": {"spatial_dims": 2, "channels": [2, 3]}, "state": {}},
        {"format": 3, "network": {"rooms": 2}, "state": {}},
        {"format": 3, "network": {"spatial_dims": 2, "channels": []}, "state": {}},
        {"format": 3, "network": {"spatial_dims": 2, "channels": [-2]}, "state": {}},
        {"format": 3, "network": {"spatial_dims": "2", "channels": "ab"}, "state": {}},
        {"format": 3, "network": [2], "state": {}},
        {"format": 3, "network": {"spatial_dims": 2, "channels": [2, 3]}, "state": 5},
        [1, 2],
        torch.ones(3),
    ],
    ids=str,
)
def test_foreign_files(content: object, tmp_path: Path) -> None:
    torch.save(content, tmp_path / "model.pt")
    with pytest.raises(ModelError, match=r"model\.pt: not a model of n2s-med\. Give the model\.pt") as caught:
        ScoreModel.load(tmp_path)
    assert "\n" not in str(caught.value)


def test_another_format(file: Path) -> None:
    torch.save(load_tensors(file) | {"format": 7}, file)
    with pytest.raises(ModelError, match=r"model format 7, this version reads 3\. Train again"):
        ScoreModel.load(file)


def test_weights_of_another_shape(file: Path) -> None:
    content = load_tensors(file)
    content["network"]["channels"] = [2, 4]
    torch.save(content, file)
    with pytest.raises(ModelError, match="not a model"):
        ScoreModel.load(file)


@settings(max_examples=60, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
@given(data=st.data())
def test_damaged_files(data: st.DataObject, file: Path) -> None:
    """Cut short or with bytes changed, a file is a model or is refused, and no other error comes out."""
    whole = file.read_bytes()
    broken = bytearray(whole[: data.draw(st.integers(0, len(whole)))])
    for _ in range(data.draw(st.integers(0, 20)) if broken else 0):
        broken[data.draw(st.integers(0, len(broken) - 1))] = data.draw(st.integers(0, 255))
    damaged = file.with_name("damaged.pt")
    damaged.write_bytes(broken)
    try:
        ScoreModel.load(damaged)
    except ModelError as error:
        assert "\n" not in str(error)  # noqa: PT017


@settings(max_examples=150, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
@given(place=st.integers(0, 10**9), value=st.integers(0, 255))
def test_one_changed_byte(place: int, value: int, file: Path) -> None:
    broken = bytearray(file.read_bytes())
    broken[place % len(broken)] = value
    damaged = file.with_name("damaged.pt")
    damaged.write_bytes(broken)
    try:
        ScoreModel.load(damaged)
    except ModelError as error:
        assert "\n" not in str(error)  # noqa: PT017


class Trap:
    """An object whose unpickling would make a folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.mkdir, (str(self.folder),)


@pytest.mark.parametrize("writer", ["torch", "pickle"])
def test_code_in_a_file_is_not_run(writer: str, tmp_path: Path) -> None:
    trap = Trap(tmp_path / "trapped")
    with (tmp_path / "model.pt").open("wb") as stream:
        torch.save({"format": trap}, stream) if writer == "torch" else pickle.dump({"format": trap}, stream)
    with pytest.raises(ModelError, match="damaged or no model file"):
        ScoreModel.load(tmp_path)
    assert not trap.folder.exists()


def test_save_makes_the_folder(model: ScoreModel, tmp_path: Path) -> None:
    model.save(tmp_path / "a" / "b" / "model.pt")
    assert ScoreModel.load(tmp_path / "a" / "b").hash == model.hash


def test_cannot_write_where_a_file_is_in_the_way(model: ScoreModel, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(OutputError, match=r"model\.pt: .*\. Choose another place") as caught:
        model.save(tmp_path / "file" / "model.pt")
    assert "\n" not in str(caught.value)


def test_a_failed_save_leaves_the_older_file(model: ScoreModel, file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = file.read_bytes()

    def full(_descriptor: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OutputError, match="space"):
        ScoreModel(model.network, 3.0).save(file)
    assert file.read_bytes() == before
    assert [p.name for p in file.parent.iterdir()] == ["model.pt"]


def test_base_weights_go_by_their_name(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    assert ScoreModel.load(Path("base-3d")).hash == base_model(3).hash
    ScoreModel(network(3)).save(tmp_path / "base-3d" / "model.pt")  # a folder here comes first
    assert ScoreModel.load(Path("base-3d")).hash != base_model(3).hash
    with pytest.raises(ModelError, match="no such model file"):
        ScoreModel.load(Path("base-4d"))


@pytest.mark.parametrize("name", ["base-2d", "base-3d", "base-3d-small"])
def test_packaged_weights_are_those_of_their_card(name: str) -> None:
    model = ScoreModel.load(Path(name))
    card = json.loads((PACKAGED / name / "card.json").read_text())
    assert card["sha256"] == model.hash
    assert tuple(card["config"]["channels"]) == model.network.channels
    assert model.hash in (PACKAGED / name / "MODEL_CARD.md").read_text()
