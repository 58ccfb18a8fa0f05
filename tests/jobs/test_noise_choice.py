"""Which noise a scan is taken to have: what is asked for, else the modality's law, else what fits; and what is told."""

from __future__ import annotations

import pytest
import torch
from job_scans import blob
from monai.data import MetaTensor
from torch import Tensor

from n2s_med.errors import ConfigurationError, InputError, NoiseLawError
from n2s_med.jobs.noise import NoiseChoice, NoiseRequest, choose_noise
from n2s_med.jobs.scans import scans_of
from n2s_med.modalities import modality_named
from n2s_med.noise import Gamma, Gaussian, NoiseModel, Poisson
from n2s_med.noise.correlation import Correlation
from n2s_med.noise.scan import ScanNoise

SHAPE = (48, 48, 48)


def ramp() -> Tensor:
    """Flat blocks of every intensity from 50 to 400."""
    levels = torch.linspace(50, 400, 4)[:, None, None] + torch.linspace(0, 80, 4)[:, None] + torch.linspace(0, 20, 4)
    return levels.repeat_interleave(12, 0).repeat_interleave(12, 1).repeat_interleave(12, 2)


def scan(law: NoiseModel) -> Tensor:
    return law.sample(ramp(), torch.Generator().manual_seed(0))


def chosen(y: Tensor, modality: str | None = None, request: NoiseRequest | None = None) -> NoiseChoice:
    valid = torch.ones_like(y, dtype=torch.bool)
    found = modality_named(modality) if modality else None
    return choose_noise(y, valid, (1.0,) * 3, found, request or NoiseRequest())


@pytest.mark.parametrize(
    ("modality", "law"),
    [("pet", Poisson(2.0)), ("nm", Poisson(1.0)), ("ct", Gaussian(12.0)), ("mr", Gaussian(9.0)), ("us", Gamma(40.0))],
    ids=str,
)
def test_the_modality_gives_the_law(modality: str, law: NoiseModel) -> None:
    choice = chosen(scan(law), modality)
    assert choice.noise.law.name == law.name
    (level,) = law.parameters.values()
    (measured,) = choice.noise.law.parameters.values()
    assert measured == pytest.approx(level, rel=0.1)
    assert choice.warnings == ()
    assert choice.sentence.startswith(f"{law.name}(")
    assert "fit to" in choice.sentence
    assert choice.sentence.endswith("white")


@pytest.mark.parametrize("law", [Gaussian(12.0), Gamma(40.0)], ids=str)
def test_without_a_modality_the_best_fit_is_taken(law: NoiseModel) -> None:
    assert chosen(scan(law)).noise.law.variance_power == pytest.approx(law.variance_power, abs=0.2)


def test_variance_that_grows_with_the_intensity_of_mr_is_texture_not_another_law() -> None:
    choice = chosen(scan(Gamma(40.0)), "mr")
    assert choice.noise.law.name == "gaussian"
    (warning,) = (w for w in choice.warnings if "that is texture" in w)
    assert "the level is not told" in warning
    assert choice.level_interval is not None
    assert choice.level_interval[0] == 0
    assert chosen(scan(Gamma(40.0)), "mr", NoiseRequest("gaussian")).warnings == choice.warnings


def test_where_the_modality_s_law_fits_poorly_a_better_one_is_taken_and_told() -> None:
    choice = chosen(scan(Gamma(40.0)), "ct")
    assert choice.noise.law.name in ("gamma", "tweedie")
    (told,) = choice.warnings
    assert "does not follow the gaussian law" in told
    assert f"The {choice.noise.law.name} law was taken." in told


def test_a_law_asked_for_is_kept_and_a_better_one_told() -> None:
    choice = chosen(scan(Gamma(40.0)), "ct", NoiseRequest("gaussian"))
    assert choice.noise.law.name == "gaussian"
    (told,) = choice.warnings
    assert "Use --noise " in told


def test_noise_that_no_law_describes_is_told() -> None:
    """Only one law admits negative values, and the noise jumps from shade to shade."""
    jumps = 5 * 8.0 ** torch.randint(2, (4, 4, 4), generator=torch.Generator().manual_seed(2))
    for axis in range(3):
        jumps = jumps.repeat_interleave(12, axis)
    y = ramp() - 300 + jumps * torch.randn(SHAPE, generator=torch.Generator().manual_seed(0))
    choice = chosen(y, "ct")
    assert choice.noise.law.name == "gaussian"
    assert any("no other law fits better" in told for told in choice.warnings)
    assert choice.figures()["misfit_by_law"]


