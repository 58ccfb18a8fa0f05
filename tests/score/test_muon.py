"""Muon against torch's own."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from n2s_med.score.muon import Muon, orthogonalising

SHAPES = [(8, 40), (8, 96), (8, 16), (1, 32), (24, 8), (16, 16)]


def gradients(step: int) -> list[Tensor]:
    """Of singular values that fall a hundredfold."""
    generator = torch.Generator().manual_seed(step)
    drawn = [torch.linalg.svd(torch.randn(shape, generator=generator), full_matrices=False) for shape in SHAPES]
    return [(u * torch.logspace(0, -2, u.shape[1])) @ v for u, _, v in drawn]


def test_updates_as_torch_does_up_to_rounding() -> None:
    """Torch's rounds to bfloat16 throughout."""
    ours, theirs = ([nn.Parameter(torch.zeros(shape)) for shape in SHAPES] for _ in range(2))
    optimizers: list[torch.optim.Optimizer] = [
        Muon(ours, lr=0.01, momentum=0.9),
        torch.optim.Muon(theirs, lr=0.01, momentum=0.9, weight_decay=0.0),
    ]
    for step in range(5):
        for parameters, optimizer in zip((ours, theirs), optimizers, strict=True):
            for parameter, gradient in zip(parameters, gradients(step), strict=True):
                parameter.grad = gradient
            optimizer.step()
    for a, b in zip(ours, theirs, strict=True):
        assert float((a - b).detach().norm() / b.detach().norm()) < 0.03


def test_directions_come_to_one_length() -> None:
    """All singular values of an update lie in the band that the iteration's coefficients give; none is left out."""
    for gradient in gradients(0):
        long = gradient.T if gradient.shape[0] > gradient.shape[1] else gradient
        lengths = torch.linalg.svdvals(orthogonalising((long @ long.T)[None])[0] @ long)
        assert lengths.max() < 1.25
        assert lengths.min() > 0.65


@pytest.mark.parametrize("scale", [1e-12, 1e12])
def test_size_of_the_gradient_does_not_matter_unless_it_vanishes(scale: float) -> None:
    """None above rounding, that is; and what is not learned stays where it is."""
    moved = []
    for factor in (1.0, scale, 0.0):
        matrix = nn.Parameter(torch.zeros(8, 40))
        optimizer = Muon([matrix], lr=0.01, momentum=0.9)
        matrix.grad = factor * gradients(0)[0]
        optimizer.step()
        moved.append(matrix.detach())
    if scale > 1:
        torch.testing.assert_close(moved[1], moved[0], rtol=0.02, atol=1e-4)
    else:
        assert float(moved[1].norm()) < 1e-3 * float(moved[0].norm())
    assert not moved[2].any()
