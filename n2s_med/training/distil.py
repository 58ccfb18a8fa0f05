"""Training by a teacher: a network learns in one pass what another says on average over flips of the volume."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from n2s_med.score.model import ScoreModel
from n2s_med.score.patches import Patch
from n2s_med.training.trainer import Progress, Sample, Trainer, no_progress


class Distiller(Trainer):
    """One training run whose target is a teacher's answer in place of the perturbation.

    The network is shown what it would be shown without a teacher, and as noisy. Each step the teacher answers two of
    the flips, one the other turned about every axis; their mean is, in the mean over steps, that over all flips, and
    so is what the network learns. No clean volume is used: the teacher learned from noisy ones.

    Parameters
    ----------
    teacher
        Weights that learned under the objective of ``config``.
    """

    def __init__(self, *args: Any, teacher: ScoreModel, **named: Any) -> None:
        self.teacher = teacher
        super().__init__(*args, **named)
        self.teacher.network.to(self.compute.device).eval()

    def _identity(self) -> str:
        return super()._identity() + self.teacher.hash

    def trained(self, progress: Progress = no_progress) -> ScoreModel:
        """A model that averages no flips."""
        return replace(super().trained(progress), one_pass=True)

    def _perturbed(self, patch: Patch, generator: torch.Generator) -> list[Sample]:
        (_, shown, _), *_ = super()._perturbed(patch, generator)
        taught = self._taught(shown, patch.noise.correlation.traits, generator)
        return [(patch, shown, lambda score: (score - taught).square())]

    @torch.no_grad()
    def _taught(self, shown: Tensor, traits: Tensor, generator: torch.Generator) -> Tensor:
        """The teacher's answers to two flips of a patch (1, 1, spatial), turned back; their mean."""
        drawn = torch.rand(shown.ndim - 2, generator=generator) < 0.5
        flips = [[axis + 2 for axis, flip in enumerate(flipped) if flip] for flipped in (drawn, ~drawn)]
        turned = torch.cat([shown.flip(axes) for axes in flips])
        answers = self._answer(self.teacher.network, turned, traits.expand(len(turned), -1))
        return torch.cat([answer[None].flip(axes) for answer, axes in zip(answers, flips, strict=True)]).mean(0, True)
