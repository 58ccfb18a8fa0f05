"""The network on volumes of any size, and what it starts from."""

from __future__ import annotations

import pytest
import torch

from n2s_med.phantoms import textured_volume
from n2s_med.score import ScoreUNet, base_model
from n2s_med.score.network import filled


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def network(dims: int = 3, channels: tuple[int, ...] = (4, 6, 8)) -> ScoreUNet:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return ScoreUNet(dims, channels).eval()


SIZES = [
    (1, 1, 1),
    (1, 7, 5),
    (7, 5, 1),
    (9, 2, 13),
    (8, 8, 8),
    (3, 17, 4),
    (1, 1),
    (1, 6),
    (11, 5),
    (16, 16),
]


@pytest.mark.parametrize("size", SIZES, ids=str)
@pytest.mark.parametrize("correlation", [0.0, 0.6])
def test_any_size_passes(size: tuple[int, ...], correlation: float) -> None:
    v = torch.randn(2, 1, *size, generator=seeded(), requires_grad=True)
    score = network(len(size))(v, torch.full((2, 2 * len(size)), correlation))
    assert score.shape == v.shape
    assert torch.isfinite(score).all()
    score.square().sum().backward()
    assert v.grad is not None
    assert torch.isfinite(v.grad).all()
    assert (v.grad != 0).any() or v[0].numel() == 1  # a single voxel has no detail


@pytest.mark.parametrize("levels", [1, 2, 4])
def test_any_depth_passes(levels: int) -> None:
    v = torch.randn(1, 1, 5, 9, 2, generator=seeded())
    unet = network(3, (4,) * levels)
    assert unet(v).shape == v.shape
    assert unet.stride == max(2, 2 ** (levels - 1))


@pytest.mark.parametrize("rows", [1, 3])
@pytest.mark.parametrize(
    ("size", "channels"),
    [
        ((5, 6, 7), (4,)),
        ((7, 9, 8), (4, 6)),
        ((13, 5, 24), (4, 6, 8)),
        ((9, 5, 3), (2, 4, 6, 8)),
        ((23, 18), (4, 6, 8)),
    ],
    ids=str,
)
def test_blocks_change_neither_answer_nor_gradients(
    size: tuple[int, ...], channels: tuple[int, ...], rows: int
) -> None:
    """Against the layers one after the other, as exported programs run them."""
    unet = network(len(size), channels).double()
    for parameter in unet.parameters():
        if parameter.ndim <= 2:
            torch.nn.init.normal_(parameter, std=0.3, generator=seeded(1))
    traits = 0.3 * torch.rand(rows, 2 * len(size), generator=seeded(2), dtype=torch.float64)
    results = []
    for layers in (unet._plainly, unet._by_blocks):
        features = torch.randn(3, 2, *size, generator=seeded(), dtype=torch.float64, requires_grad=True)
        answer = layers(filled(features, unet.stride), traits)
        weights = torch.linspace(-1, 1, answer.numel(), dtype=torch.float64).view_as(answer)
        wanted = [features, *unet.parameters()]
        results.append((answer, *torch.autograd.grad((weights * answer).sum(), wanted)))
    for plain, blocks in zip(*results, strict=True):
        assert plain.any()
        torch.testing.assert_close(blocks, plain, rtol=1e-10, atol=1e-12)


def test_bfloat16_costs_by_blocks_what_it_costs_plainly() -> None:
    """Errors of the gradients, against float32."""
    unet, v = network(channels=(8, 16, 32)), 3 * torch.randn(4, 1, 12, 16, 16, generator=seeded())
    detail, base = unet.split(v)
    found = []
    for layers, bf16 in ((unet._plainly, False), (unet._plainly, True), (unet._by_blocks, True)):
        with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
            answer = layers(unet.features(detail, base), torch.full((4, 6), 0.2))
        gradients = torch.autograd.grad((answer.float() + v).square().mean(), list(unet.parameters()))
        assert all(g.dtype == torch.float32 for g in gradients)
        found.append(gradients)
    plain, blocks = (
        torch.tensor([float((r - e).norm() / e.norm()) for r, e in zip(rounded, found[0], strict=True)])
        for rounded in found[1:]
    )
    assert 0.001 < plain.mean() < 0.1
    assert blocks.mean() < 1.1 * plain.mean()


