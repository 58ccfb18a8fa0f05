"""From a noisy volume and a score to the denoised volume, with scores that are known exactly."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from n2s_med.compute import Compute
from n2s_med.denoise import STEP_RANGE, DenoiseOptions, Denoiser
from n2s_med.errors import ConfigurationError, InputError, NoiseLawError
from n2s_med.noise import Gamma, Gaussian, NoiseModel, Poisson, Tweedie
from n2s_med.noise.correlation import Correlation
from n2s_med.noise.scan import ScanNoise
from n2s_med.score import ScoreModel, ScoreUNet, base_model
from n2s_med.uncertainty import mean_filter, rising
from n2s_med.unit_data import to_unit

CPU = Compute(torch.device("cpu"), bf16=False)
WHITE = ScanNoise(Gaussian(1.0), Correlation.white(3))
COLORED = Correlation.from_kernel(torch.tensor([0.3, 1.0, 0.3])[:, None, None] * torch.tensor([0.5, 1.0, 0.5]))


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=seeded(seed))


class Analytic(ScoreUNet):
    """A score known exactly, ``g(v) = slope (v - about)``: that of a white Gaussian signal."""

    def __init__(self, slope: float, about: float = 0.0, spatial_dims: int = 3) -> None:
        super().__init__(spatial_dims, (1,))
        self.slope, self.about = slope, about

    @staticmethod
    def split(v: Tensor) -> tuple[Tensor, Tensor]:
        return v, v

    def score(self, correction: Tensor, detail: Tensor, noisy: Tensor, traits: Tensor) -> Tensor:  # noqa: ARG002
        return self.slope * (detail - self.about)


def analytic(slope: float, about: float = 0.0, dims: int = 3) -> ScoreModel:
    return ScoreModel(Analytic(slope, about, dims))


def trained_like(dims: int = 3, levels: int = 3) -> ScoreModel:
    """A network of random weights, whose every path matters; its output is as large as its input."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        network = ScoreUNet(dims, (3, 4, 5)[:levels])
    with torch.no_grad():
        for parameter in network.parameters():
            if parameter.ndim == 1:
                parameter.uniform_(-0.2, 0.2, generator=seeded())
        network.head.weight.mul_(20)
    return ScoreModel(network)


def denoiser(model: ScoreModel, noise: ScanNoise = WHITE, **options: object) -> Denoiser:
    return Denoiser(model, noise, CPU, DenoiseOptions(**options))  # type: ignore[arg-type]


# -- the same in any chunks -----------------------------------------------------------------------------


@pytest.mark.parametrize("orientations", [1, 4])
@pytest.mark.parametrize("shape", [(71, 9, 11), (9, 70, 8), (5, 9, 67)], ids=str)
def test_result_does_not_depend_on_the_chunks(shape: tuple[int, ...], orientations: int) -> None:
    """Odd sizes, and chunks that start at any phase of the coarsest grid."""
    y, model = normal(*shape), trained_like(levels=2)
    options: dict[str, object] = {"orientations": orientations, "step": 1.0}
    whole = denoiser(model, chunk_voxels=10**9, **options)(y).x_hat
    assert float((whole - y).std()) > 0.3
    for voxels in (700, 1):
        chunked = denoiser(model, chunk_voxels=voxels, **options)(y).x_hat
        torch.testing.assert_close(chunked, whole, rtol=0, atol=1e-4)


