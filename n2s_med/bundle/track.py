"""Tracking of a bundle's training with MLflow, by the package's own tracker."""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from ignite.engine import Engine, Events
from torch import Tensor, nn

from n2s_med import pictures
from n2s_med.tracking import open_tracker


class TrackingHandler:
    """Handler that records a training: settings, data hashes, losses, clean-free figures, a picture, the model.

    The store is that of ``MLFLOW_TRACKING_URI``, else an SQLite file in ``directory``. The run ends as training does:
    FINISHED, FAILED or KILLED. The picture shows one held-out block, in the unit-noise domain.

    Parameters
    ----------
    experiment, run_name
        Under what the run is filed. Free of patient data.
    directory
        Folder of the default store.
    evaluator
        The validation engine; its metrics are recorded.
    data
        The validation data set: items of :class:`~n2s_med.bundle.HeldOutd`.
    network
        The network that is kept.
    params
        Settings by name.
    """

    def __init__(
        self,
        experiment: str,
        run_name: str,
        directory: str,
        evaluator: Engine,
        data: Sequence[Mapping[str, Any]],
        network: nn.Module,
        params: Mapping[str, object],
    ) -> None:
        self.tracker = open_tracker(True, experiment=experiment, run_name=run_name, directory=Path(directory))
        self.evaluator, self.data, self.network, self.params = evaluator, data, network, dict(params)
        self.began = 0.0

    def attach(self, engine: Engine) -> None:
        """Follow a trainer. Give this handler first: it must see a failure before others raise it again."""
        engine.add_event_handler(Events.STARTED, self._start)
        engine.add_event_handler(Events.EPOCH_COMPLETED, self._loss)
        self.evaluator.add_event_handler(Events.COMPLETED, self._figures, engine)
        engine.add_event_handler(Events.COMPLETED, self._complete)
        engine.add_event_handler(Events.EXCEPTION_RAISED, self._fail)

    def _start(self) -> None:
        self.began = time.perf_counter()
        self.tracker.__enter__()
        hashes = {f"data.{index}": item["image"]["fingerprint"] for index, item in enumerate(self.data)}
        self.tracker.params({**self.params, **hashes})

    def _loss(self, engine: Engine) -> None:
        output: Any = engine.state.output
        self.tracker.metrics({"loss": float(output[0]["loss"])}, engine.state.epoch)

    def _figures(self, trainer: Engine) -> None:
        if self.tracker.run_id is not None:
            self.tracker.metrics(dict(self.evaluator.state.metrics), trainer.state.epoch)

    def _complete(self, engine: Engine) -> None:
        self.tracker.metrics({"train_time_s": time.perf_counter() - self.began}, engine.state.epoch)
        block = next((block for item in self.data for block in item["image"]["blocks"]), None)
        if block is not None:
            before, after = self._denoised(block, self.data[0]["image"]["centre"])
            figure, _ = pictures.planes(before, after, spacing_mm=(1.0, 1.0, 1.0), units="noise SD")
            self.tracker.picture(figure, "held_out_block")
            self.tracker.model(self.network, block.u)
        self.tracker.__exit__(None, None, None)

    def _denoised(self, block: Any, centre: float) -> tuple[Tensor, Tensor]:
        """A held-out block before and after, (X, Y, Z), in standard deviations of the noise."""
        where = next(self.network.parameters()).device
        traits = block.noise.correlation.traits[None].to(where)
        with torch.no_grad():
            score = self.network.eval()(block.u.to(where) - centre, traits).cpu()
        before, after = (v[0, 0] if v.ndim == 5 else v[0, 0, ..., None] for v in (block.u, block.u + score))
        return before, after

    def _fail(self, _: Engine, error: BaseException) -> None:
        self.tracker.__exit__(type(error), error, error.__traceback__)
        raise error


def close(handlers: Iterable[Any]) -> None:
    """End the runs that MONAI's own tracking handlers left open."""
    for handler in handlers:
        if hasattr(handler, "close"):
            handler.close()
