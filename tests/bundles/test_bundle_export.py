"""``python -m n2s_med.bundle``: base weights into bundles, and networks for other runtimes."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from bundle_runs import DIMS, check_exports, exported_inputs, network_of, small_bundle

from n2s_med.bundle import DenoisingNetwork, network
from n2s_med.bundle.__main__ import main
from n2s_med.noise import Gaussian, Poisson
from n2s_med.score import ScoreModel


@pytest.mark.parametrize(
    ("name", "law", "words"),
    [
        ("ct_gaussian", None, ()),
        ("us_gamma", None, ()),
        ("ct_gaussian", Gaussian(20.0), ("--law", "gaussian", "--set", "sigma=20")),
        ("pet_poisson", Poisson(0.5), ("--law", "poisson", "--set", "gain=0.5")),
    ],
)
def test_exports_give_what_the_network_gives(name, law, words, tmp_path, capsys):
    bundle = small_bundle(name, tmp_path / name)
    assert main(["export", str(bundle), *words]) == 0
    files = [Path(line) for line in capsys.readouterr().out.splitlines()]
    stem = "model" if law is None else "denoiser"
    assert [file.name for file in files] == [f"{stem}.onnx", f"{stem}.pt2", f"{stem}.ts"]
    check_exports(files, DIMS[name], law)


def test_the_tweedie_step_is_that_of_the_law():
    inside, law = network_of(3).eval(), Poisson(0.5)
    y, typical, traits = exported_inputs(3, law)
    with torch.no_grad():
        found = DenoisingNetwork(inside, law)(y, typical, traits)
        for row in range(len(y)):
            inside.centre.fill_(law.to_unit(typical[row]))
            score = inside(law.to_unit(y[row : row + 1]), traits[row : row + 1])
            torch.testing.assert_close(found[row : row + 1], law.mean_from_unit(y[row : row + 1], score))


def test_base_weights_are_put_where_monai_looks_for_them(tmp_path, monkeypatch, capsys):
    models = {dims: ScoreModel(network_of(dims)) for dims in (2, 3)}
    (tmp_path / "base-2d").mkdir()
    (tmp_path / "base-3d").mkdir()
    bundle = small_bundle("us_gamma", tmp_path / "us")
    monkeypatch.setattr(network, "PACKAGED", tmp_path)
    monkeypatch.setattr(network, "base_model", models.__getitem__)
    assert main(["weights", str(bundle)]) == 0
    assert [Path(line).name for line in capsys.readouterr().out.splitlines()] == ["model.pt", "model_3d.pt"]
    for dims in (2, 3):
        file = Path(network.weights_of(str(bundle), dims))
        assert file.parent == bundle / "models"
        state = torch.load(file, weights_only=True)
        assert all(torch.equal(state[key], tensor) for key, tensor in models[dims].network.state_dict().items())


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (("weights", "missing"), "no bundle"),
        (("export", "missing"), "no bundle"),
        (("export", "missing", "--law", "gauss"), "gaussian"),
        (("export", "missing", "--law", "gaussian", "--set", "sigma=x"), "NAME=NUMBER"),
    ],
)
def test_what_cannot_be_done_is_told_in_one_line(words, told, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main(words) in (1, 2)
    told_lines = capsys.readouterr().err.splitlines()
    assert len(told_lines) == 1
    assert told in told_lines[0]
