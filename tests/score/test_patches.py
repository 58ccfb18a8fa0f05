"""Where patches come from: reproducible, undone exactly, and never from held-out voxels' loss."""

from __future__ import annotations

import itertools

import pytest
import torch
from torch import Tensor

from n2s_med.noise import Gaussian, Poisson
from n2s_med.noise.correlation import Correlation
from n2s_med.noise.scan import ScanNoise
from n2s_med.score.patches import HELD_OUT_EDGE, Patch, PatchSampler, UnitVolume

WHITE = ScanNoise(Gaussian(1.0), Correlation.white(3))


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def volume(
    *shape: int,
    noise: ScanNoise | None = None,
    spacing: tuple[float, ...] | None = None,
    valid: Tensor | None = None,
    seed: int = 0,
) -> UnitVolume:
    u = torch.randn(shape, generator=seeded(seed))
    mask = torch.ones(shape, dtype=torch.bool) if valid is None else valid
    own = noise or ScanNoise(Gaussian(1.0), Correlation.white(len(shape)))
    return UnitVolume(u, mask, own, spacing or (1.0,) * len(shape))


def sampler(*volumes: UnitVolume, edge: int = 8, held_out: float = 0.0, seed: int = 0) -> PatchSampler:
    return PatchSampler(volumes, edge=edge, held_out=held_out, seed=seed)


# -- drawing -------------------------------------------------------------------------------------------


def test_same_generator_same_patches() -> None:
    one = sampler(volume(20, 21, 22), held_out=0.1)
    for seed in range(5):
        a, b = one.draw(seeded(seed)), sampler(volume(20, 21, 22), held_out=0.1).draw(seeded(seed))
        assert torch.equal(a.u, b.u)
        assert torch.equal(a.weight, b.weight)
        assert (a.order, a.flips) == (b.order, b.flips)
    assert not torch.equal(one.draw(seeded(1)).u, one.draw(seeded(2)).u)


@pytest.mark.parametrize("shape", [(20, 20, 20), (5, 20, 1), (1, 1, 3), (20, 3)])
def test_patches_fit_the_volume(shape: tuple[int, ...]) -> None:
    drawn = sampler(volume(*shape)).draw(seeded())
    assert drawn.u.shape == (1, 1, *(min(8, n) for n in shape))
    assert drawn.weight.shape == drawn.u.shape
    assert drawn.weight.dtype == torch.float32


def test_every_place_is_drawn() -> None:
    one = volume(10, 10)
    u = torch.arange(100.0).reshape(10, 10)
    counted = UnitVolume(u, one.valid, one.noise, one.spacing_mm)
    generator, source = seeded(), sampler(counted, edge=8)
    corners = {float(source.draw(generator).u.min()) for _ in range(200)}
    assert corners == {10.0 * i + j for i in range(3) for j in range(3)}


def test_large_volumes_are_drawn_more_often() -> None:
    one, other = volume(24, 24), volume(8, 24, seed=1)
    source, generator = sampler(one, other, edge=8), seeded()
    values = set(other.u.flatten().tolist())
    share = sum(float(source.draw(generator).u[0, 0, 0, 0]) in values for _ in range(400)) / 400
    assert share == pytest.approx(1 / 4, abs=0.08)


def test_padding_is_avoided_and_has_no_weight() -> None:
    valid = torch.zeros(40, 40, dtype=torch.bool)
    valid[12:28, 12:28] = True
    source, generator = sampler(volume(40, 40, valid=valid)), seeded()
    patches = [source.draw(generator) for _ in range(50)]
    assert sum(bool((p.weight.mean() > 0.5).all()) for p in patches) > 30
    for p in patches:
        whole = valid[torch.isin(source.volumes[0].u, p.u)].float()
        assert float(p.weight.sum()) == float(whole.sum())


def test_little_to_see_is_still_seen() -> None:
    """A small organ in a large field: patches find its voxels, or nothing is ever learnt or measured."""
    valid = torch.zeros(200, 200, dtype=torch.bool)
    valid[150:160, 20:30] = True
    source, generator = sampler(volume(200, 200, valid=valid), edge=24), seeded()
    assert sum(bool(source.draw(generator).weight.any()) for _ in range(50)) >= 45


# -- augmentation --------------------------------------------------------------------------------------


def every_patch(dims: int) -> list[Patch]:
    u = torch.randn(1, 1, *(range(3, 3 + dims)), generator=seeded())
    noise = ScanNoise(Gaussian(1.0), Correlation.white(dims))
    flips = [f for n in range(dims + 1) for f in itertools.combinations(range(dims), n)]
    return [Patch(u, u, noise, o, f) for o in itertools.permutations(range(dims)) for f in flips]


@pytest.mark.parametrize("dims", [2, 3])
def test_restore_undoes_augment(dims: int) -> None:
    patches = every_patch(dims)
    assert len(patches) == {2: 8, 3: 48}[dims]
    pair = torch.cat((patches[0].u, -patches[0].u))
    for p in patches:
        augmented = p.augment(pair)
        assert tuple(augmented.shape[2:]) == tuple(pair.shape[a + 2] for a in p.order)
        assert torch.equal(p.restore(augmented), pair)
        assert torch.equal(p.augment(p.restore(augmented)), augmented)
    assert len({tuple(p.augment(p.u).flatten().tolist()) for p in patches}) == len(patches)


# -- which axes are alike ------------------------------------------------------------------------------