def test_noise_for_air_of_few_counts_is_added_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Planes that are larger than a band of rows, whose passes go one after the other."""
    noise = ScanNoise(Poisson(1.0), WHITE.correlation)
    y = torch.poisson(torch.full((17, 14, 9), 20.0), generator=seeded())
    y[:9] = 0
    run = denoiser(trained_like(levels=2), noise, step=1.0, chunk_voxels=900, orientations=4)
    whole = run(y).x_hat
    monkeypatch.setattr("n2s_med.neighbourhood.BAND", 5 * 14 * 9)
    seen: list[int] = []
    for module in ("n2s_med.denoise", "n2s_med.score.stream"):
        monkeypatch.setattr(f"{module}.LARGE", 1)
    by_bands = run(y, progress=lambda done, _: seen.append(done)).x_hat
    assert seen[-1] == 4 * 9
    torch.testing.assert_close(by_bands, whole, rtol=0, atol=1e-4)


def test_number_of_orientations() -> None:
    assert DenoiseOptions().passes() == 2
    assert DenoiseOptions().passes(trained=True) == 4
    assert DenoiseOptions(orientations=1).passes(trained=True) == 1
    with pytest.raises(ConfigurationError, match=r"5 orientations\. Give a number from 1 to 4"):
        DenoiseOptions(orientations=5)


def chunk_count(run: Denoiser, y: Tensor) -> int:
    """Into how many chunks the planes come back; each is told once, in order, up to the last plane."""
    seen: list[tuple[int, int]] = []
    run(y, progress=lambda done, total: seen.append((done, total)))
    done = [planes for planes, _ in seen]
    assert done == sorted(set(done))
    assert seen[-1] == (seen[0][1], seen[0][1])
    assert seen[0][1] % y.shape[-1] == 0
    return len(seen)


def test_planes_are_told() -> None:
    y, model = normal(9, 8, 61), trained_like(levels=2)
    few, many = (chunk_count(denoiser(model, orientations=1, chunk_voxels=n), y) for n in (10**9, 500))
    assert many > 4 * few


@pytest.mark.parametrize("levels", [1, 3])
def test_chunks_of_a_plane(levels: int) -> None:
    y, model = normal(130, 75, 1), trained_like(2, levels)
    noise = ScanNoise(Gaussian(1.0), Correlation.white(2))
    whole = denoiser(model, noise, chunk_voxels=10**9, step=1.0)(y).x_hat
    chunked = denoiser(model, noise, chunk_voxels=6000, step=1.0)(y).x_hat
    assert chunked.shape == y.shape
    torch.testing.assert_close(chunked, whole, rtol=0, atol=1e-4)


@pytest.mark.parametrize("correlation", [Correlation.white(3), COLORED], ids=["white", "correlated"])
def test_correlated_noise_and_uncertainty_do_not_depend_on_the_chunks(correlation: Correlation) -> None:
    y, model = normal(75, 9, 8), trained_like(levels=2)
    noise = ScanNoise(Gaussian(1.0), correlation)
    options: dict[str, object] = {"orientations": 1, "step": 1.0, "sd_probes": 2}
    whole = denoiser(model, noise, chunk_voxels=10**9, **options)(y)
    run = denoiser(model, noise, chunk_voxels=4500, **options)
    assert chunk_count(run, y) > 1
    chunked = run(y)
    torch.testing.assert_close(chunked.x_hat, whole.x_hat, rtol=0, atol=1e-4)
    assert whole.sd is not None
    assert chunked.sd is not None
    torch.testing.assert_close(chunked.sd.square(), whole.sd.square(), rtol=0, atol=1e-3)


def test_figures_do_not_depend_on_the_chunks() -> None:
    y, model = normal(50, 20, 20), analytic(-0.4)
    first = denoiser(model, chunk_voxels=10**9)(y).figures
    assert denoiser(model, chunk_voxels=3000)(y).figures == first


@pytest.mark.parametrize("shape", [(1, 1, 2), (1, 7, 5), (40, 3, 1), (2, 2, 2)], ids=str)
def test_any_size(shape: tuple[int, ...]) -> None:
    y = normal(*shape)
    result = denoiser(trained_like(), sd_probes=2)(y)
    assert result.x_hat.shape == y.shape
    assert torch.isfinite(result.x_hat).all()
    assert result.sd is not None
    assert torch.isfinite(result.sd).all()


# -- exact scores --------------------------------------------------------------------------------------

SIGNAL = 2.0
"""SD of a white Gaussian signal, in noise SDs; its score is ``-u / (SIGNAL² + 1)``."""

KEEP = SIGNAL**2 / (SIGNAL**2 + 1)


@pytest.mark.parametrize("sigma", [1.0, 0.01, 300.0])
def test_exact_score_gives_the_posterior_mean_and_sd(sigma: float) -> None:
    x = 10 * sigma + SIGNAL * sigma * normal(40, 40, 40, seed=1)
    y = x + sigma * normal(40, 40, 40, seed=2)
    noise = ScanNoise(Gaussian(sigma), Correlation.white(3))
    model = analytic(KEEP - 1, about=10.0)
    result = denoiser(model, noise, sd_probes=2, step=1.0)(y)
    torch.testing.assert_close(result.x_hat / sigma, 10 + KEEP * (y / sigma - 10), rtol=1e-3, atol=1e-3)
    assert result.sd is not None
    torch.testing.assert_close(result.sd / sigma, torch.full_like(y, math.sqrt(KEEP)), rtol=3e-2, atol=0)  # measured
    deviation = (result.x_hat - x).abs() / result.sd
    assert float((deviation < 1).float().mean()) == pytest.approx(0.683, abs=0.01)
    assert float((deviation < 2).float().mean()) == pytest.approx(0.954, abs=0.005)
    assert result.figures.step_sure == pytest.approx(1, abs=0.05)
    found = denoiser(model, noise)(y).figures
    error = float((result.x_hat - x).square().mean()) / sigma**2
    assert found.risk == pytest.approx(error, abs=0.05) == pytest.approx(KEEP, abs=0.1)


def test_risk_of_whole_counts_takes_them_as_they_are() -> None:
    """Not with the variance of those that are spread over their cells, a twelfth of a count more."""
    x = torch.full((40, 40, 40), 3.0)
    y, noise = torch.poisson(x, generator=seeded()), ScanNoise(Poisson(1.0), WHITE.correlation, quantum=1.0)
    model = analytic(-0.9, about=float(noise.law.to_unit(y).mean()))
    result = denoiser(model, noise, few_counts=False, step=1.0)(y)
    error = float((result.x_hat - x).square().mean()) / 3
    assert result.figures.risk == pytest.approx(error, abs=0.02)


@pytest.mark.parametrize("off", [1.0, 1.25, 1.7])
def test_step_from_sure_puts_a_wrong_scale_right(off: float) -> None:
    y = (SIGNAL**2 + 1) ** 0.5 * normal(40, 40, 40)
    result = denoiser(analytic(off * (KEEP - 1)))(y)
    assert result.figures.step == pytest.approx(1 / off, rel=0.05)
    torch.testing.assert_close(result.x_hat, KEEP * y, rtol=0, atol=0.05)


def test_step_is_kept_in_range_and_may_be_given() -> None:
    y = normal(20, 20, 20)
    low = denoiser(analytic(0.5))(y).figures  # away from the noise
    assert low.step == STEP_RANGE[0] > low.step_sure
    high = denoiser(analytic(-0.05))(y).figures
    assert high.step == STEP_RANGE[1] < high.step_sure
    assert denoiser(analytic(-0.05), step=0.7)(y).figures.step == 0.7


def test_counts_take_the_whole_step() -> None:
    """SURE's step fails on the lattice of counts."""
    y = torch.poisson(torch.full((20, 20, 20), 5.0), generator=seeded())
    noise = ScanNoise(Poisson(1.0), Correlation.white(3), quantum=1.0)
    assert denoiser(analytic(-0.2, about=4.0), noise)(y).figures.step == 1.0


