"""Score networks of random weights."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from n2s_med.score import ScoreUNet


def random_network(dims: int, channels: Sequence[int]) -> ScoreUNet:
    """Biases and traits are random too; the answer is as large as the input."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        unet = ScoreUNet(dims, channels)
        with torch.no_grad():
            unet.head.weight.mul_(20)
            for name, parameter in unet.named_parameters():
                if parameter.ndim == 1 or "shift" in name:
                    parameter.uniform_(-0.2, 0.2)
    return unet
