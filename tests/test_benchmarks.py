"""The benchmark commands run, go on from their caches and write their tables; oracle arms alone see the truth."""

from __future__ import annotations

import importlib
import json
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import ModuleType

import nibabel as nib
import numpy as np
import pytest
import torch

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"
TINY = ["--crop", "16", "--steps", "2", "--seeds", "2", "--classical-seeds", "1", "--columns", "c25"]


@pytest.fixture(scope="module")
def benchmarks() -> Iterator[None]:
    """Modules of the folder can be imported, and are forgotten at the end."""
    pytest.importorskip("bm4d")
    before = set(sys.modules)
    sys.path.insert(0, str(BENCHMARKS))
    yield
    sys.path.remove(str(BENCHMARKS))
    for name in set(sys.modules) - before:
        if str(getattr(sys.modules[name], "__file__", None)).startswith(str(BENCHMARKS)):
            del sys.modules[name]


@pytest.fixture(scope="module")
def quality(benchmarks: None) -> ModuleType:  # noqa: ARG001
    return importlib.import_module("quality")


@pytest.fixture(scope="module")
def speed(benchmarks: None) -> ModuleType:  # noqa: ARG001
    return importlib.import_module("speed")


@pytest.fixture(scope="module")
def networks(benchmarks: None) -> ModuleType:  # noqa: ARG001
    return importlib.import_module("networks")


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