def test_correlated_noise_by_the_exact_score() -> None:
    """A signal with the noise's own correlation: ``Σ s`` is a plain shrinkage."""
    y = COLORED.color(normal(24, 24, 6, seed=1) * SIGNAL + normal(24, 24, 6, seed=2))
    result = denoiser(analytic(KEEP - 1), ScanNoise(Gaussian(1.0), COLORED), orientations=1, step=1.0)(y)
    torch.testing.assert_close(result.x_hat, KEEP * y, rtol=0, atol=1e-4)
    assert result.figures.step_sure == pytest.approx(1, abs=0.1)


@pytest.mark.parametrize(
    "law", [Gaussian(2.0), Poisson(0.5), Gamma(50.0), Tweedie(1.5, 0.05), Tweedie(0.0, 2.0)], ids=str
)
@pytest.mark.parametrize("formula", ["mean", "published"])
def test_no_score_no_change(law: NoiseModel, formula: str) -> None:
    """A network that finds nothing leaves the volume as it was, to the second order of the noise."""
    y = law.sample(torch.full((12, 12, 12), 100.0), seeded())
    result = denoiser(analytic(0.0), ScanNoise(law, Correlation.white(3)), formula=formula)(y)
    spread = float(law.variance(torch.tensor(100.0))) / 100  # bias of the map's inverse
    torch.testing.assert_close(result.x_hat, y, rtol=1e-5, atol=1e-4 + (spread if law.variance_power else 0))
    assert math.isfinite(result.figures.step)
    assert result.figures.risk == pytest.approx(1, abs=0.3)


