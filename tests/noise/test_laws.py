"""Each noise law under the one suite, and what is particular to it."""

from __future__ import annotations

import math

import pytest
import torch
from laws import EXACT, NoiseLawTests, Posterior, close, derivatives, seeded
from torch import Tensor

from n2s_med.errors import ConfigurationError, NoiseLawError
from n2s_med.noise import LAWS, Gamma, Gaussian, NoiseModel, Poisson, Tweedie, law_named

PRIOR_SD, PRIOR_MEAN = 3.0, 5.0
"""Gaussian prior of the Gaussian law."""

SHAPE, RATE = 5.0, 0.5
"""Gamma prior of the Poisson law, over counts."""

INVERSE_SHAPE, INVERSE_SCALE = 3.0, 1.0
"""Inverse-Gamma prior of the Gamma law."""


def float64(*values: float) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


class TestGaussian(NoiseLawTests):
    law = Gaussian(2.0)
    parameter = "sigma"
    mean_tolerance = variance_tolerance = EXACT
    signed = True
    observed = float64(-4.0, 0.0, 1.0, 8.0, 20.0)

    def log_density(self, y: Tensor) -> Tensor:
        return -((y - PRIOR_MEAN) ** 2) / (2 * (PRIOR_SD**2 + 4))

    def posterior(self, y: Tensor) -> Posterior:
        gain = PRIOR_SD**2 / (PRIOR_SD**2 + 4)
        mean = PRIOR_MEAN + gain * (y - PRIOR_MEAN)
        return Posterior(mean, torch.full_like(y, 4 * gain), mean)

    def unit_formula(self, y: Tensor, score_u: Tensor) -> Tensor:
        return y + 2 * score_u


class TestPoisson(NoiseLawTests):
    law = Poisson(1.0)
    parameter = "gain"
    mean_tolerance, variance_tolerance = 0.01, 0.26  # as if log-normal; worst at zero counts
    observed = float64(0.0, 1.0, 3.0, 8.0, 20.0)
    gain = 1.0

    def log_density(self, y: Tensor) -> Tensor:
        z = y / self.gain
        return torch.lgamma(z + SHAPE) - torch.lgamma(z + 1) - z * math.log(1 + RATE)

    def posterior(self, y: Tensor) -> Posterior:
        z = y / self.gain
        log_mean = torch.digamma(z + SHAPE) - math.log(1 + RATE)  # E[ln x/gain given y]
        return Posterior(
            self.gain * (z + SHAPE) / (1 + RATE),
            self.gain**2 * (z + SHAPE) / (1 + RATE) ** 2,
            self.gain * (z + 0.5) * torch.exp(log_mean - torch.digamma(z + 1)),
        )

    def unit_formula(self, y: Tensor, score_u: Tensor) -> Tensor:
        z = y / self.gain
        score_z = score_u / torch.sqrt(z + 3 / 8) - 1 / (2 * (z + 3 / 8))
        return self.gain * (z + 0.5) * torch.exp(score_z)


class TestPoissonOfGain(TestPoisson):
    """The same counts in units where one is not 1: what leaving ζ out of the exponent would spoil."""

    law = Poisson(0.05)
    gain = 0.05
    observed = 0.05 * TestPoisson.observed


class TestPoissonOfManyCounts(TestPoisson):
    mean_tolerance, variance_tolerance = 1e-3, 0.03
    observed = float64(50.0, 80.0, 120.0, 200.0, 400.0)


class TestGamma(NoiseLawTests):
    law = Gamma(10.0)
    parameter = "k"
    mean_tolerance, variance_tolerance = 0.007, 0.3
    k = 10.0

    def log_density(self, y: Tensor) -> Tensor:
        return (self.k - 1) * y.log() - (INVERSE_SHAPE + self.k) * (INVERSE_SCALE + self.k * y).log()

    def posterior(self, y: Tensor) -> Posterior:
        shape, scale = INVERSE_SHAPE + self.k, INVERSE_SCALE + self.k * y
        mean = scale / (shape - 1)
        return Posterior(mean, mean**2 / (shape - 2), scale / shape)

    def unit_formula(self, y: Tensor, score_u: Tensor) -> Tensor:
        return y / (1 - score_u / self.k**0.5)

    def test_zero_is_outside_the_image(self) -> None:
        assert self.law.support(float64(0.0, 1e-9, 1.0)).tolist() == [False, True, True]


class TestGammaOfManyLooks(TestGamma):
    law = Gamma(100.0)
    k = 100.0
    mean_tolerance, variance_tolerance = 2e-4, 0.04