def test_noise_that_varies_in_space_is_mapped_and_told() -> None:
    growing = torch.linspace(5, 20, 96)[:, None, None].expand(96, 48, 48)
    y = ramp().repeat(2, 1, 1) - 300 + growing * torch.randn(96, 48, 48, generator=torch.Generator().manual_seed(0))
    choice = chosen(y, "ct")
    assert choice.warnings == ()
    assert "its SD varies over the volume, 0." in choice.sentence
    low, high = choice.figures()["noise_sd_over_the_volume_percentiles_5_95_relative"]  # type: ignore[misc]
    assert low == pytest.approx(5.75 / 12.5, rel=0.15)
    assert high == pytest.approx(19.25 / 12.5, rel=0.15)


def test_a_law_given_with_its_level() -> None:
    choice = chosen(scan(Gaussian(12.0)), "pet", NoiseRequest("gaussian", {"sigma": 7.0}))
    assert choice.noise.law.parameters == {"sigma": 7.0}
    assert choice.sentence == "gaussian(sigma=7), as given; white"
    assert choice.figures()["sigma"] == 7.0
    assert choice.level_interval is None


@pytest.mark.parametrize("law", [("poisson", {"gain": 1.0}), ("poisson", {}), ("gamma", {"k": 9.0}), ("tweedie", {})])
def test_data_outside_a_law_asked_for(law: tuple[str, dict[str, float]]) -> None:
    with pytest.raises(NoiseLawError, match="negative"):
        chosen(scan(Gaussian(12.0)) - 300, None, NoiseRequest(*law))


@pytest.mark.parametrize("given", [True, False])
def test_correlation_is_estimated_unless_switched_off(given: bool) -> None:
    kernel = torch.tensor([0.5, 1.0, 0.5])
    correlation = Correlation.from_kernel(kernel[:, None, None] * kernel[:, None] * torch.ones(1))
    noise = 12 * correlation.color(torch.randn(SHAPE, generator=torch.Generator().manual_seed(0)))
    parameters = {"sigma": 12.0} if given else {}
    auto = chosen(ramp() + noise, "ct", NoiseRequest("gaussian", parameters))
    assert not auto.noise.correlation.is_white
    assert "correlated (neighbours 0." in auto.sentence
    assert auto.figures()["correlated"] is True
    white = chosen(ramp() + noise, "ct", NoiseRequest("gaussian", parameters, "white"))
    assert white.noise.correlation.is_white
    assert white.sentence.endswith("; white")


def test_too_little_noise_to_measure() -> None:
    y = blob((6, 6, 6)) + torch.rand((6, 6, 6))
    with pytest.raises(InputError, match="--sigma"):
        chosen(y, "ct")
    choice = chosen(y, "ct", NoiseRequest("gaussian", {"sigma": 1.0}))
    assert choice.noise.correlation.is_white
    assert "taken as white" in choice.warnings[0]
    assert choice.measured is None
    assert "measured_power" not in choice.figures()


def test_one_slice_is_two_dimensional() -> None:
    y = scan(Gaussian(12.0))[:, :, :1]
    for request in (
        NoiseRequest("gaussian"),
        NoiseRequest("gaussian", {"sigma": 12.0}),
        NoiseRequest("gaussian", {}, "white"),
    ):
        assert chosen(y, "ct", request).noise.correlation.kernel.ndim == 2


def test_rician_bias_is_told() -> None:
    x = ramp()
    x[:24] = 0
    first, second = (12 * torch.randn(SHAPE, generator=torch.Generator().manual_seed(s)) for s in (1, 2))
    magnitude = ((x + first) ** 2 + second**2).sqrt()
    assert any("Rician" in told for told in chosen(magnitude, "mr").warnings)
    assert not any("Rician" in told for told in chosen(magnitude, "ct").warnings)
    assert not any("Rician" in told for told in chosen(scan(Gaussian(9.0)), "mr").warnings)