def orders(spacing: tuple[float, ...], kernel: Tensor | None = None) -> set[tuple[int, ...]]:
    dims = len(spacing)
    correlation = Correlation.white(dims) if kernel is None else Correlation.from_kernel(kernel)
    noise = ScanNoise(Gaussian(1.0), correlation)
    return set(volume(*(6,) * dims, noise=noise, spacing=spacing).axis_orders())


def test_axes_of_equal_spacing_are_exchanged() -> None:
    assert orders((1.0, 1.0, 1.0)) == set(itertools.permutations(range(3)))
    assert orders((1.0, 1.0, 3.0)) == {(0, 1, 2), (1, 0, 2)}
    assert orders((3.0, 1.0, 1.0)) == {(0, 1, 2), (0, 2, 1)}
    assert orders((1.0, 2.0, 4.0)) == {(0, 1, 2)}
    assert orders((1.0, 1.05)) == {(0, 1), (1, 0)}
    assert orders((1.0, 1.2)) == {(0, 1)}


def test_axes_of_unlike_correlation_are_not() -> None:
    line = torch.tensor([0.4, 1.0, 0.4])
    assert orders((1.0, 1.0, 1.0), line[:, None, None]) == {(0, 1, 2), (0, 2, 1)}
    in_plane = line[:, None, None] * line[:, None]
    assert orders((1.0, 1.0, 1.0), in_plane) == {(0, 1, 2), (1, 0, 2)}
    weaker = torch.tensor([0.2, 1.0, 0.2])
    assert orders((1.0, 1.0), line[:, None] * weaker) == {(0, 1)}
    assert orders((1.0, 1.0), line[:, None] * line) == {(0, 1), (1, 0)}


# -- held-out voxels -----------------------------------------------------------------------------------


def test_held_out_voxels_have_no_weight_in_any_patch() -> None:
    one = volume(36, 36, 36)
    distinct = 4 * torch.randperm(36**3, generator=seeded()).reshape(36, 36, 36) / 36**3
    source = sampler(UnitVolume(distinct, one.valid, one.noise, one.spacing_mm), edge=16, held_out=0.1)
    held = {float(v) for block in source.held_out for v in block.u[block.inside]}
    left = 1 - len(held) / 36**3
    assert 0.85 < left < 0.99
    generator = seeded()
    for _ in range(20):
        patch = source.draw(generator)
        assert held.isdisjoint(patch.u[patch.weight > 0].tolist())
        assert set(patch.u[patch.weight == 0].tolist()) <= held


def test_held_out_blocks_come_with_their_surroundings() -> None:
    one = volume(40, 40, 40)
    for block in sampler(one, held_out=0.04).held_out:
        assert block.u.shape == block.inside.shape
        assert int(block.inside.sum()) == HELD_OUT_EDGE**3
        assert block.u[0, 0].numel() > HELD_OUT_EDGE**3
        assert torch.isin(block.u, one.u).all()


def test_choice_of_held_out_blocks_follows_the_seed() -> None:
    def held(seed: int) -> list[float]:
        blocks = sampler(volume(40, 40, 40), held_out=0.04, seed=seed).held_out
        return [float(b.u.sum()) for b in blocks]

    assert held(1) == held(1)
    assert held(1) != held(2)


def test_nothing_is_held_out_of_nothing() -> None:
    source = sampler(volume(20, 20, 20), held_out=0.0)
    assert source.held_out == []
    assert source.weights[0].all()


@pytest.mark.parametrize("shape", [(12, 12, 12), (8, 8, 5), (10, 10), (16, 16, 16)], ids=str)
def test_small_volumes_keep_voxels_to_learn_from(shape: tuple[int, ...]) -> None:
    source = sampler(volume(*shape), held_out=0.04)
    assert len(source.held_out) >= 1
    assert float(source.weights[0].float().mean()) > 0.5


@pytest.mark.parametrize("held_out", [0.04, 0.5])
def test_small_organs_keep_voxels_to_learn_from(held_out: float) -> None:
    valid = torch.zeros(200, 200, dtype=torch.bool)
    valid[150:160, 20:30] = True
    for seed in range(20):
        source = sampler(volume(200, 200, valid=valid), edge=24, held_out=held_out, seed=seed)
        assert source.weights[0].any()
        assert source.draw(seeded()).weight.any()


def test_sampler_leaves_the_volume_alone() -> None:
    one = volume(30, 30, 30)
    sampler(one, held_out=0.2)
    assert one.valid.all()


# -- identity of the data ------------------------------------------------------------------------------


def test_fingerprint_tells_data_apart() -> None:
    valid = torch.ones(6, 6, dtype=torch.bool)
    valid[0, 0] = False
    smooth = Correlation.from_kernel(torch.tensor([[0.4, 1.0, 0.4]]))
    white = Correlation.white(2)
    ours = [
        volume(6, 6),
        volume(6, 6, seed=1),
        volume(6, 6, valid=valid),
        volume(6, 6, noise=ScanNoise(Gaussian(2.0), white)),
        volume(6, 6, noise=ScanNoise(Poisson(1.0), white)),
        volume(6, 6, noise=ScanNoise(Gaussian(1.0), smooth)),
        volume(6, 6, spacing=(1.0, 2.0)),
    ]
    prints = [v.fingerprint() for v in ours]
    assert len(set(prints)) == len(prints)
    assert volume(6, 6).fingerprint() == prints[0]
