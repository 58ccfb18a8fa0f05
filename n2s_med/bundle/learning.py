"""What MONAI's SupervisedTrainer needs to train a score network on noisy patches."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from ignite.engine import Engine, Events
from ignite.handlers import EMAHandler
from torch import Tensor, nn

from n2s_med.bundle.processes import unwrapped
from n2s_med.errors import N2SError
from n2s_med.score import ScoreOptimizer, TotalUnitNoise
from n2s_med.score.splitting import KEPT, deviance


def patch_batch(
    batch: Mapping[str, Tensor], device: Any, non_blocking: bool = False, **_: Any
) -> tuple[Tensor, Tensor, tuple[Tensor], dict[str, Any]]:
    """What the trainer hands its inferer: patches as shown (N, 1, spatial), targets (N, 4, spatial), traits."""
    shown, target, traits = (batch[key].to(device, non_blocking=non_blocking) for key in ("image", "target", "traits"))
    return shown, target, (traits,), {}


class PatchLoss(nn.Module):
    """Loss over the voxels that are learned from: that of the perturbation, or the deviance of whole counts left out.

    Parameters
    ----------
    sigma_a
        Perturbation, in standard deviations of the noise.
    kept_counts
        Share of few whole counts that the network is shown.
    """

    def __init__(self, sigma_a: float = 0.5, kept_counts: float = KEPT) -> None:
        super().__init__()
        self.objective, self.kept = TotalUnitNoise(sigma_a), kept_counts

    def forward(self, score: Tensor, target: Tensor) -> Tensor:
        """Return the loss.

        Parameters
        ----------
        score
            The network's answer (N, 1, spatial).
        target
            As :class:`~n2s_med.bundle.DrawPatchesd` gives it (N, 4, spatial).

        Raises
        ------
        N2SError
            If the loss is not finite: NaN stops the run.
        """
        data, drawn, weight, split = torch.split(target, 1, dim=1)
        error = torch.stack([self._error(*patch) for patch in zip(score, data, drawn, split, strict=True)])
        loss: Tensor = (error * weight).sum() / weight.sum().clamp_min(1)
        if not bool(torch.isfinite(loss)):
            raise N2SError("the training loss is not finite", remedy="lower --learning_rate, or check the scans")
        return loss

    def _error(self, score: Tensor, data: Tensor, drawn: Tensor, split: Tensor) -> Tensor:
        """Error per voxel of a patch."""
        if split.any():
            return deviance(score, data, drawn, self.kept)
        return self.objective.error(data, self.objective.perturbed(data, drawn), score, drawn)


class EpochOptimizer(torch.optim.Optimizer):
    """The package's optimizer (Muon and Adam under one cosine) as MONAI's trainer calls it.

    Parameters
    ----------
    network
        The score network, perhaps wrapped for several processes.
    learning_rate
        Peak learning rate of Muon.
    steps
        Length of the cosine; after that it starts anew, as in each round of federated training.
    """

    def __init__(self, network: nn.Module, learning_rate: float, steps: int) -> None:
        super().__init__(network.parameters(), {"lr": learning_rate})
        self.inner, self.done = ScoreOptimizer(network, learning_rate=learning_rate, steps=steps), 0

    def step(self, closure: Any = None) -> None:  # type: ignore[override]  # noqa: ARG002
        """Update the network by its gradients."""
        self.inner.update(self.done % self.inner.steps)
        self.done += 1

    def state_dict(self) -> dict[str, Any]:
        """State of both optimizers, and how many steps were taken."""
        return {"done": self.done, **self.inner.state_dict()}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore :meth:`state_dict`."""
        self.done = state_dict["done"]
        self.inner.load_state_dict(state_dict)


class Averaged:
    """An exponential moving average of the weights.

    Parameters
    ----------
    network
        The network that is trained, perhaps wrapped for several processes.
    decay
        Of the average; 0 takes the weights themselves.
    """

    def __init__(self, network: nn.Module, decay: float) -> None:
        self.handler = EMAHandler(network, momentum=1 - decay) if decay else None
        self.network = self.handler.ema_model if self.handler else unwrapped(network)

    def restart(self) -> None:
        """Start from the network's weights as they are."""
        if self.handler is not None:
            self.network.load_state_dict(self.handler.model.state_dict())


class AveragingHandler:
    """Handler that averages the weights step by step.

    Parameters
    ----------
    averaged
        The average.
    """

    def __init__(self, averaged: Averaged) -> None:
        self.averaged = averaged

    def attach(self, engine: Engine) -> None:
        """Follow a trainer. Give this handler before the one that resumes."""
        if self.averaged.handler is not None:
            engine.add_event_handler(Events.STARTED, self.averaged.restart)
            self.averaged.handler.attach(engine, name="ema_momentum")