class TweedieTests(NoiseLawTests):
    """Tweedie's law, its density by series and its posterior by quadrature over a log-normal prior."""

    law: Tweedie
    parameter = "dispersion"
    observed = float64(3.0, 5.0, 8.0, 12.0, 20.0)

    @property
    def grid(self) -> Tensor:
        return torch.linspace(math.log(0.3), math.log(120), 4001, dtype=torch.float64).exp()

    def log_likelihood(self, y: Tensor) -> Tensor:
        """``(y θ - κ)/φ`` at each ``x`` of the grid."""
        rho, phi, x = self.law.power, float(self.law.dispersion), self.grid
        return (y[..., None] * x ** (1 - rho) / (1 - rho) - x ** (2 - rho) / (2 - rho)) / phi

    def log_joint(self, y: Tensor) -> Tensor:
        prior = -((self.grid.log() - math.log(8)) ** 2) / (2 * 0.5**2)  # even steps of ln x
        return self.log_likelihood(y) + prior

    def log_base(self, y: Tensor) -> Tensor:
        """``ln a(y)`` by the saddle point, under which the published formula is exact."""
        rho, phi = self.law.power, float(self.law.dispersion)
        deviance = y ** (2 - rho) / (1 - rho) - y ** (2 - rho) / (2 - rho)
        return -rho / 2 * y.log() - deviance / phi

    def log_density(self, y: Tensor) -> Tensor:
        return self.log_base(y) + torch.logsumexp(self.log_joint(y), -1)

    def posterior(self, y: Tensor) -> Posterior:
        weight, x = torch.softmax(self.log_joint(y), -1), self.grid
        rho = self.law.power
        mean = (weight * x).sum(-1)
        power_mean = (weight * x ** (1 - rho)).sum(-1) ** (1 / (1 - rho))
        return Posterior(mean, (weight * x**2).sum(-1) - mean**2, power_mean)

    def unit_formula(self, y: Tensor, score_u: Tensor) -> Tensor:
        rho, shift = self.law.power, float(torch.as_tensor(self.law.shift))
        c = self.law.variance(y + shift).sqrt() / (y + shift)
        return (y + shift) * (1 + (1 - rho) * c * score_u) ** (1 / (1 - rho)) - shift


class TestTweedie(TweedieTests):
    law = Tweedie(1.5, 0.4)
    mean_tolerance, variance_tolerance = 0.003, 0.2

    def exact_log_base(self, y: Tensor) -> Tensor:
        """``ln a(y)`` by the series of Dunn & Smyth (2005, eq. 8)."""
        rho, phi = self.law.power, float(self.law.dispersion)
        alpha, j = (2 - rho) / (1 - rho), torch.arange(1, 400, dtype=torch.float64)
        log_z = -alpha * y.log() + alpha * math.log(rho - 1) - (1 - alpha) * math.log(phi) - math.log(2 - rho)
        terms = j * log_z[..., None] - torch.lgamma(1 + j) - torch.lgamma(-alpha * j)
        return torch.logsumexp(terms, -1) - y.log()

    def test_samples_follow_the_density(self) -> None:
        """The sampler against the series: the oracle of the tests below is this law's density."""
        x = float64(6.0)
        y = self.law.sample(x.expand(100_000), seeded())
        rho, phi = self.law.power, float(self.law.dispersion)
        at = torch.linspace(2.0, 14.0, 121, dtype=torch.float64)
        exponent = (at * x ** (1 - rho) / (1 - rho) - x ** (2 - rho) / (2 - rho)) / phi
        density = torch.exp(self.exact_log_base(at) + exponent)
        for low, high in ((3.0, 5.0), (5.0, 7.0), (7.0, 12.0)):
            inside = (at >= low - 1e-9) & (at <= high + 1e-9)
            share = float(((y > low) & (y < high)).double().mean())
            assert share == pytest.approx(float(torch.trapezoid(density[inside], at[inside])), abs=0.01)

    def test_published_formula_under_the_exact_density(self) -> None:
        """The saddle point's error, with the law's true density: below a percent from five units on."""
        y = self.observed

        def log_density(v: Tensor) -> Tensor:
            return self.exact_log_base(v) + torch.logsumexp(self.log_joint(v), -1)

        score, derivative = derivatives(log_density, y)
        truth = self.posterior(y)
        close(self.law.tweedie(y, score), truth.published, rtol=0.01)
        close(self.law.posterior_mean(y, score, derivative), truth.mean, rtol=0.02)

    def test_zeros_pass(self) -> None:
        """A compound Poisson law gives exact zeros, and a finite estimate there."""
        y = self.law.sample(torch.full((1000,), 0.2, dtype=torch.float64), seeded())
        assert (y == 0).any()
        for formula in (self.law.tweedie_from_unit, self.law.mean_from_unit):
            x_hat = formula(y, torch.full_like(y, 0.2))
            assert torch.isfinite(x_hat).all()
            assert (x_hat >= 0).all()

    def test_powers_without_a_distribution(self) -> None:
        law = Tweedie(0.5, 1.0)
        with pytest.raises(NoiseLawError, match="no distribution has variance"):
            law.sample(self.signal)

    @pytest.mark.parametrize("power", [-0.1, 2.1, math.nan, math.inf])
    def test_refuses_powers_out_of_range(self, power: float) -> None:
        with pytest.raises(NoiseLawError, match=r"must lie in \[0, 2\].*Give --power") as caught:
            Tweedie(power, 1.0)
        assert "\n" not in str(caught.value)

    def test_refuses_a_map_of_powers(self) -> None:
        with pytest.raises(NoiseLawError, match=r"power of the tweedie law is one number\. Make a map of"):
            Tweedie(torch.full((2,), 1.5), 1.0)  # type: ignore[arg-type]


