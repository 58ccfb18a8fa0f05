"""The corpus of base weights: noisy patches of unit noise, reproducible at any step, none of them clean."""

from __future__ import annotations

import pytest
import torch

from n2s_med import corpus
from n2s_med.corpus import Corpus, Signal, random_correlation
from n2s_med.errors import InputError
from n2s_med.phantoms.scene import Dice


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(corpus, "EDGE", 24)
    monkeypatch.setattr(corpus, "HELD_OUT_EDGE", 16)
    monkeypatch.setattr(corpus, "HELD_OUT_MARGIN", 3)
    monkeypatch.setattr(corpus, "POOL", 3)


def flat(value: float = 0.5) -> Signal:
    return Signal(torch.full((40, 40, 40), value))


def scan(sd: float) -> torch.Tensor:
    steps = (torch.arange(48) // 16 * 500.0)[:, None, None].expand(48, 48, 24)
    return steps + sd * torch.randn(steps.shape, generator=seeded())


def test_noise_has_variance_one_and_the_correlation_it_says() -> None:
    """Of flat signals what is left of a patch is its noise, counts included."""
    source = Corpus({}, {}, edge=32, blocks=0)
    source.generated = {0: flat()}
    for seed in range(12):
        patch = source.draw(seeded(seed))
        noise = (patch.u - patch.u.mean()).double()
        assert float(noise.var()) == pytest.approx(1, abs=0.12)
        for axis in range(3):
            a, b = noise.narrow(axis + 2, 0, 31), noise.narrow(axis + 2, 1, 31)
            along = float((a * b).mean() / noise.var())
            assert along == pytest.approx(patch.noise.correlation.neighbours[axis], abs=0.12)


def test_draws_depend_on_step_and_generator_alone() -> None:
    first, second = Corpus({}, {}, edge=8, blocks=0), Corpus({}, {}, edge=8, blocks=0)
    for step in (0, 10, 45):
        first.begin(step)
    second.begin(45)
    assert torch.equal(first.draw(seeded()).u, second.draw(seeded()).u)
    before = second.draw(seeded()).u
    second.begin(45 + 3 * corpus.RENEW[3])
    assert not torch.equal(second.draw(seeded()).u, before)


def test_held_out_blocks_are_never_drawn() -> None:
    """Neither the scans nor the generated volumes of the held-out blocks are in the pool."""
    source = Corpus({}, {"kept": flat()}, edge=8, blocks=4)
    assert len(source.held_out) == 4
    source.begin(0)
    assert min(source.generated) >= 0
    assert not source.scans
    for block in source.held_out:
        assert block.u.shape == block.inside.shape == (1, 1, 16, 16, 16)
        assert int(block.inside.sum()) == 10**3


def test_planes_in_two_dimensions() -> None:
    source = Corpus({"real": flat()}, {}, spatial_dims=2, edge=12, blocks=2)
    source.begin(0)
    patch = source.draw(seeded())
    assert patch.u.shape == (1, 1, 12, 12)
    assert patch.noise.correlation.kernel.ndim == 2
    assert source.held_out[0].u.ndim == 4


def test_a_scans_own_noise_stays_below_the_one_put_on_top() -> None:
    signal = Signal.of_scan(scan(20.0), (1.0, 1.0, 1.0))
    assert signal.own_sd == pytest.approx(0.02, rel=0.25)
    assert float(signal.x.min()) > -0.2
    contrasts = [corpus._contrast((6.0, 1e6), signal, Dice(seeded(s))) for s in range(20)]
    assert max(contrasts) * signal.own_sd <= corpus.OWN_NOISE + 1e-9


def test_noise_that_varies_over_a_scan_counts_at_its_largest() -> None:
    """Such a scan gets a level map; a patch may come from where the noise is strongest."""
    ramp = torch.linspace(0.4, 1.6, 96)[:, None, None]
    y = 500 + 20 * ramp * torch.randn(96, 96, 96, generator=seeded())
    low, high = (float(y.flatten()[::9].quantile(q)) for q in (0.001, 0.999))
    signal = Signal.of_scan(y, (1.0, 1.0, 1.0))
    assert signal.own_sd * (high - low) == pytest.approx(20 * 1.6, rel=0.15)


def test_a_constant_scan_is_refused() -> None:
    with pytest.raises(InputError, match="constant"):
        Signal.of_scan(torch.zeros(30, 30, 30), (1.0, 1.0, 1.0))


def test_fingerprint_follows_scans_and_seed() -> None:
    prints = {
        Corpus(scans, {}, edge=8, blocks=1, seed=seed).fingerprint()
        for scans, seed in (({}, 0), ({}, 1), ({"a": flat()}, 0), ({"a": flat(0.6)}, 0))
    }
    assert len(prints) == 4


@pytest.mark.parametrize("dims", [2, 3])
def test_random_correlations_vary(dims: int) -> None:
    found = [random_correlation(Dice(seeded(seed)), dims).neighbours[0] for seed in range(40)]
    assert max(found) > 0.5
    assert min(found) < 0.15
