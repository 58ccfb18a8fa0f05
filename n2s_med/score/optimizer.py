"""Muon for the convolutions, Adam for what is small, one learning-rate curve for both.

Muon orthogonalises the update of each weight matrix; a convolution's matrix is (out, in × kernel). torch's
own takes matrices only, so it is handed matrix views that share storage with the weights.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn

from n2s_med.score.muon import Muon

SMALL_LEARNING_RATE = 2e-3


class ScoreOptimizer:
    """Muon and Adam with warm-up and a cosine fall to zero.

    Parameters
    ----------
    network
        The network; its convolution weights must stay where and as they are in memory.
    learning_rate
        Peak learning rate of Muon.
    steps
        Length of the run.
    momentum
        Of Muon.
    warmup
        Steps of linear rise.
    clip
        Largest norm of the gradient.
    """

    def __init__(
        self,
        network: nn.Module,
        *,
        learning_rate: float,
        steps: int,
        momentum: float = 0.9,
        warmup: int = 20,
        clip: float = 1.0,
    ) -> None:
        self.network, self.steps, self.warmup, self.clip = network, steps, warmup, clip
        self.weights = [p for p in network.parameters() if p.ndim > 2]
        self.matrices = [nn.Parameter(_rows(p.data, p).view(p.shape[0], -1)) for p in self.weights]
        small = [p for p in network.parameters() if p.ndim <= 2]
        self.optimizers: list[torch.optim.Optimizer] = [
            Muon(self.matrices, lr=learning_rate, momentum=momentum),
            torch.optim.Adam(small, lr=SMALL_LEARNING_RATE, betas=(0.9, 0.99), fused=True),
        ]
        self.peaks = [o.param_groups[0]["lr"] for o in self.optimizers]

    def step(self, loss: Tensor, step: int) -> None:
        """Differentiate the loss and update the network; ``step`` counts from zero."""
        self.network.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        self.update(step)

    def update(self, step: int) -> None:
        """Update the network by the gradients it holds; ``step`` counts from zero."""
        gradients = [p.grad for p in self.network.parameters() if p.grad is not None]
        if (norm := nn.utils.get_total_norm(gradients)) > self.clip:
            nn.utils.clip_grads_with_norm_(self.network.parameters(), self.clip, norm)
        for weight, matrix in zip(self.weights, self.matrices, strict=True):
            matrix.grad = None if weight.grad is None else _rows(weight.grad, weight).reshape(matrix.shape)
        factor = min(1.0, (step + 1) / self.warmup) * 0.5 * (1 + math.cos(math.pi * step / self.steps))
        for optimizer, peak in zip(self.optimizers, self.peaks, strict=True):
            optimizer.param_groups[0]["lr"] = peak * factor
            optimizer.step()

    def state_dict(self) -> dict[str, Any]:
        """State of both optimizers."""
        return {"optimizers": [o.state_dict() for o in self.optimizers]}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore :meth:`state_dict`."""
        for optimizer, saved in zip(self.optimizers, state["optimizers"], strict=True):
            optimizer.load_state_dict(saved)


def _rows(of: Tensor, weight: Tensor) -> Tensor:
    """A weight, or its gradient, with its axes as the weight lies in memory; the order of columns does not matter."""
    return of if weight.is_contiguous() else of.movedim(1, -1)
