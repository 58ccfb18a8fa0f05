"""Whole counts where they are few: sums of neighbours, and regional means as the data have them."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from n2s_med.compute import Compute
from n2s_med.denoise import DenoiseOptions, Denoiser
from n2s_med.few_counts import _spread, _sums, denoised_sums, few, regained
from n2s_med.noise import Poisson
from n2s_med.noise.correlation import Correlation
from n2s_med.noise.scan import ScanNoise
from n2s_med.score import base_model
from n2s_med.unit_data import UnitData

SHAPES = [(6, 5, 4), (6, 5), (7, 2, 1), (1, 1, 9)]


def drawn(shape: tuple[int, ...], mean: float, seed: int = 0) -> Tensor:
    return torch.poisson(torch.full(shape, mean), torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("shape", SHAPES)
def test_spread_is_the_transpose_of_sums(shape: tuple[int, ...]) -> None:
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(shape, generator=generator, dtype=torch.float64)
    b = torch.randn(_sums(x).shape, generator=generator, dtype=torch.float64)
    torch.testing.assert_close((_sums(x) * b).sum(), (x * _spread(b, shape)).sum())


@pytest.mark.parametrize("shape", SHAPES)
def test_sums_are_denoised_block_by_block_each_once(shape: tuple[int, ...]) -> None:
    counts = drawn(shape, 3.0)
    seen = []

    def denoise(block: Tensor, inside: Tensor) -> Tensor:
        assert inside.all()
        seen.append(block.numel())
        return block + 0.5

    sums, whole = denoised_sums(counts, torch.ones(shape, dtype=torch.bool), denoise)
    assert whole.all()
    assert sum(seen) <= sums.numel()
    changed = sums - _sums(counts)
    assert set(changed.unique().tolist()) <= {0.0, 0.5}  # a block of one value is left as it is
    assert changed.mean() > 0.4


def test_sums_that_touch_padding_are_not_used() -> None:
    counts, valid = drawn((8, 8, 8), 3.0), torch.ones(8, 8, 8, dtype=torch.bool)
    valid[:3] = False
    sums, whole = denoised_sums(counts * valid, valid, lambda block, inside: block * inside)
    assert not whole[:3].any()
    assert whole[3:].all()
    assert sums.shape == (7, 7, 7)


def test_an_estimate_that_agrees_with_sums_and_means_stays() -> None:
    x = torch.rand(20, 18, 16, generator=torch.Generator().manual_seed(2)) + 0.5
    valid = torch.ones_like(x, dtype=torch.bool)
    for _, found in regained(x, x, valid, (_sums(x), _sums(x) > 0), planes=16):
        torch.testing.assert_close(found, x, rtol=1e-5, atol=0)


@pytest.mark.parametrize(("mean", "moved"), [(1.0, True), (9.0, False)])
def test_sums_decide_where_counts_are_few_and_nowhere_else(mean: float, moved: bool) -> None:
    shape = (16, 16, 16)
    x, valid = torch.full(shape, mean), torch.ones(shape, dtype=torch.bool)
    assert few(x, valid) is moved
    stripes = _sums(x) * torch.tensor([0.8, 1.2]).repeat(8)[:15]
    ((_, found),) = regained(x, x, valid, (stripes, torch.ones(15, 15, 15, dtype=torch.bool)), planes=16)
    assert (float(found.std()) > 0.01) is moved
    assert float(found.mean()) == pytest.approx(mean, rel=0.03)


def test_regions_get_the_mean_of_the_data_and_padding_none() -> None:
    counts, valid = drawn((40, 40, 40), 20.0), torch.ones(40, 40, 40, dtype=torch.bool)
    valid[:10] = False
    biased = torch.where(valid, 0.9 * 20.0, 0.0)
    ((_, found),) = regained(biased, counts * valid, valid, None, planes=40)
    assert float(found[valid].mean()) == pytest.approx(float(counts[valid].mean()), rel=2e-3)
    assert not found[~valid].any()


@pytest.mark.parametrize("planes", [4, 8, 40])
def test_the_result_does_not_depend_on_the_planes_at_once(planes: int) -> None:
    counts = drawn((20, 20, 40), 1.5)
    x_hat, valid = torch.full_like(counts, 1.4), torch.ones_like(counts, dtype=torch.bool)
    x_hat[5:9] = 6.0
    sums = denoised_sums(counts, valid, lambda block, _: block * 0.9 + 1)

    def joined(planes: int) -> Tensor:
        return torch.cat([found for _, found in regained(x_hat, counts, valid, sums, planes)], dim=-1)

    torch.testing.assert_close(joined(planes), joined(13), rtol=1e-6, atol=1e-7)


NOISE = ScanNoise(Poisson(1.0), Correlation.white(3), 1.0)


def estimates(y: Tensor, noise: ScanNoise, valid: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """What the denoiser says of counts, and what its formula alone would."""
    model = base_model(3).centred(float(noise.law.to_unit(y).median()))
    denoiser = Denoiser(model, noise, Compute.choose(), DenoiseOptions(orientations=1, chunk_voxels=8 * 40 * 40))
    whole = torch.ones_like(y, dtype=torch.bool) if valid is None else valid
    data = UnitData(y, whole, noise)
    alone = noise.law.mean_from_unit(y, denoiser._score(data))
    return denoiser(y, valid).x_hat, alone


def test_a_sphere_of_two_counts_is_nearer_the_truth_by_sums() -> None:
    axes = torch.meshgrid(*(torch.arange(40.0) - 19.5,) * 3, indexing="ij")
    x = torch.where(sum(axis.square() for axis in axes) < 100, 2.0, 0.5)
    y = Poisson(1.0).sample(x, torch.Generator().manual_seed(3))
    ours, alone = estimates(y, NOISE)
    error, before = (float((found - x).square().mean()) for found in (ours, alone))
    assert error < 0.95 * before
    inside, outside = x > 1, sum(axis.square() for axis in axes) > 150
    for region in (inside, outside):
        assert abs(float(ours[region].mean() - y[region].mean())) < abs(float(alone[region].mean() - y[region].mean()))
    assert float(ours[outside].mean()) == pytest.approx(float(y[outside].mean()), rel=0.02)


def test_the_gain_is_a_unit_and_padding_comes_back() -> None:
    y, valid = drawn((24, 24, 24), 2.0), torch.ones(24, 24, 24, dtype=torch.bool)
    y[:8] *= 3
    valid[:, :4] = False
    counts, _ = estimates(y, NOISE, valid)
    scaled, _ = estimates(0.25 * y, ScanNoise(Poisson(0.25), NOISE.correlation, 0.25), valid)
    torch.testing.assert_close(scaled, 0.25 * counts, rtol=1e-3, atol=1e-3)
    assert torch.equal(counts[:, :4], y[:, :4])
    over = Poisson(torch.full((24, 24, 24), 0.25))
    mapped, _ = estimates(0.25 * y, ScanNoise(over, NOISE.correlation, 0.25), valid)
    torch.testing.assert_close(mapped, scaled, rtol=1e-3, atol=1e-3)


def test_a_model_that_learned_counts_is_not_overruled_by_sums() -> None:
    y = drawn((24, 24, 24), 2.0)
    model = base_model(3).centred(float(NOISE.law.to_unit(y).median()))
    options = DenoiseOptions(orientations=1)
    taught, untaught, alone = (
        Denoiser(known, NOISE, Compute.choose(), options)(y).x_hat
        for known, options in (
            (replace(model, learned_counts=True), options),
            (model, options),
            (model, replace(options, few_counts=False)),
        )
    )
    assert not torch.allclose(taught, untaught, rtol=0.02)
    assert float(taught.mean()) == pytest.approx(float(y.mean()), rel=5e-3)
    assert not torch.allclose(taught, alone, rtol=1e-3)