def test_volumes_of_a_batch_do_not_mix() -> None:
    v, unet = torch.randn(3, 1, 6, 7, 5, generator=seeded()), network()
    torch.testing.assert_close(unet(v)[1:2], unet(v[1:2]), rtol=1e-4, atol=1e-5)


def test_starts_from_a_binomial_filter() -> None:
    """With a head of zeros, ``v + R(v)`` is a unit-sum, symmetric filter: constants and ramps stay."""
    unet = network(2)
    with torch.no_grad():
        unet.head.weight.zero_()
        unet.head.bias.zero_()  # type: ignore[union-attr]
        impulse = torch.zeros(1, 1, 15, 15)
        impulse[0, 0, 7, 7] = 0.01
        filtered = 100 * (impulse + unet(impulse))[0, 0]
        assert float(filtered.sum()) == pytest.approx(1, abs=1e-4)
        offset = torch.arange(-7.0, 8.0)
        assert float((filtered.sum(1) * offset**2).sum()) == pytest.approx(0.5, abs=0.01)
        assert torch.allclose(filtered, filtered.T)
        assert torch.allclose(unet(torch.full((1, 1, 9, 9), 300.0)), torch.zeros(()), atol=0.02)


def test_starts_from_the_identity_for_correlated_noise() -> None:
    unet = network(2)
    with torch.no_grad():
        unet.head.weight.zero_()
        unet.head.bias.zero_()  # type: ignore[union-attr]
    assert not unet(torch.randn(1, 1, 9, 9, generator=seeded()), torch.full((1, 4), 0.5)).any()


def test_starts_from_the_identity_at_edges() -> None:
    """An edge of a thousand noise SDs is left standing, and what it does to its surroundings is bounded."""
    unet = network(2)
    with torch.no_grad():
        step = torch.zeros(1, 1, 16, 16)
        step[..., 8:] = 1000.0
        assert float(unet(step).abs().max()) < 50
        unet.head.weight.zero_()
        assert float(unet(step)[..., 7:9].abs().max()) < 0.4


def test_says_nothing_where_there_is_no_noise() -> None:
    """In air of no counts, say; whatever the weights would make of it. Noise near by is still judged."""
    unet = network()
    with torch.no_grad():
        unet.head.bias.fill_(50.0)  # type: ignore[union-attr]
        v = torch.zeros(1, 1, 24, 8, 8)
        v[:, :, 12:] = torch.randn(12, 8, 8, generator=seeded())
        score = unet(v)[0, 0]
    assert not score[:10].any()
    assert float((score[14:] > 30).float().mean()) > 0.9


def test_is_told_of_the_correlation() -> None:
    """The traits of one volume shift its answer and no other's, once training has given them weight."""
    unet, v = network(), torch.randn(2, 1, 6, 7, 5, generator=seeded())
    with torch.no_grad():
        unet.encoder[0].shift.weight.fill_(0.5)  # type: ignore[union-attr, operator]
    traits = torch.zeros(2, 6)
    traits[1, 3:] = 0.2
    with torch.no_grad():
        alone, told = unet(v), unet(v, traits)
    assert torch.equal(told[0], alone[0])
    assert float((told[1] - alone[1]).abs().max()) > 1e-3


def test_centre_takes_the_level_out_of_the_network() -> None:
    """A volume 300 noise SDs up gives the same score once the centre says so."""
    low, high = network(3), network(3)
    high.centre.fill_(300.0)
    v = torch.randn(1, 1, 6, 6, 6, generator=seeded())
    torch.testing.assert_close(high(v + 300), low(v), rtol=0, atol=1e-3)
    assert "centre" in high.state_dict()


@pytest.mark.parametrize("seed", [4, 5])
@pytest.mark.parametrize("more", [1, 3])
def test_places_that_fill_the_coarsest_voxel_are_like_the_others(more: int, seed: int) -> None:
    """Filled with zeros, which are no noise, they had base weights take structure five planes away for noise."""
    x = textured_volume((40,) * 3, seeded(seed))[..., : 24 + more]
    v = (60 * (x - x.median()) + torch.randn(x.shape, generator=seeded(seed + 100)))[None, None]
    unet = base_model(3).network.eval()
    with torch.no_grad():
        longer, whole = unet(v), unet(v[..., :24])
    assert float((longer[..., :20] - whole[..., :20]).abs().max()) < 0.7
