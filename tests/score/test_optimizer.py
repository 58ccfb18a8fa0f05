"""The optimizer: its curve, its clipping, and a resumed run equal to an undisturbed one."""

from __future__ import annotations

import copy
import io

import pytest
import torch
from torch import Tensor

from n2s_med.score import ScoreOptimizer, ScoreUNet


def network() -> ScoreUNet:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return ScoreUNet(2, (4, 6))


def loss_of(unet: ScoreUNet, step: int) -> Tensor:
    v = torch.randn(1, 1, 8, 8, generator=torch.Generator().manual_seed(step))
    return (unet(v, torch.full((1, 4), 0.3)) + v).square().mean()


def optimizer(unet: ScoreUNet, **keys: float) -> ScoreOptimizer:
    return ScoreOptimizer(unet, **{"learning_rate": 0.01, "steps": 12, "warmup": 3, **keys})  # type: ignore[arg-type]


def advance(unet: ScoreUNet, opt: ScoreOptimizer, first: int, last: int) -> None:
    for step in range(first, last):
        opt.step(loss_of(unet, step), step)


def weights(unet: ScoreUNet) -> list[Tensor]:
    return [p.detach().clone() for p in unet.parameters()]


def test_every_parameter_moves_and_the_loss_falls() -> None:
    unet = network()
    before, first = weights(unet), float(loss_of(unet, 99).detach())
    advance(unet, optimizer(unet), 0, 12)
    assert all(not torch.equal(b, p) for b, p in zip(before, unet.parameters(), strict=True))
    assert float(loss_of(unet, 99).detach()) < first


@pytest.mark.parametrize("stop", [1, 5, 11])
def test_resumed_is_undisturbed_to_the_bit(stop: int) -> None:
    whole = network()
    advance(whole, optimizer(whole), 0, 12)

    first = network()
    opt = optimizer(first)
    advance(first, opt, 0, stop)
    file = io.BytesIO()
    torch.save({"network": first.state_dict(), "optimizer": opt.state_dict()}, file)
    file.seek(0)
    saved = torch.load(file, weights_only=True)
    second = network()
    second.load_state_dict(saved["network"])
    opt = optimizer(second)
    opt.load_state_dict(saved["optimizer"])
    advance(second, opt, stop, 12)
    for a, b in zip(whole.parameters(), second.parameters(), strict=True):
        assert torch.equal(a, b)


def test_learning_rate_rises_then_falls_to_nothing() -> None:
    unet = network()
    opt = ScoreOptimizer(unet, learning_rate=0.01, steps=100, warmup=10)
    rates = []
    for step in range(100):
        before = weights(unet)
        opt.step(loss_of(unet, step), step)
        rates.append([o.param_groups[0]["lr"] for o in opt.optimizers])
        moved = max(float((b - p).abs().max()) for b, p in zip(before, weights(unet), strict=True))
        assert moved < 0.05
    muon, adam = (torch.tensor(r) for r in zip(*rates, strict=True))
    assert int(muon.argmax()) == 9
    assert float(muon.max()) == pytest.approx(0.01, rel=0.03)
    assert (muon[:9].diff() > 0).all()
    assert (muon[10:].diff() < 0).all()
    assert float(muon[-1]) < 1e-5
    torch.testing.assert_close(adam / muon, torch.full_like(muon, float(adam[0] / muon[0])))


def test_layout_of_the_weights_in_memory_does_not_matter() -> None:
    networks = network(), network().to(memory_format=torch.contiguous_format)  # type: ignore[call-overload]
    assert [unet.encoder[1].layers[1].weight.is_contiguous() for unet in networks] == [False, True]
    for unet in networks:
        advance(unet, optimizer(unet), 0, 6)
    for a, b in zip(*map(weights, networks), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-4)


def test_gradients_are_clipped() -> None:
    """A loss a million times larger moves the biases as a gradient of norm one does."""
    moves = []
    for factor in (1e3, 1e9):
        unet = network()
        before = weights(unet)
        opt = optimizer(unet)
        opt.step(factor * loss_of(unet, 0), 0)
        tenths = [s.get("momentum_buffer", s.get("exp_avg")) for o in opt.optimizers for s in o.state.values()]
        assert float(10 * torch.stack([tenth.norm() for tenth in tenths]).norm()) == pytest.approx(1, abs=1e-3)
        moves.append([p.detach() - b for b, p in zip(before, unet.parameters(), strict=True)])
    for small, large in zip(*moves, strict=True):
        torch.testing.assert_close(small, large, rtol=1e-2, atol=1e-5)


def test_a_copy_is_trained_apart() -> None:
    """The trial run that times a step must not move the weights it copied."""
    unet = network()
    before, trial = weights(unet), copy.deepcopy(unet)
    advance(trial, optimizer(trial), 0, 3)
    assert all(torch.equal(b, p) for b, p in zip(before, unet.parameters(), strict=True))