@pytest.mark.parametrize(("law", "scale"), [(Poisson(1.0), 2e4), (Tweedie(1.5, 0.01), 2e3), (Gamma(5e4), 9.0)], ids=str)
def test_formulas_agree_at_high_counts(law: NoiseModel, scale: float) -> None:
    """Published and mean formula differ by the square of the relative noise."""
    y = law.sample(scale * (1 + 0.3 * torch.rand(16, 16, 16, generator=seeded())), seeded(1))
    noise = ScanNoise(law, Correlation.white(3))
    model = analytic(-0.1, about=float(law.to_unit(y).mean()))
    one, other = (denoiser(model, noise, step=1.0, formula=f)(y).x_hat for f in ("mean", "published"))
    relative = float((law.variance(y) / y**2).max())
    assert float((one - y).abs().max()) > 10 * float((one - other).abs().max())
    torch.testing.assert_close(one, other, rtol=max(1e-5, 200 * relative), atol=0)


def test_what_stands_far_out_is_not_exaggerated() -> None:
    """A score that drives single voxels away is stopped by their neighbourhood, in any chunks, and only there."""
    y = normal(24, 20, 18)
    y[12, 10, 8], y[5, 5, 5] = 90.0, -70.0
    y[20, 3, 9] = 4.0
    valid = torch.ones_like(y, dtype=torch.bool)
    valid[13, 10, 8] = False
    y[13, 10, 8] = 500.0  # padding does not count as a neighbour
    for voxels in (700, 10**9):
        run = denoiser(analytic(0.05), step=1.0, chunk_voxels=voxels)
        x_hat = run(y, valid).x_hat
        assert x_hat[12, 10, 8] == y[12, 10, 8]
        assert x_hat[5, 5, 5] == y[5, 5, 5]
        assert x_hat[20, 3, 9] == pytest.approx(4.2)
        assert x_hat[12, 11, 8] == pytest.approx(1.05 * float(y[12, 11, 8]))


def test_scaled_intensities_scale_the_result() -> None:
    y = torch.poisson(torch.full((14, 14, 14), 30.0), generator=seeded())
    model = analytic(-0.5, about=11.0)
    one = denoiser(model, ScanNoise(Poisson(1.0), Correlation.white(3)), sd_probes=2)(y)
    other = denoiser(model, ScanNoise(Poisson(40.0), Correlation.white(3)), sd_probes=2)(40 * y)
    torch.testing.assert_close(other.x_hat, 40 * one.x_hat, rtol=1e-3, atol=1e-2)
    assert one.sd is not None
    assert other.sd is not None
    torch.testing.assert_close(other.sd, 40 * one.sd, rtol=1e-2, atol=1e-2)


@pytest.mark.parametrize("voxels", [10**9, 3000], ids=["at once", "in chunks"])
def test_level_may_be_a_map(voxels: int) -> None:
    """Noise that grows along the volume: each voxel is judged by its own."""
    sigma = torch.linspace(0.5, 4, 44)[:, None, None].expand(44, 12, 12)
    y = sigma * (SIGNAL**2 + 1) ** 0.5 * normal(44, 12, 12)
    noise = ScanNoise(Gaussian(sigma), Correlation.white(3))
    result = denoiser(analytic(KEEP - 1), noise, step=1.0, chunk_voxels=voxels, sd_probes=2)(y)
    torch.testing.assert_close(result.x_hat, KEEP * y, rtol=1e-4, atol=1e-4)
    assert result.sd is not None
    torch.testing.assert_close(result.sd, math.sqrt(KEEP) * sigma, rtol=5e-2, atol=0)  # measured on 6000 voxels


