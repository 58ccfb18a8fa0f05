"""Muon, with the products of long matrices taken twice a step instead of ten times.

Muon orthogonalises each update ``X`` by five steps of a Newton-Schulz iteration, ``X ← (a + b A + c A²) X`` with
``A = X Xᵀ``. The polynomials commute with ``A``, so they can be gathered in a small square matrix ``Q`` from ``A``
alone, for all matrices of like size at once, and multiplied with ``X`` at the end. That holds as long as ``A`` is in
float32: what its rounding makes of vanishing singular values grows 200,000-fold in five steps.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

COEFFICIENTS = (3.4445, -4.775, 2.0315)
STEPS = 5
"""Of the iteration, as torch.optim.Muon has them."""

LEAST = 1e-7
"""Least norm of an update that is brought to one."""


class Muon(torch.optim.Optimizer):
    """As :class:`torch.optim.Muon` with Nesterov's momentum and no weight decay.

    Parameters
    ----------
    matrices
        What to update.
    lr
        Learning rate.
    momentum
        Share of the past in the moving average of the gradients.
    """

    def __init__(self, matrices: Sequence[Tensor], *, lr: float, momentum: float) -> None:
        super().__init__(matrices, {"lr": lr, "momentum": momentum})

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]  # noqa: ARG002
        """Update the matrices by their gradients."""
        for group in self.param_groups:
            alike: dict[int, list[tuple[Tensor, Tensor]]] = defaultdict(list)
            for matrix in group["params"]:
                if matrix.grad is not None:
                    alike[min(matrix.shape)].append((matrix, self._update(matrix, group["momentum"])))
            with _bf16_factors():
                grams = {size: torch.stack([_long(u) @ _long(u).T for _, u in those]) for size, those in alike.items()}
            factors = {size: orthogonalising(gram) for size, gram in grams.items()}
            with _bf16_factors():
                for size, those in alike.items():
                    for (matrix, update), factor in zip(those, factors[size], strict=True):
                        rate = group["lr"] * math.sqrt(max(1, matrix.shape[0] / matrix.shape[1]))
                        _long(matrix).addmm_(factor, _long(update), alpha=-rate)

    def _update(self, matrix: Tensor, momentum: float) -> Tensor:
        """The gradient ahead of its moving average, in the gradient's place."""
        state = self.state[matrix]
        if not state:
            state["momentum_buffer"] = torch.zeros_like(matrix)
        assert matrix.grad is not None
        average: Tensor = state["momentum_buffer"].lerp_(matrix.grad, 1 - momentum)
        return matrix.grad.lerp_(average, momentum)


def orthogonalising(grams: Tensor) -> Tensor:
    """The matrices ``Q`` for which ``Q X`` is ``X`` orthogonalised, from the products ``X Xᵀ``, both (number, n, n)."""
    a, b, c = COEFFICIENTS
    squares = grams.diagonal(dim1=1, dim2=2).sum(1).clamp_min(LEAST**2)[:, None, None]
    gram = factor = grams / squares
    for step in range(STEPS):
        polynomial = torch.baddbmm(gram, gram, gram, beta=b, alpha=c)
        polynomial.diagonal(dim1=1, dim2=2).add_(a)
        factor = polynomial @ factor if step else polynomial
        if step < STEPS - 1:
            gram = polynomial @ gram @ polynomial
    return factor / squares.sqrt()


def _long(matrix: Tensor) -> Tensor:
    """The matrix, or its transpose if it has more rows than columns."""
    return matrix.T if matrix.shape[0] > matrix.shape[1] else matrix


@contextmanager
def _bf16_factors() -> Iterator[None]:
    """Let oneDNN round factors to bfloat16, where it has it; sums and results stay float32."""
    setting = torch.backends.mkldnn.matmul  # type: ignore[attr-defined]
    before, setting.fp32_precision = setting.fp32_precision, "bf16"
    try:
        yield
    finally:
        setting.fp32_precision = before
