"""A convolution with its activation, and the gradients of both, against PyTorch's own in float64."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from n2s_med.score import activated
from n2s_med.score.activated import convolved

TOLERANCE = {torch.float64: 1e-12, torch.float32: 1e-5, torch.bfloat16: 2e-2}
"""Of the norm; bfloat16 rounds to 0.004."""


def channels_last(x: Tensor) -> Tensor:
    return x.contiguous(memory_format=torch.channels_last_3d if x.ndim == 5 else torch.channels_last)


def plain(x: Tensor, weight: Tensor, bias: Tensor, padding: int, slope: float) -> Tensor:
    convolution = F.conv3d if x.ndim == 5 else F.conv2d
    return F.leaky_relu(convolution(x, weight, bias, padding=padding), slope)


@pytest.mark.parametrize("onednn", [True, False])
@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
@pytest.mark.parametrize("number", [1, 3])
@pytest.mark.parametrize(
    ("size", "kernel", "slope"),
    [((6, 5, 7), 3, 0.1), ((5, 4, 11), 3, 0.1), ((5, 6, 7), 2, 1.0), ((6, 7), 3, 0.1)],
    ids=str,
)
def test_answer_and_gradients(
    size: tuple[int, ...],
    kernel: int,
    slope: float,
    number: int,
    dtype: torch.dtype,
    onednn: bool,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    if not onednn:
        monkeypatch.setattr(activated, "_by_onednn", lambda _: False)
    generator = torch.Generator().manual_seed(0)
    shapes = [(number, 16, *size), (8, 16, *(kernel,) * len(size)), (8,)]
    drawn = [torch.randn(shape, generator=generator).to(dtype) for shape in shapes]
    found = []
    for function, kind in ((plain, torch.float64), (convolved, dtype)):
        given = [channels_last(t.to(kind)) if t.ndim > 1 else t.to(kind) for t in drawn]
        given = [t.requires_grad_() for t in given]
        answer = function(*given, 1, slope)
        along = torch.linspace(-1, 1, answer.numel()).view_as(answer).to(dtype).to(kind)
        found.append((answer, *torch.autograd.grad(answer, given, along)))
    for exact, ours in zip(*found, strict=True):
        assert ours.dtype == dtype
        assert float((ours - exact).detach().norm() / exact.detach().norm()) < TOLERANCE[dtype]