def test_uncertainty_is_calibrated_where_the_network_errs() -> None:
    """A network that smooths too much says it is certain; the risk that is measured says it is not."""
    y = 0.5 * normal(60, 60, 40) + normal(60, 60, 40, seed=5)  # a signal of variance 1/4: the best slope keeps 1/5
    result = denoiser(analytic(-0.95), step=1.0, sd_probes=4)(y)
    assert result.sd is not None
    true = (0.05**2 * 1.25 - 2 * 0.05 * 0.25 + 0.25) ** 0.5
    assert float(result.sd.median()) == pytest.approx(true, rel=0.1)


@pytest.mark.parametrize(
    ("values", "wanted"), [([1, 2, 3], [1, 2, 3]), ([3, 1, 2], [2, 2, 2]), ([1, 3, 2, 5], [1, 2.5, 2.5, 5]), ([], [])]
)
def test_rising(values: list[float], wanted: list[float]) -> None:
    assert rising(values) == wanted


# -- padding -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("filler", [-2000.0, float("nan"), float("inf"), 0.0])
def test_padding_comes_back_to_the_bit(filler: float) -> None:
    y = normal(20, 20, 20)
    valid = torch.ones_like(y, dtype=torch.bool)
    valid[:5] = False
    padded = torch.where(valid, y, filler)
    result = denoiser(trained_like(levels=2), sd_probes=2)(padded, valid)
    assert torch.equal(result.x_hat[:5].view(torch.int32), padded[:5].view(torch.int32))
    assert torch.isfinite(result.x_hat[5:]).all()
    assert not torch.equal(result.x_hat[5:], y[5:])
    assert result.sd is not None
    assert not result.sd[:5].any()
    assert (result.sd[5:] >= 0).all()


def test_what_padding_holds_changes_nothing() -> None:
    y, valid = normal(16, 16, 16), torch.ones(16, 16, 16, dtype=torch.bool)
    valid[:, 12:] = False
    run = denoiser(trained_like(levels=2))
    one, other = (run(torch.where(valid, y, filler), valid).x_hat for filler in (-3000.0, float("nan")))
    assert torch.equal(one[valid], other[valid])


def test_zeros_of_the_gamma_law_are_padding() -> None:
    y = Gamma(20.0).sample(torch.full((12, 12, 12), 5.0), seeded())
    y[:3] = 0.0
    result = denoiser(analytic(-0.3, about=7.0), ScanNoise(Gamma(20.0), Correlation.white(3)))(y)
    assert not result.x_hat[:3].any()
    assert torch.isfinite(result.x_hat).all()


def test_little_valid_in_a_large_field() -> None:
    """Figures and result stay finite where nearly all of the volume is padding."""
    y, valid = normal(400, 400, 1), torch.zeros(400, 400, 1, dtype=torch.bool)
    valid[380:395, 5:15] = True
    noise = ScanNoise(Gaussian(1.0), Correlation.white(2))
    result = denoiser(analytic(-0.2, dims=2), noise)(y, valid)
    assert torch.isfinite(result.x_hat[valid]).all()
    assert math.isfinite(result.figures.risk)
    assert torch.equal(result.x_hat[~valid], y[~valid])


@pytest.mark.parametrize("background", [0.0, 0.02, 0.1, 0.5])
def test_air_of_few_counts_stays_air(background: float) -> None:
    """Where there is next to no noise: the weights that come with the package were never shown that."""
    x = torch.full((40, 24, 24), 20.0)
    x[:24] = background
    y = torch.poisson(x, generator=seeded())
    noise = ScanNoise(Poisson(1.0), Correlation.white(3), quantum=1.0)
    model = base_model(3).centred(float(Poisson(1.0).to_unit(y).median()))
    result = denoiser(model, noise)(y)
    air = result.x_hat[:20]
    assert float(air.max()) < background + 2
    assert float(air.mean()) == pytest.approx(background, abs=0.15)
    assert float(result.x_hat[28:].std()) < 1