def test_peers_see_the_very_scans_that_the_arms_see(
    quality: ModuleType, clean: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    import peers
    from arms import ARMS

    scans, out, cache = tmp_path / "scans", tmp_path / "results.md", tmp_path / "peers.jsonl"
    wanted, kept = ["--volume", str(clean), "--columns", "g25", "p05", "--seeds", "1"], tmp_path / "quality.jsonl"
    assert quality.main([*wanted, "--write-scans", str(scans)]) == 0
    ours = ["--arms", "base", "--cache", str(kept), "--out", str(tmp_path / "quality.md")]
    assert quality.main([*wanted, *ours]) == 0
    run = [str(scans), "--peers", "nlm", "--cache", str(cache), "--beside", str(kept), "--out", str(out)]
    peers.main(run)
    table = out.read_text()
    beside = [json.loads(line) for line in kept.read_text().splitlines()]
    cells = " | ".join(f"{r['psnr']:.2f} / {r['ssim']:.3f}" for r in sorted(beside, key=lambda r: r["column"]))
    assert f"| ours, base weights as they are | {cells} |" in table
    settings = quality.Settings(quality.TrainingConfig(), quality.ADAPTATION, quality.Compute.choose())
    volume = quality.from_file(clean)
    for column in ("g25", "p05"):
        x_hat = ARMS["nlm"].run(quality.scan_of(volume, column, 0), settings).x_hat
        assert f"{quality.psnr(x_hat, volume.x):.2f} / {quality.ssim(x_hat, volume.x):.3f}" in table
    assert "scikit-image" in table
    capsys.readouterr()
    peers.main([*run, "--cached-only"])
    assert out.read_text().count("non-local means") == table.count("non-local means")
    assert '"psnr"' not in capsys.readouterr().out


def test_an_unknown_training_key_is_refused(quality: ModuleType, capsys: pytest.CaptureFixture[str]) -> None:
    assert quality.main([*TINY, "--set", "lerning_rate=1"]) == 2
    assert "learning_rate" in capsys.readouterr().err


def test_a_clean_file_is_scaled_and_named_by_its_name(quality: ModuleType, clean: Path) -> None:
    volume = quality.from_file(clean).cropped(10)
    assert volume.name == "clean.nii.gz"
    assert volume.spacing_mm == (1, 1, 3)
    assert tuple(volume.x.shape) == (10, 10, 10)
    assert 0.02 <= float(volume.x.min()) < float(volume.x.max()) <= 1


# -- SD map and pictures ---------------------------------------------------------------------------------


def test_coverage_is_counted_and_written(benchmarks: None, tmp_path: Path) -> None:  # noqa: ARG001
    coverage = importlib.import_module("sd_coverage")
    out = tmp_path / "coverage.md"
    assert coverage.main(["--phantom", "pet", "--crop", "24", "--columns", "g25", "--out", str(out)]) == 0
    page = out.read_text()
    assert page.startswith("# How far")
    shares = [float(cell.strip(" %")) for cell in page.splitlines()[-1].split("|")[3:9]]
    assert all(0 <= one <= two <= 100 for one, two in zip(shares[::2], shares[1::2], strict=True))
    assert 40 < shares[0] < 95


def test_voxels_near_edges_are_those_around_a_step(benchmarks: None) -> None:  # noqa: ARG001
    coverage = importlib.import_module("sd_coverage")
    x = torch.zeros(20, 20, 20)
    x[10:] = 0.2
    near = coverage.near_edges(x)
    assert near[10 - coverage.NEAR : 10 + coverage.NEAR].all()
    assert not near[: 10 - coverage.NEAR - 1].any()
    assert not near[10 + coverage.NEAR + 1 :].any()


def test_pictures_show_a_row_for_each_noise(benchmarks: None, tmp_path: Path) -> None:  # noqa: ARG001
    from matplotlib.image import imread

    pictures = importlib.import_module("pictures")
    one, two = tmp_path / "one.png", tmp_path / "two.png"
    arms = ["--arms", "noisy", "--crop", "16"]
    pictures.main([*arms, "--rows", "pet:g25", "--out", str(one)])
    pictures.main([*arms, "--rows", "pet:g25", "ct:p05", "--out", str(two)])
    assert imread(two).shape[0] == 2 * imread(one).shape[0]
    with pytest.raises(SystemExit):
        pictures.main(["--rows", "pet:none"])


# -- speed -----------------------------------------------------------------------------------------------


def test_speed_measures_its_parts_keeps_them_and_writes_both_pages(
    speed: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.delenv("N2S_DATA", raising=False)
    tiny = replace(
        speed.QUICK, name="tiny", product=64, volume=(24, 16, 8), windows=(16,), bm4d=16, volumes=((16, 16, 8),),
        planes=(4, 8), plane=(16, 16), steps=2, crop=24, adapt_steps=(2,), starts=1,
    )  # fmt: skip
    out = tmp_path / "performance.md"
    out.write_text("# Performance\n\n<!-- network:begin -->\nold\n<!-- network:end -->\n\nAfter.\n")
    speed.main(["--out", str(out)], tiny)
    assert capsys.readouterr().err.count(" s\n") == len(speed.PARTS)
    page, scaling = out.read_text(), out.with_name("scaling.md").read_text()
    assert page.startswith("# Performance")
    assert "old" not in page
    for row in ("| BM4D |", "| ours, streamed |", "| streamed, bf16 |", "| 16 × 16 × 8 |", "| network |", "| ours |"):
        assert row in page
    assert page.count(" met |") + page.count("**missed**") == len(sys.modules["performance.goals"].GOALS)
    assert "100,000 studies a day" in scaling
    assert str(tmp_path) not in page + scaling

    speed.main(["--out", str(out), "--resume"], tiny)
    assert not capsys.readouterr().err
    assert out.read_text() == page
    speed.main(["--out", str(out), "--parts", "fidelity"], tiny)
    assert capsys.readouterr().err.startswith("fidelity")


def test_fast_paths_are_told_apart_from_the_plain_one(speed: ModuleType) -> None:
    found = sys.modules["performance.rates"].fidelity(replace(speed.QUICK, crop=24))
    exact, *others = found["rows"]
    assert exact["largest"] < 1e-4
    for fast in others:
        assert exact["largest"] < fast["largest"] < 1
        assert abs(fast["psnr_difference"]) < 0.1


def test_a_stage_within_another_stops_its_clock(speed: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:  # noqa: ARG001
    stages = importlib.import_module("performance.stages")
    now = iter(range(100))
    monkeypatch.setattr(stages.time, "perf_counter", lambda: next(now))
    clock = stages.Clock()

    class Network:
        def __call__(self, chunks: Iterator[int]) -> Iterator[int]:
            for chunk in chunks:
                next(now)
                yield chunk + 1

    clock.wrap_network(Network)
    assert list(Network()(iter([1, 2]))) == [2, 3]
    assert clock.own[stages.NETWORK] > clock.own[stages.AROUND] > 0


# -- forms of the network --------------------------------------------------------------------------------


def test_forms_are_trained_and_compared(networks: ModuleType, tmp_path: Path) -> None:
    out = tmp_path / "performance.md"
    forms = ["plain 16/32/64", "half resolution 32/64"]
    networks.main(["--seconds", "0.001", "--blocks", "1", "--forms", *forms, "--out", str(out)])
    assert out.read_text().count("| 1 |") == len(forms)


@pytest.mark.parametrize("shape", [(8, 8, 8), (9, 6, 5)])
def test_every_form_takes_any_shape_and_is_told_the_traits(networks: ModuleType, shape: tuple[int, ...]) -> None:
    v = torch.randn(2, 1, *shape)
    for form in networks.FORMS.values():
        network = form()
        white = network(v)
        assert white.shape == v.shape
        for parameter in network.parameters():
            parameter.data += 0.1
        assert not torch.allclose(network(v, torch.full((2, 6), 0.1)), network(v, torch.zeros(2, 6)))


def test_forms_at_half_resolution_put_each_answer_in_its_place(networks: ModuleType) -> None:
    half = networks.HalfScore((32, 64))
    x = torch.arange(8.0).view(1, 8, 1, 1, 1).expand(1, 8, 2, 3, 4)
    assert torch.equal(half._head(x)[0, 0, 2:4, 4:6, 6:8], torch.arange(8.0).view(2, 2, 2))


@pytest.mark.parametrize("counts", [0.0, 1.0])
def test_the_twin_of_base_weights_is_shown_the_same_and_told_the_truth(benchmarks: None, counts: float) -> None:  # noqa: ARG001
    from base_twin import CleanCorpus

    from n2s_med.corpus import Corpus, Signal
    from n2s_med.phantoms.scene import Dice

    signal = Signal(torch.linspace(0, 1, 30**3).reshape(30, 30, 30))
    own, twin = (corpus({}, {}, edge=12, blocks=0) for corpus in (Corpus, CleanCorpus))
    for seed in range(4):
        shown = [
            corpus._noisy(signal.x[None, None], signal, Dice(torch.Generator().manual_seed(seed)), counts)[0]
            for corpus in (own, twin)
        ]
        assert torch.equal(*shown)
        noise = shown[1] - twin.clean
        assert abs(float(noise.mean())) < 0.1
        assert 0.85 < float(noise.std()) < 1.1  # of counts near zero it is less than one


def test_base_weights_are_compared_with_their_twin(
    benchmarks: None,  # noqa: ARG001
    clean: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from base_twin import main

    from n2s_med import corpus
    from n2s_med.jobs.base import BaseJob
    from n2s_med.training import TrainingConfig

    for name, small in (("EDGE", 24), ("HELD_OUT_EDGE", 16), ("POOL", 2)):
        monkeypatch.setattr(corpus, name, small)

    config = {"objective": "total-unit-noise", "sigma_a": 2.0, "antithetic": False, "kept_counts": 0, "steps": 2}
    keys = {**config, "patch": 12, "channels": [4, 8]}
    BaseJob([clean], tmp_path / "base", TrainingConfig.from_mapping(keys), track=False, quiet=True).run(print)
    out, model = tmp_path / "results.md", str(tmp_path / "base" / "model.pt")
    given = ["--work", str(tmp_path / "twin"), "--model", model, "--out", str(out), "--phantom", "pet"]
    assert main([str(clean), *given, "--columns", "g25", "--seeds", "1"]) == 0
    page = out.read_text()
    assert all(words in page for words in ("learned from noisy volumes |", "supervised twin |", "difference | "))
    assert str(tmp_path) not in page
    other = tmp_path / "other.nii.gz"
    nib.save(nib.Nifti1Image(np.random.default_rng(0).normal(size=(24, 24, 24)), np.eye(4)), other)
    capsys.readouterr()
    assert main([str(other), *given]) == 1
    assert "not the scans of the base weights" in capsys.readouterr().err
