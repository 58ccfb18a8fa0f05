"""What a training keeps: the best weights, and checkpoints to resume from."""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ignite.engine import Engine, Events
from monai.handlers import CheckpointLoader, CheckpointSaver
from torch import Tensor, nn

from n2s_med.bundle.network import learned_counts, save_weights
from n2s_med.errors import ModelError
from n2s_med.score.model import copy_state
from n2s_med.training.trainer import impossible

log = logging.getLogger(__name__)


class Best:
    """The weights with the lowest clean-free figure, kept in a file, and how long ago that was.

    Parameters
    ----------
    network
        The network to keep.
    file
        Where its weights go, as MONAI keeps them: a dictionary of tensors.
    patience
        Checks without improvement after which training stops.
    given
        File of the weights that training starts from, if it does. An error cannot be below zero: where its estimate
        is, by more than chance, for these or for later ones, it can judge nothing, and they are kept. (By count
        splitting it may be, and judges.)
    """

    def __init__(self, network: nn.Module, file: str, patience: int, given: str | None = None) -> None:
        self.network, self.file, self.patience, self.given = network, Path(file), patience, given
        self.first: float | None = None
        self.start: Mapping[str, Tensor] = {}
        self.risk, self.waited = math.inf, 0

    def take(self, risk: float, *, save: bool, counts: bool = False) -> bool:
        """Take a figure, keep the weights if it is the lowest, and say whether to go on.

        Parameters
        ----------
        risk
            The figure.
        save
            Whether to write the file.
        counts
            Whether it is that of whole counts, by splitting them where they are few; training learns by it too.
        """
        learned = counts
        if self.first is None:
            self.first, learned = risk, self._given_learned_counts
            self.start = copy_state(self.network) if self.given else {}
        if self.given is not None and impossible(risk) and not counts:
            log.warning("the clean-free figure is below zero and can judge nothing: the weights given are kept")
            self.risk = self.first
            if save:
                self.network.load_state_dict(self.start)
                save_weights(self.network, self.file, learned_counts=self._given_learned_counts)
            return False
        self.waited += 1
        if risk < self.risk:
            self.risk, self.waited = risk, 0
            if save:
                save_weights(self.network, self.file, learned_counts=learned)
        return self.waited < self.patience

    @property
    def _given_learned_counts(self) -> bool:
        return self.given is not None and learned_counts(self.given)

    def state_dict(self) -> dict[str, Any]:
        """The first figure and its weights, the lowest figure, and how many checks ago that was."""
        return {"first": self.first, "start": self.start, "risk": self.risk, "waited": self.waited}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore :meth:`state_dict`."""
        self.first, self.start = state["first"], state["start"]
        self.risk, self.waited = state["risk"], state["waited"]


class BestHandler:
    """Handler that keeps the best weights and stops early.

    Parameters
    ----------
    best
        What is kept.
    evaluator
        Validation engine, whose ``risk`` decides; ``whole_counts`` of one says that it was estimated by splitting.
    save
        Whether this process writes the file.
    """

    def __init__(self, best: Best, evaluator: Engine, save: bool) -> None:
        self.best, self.evaluator, self.save = best, evaluator, save

    def attach(self, engine: Engine) -> None:
        """Follow a trainer."""
        self.evaluator.add_event_handler(Events.COMPLETED, self._check, engine)

    def _check(self, trainer: Engine) -> None:
        figures = self.evaluator.state.metrics
        if not self.best.take(float(figures["risk"]), save=self.save, counts=figures.get("whole_counts") == 1):
            trainer.terminate()


class CheckpointHandler:
    """Handler that keeps the newest epoch in ``checkpoint_epoch=N.pt``.

    Parameters
    ----------
    folder
        Where checkpoints go.
    objects
        What to keep, by name; the trainer itself is added.
    """

    def __init__(self, folder: str, objects: Mapping[str, Any]) -> None:
        self.folder, self.objects = folder, dict(objects)

    def attach(self, engine: Engine) -> None:
        """Follow a trainer. Give this handler after the validation, whose figures it keeps too."""
        objects = {**self.objects, "trainer": engine}
        CheckpointSaver(self.folder, objects, save_interval=1, n_saved=1).attach(engine)


class ResumeHandler:
    """Handler that takes up the run that the newest checkpoint of :class:`CheckpointHandler` holds.

    Parameters
    ----------
    folder
        Where checkpoints are.
    objects
        What to restore, by name; the trainer itself is added.
    """

    def __init__(self, folder: str, objects: Mapping[str, Any]) -> None:
        self.file, self.objects = newest_checkpoint(folder), dict(objects)

    def attach(self, engine: Engine) -> None:
        """Restore as the trainer starts."""
        CheckpointLoader(self.file, {**self.objects, "trainer": engine}, map_location="cpu").attach(engine)


def newest_checkpoint(folder: str) -> str:
    """The checkpoint that a training resumes from.

    Raises
    ------
    ModelError
        If there is none.
    """
    found = sorted(Path(folder).glob("checkpoint_epoch=*.pt"), key=lambda file: file.stat().st_mtime_ns)
    if not found:
        raise ModelError("no checkpoint to resume from", remedy="leave out --resume", path=folder)
    return str(found[-1])
