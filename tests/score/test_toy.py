"""The learned score of a Gaussian mixture against the exact one (the article's figures 1 and 2)."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import pytest
import torch

from n2s_med.noise import Gaussian
from n2s_med.score import ArDae, Dsm, Objective, TotalUnitNoise

STEPS = 800


def load_benchmark() -> ModuleType:
    file = Path(__file__).parents[2] / "benchmarks" / "toy_score.py"
    spec = importlib.util.spec_from_file_location("toy_score", file)
    assert spec is not None
    assert spec.loader is not None
    module = sys.modules["toy_score"] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


toy = load_benchmark()
V = torch.linspace(-9, 10, 400)


def test_exact_score_is_the_derivative_of_the_log_density() -> None:
    v = V.double().requires_grad_()
    (wanted,) = torch.autograd.grad(toy.THREE.log_density(v, 1.25).sum(), v)
    torch.testing.assert_close(toy.THREE.score(v, 1.25).detach(), wanted, rtol=1e-6, atol=1e-7)
    assert float(torch.trapezoid(toy.THREE.log_density(V, 1.25).exp(), V)) == pytest.approx(1, abs=0.01)


def test_tweedie_of_the_exact_score_is_the_posterior_mean() -> None:
    """Two ways to the same closed form: Robbins' formula, and the mean over components."""
    x_hat = Gaussian(1.0).tweedie(V, toy.THREE.score(V, 1.0))
    torch.testing.assert_close(x_hat, toy.THREE.posterior_mean(V, 1.0), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(("objective", "bound"), [(ArDae(0.5), 0.1), (ArDae(0.25), 0.15), (Dsm(0.5), 0.1)], ids=str)
def test_learned_score_is_the_exact_one(objective: Objective, bound: float) -> None:
    """Relative error under the density, with the exact score of the perturbed mixture."""
    noise_variance = 1 + objective.sigma_a**2  # type: ignore[attr-defined]
    learned = toy.learned_score(toy.THREE, objective, steps=STEPS)(V[:, None])[:, 0]
    density = toy.THREE.log_density(V, noise_variance).exp()
    assert toy.relative_error(learned, toy.THREE.score(V, noise_variance), density) < bound
    x_hat = V + objective.scale * learned
    assert toy.relative_error(x_hat, toy.THREE.posterior_mean(V, noise_variance), density) < 0.03


def test_learned_score_in_total_unit_noise() -> None:
    """The score of ``v = (y + s u)/sqrt(1 + s²)``: a shrunken mixture under unit noise."""
    s = 0.5
    norm = (1 + s**2) ** 0.5
    shrunken = toy.Mixture(toy.THREE.weights, toy.THREE.means / norm, toy.THREE.sds / norm)
    v = V / norm
    learned = toy.learned_score(toy.THREE, TotalUnitNoise(s), steps=STEPS)(v[:, None])[:, 0]
    assert toy.relative_error(learned, shrunken.score(v, 1.0), shrunken.log_density(v, 1.0).exp()) < 0.1


def test_denoised_values_are_nearer_the_truth() -> None:
    """And as near as the posterior mean, below which no estimate gets."""
    generator = torch.Generator().manual_seed(1)
    x = toy.THREE.sample(20_000, generator)
    y = x + torch.randn(x.shape, generator=generator)
    network = toy.learned_score(toy.THREE, ArDae(0.25), steps=STEPS)
    blurred = float((Gaussian(1.0).tweedie(y, network(y)) - x).square().mean())
    best = float((toy.THREE.posterior_mean(y, 1.0) - x).square().mean())
    assert best < blurred < 1.05 * best
    assert best < 0.6


def test_picture(tmp_path: Path) -> None:
    score, mean = toy.draw(0.5, 20, tmp_path / "figures" / "toy.png")
    assert (tmp_path / "figures" / "toy.png").read_bytes()[:4] == b"\x89PNG"
    assert score > 0
    assert mean > 0
