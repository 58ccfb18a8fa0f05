"""One suite that every noise law inherits, with theory as the oracle.

A subclass names a law and a prior for which the density of ``y`` and the posterior of ``x`` are known; the
scores come from that density by autograd in float64. Nothing here looks at how a law computes anything.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import ClassVar

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor

from n2s_med.errors import NoiseLawError
from n2s_med.noise import NoiseModel

EXACT = 1e-9
"""Relative tolerance of formulas that hold exactly, in float64."""

DRAWS = 200_000

FACTORS = st.floats(1e-3, 1e3)

examples = settings(
    max_examples=30, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.differing_executors]
)
"""One inherited test runs under many classes, which is what hypothesis would warn of."""


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def close(got: Tensor, wanted: Tensor, rtol: float = EXACT, atol: float = 1e-12) -> None:
    torch.testing.assert_close(got, wanted, rtol=rtol, atol=atol)


def derivatives(f: Callable[[Tensor], Tensor], at: Tensor) -> tuple[Tensor, Tensor]:
    """First and second derivative of an elementwise function, by autograd."""
    at = at.detach().clone().requires_grad_()
    value = f(at) + 0 * at**3  # keeps constants and straight lines differentiable
    (first,) = torch.autograd.grad(value.sum(), at, create_graph=True)
    (second,) = torch.autograd.grad(first.sum(), at)
    return first.detach(), second.detach()


@dataclass(frozen=True)
class Posterior:
    """What is known about ``x`` given ``y``, elementwise."""

    mean: Tensor
    variance: Tensor
    published: Tensor
    """The posterior quantity that the published formula gives exactly."""


class NoiseLawTests(ABC):
    """What every noise law must do."""

    law: ClassVar[NoiseModel]
    parameter: ClassVar[str]
    """The field that may be a map."""

    signal: ClassVar[Tensor] = torch.tensor([20.0, 50.0, 200.0], dtype=torch.float64)
    observed: ClassVar[Tensor] = torch.tensor([0.5, 1.0, 3.0, 8.0, 20.0], dtype=torch.float64)
    mean_tolerance: ClassVar[float]
    variance_tolerance: ClassVar[float]
    inverse_tolerance: ClassVar[float] = 0.01
    signed: ClassVar[bool] = False
    """Whether the law admits negative values."""

    # -- the oracle ------------------------------------------------------------------------------------

    @abstractmethod
    def log_density(self, y: Tensor) -> Tensor:
        """``log p(y)`` up to a constant, differentiable."""

    @abstractmethod
    def posterior(self, y: Tensor) -> Posterior:
        """Exact posterior moments."""

    @abstractmethod
    def unit_formula(self, y: Tensor, score_u: Tensor) -> Tensor:
        """The formula as ``MATH.md``'s unit-noise form has it."""

    @pytest.fixture
    def scores(self) -> tuple[Tensor, Tensor]:
        return derivatives(self.log_density, self.observed)

    @pytest.fixture
    def score_u(self) -> Tensor:
        return torch.linspace(-0.4, 0.4, len(self.observed), dtype=torch.float64)

    # -- formulas against conjugate priors -------------------------------------------------------------

    def test_tweedie_is_the_published_quantity(self, scores: tuple[Tensor, Tensor]) -> None:
        close(self.law.tweedie(self.observed, scores[0]), self.posterior(self.observed).published)

    def test_posterior_mean_is_near_the_truth(self, scores: tuple[Tensor, Tensor]) -> None:
        truth = self.posterior(self.observed).mean
        close(self.law.posterior_mean(self.observed, *scores), truth, rtol=self.mean_tolerance)

    def test_second_order_is_no_worse_than_first(self, scores: tuple[Tensor, Tensor]) -> None:
        truth = self.posterior(self.observed).mean
        second = (self.law.posterior_mean(self.observed, *scores) / truth - 1).abs()
        first = (self.law.tweedie(self.observed, scores[0]) / truth - 1).abs()
        assert (second <= first + EXACT).all()

    def test_posterior_variance_is_near_the_truth(self, scores: tuple[Tensor, Tensor]) -> None:
        truth = self.posterior(self.observed).variance
        got = self.law.posterior_variance(self.observed, *scores)
        close(got, truth, rtol=self.variance_tolerance)

    @examples
    @given(st.floats(-50, 50), st.floats(-1e3, 1e3))
    def test_posterior_variance_is_never_negative(self, score: float, derivative: float) -> None:
        y = self.observed
        score_y = self.law.unit_slope(y) * score / 25
        got = self.law.posterior_variance(y, score_y, torch.full_like(y, derivative))
        assert (got >= 0).all()

    def test_flat_density_keeps_large_values(self) -> None:
        """Without a prior's pull the estimate is the measurement, to the square of the relative noise."""
        flat = self.law.unit_curvature(self.signal)[0]  # score of a density that is flat over u
        y, still = self.signal, torch.zeros_like(self.signal)
        squared_cv = float((self.law.variance(y) / y**2).max())
        close(self.law.tweedie(y, flat), y, rtol=squared_cv)
        close(self.law.mean_from_unit(y, still), y, rtol=squared_cv)
        close(self.law.tweedie_from_unit(y, still), y, rtol=squared_cv)

    # -- units of intensity ----------------------------------------------------------------------------

    @examples
    @given(FACTORS)
    def test_scaling(self, factor: float) -> None:
        law, y = self.law.scaled(factor), self.observed
        s, ds = derivatives(self.log_density, y)
        scaled = (factor * y, s / factor, ds / factor**2)
        close(law.variance(factor * y), factor**2 * self.law.variance(y))
        close(law.tweedie(*scaled[:2]), factor * self.law.tweedie(y, s))
        close(law.posterior_mean(*scaled), factor * self.law.posterior_mean(y, s, ds))
        close(law.posterior_variance(*scaled), factor**2 * self.law.posterior_variance(y, s, ds), atol=0)
        close(law.unit_slope(factor * y), self.law.unit_slope(y) / factor)
        close(law.unit_curvature(factor * y)[0], self.law.unit_curvature(y)[0] / factor)

    @examples
    @given(FACTORS)
    def test_unit_noise_domain_forgets_the_unit(self, factor: float) -> None:
        law, y = self.law.scaled(factor), self.observed
        steps = law.to_unit(factor * y).diff()
        close(steps, self.law.to_unit(y).diff(), rtol=1e-7)
        score_u = torch.full_like(y, 0.3)
        for name in ("tweedie_from_unit", "mean_from_unit"):
            got = getattr(law, name)(factor * y, score_u)
            close(got, factor * getattr(self.law, name)(y, score_u), rtol=1e-7)

    def test_scaled_samples_are_samples_of_the_scaled_law(self) -> None:
        x = self.signal.repeat(1000)
        close(4 * self.law.sample(x, seeded()), self.law.scaled(4.0).sample(4 * x, seeded()))

    # -- sampling --------------------------------------------------------------------------------------

    def test_sample_moments(self) -> None:
        for x in self.signal:
            y = self.law.sample(x.expand(DRAWS), seeded())
            variance = self.law.variance(x)
            deviation = (y - x).square()
            assert abs(float(y.mean() - x)) < 4 * float((variance / DRAWS).sqrt())
            assert abs(float(deviation.mean() - variance)) < 4 * float(deviation.std() / DRAWS**0.5)

    def test_generator_decides_the_sample(self) -> None:
        x = self.signal.repeat(10)
        close(self.law.sample(x, seeded(1)), self.law.sample(x, seeded(1)), rtol=0, atol=0)
        assert not torch.equal(self.law.sample(x, seeded(1)), self.law.sample(x, seeded(2)))

    def test_samples_lie_in_the_domain(self) -> None:
        y = self.law.sample(self.signal.repeat(1000), seeded())
        self.law.check(y)
        assert self.law.support(y).all()

    # -- the unit-noise domain -------------------------------------------------------------------------

    def test_unit_noise_has_unit_variance(self) -> None:
        for x in self.signal:
            u = self.law.to_unit(self.law.sample(x.expand(DRAWS), seeded()))
            assert float(u.var()) == pytest.approx(1, abs=0.05)

    def test_unit_map_and_its_inverse(self) -> None:
        close(self.law.from_unit(self.law.to_unit(self.observed)), self.observed)
        u = self.law.to_unit(self.observed)
        close(self.law.to_unit(self.law.from_unit(u)), u)

    def test_unit_slope_and_curvature_are_derivatives(self) -> None:
        slope, second = derivatives(self.law.to_unit, self.observed)
        close(self.law.unit_slope(self.observed), slope)
        bend, bend_derivative = self.law.unit_curvature(self.observed)
        close(bend, second / slope)
        close(bend_derivative, derivatives(lambda y: self.law.unit_curvature(y)[0], self.observed)[0])

    def test_unit_slope_is_one_over_the_noise(self) -> None:
        close(self.law.unit_slope(self.signal), self.law.variance(self.signal).rsqrt(), rtol=0.02)

    def test_scores_change_variables(self) -> None:
        """A density of ``u`` is carried to ``y``: ``log p(y) = log q(T(y)) + log T'(y)``."""

        def log_q(u: Tensor) -> Tensor:
            return torch.sin(u) - u**2 / 50

        def log_p(y: Tensor) -> Tensor:
            return log_q(self.law.to_unit(y)) + self.law.unit_slope(y).log()

        y = self.observed
        score_u, derivative_u = derivatives(log_q, self.law.to_unit(y))
        score, derivative = derivatives(log_p, y)
        close(self.law.score_from_unit(y, score_u), score)
        close(self.law.score_derivative_from_unit(y, score_u, derivative_u), derivative, atol=1e-9)

    def test_tweedie_from_unit_is_the_formula_in_unit_noise(self, score_u: Tensor) -> None:
        got = self.law.tweedie_from_unit(self.observed, score_u)
        close(got, self.unit_formula(self.observed, score_u))

    def test_tweedie_from_unit_is_tweedie_of_the_score(self, score_u: Tensor) -> None:
        """Both ways to the estimate agree where the unit map needs no shift, or the signal dwarfs it."""
        y, score = self.signal[:, None], self.law.score_from_unit(self.signal[:, None], score_u)
        close(self.law.tweedie_from_unit(y, score_u), self.law.tweedie(y, score).clamp_min(0), rtol=0.01)

    def test_mean_and_published_formula_agree_to_first_order(self) -> None:
        y = 1000 * self.signal if self.law.variance_power < 2 else self.signal
        noise = self.law.variance(y).sqrt() / y
        score_u = torch.full_like(y, -0.5)
        got = self.law.mean_from_unit(y, score_u)
        wanted = self.law.tweedie_from_unit(y, score_u)
        assert ((got / wanted - 1).abs() <= 2 * noise**2 + EXACT).all()

    def test_unbiased_inverse_undoes_the_mean_of_the_unit_map(self) -> None:
        for x in self.signal:
            w = self.law.to_unit(self.law.sample(x.expand(DRAWS), seeded())).mean()
            error = 4 * float((self.law.variance(x) / DRAWS).sqrt())
            got = float(self.law.unbiased_inverse(w))
            assert got == pytest.approx(float(x), rel=self.inverse_tolerance, abs=error)

    def test_unbiased_inverse_is_the_inverse_at_high_signal(self) -> None:
        """To the square of the relative noise, which for the Gamma law is the same at any signal."""
        y = 1e6 * self.signal
        squared_cv = float((self.law.variance(y) / y**2).max())
        close(self.law.unbiased_inverse(self.law.to_unit(y)), y, rtol=max(squared_cv, EXACT))

    @examples
    @given(st.lists(st.floats(-20, 20), min_size=2, max_size=8))
    def test_mean_from_unit_is_finite_and_rises_with_the_score(self, scores: list[float]) -> None:
        ordered = torch.tensor(scores, dtype=torch.float64).sort().values
        x_hat = self.law.mean_from_unit(torch.full_like(ordered, 8.0), ordered)
        assert torch.isfinite(x_hat).all()
        assert (x_hat.diff() >= -1e-9).all()
        assert self.signed or (x_hat >= 0).all()

    # -- number types and maps -------------------------------------------------------------------------

    @pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
    def test_number_type_and_shape_are_kept(self, dtype: torch.dtype) -> None:
        y = self.observed.to(dtype).reshape(1, -1, 1)
        s = torch.zeros_like(y)
        results = {
            "sample": self.law.sample(y, seeded()),
            "variance": self.law.variance(y),
            "tweedie": self.law.tweedie(y, s),
            "posterior_mean": self.law.posterior_mean(y, s, s),
            "posterior_variance": self.law.posterior_variance(y, s, s),
            "to_unit": self.law.to_unit(y),
            "from_unit": self.law.from_unit(self.law.to_unit(y)),
            "unit_slope": self.law.unit_slope(y),
            "unit_curvature": self.law.unit_curvature(y)[0],
            "curvature derivative": self.law.unit_curvature(y)[1],
            "score_from_unit": self.law.score_from_unit(y, s),
            "score_derivative_from_unit": self.law.score_derivative_from_unit(y, s, s),
            "tweedie_from_unit": self.law.tweedie_from_unit(y, s),
            "mean_from_unit": self.law.mean_from_unit(y, s),
            "unbiased_inverse": self.law.unbiased_inverse(self.law.to_unit(y)),
        }
        assert {name: (r.dtype, r.shape) for name, r in results.items()} == dict.fromkeys(results, (dtype, y.shape))

    def test_float32_is_float64_to_its_precision(self, scores: tuple[Tensor, Tensor]) -> None:
        y, s, ds = self.observed, *scores
        for name, arguments in (
            ("tweedie", (y, s)),
            ("posterior_mean", (y, s, ds)),
            ("posterior_variance", (y, s, ds)),
            ("tweedie_from_unit", (y, s)),
            ("mean_from_unit", (y, s)),
        ):
            exact = getattr(self.law, name)(*arguments)
            single = getattr(self.law, name)(*(a.float() for a in arguments))
            close(single.double(), exact, rtol=1e-4, atol=1e-5)

    def test_parameter_map_is_a_scalar_at_each_voxel(self, scores: tuple[Tensor, Tensor]) -> None:
        size = len(self.observed)
        values = getattr(self.law, self.parameter) * torch.linspace(1, 2, size, dtype=torch.float64)
        mapped = replace(self.law, **{self.parameter: values})  # type: ignore[type-var]
        y, (s, ds) = self.observed, scores
        arguments = {
            "variance": (y,),
            "tweedie": (y, s),
            "posterior_mean": (y, s, ds),
            "posterior_variance": (y, s, ds),
            "to_unit": (y,),
            "unit_slope": (y,),
            "score_from_unit": (y, s),
            "tweedie_from_unit": (y, 0.1 * s),
            "mean_from_unit": (y, 0.1 * s),
            "unbiased_inverse": (mapped.to_unit(y),),
        }
        for name, given_ in arguments.items():
            got = getattr(mapped, name)(*given_)
            for i, value in enumerate(values.tolist()):
                single = replace(self.law, **{self.parameter: value})  # type: ignore[type-var]
                close(got[i], getattr(single, name)(*(a[i] for a in given_)))

    def test_map_samples_have_the_maps_variance(self) -> None:
        x = self.signal
        values = getattr(self.law, self.parameter) * torch.tensor([1.0, 1.5, 2.0], dtype=torch.float64)
        mapped = replace(self.law, **{self.parameter: values})  # type: ignore[type-var]
        y = mapped.sample(x.expand(DRAWS, 3), seeded())
        close(y.var(dim=0), mapped.variance(x), rtol=0.03)

    def test_report_names_law_and_level(self) -> None:
        assert str(self.law).startswith(f"{self.law.name}(")
        assert self.parameter in self.law.parameters
        size = torch.arange(1.0, 4.0, dtype=torch.float64) * getattr(self.law, self.parameter)
        mapped = replace(self.law, **{self.parameter: size})  # type: ignore[type-var]
        assert mapped.parameters[self.parameter] == pytest.approx(float(size[1]))

    # -- refusals --------------------------------------------------------------------------------------

    @pytest.mark.parametrize("bad", [float("nan"), float("inf"), float("-inf")])
    def test_refuses_what_is_not_finite(self, bad: float) -> None:
        y = self.observed.clone()
        y[1] = bad
        with pytest.raises(NoiseLawError, match=r"1 of 5 values are NaN or infinite.*Repair") as caught:
            self.law.check(y)
        assert "\n" not in str(caught.value)
        with pytest.raises(NoiseLawError, match="1 of 5 values are NaN or infinite"):
            self.law.sample(y)

    def test_negative_values(self) -> None:
        y = torch.cat((self.observed, torch.tensor([-1.5])))
        if self.signed:
            self.law.check(y)
            return
        with pytest.raises(NoiseLawError, match=r"1 of 6 values are negative \(lowest -1\.5\).*Use") as caught:
            self.law.check(y)
        assert "\n" not in str(caught.value)
        with pytest.raises(NoiseLawError, match="1 of 6 values are negative"):
            self.law.sample(y)

    @pytest.mark.parametrize("bad", [0.0, -1.0, float("nan"), float("inf")])
    def test_refuses_factors_that_are_no_change_of_unit(self, bad: float) -> None:
        with pytest.raises(NoiseLawError, match=r"cannot be scaled by .*Give a finite factor above zero\.$"):
            self.law.scaled(bad)

    @pytest.mark.parametrize("bad", [0.0, -1.0, float("nan"), float("inf")])
    def test_refuses_bad_parameters(self, bad: float) -> None:
        spoiled = torch.full((3,), 2.0)
        spoiled[1] = bad
        for value in (bad, spoiled):
            with pytest.raises(NoiseLawError, match=rf"{self.parameter} of the {self.law.name} law") as caught:
                replace(self.law, **{self.parameter: value})  # type: ignore[type-var]
            assert f"--{self.parameter}" in str(caught.value)
            assert "\n" not in str(caught.value)