class TestTweedieNearPoisson(TweedieTests):
    law = Tweedie(1.2, 0.5)
    mean_tolerance, variance_tolerance = 0.003, 0.2


class TestTweedieNearGamma(TweedieTests):
    law = Tweedie(1.8, 0.1)
    mean_tolerance, variance_tolerance = 0.003, 0.2


class TestTweediePowerZero(TestGaussian):
    """The Gaussian corner is the Gaussian law, negative values and zero included."""

    law = Tweedie(0.0, 4.0)
    parameter = "dispersion"


class TestTweediePowerTwo(TestGamma):
    """The Gamma corner is the Gamma law."""

    law = Tweedie(2.0, 0.1)
    parameter = "dispersion"
    mean_tolerance, variance_tolerance = 0.007, 0.3


# -- limits of the Tweedie family ----------------------------------------------------------------------

Y = float64(2.0, 5.0, 20.0)
SCORE_U = float64(-0.5, 0.2, 0.4)

EVERY_FORMULA = (
    "variance",
    "tweedie",
    "posterior_mean",
    "posterior_variance",
    "unit_slope",
    "score_from_unit",
    "tweedie_from_unit",
    "mean_from_unit",
)


def apply(law: NoiseModel, name: str) -> Tensor:
    """A formula of a law at ``Y``, with scores given in the unit-noise domain."""
    score = law.score_from_unit(Y, SCORE_U)
    derivative = law.score_derivative_from_unit(Y, SCORE_U, torch.full_like(Y, -0.3))
    arguments = {
        "tweedie": (score,),
        "posterior_mean": (score, derivative),
        "posterior_variance": (score, derivative),
        "score_from_unit": (SCORE_U,),
        "tweedie_from_unit": (SCORE_U,),
        "mean_from_unit": (SCORE_U,),
    }
    result: Tensor = getattr(law, name)(Y, *arguments.get(name, ()))
    return result


@pytest.mark.parametrize("name", EVERY_FORMULA)
@pytest.mark.parametrize(("corner", "near"), [(0.0, 1e-4), (1.0, 0.9999), (1.0, 1.0001), (2.0, 1.9999)])
def test_tweedie_is_continuous_at_its_corners(corner: float, near: float, name: str) -> None:
    close(apply(Tweedie(near, 0.1), name), apply(Tweedie(corner, 0.1), name), rtol=2e-3)


@pytest.mark.parametrize("power", [0.99999, 1.00001, 1.001])
def test_published_formula_near_the_poisson_corner_in_float32(power: float) -> None:
    law = Tweedie(power, 0.7)
    close(law.tweedie(Y.float(), SCORE_U.float()).double(), law.tweedie(Y, SCORE_U), rtol=1e-5)


@pytest.mark.parametrize("name", EVERY_FORMULA)
@pytest.mark.parametrize(("corner", "law"), [(0.0, Gaussian(0.1**0.5)), (2.0, Gamma(10.0))], ids=["gaussian", "gamma"])
def test_corners_of_tweedie_are_the_named_laws(corner: float, law: NoiseModel, name: str) -> None:
    rtol = {"posterior_mean": 0.01, "posterior_variance": 0.02}.get(name, EXACT)  # expansions differ for Gamma
    close(apply(Tweedie(corner, 0.1), name), apply(law, name), rtol=rtol if corner else EXACT)


