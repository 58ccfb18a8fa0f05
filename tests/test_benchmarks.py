"""The benchmark command runs, goes on from its cache and writes its tables; oracle arms alone see the truth."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import nibabel as nib
import numpy as np
import pytest
import torch

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"
TINY = ["--crop", "16", "--steps", "2", "--seeds", "2", "--classical-seeds", "1", "--columns", "c25"]


@pytest.fixture(scope="module")
def quality() -> Iterator[ModuleType]:
    pytest.importorskip("bm4d")
    before = set(sys.modules)
    sys.path.insert(0, str(BENCHMARKS))
    import quality

    yield quality
    sys.path.remove(str(BENCHMARKS))
    for name in ("quality", "cases", "records", "table", *(m for m in sys.modules if m.partition(".")[0] == "arms")):
        if name not in before:
            del sys.modules[name]


@pytest.fixture(scope="module")
def clean(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A clean NIfTI volume of 24³, smooth with an edge."""
    wave = torch.linspace(0, 6, 24).sin()
    values = 500 + 100 * (wave[:, None, None] + wave[:, None] + wave) + 300 * (wave[:, None, None] > 0)
    path = tmp_path_factory.mktemp("clean") / "clean.nii.gz"
    nib.save(nib.Nifti1Image(values.numpy(), np.diag([1.0, 1.0, 3.0, 1.0])), path)
    return path


@pytest.fixture(autouse=True)
def one_thread(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)


def test_it_compares_resumes_and_writes_its_tables(
    quality: ModuleType, clean: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    cache, out = tmp_path / "cache.jsonl", tmp_path / "results.md"
    out.write_text("# Results\n\nBefore.\n\n<!-- quality:begin -->\nold\n<!-- quality:end -->\n\nAfter.\n")
    arms = ["noisy", "nlm", "supervised", "ours"]
    command = [*TINY, "--volume", str(clean), "--arms", *arms, "--cache", str(cache), "--out", str(out)]
    assert quality.main(command) == 0
    done = capsys.readouterr().out
    assert done.count("clean.nii.gz") == 2 * 1 + 2 * 2
    first = out.read_text()
    assert first.startswith("# Results\n\nBefore.")
    assert first.endswith("After.\n")
    assert "old" not in first
    assert str(tmp_path) not in first
    for row in ("| non-local means, true level |", "| ours |", "| ours − supervised", "SSIM:", "±", "correlated 25"):
        assert row in first

    lines = cache.read_text().splitlines(keepends=True)
    cache.write_text("".join(lines[:-1]) + lines[-1][:20])  # killed while it wrote its last line
    assert quality.main(command) == 0
    assert capsys.readouterr().out.count("clean.nii.gz") == 1
    assert quality.main([*command, "--columns", "c25", "p01", "--cached-only"]) == 0  # runs nothing
    assert capsys.readouterr().out.count("clean.nii.gz") == 0
    records = [json.loads(line) for line in cache.read_text().splitlines()]
    assert len(records) == len(lines)
    again, before = records[-1], json.loads(lines[-1])
    assert {**again, "cpu_s": 0} == {**before, "cpu_s": 0}


@pytest.mark.parametrize("arm", ["gaussian", "bm4d", "supervised", "n2n", "mcsure", "n2v", "dsm", "paper", "blind"])
def test_every_other_arm_gives_a_finite_volume(quality: ModuleType, clean: Path, arm: str) -> None:
    volume = quality.from_file(clean)
    settings = quality.Settings(quality.TrainingConfig(steps=2), quality.ADAPTATION, quality.Compute.choose())
    scan = quality.scan_of(volume, "c25" if arm == "bm4d" else "k50", 0)
    known = scan if quality.ARMS[arm].truth else quality._without_truth(scan)
    x_hat = quality.ARMS[arm].run(known, settings).x_hat
    assert x_hat.shape == volume.x.shape
    assert bool(torch.isfinite(x_hat).all())


def test_an_arm_that_does_not_declare_the_truth_cannot_have_it(quality: ModuleType, clean: Path) -> None:
    scan = quality._without_truth(quality.scan_of(quality.from_file(clean), "g25", 0))
    with pytest.raises(AssertionError, match="did not declare"):
        _ = scan.truth


def test_twins_learn_what_the_unbiased_inverse_takes_back(quality: ModuleType) -> None:
    from arms.twins import expected_unit

    x = torch.linspace(0.02, 1, 50)
    for column in quality.COLUMNS.values():
        assert torch.allclose(column.law.unbiased_inverse(expected_unit(column.law, x)), x, atol=2e-3)


@pytest.mark.parametrize("column", ["g25", "p05", "p01"])
def test_the_risk_that_mc_sure_learns_is_the_error(quality: ModuleType, column: str) -> None:
    from arms.twins import pure, sure

    x = torch.linspace(0.1, 1, 40)[:, None, None].expand(40, 50, 50)
    noise = quality.COLUMNS[column].noise_of(x)
    law = noise.law
    generator = torch.Generator().manual_seed(0)
    y = law.sample(x, generator)
    u = law.to_unit(y)

    def g(v: torch.Tensor) -> torch.Tensor:
        return 0.6 * (u.mean() - v)

    if noise.quantum:
        risk = pure(g, u, noise, generator).mean() - 1
        error = (law.mean_from_unit(y, g(u)) - x).square().mean() / law.variance(x).mean()
    else:
        risk = sure(g, u, noise, generator).mean() + 1
        error = (u + g(u) - law.to_unit(x)).square().mean()
    assert float(risk) == pytest.approx(float(error), rel=0.02)


def test_an_unknown_training_key_is_refused(quality: ModuleType, capsys: pytest.CaptureFixture[str]) -> None:
    assert quality.main([*TINY, "--set", "lerning_rate=1"]) == 2
    assert "learning_rate" in capsys.readouterr().err


def test_a_clean_file_is_scaled_and_named_by_its_name(quality: ModuleType, clean: Path) -> None:
    volume = quality.from_file(clean).cropped(10)
    assert volume.name == "clean.nii.gz"
    assert volume.spacing_mm == (1, 1, 3)
    assert tuple(volume.x.shape) == (10, 10, 10)
    assert 0.02 <= float(volume.x.min()) < float(volume.x.max()) <= 1