@pytest.mark.parametrize("law", [Gaussian(1.0), Gaussian(torch.linspace(0.5, 2.0, 9)), Poisson(0.5)])
def test_result_does_not_depend_on_the_layout_in_memory(law: NoiseModel) -> None:
    """Planes one after the other, as volumes are read, or values of all planes side by side."""
    y = 30 + normal(18, 16, 9).abs()
    y[:9] += 100  # values far from their neighbours
    valid = torch.ones_like(y, dtype=torch.bool)
    valid[3:5] = False
    model, noise = trained_like(levels=2), ScanNoise(law.over(y.shape), WHITE.correlation)
    results = []
    for planes_last in (False, True):
        turned = [t.contiguous() if planes_last else t.movedim(-1, 0).contiguous().movedim(0, -1) for t in (y, valid)]
        results.append(denoiser(model, noise, step=0.7, sd_probes=2)(*turned))
    one, other = results
    assert one.sd is not None
    assert other.sd is not None
    torch.testing.assert_close(one.x_hat, other.x_hat, rtol=0, atol=1e-4)
    torch.testing.assert_close(one.sd, other.sd, rtol=1e-4, atol=1e-5)
    assert one.figures.risk == pytest.approx(other.figures.risk, rel=1e-5)


def test_input_is_left_alone() -> None:
    y = normal(10, 10, 10)
    before = y.clone()
    denoiser(analytic(-0.3), sd_probes=2)(y)
    assert torch.equal(y, before)


# -- refusals ------------------------------------------------------------------------------------------


def test_refuses_volumes_without_noise() -> None:
    run, y = denoiser(analytic(-0.3)), normal(6, 6, 6)
    with pytest.raises(InputError, match="every voxel is padding"):
        run(y, torch.zeros_like(y, dtype=torch.bool))
    with pytest.raises(InputError, match="the volume is constant"):
        run(torch.full_like(y, 7.0))
    with pytest.raises(InputError, match="the volume is constant"):
        run(torch.full((1, 1, 1), 7.0))


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_refuses_values_that_are_none(bad: float) -> None:
    y = normal(6, 6, 6)
    y[3, 3, 3] = bad
    with pytest.raises(NoiseLawError, match=r"1 of 216 values are NaN or infinite"):
        denoiser(analytic(-0.3))(y)


@pytest.mark.parametrize("law", [Poisson(1.0), Gamma(9.0), Tweedie(1.5, 1.0), Tweedie(2.0, 0.1)], ids=str)
@pytest.mark.parametrize("bad", [-1.0, float("nan")])
def test_refuses_what_no_count_is(law: NoiseModel, bad: float) -> None:
    y = 5 + torch.rand(6, 6, 6, generator=seeded())
    y[2, 2, 2] = bad
    with pytest.raises(NoiseLawError, match=r"1 of 216 values are (negative|NaN)"):
        denoiser(analytic(-0.3), ScanNoise(law, Correlation.white(3)))(y)


# -- parts ---------------------------------------------------------------------------------------------


def test_padding_is_filled_with_the_low_end() -> None:
    y = torch.arange(1000.0).reshape(10, 10, 10)
    valid = torch.ones_like(y, dtype=torch.bool)
    valid[0, 0, :5] = False
    u = to_unit(y, valid, ScanNoise(Gaussian(2.0), Correlation.white()))
    assert u.dtype == torch.float32
    torch.testing.assert_close(u[valid], y[valid] / 2)
    assert u[~valid].unique().numel() == 1
    assert float(u[~valid][0]) == pytest.approx(0.01 * 995 / 2, rel=0.6)


def test_mean_filter_is_the_mean_of_what_lies_inside() -> None:
    volume = normal(5, 6, 7)
    filtered = mean_filter(volume, 1)
    assert float(filtered[0, 0, 0]) == pytest.approx(float(volume[:2, :2, :2].mean()), abs=1e-5)
    assert float(filtered[2, 3, 4]) == pytest.approx(float(volume[1:4, 2:5, 3:6].mean()), abs=1e-5)
    assert float(mean_filter(volume[0], 2)[0, 0]) == pytest.approx(float(volume[0, :3, :3].mean()), abs=1e-5)


def test_bfloat16_is_near_float32() -> None:
    """Detail of one noise SD survives beside intensities of hundreds."""
    y, model = 1234.5 + normal(20, 20, 20), trained_like(levels=2)
    model.network.centre.fill_(1234.5)
    full = denoiser(model, step=1.0)(y).x_hat
    half = Denoiser(model, WHITE, Compute(torch.device("cpu"), bf16=True), DenoiseOptions(step=1.0))(y).x_hat
    assert float((half - full).std()) < 0.03 * float((full - y).std())
