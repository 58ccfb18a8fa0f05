"""The published estimators end to end: a score learned without the level, and the commands that use it."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
import torch
from job_scans import call
from torch import Tensor

from n2s_med.errors import ConfigurationError, InputError
from n2s_med.jobs import level_free
from n2s_med.jobs.level_free import LevelByScore, learned_score
from n2s_med.jobs.noise import NoiseRequest
from n2s_med.noise import Gaussian

SMALL = replace(level_free.TRAINING, channels=(8, 16), patch=32, steps=200)


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def squares(count: int = 8) -> Tensor:
    """A slice of flat squares of 10 voxels a side, of eleven shades."""
    shades = 40 + 20 * torch.randint(1, 12, (count, count), generator=seeded()).float()
    return shades.repeat_interleave(10, 0).repeat_interleave(10, 1)


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Learn in two hundred steps, on one thread."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    monkeypatch.setattr(level_free, "TRAINING", SMALL)
    yield
    torch.set_num_threads(threads)


@pytest.mark.usefixtures("small")
@pytest.mark.parametrize(("method", "most"), [("search", 1.2), ("two-perturbations", 1.5)])
@pytest.mark.parametrize("gain", [1.0, 40.0])
def test_a_score_learned_without_the_level_tells_it(method: str, most: float, gain: float) -> None:
    """From above, as what the score does not know of the clean value passes for noise; in any unit."""
    y = gain * Gaussian(10.0).sample(squares(), seeded(1))
    found = LevelByScore(method, SMALL, "cpu")(y, torch.ones_like(y, dtype=torch.bool), (1.0, 1.0), "gaussian")
    assert 0.9 < found.law.parameters["sigma"] / (10 * gain) < most
    assert found.steps == SMALL.steps


@pytest.mark.usefixtures("small")
def test_padding_has_no_part_in_it() -> None:
    y = Gaussian(10.0).sample(squares(), seeded(1))
    valid = torch.ones_like(y, dtype=torch.bool)
    valid[:20] = False
    y[:20] = 1e6
    found = LevelByScore("search", SMALL, "cpu")(y, valid, (1.0, 1.0), "gaussian")
    assert found.law.parameters["sigma"] == pytest.approx(10, rel=0.25)


def test_a_volume_without_detail_is_refused() -> None:
    flat = torch.ones(20, 20)
    with pytest.raises(InputError, match=r"no detail.*--estimator blocks"):
        learned_score(flat, flat > 0, (1.0, 1.0), SMALL, "cpu", quiet=True)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"law": "tweedie"}, "published for gaussian, poisson, gamma, not for tweedie"),
        ({"law": "gaussian", "parameters": {"sigma": 3.0}}, "level was given, and an estimator of the level too"),
    ],
)
def test_requests_that_contradict_themselves(given: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigurationError, match=message):
        NoiseRequest(**given, by_score=LevelByScore("search"))


@pytest.fixture
def slice_file(tmp_path: Path) -> Path:
    """A noisy slice with negative values, as of CT."""
    y = Gaussian(10.0).sample(squares() - 300, seeded(2))
    path = tmp_path / "slice.nii.gz"
    nib.save(nib.Nifti1Image(y[..., None].numpy(), np.eye(4)), path)
    return path


@pytest.mark.usefixtures("small")
@pytest.mark.parametrize("estimator", ["blocks", "two-perturbations"])
def test_the_command_noise(slice_file: Path, capsys: pytest.CaptureFixture[str], estimator: str) -> None:
    command = ("noise", slice_file, "--modality", "ct", "--estimator", estimator, "--threads", 1, "--quiet")
    ran = call(capsys, *command)
    assert ran.code == 0
    assert ran.out.splitlines()[1].startswith("  gaussian(sigma=")
    assert ("for the level alone" in ran.err) == (estimator != "blocks")
    (measured,) = json.loads(call(capsys, *command, "--json").out)
    assert measured["law"] == "gaussian"
    assert measured["sigma"] == pytest.approx(10, rel=0.5)


@pytest.mark.usefixtures("small")
def test_denoise_by_a_published_level(slice_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A CT slice shows negative values, so the search, scaled by the maximum, has its own refusal there."""
    refused = call(capsys, "denoise", slice_file, tmp_path / "no.nii.gz", "--modality", "ct", "--estimator", "search")
    assert "scales an image by its maximum, which is not positive" in refused.error
    out = tmp_path / "out.nii.gz"
    options = ("--modality", "ct", "--estimator", "two-perturbations", "--adapt", 0, "--threads", 1, "--quiet")
    ran = call(capsys, "denoise", slice_file, out, *options)
    assert ran.code == 0
    assert "by two-perturbations, which gives no interval" in ran.out
    before, after = (np.asarray(nib.load(path).dataobj)[..., 0] for path in (slice_file, out))
    clean = (squares() - 300).numpy()
    assert np.square(after - clean).mean() < 0.8 * np.square(before - clean).mean()