def test_the_rician_bias_is_taken_off_the_denoised_scan() -> None:
    """The mean of air is 1.25 sigma; of it nothing is left, and of bright signal all but sigma²/(2 A)."""
    x = ramp()
    x[:24] = 0
    real, imaginary = (9.0 * torch.randn(SHAPE, generator=torch.Generator().manual_seed(s)) for s in (1, 2))
    magnitude = ((x + real) ** 2 + imaginary**2).sqrt()
    choice, valid = chosen(magnitude, "mr"), torch.ones(SHAPE, dtype=torch.bool)
    assert any("is corrected for that bias" in told for told in choice.warnings)
    assert choice.figures()["rician_bias_corrected"] is True
    mean = torch.where(x == 0, 9 * 1.2533, x + 81 / (2 * x.clamp_min(1)))
    found = choice.corrected(mean, valid)
    assert float((found - x).abs()[x > 0].max()) < 0.3
    assert float(found[:24].max()) < 0.35 * 9
    torch.testing.assert_close(choice.corrected(mean, ~valid), mean)
    off = chosen(magnitude, "mr", NoiseRequest(rician="off"))
    assert any("that bias stays" in told for told in off.warnings)
    assert off.corrected(mean, valid) is mean
    given = chosen(magnitude, "mr", NoiseRequest("gaussian", {"sigma": 9.0}))
    assert any("is corrected for that bias" in told for told in given.warnings)
    torch.testing.assert_close(given.corrected(mean, valid)[:24], found[:24], rtol=0.05, atol=0.5)


@pytest.mark.parametrize(
    ("law", "parameters", "words"),
    [
        ("auto", {"sigma": 1.0}, "--sigma was given without its law"),
        ("gaussian", {"gain": 1.0}, "takes --sigma, but was given --gain"),
        ("cauchy", {}, "unknown noise law 'cauchy'"),
    ],
)
def test_requests_that_mean_nothing(law: str, parameters: dict[str, float], words: str) -> None:
    with pytest.raises(ConfigurationError, match=words):
        NoiseRequest(law, parameters)


# -- what a volume's own record says -------------------------------------------------------------------


def volume(values: Tensor, **meta: object) -> MetaTensor:
    """A volume (C, X, Y, Z) as a reader gives it."""
    record = {"spacing_mm": (1.0,) * 3, "valid": torch.ones(1, 1, 1, 1, dtype=torch.bool), **meta}
    return MetaTensor(values, affine=torch.eye(4), meta=record)


def test_counts_as_acquired_have_a_gain_of_one() -> None:
    """Raw counts are told by the file: nothing is estimated, whatever the modality's law."""
    y = Poisson(1.0).sample(ramp() / 40, torch.Generator().manual_seed(0))[None]
    (found,) = scans_of(volume(y, counts=True), modality_named("nm"), NoiseRequest())
    assert found.choice.noise.law == Poisson(1.0)
    assert found.choice.noise.quantum == pytest.approx(1.0)
    assert found.choice.noise.correlation.is_white
    (told,) = scans_of(volume(y, counts=True), None, NoiseRequest("poisson", {"gain": 2.0}))
    assert told.choice.noise.law == Poisson(2.0)


@pytest.mark.parametrize(("durations", "differ"), [((60.0, 60.0), False), ((60.0, 240.0), True), (None, False)])
def test_frames_of_different_duration_have_their_own_level(durations: tuple[float, ...] | None, differ: bool) -> None:
    y = torch.stack([scan(Gaussian(12.0)), scan(Gaussian(6.0))])
    record = {} if durations is None else {"durations_s": durations}
    first, second = scans_of(volume(y, **record), modality_named("ct"), NoiseRequest())
    levels = [s.choice.noise.law.parameters["sigma"] for s in (first, second)]
    assert levels[0] == pytest.approx(12, rel=0.1)
    assert levels[1] == pytest.approx(6 if differ else 12, rel=0.1)


@pytest.mark.parametrize(("component", "rician"), [("magnitude", True), ("real", False)])
def test_real_parts_are_not_rician(component: str, rician: bool) -> None:
    y = scan(Gaussian(60.0)).clamp_min(0)[None]
    (found,) = scans_of(volume(y, component=component), modality_named("mr"), NoiseRequest("gaussian", {"sigma": 60.0}))
    (auto,) = scans_of(volume(y, component=component), modality_named("mr"), NoiseRequest())
    for told in (found, auto):
        assert any("Rician" in warning for warning in told.choice.warnings) == rician


@pytest.mark.parametrize(
    ("interval", "told"),
    [(None, True), ((0.9, 1.2), True), ((0.7, 1.2), False), ((0.9, 1.4), False)],
)
def test_a_level_that_weights_may_be_chosen_by(interval: tuple[float, float] | None, told: bool) -> None:
    noise = ScanNoise(Gaussian(1.0), Correlation.white(3))
    assert NoiseChoice(noise, None, "", level_interval=interval).level_told == told