@pytest.mark.parametrize("name", EVERY_FORMULA)
def test_poisson_corner_of_tweedie_is_poisson_at_many_counts(name: str) -> None:
    """The saddle point replaces ``Γ(z+1)`` by Stirling's formula: an error of order 1/z² of a count."""
    close(apply(Tweedie(1.0, 0.01), name), apply(Poisson(0.01), name), rtol=0.01)


@pytest.mark.parametrize("law", [Gaussian(0.3), Poisson(0.3), Gamma(1 / 0.3)], ids=lambda law: law.name)
def test_tweedie_corners_sample_as_the_named_laws(law: NoiseModel) -> None:
    dispersion = 0.09 if law.variance_power == 0 else 0.3
    x = torch.full((100,), 7.0, dtype=torch.float64)
    close(Tweedie(law.variance_power, dispersion).sample(x, seeded()), law.sample(x, seeded()))


# -- published figures ---------------------------------------------------------------------------------


def test_poisson_figures() -> None:
    """Gamma(5, 0.5) prior, three counts: exact 5.333, published 4.987, second order 5.348."""
    suite = TestPoisson()
    y = float64(3.0)
    s, ds = derivatives(suite.log_density, y)
    assert float(suite.posterior(y).mean) == pytest.approx(5.333, abs=5e-4)
    assert float(Poisson(1.0).tweedie(y, s)) == pytest.approx(4.987, abs=5e-4)
    assert float(Poisson(1.0).posterior_mean(y, s, ds)) == pytest.approx(5.348, abs=5e-4)


def test_gamma_figures() -> None:
    """k = 10, y = 1: exact 0.9167, published 0.8462, second order 0.9112."""
    suite = TestGamma()
    y = float64(1.0)
    s, ds = derivatives(suite.log_density, y)
    assert float(suite.posterior(y).mean) == pytest.approx(0.9167, abs=5e-5)
    assert float(Gamma(10.0).tweedie(y, s)) == pytest.approx(0.8462, abs=5e-5)
    assert float(Gamma(10.0).posterior_mean(y, s, ds)) == pytest.approx(0.9112, abs=5e-5)


@pytest.mark.parametrize("counts", [1.0, 1.5, 2.0, 3.0, 5.0, 10.0, 30.0])
def test_poisson_unbiased_inverse_down_to_one_count(counts: float) -> None:
    """``E[T(y) given x]``, summed over all counts, goes back to ``x`` with a bias below one percent."""
    z = torch.arange(200, dtype=torch.float64)
    probability = torch.exp(z * math.log(counts) - counts - torch.lgamma(z + 1))
    law = Poisson(0.05)
    mean = (probability * law.to_unit(0.05 * z)).sum()
    assert float(law.unbiased_inverse(mean)) == pytest.approx(0.05 * counts, rel=0.01)


def test_poisson_at_zero_counts_is_finite() -> None:
    y = torch.zeros(3, dtype=torch.float64)
    law, s = Poisson(2.0), float64(-1.0, 0.0, 1.0)
    for result in (law.tweedie_from_unit(y, s), law.mean_from_unit(y, s), law.posterior_mean(y, s, -s)):
        assert torch.isfinite(result).all()
    assert float(law.unbiased_inverse(law.to_unit(y[:1]))) == pytest.approx(0, abs=1e-12)


@pytest.mark.parametrize("k", [1.0, 0.5])
def test_gamma_needs_more_than_one_look(k: float) -> None:
    with pytest.raises(NoiseLawError, match=r"above 1.*Average looks first\."):
        Gamma(k)


# -- laws by name --------------------------------------------------------------------------------------


def test_laws_by_name() -> None:
    assert list(LAWS) == ["gaussian", "poisson", "gamma", "tweedie"]
    assert law_named("gaussian", sigma=2.0) == Gaussian(2.0)
    assert law_named("tweedie", power=1.5, dispersion=0.1) == Tweedie(1.5, 0.1)


@pytest.mark.parametrize(
    ("name", "parameters", "message"),
    [
        ("rician", {"sigma": 1.0}, r"unknown noise law 'rician'\. Choose one of gaussian, poisson"),
        ("gaussian", {}, r"takes --sigma, but was given nothing\. Give exactly"),
        ("gaussian", {"gain": 1.0}, r"takes --sigma, but was given --gain"),
        ("tweedie", {"power": 1.0}, r"takes --power and --dispersion, but was given --power\."),
        ("poisson", {"gain": 1.0, "k": 2.0}, r"takes --gain, but was given --gain, --k"),
    ],
)
def test_unknown_law_or_parameter(name: str, parameters: dict[str, float], message: str) -> None:
    with pytest.raises(ConfigurationError, match=message) as caught:
        law_named(name, **parameters)
    assert "\n" not in str(caught.value)
