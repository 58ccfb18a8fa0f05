"""Tracking of a bundle's training with MLflow, by the package's own tracker."""

from __future__ import annotations

import hashlib
import json
import tempfile
import time
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from ignite.engine import Engine, Events
from torch import Tensor, nn

from n2s_med import pictures
from n2s_med.atomic import whole
from n2s_med.bundle.data import Item, content_hash
from n2s_med.tracking import open_tracker


class TrackingHandler:
    """Handler that records a training: settings, data hashes, losses, clean-free figures, a picture, the model.

    The store is that of ``MLFLOW_TRACKING_URI``, else an SQLite file in ``directory``. The run ends as training does:
    FINISHED, FAILED or KILLED. A training that is resumed goes on in the run that it began. The picture shows one
    held-out block, in the unit-noise domain.

    Parameters
    ----------
    experiment, run_name
        Under what the run is filed. Free of patient data.
    directory
        Folder of the default store.
    evaluator
        The validation engine; its metrics are recorded.
    blocks
        The validation data set: items of :class:`~n2s_med.bundle.HeldOutd`.
    data
        The scans by their use, as :func:`~n2s_med.bundle.scan_items` gives them; their hashes are recorded.
    network
        The network that is kept.
    params
        Settings by name.
    note
        File that remembers the run for a training that resumes.
    resume
        Whether this one does.
    """

    def __init__(
        self,
        experiment: str,
        run_name: str,
        directory: str,
        evaluator: Engine,
        blocks: Sequence[Mapping[str, Any]],
        data: Mapping[str, Sequence[Item]],
        network: nn.Module,
        params: Mapping[str, object],
        note: str,
        resume: bool = False,
    ) -> None:
        self.note = Path(note)
        self.tracker = open_tracker(
            True,
            experiment=experiment,
            run_name=run_name,
            directory=Path(directory),
            run_id=_left_run(self.note) if resume else None,
        )
        self.evaluator, self.blocks, self.data, self.network = evaluator, blocks, data, network
        self.params, self.began = dict(params), 0.0

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
        self.note.parent.mkdir(parents=True, exist_ok=True)
        with whole(self.note, overwrite=True) as partial:
            partial.write_text(json.dumps({"run_id": self.tracker.run_id}), encoding="utf-8")
        self.tracker.params({**self.params, **self._data_version()})

    def _data_version(self) -> dict[str, object]:
        """Number of scans and their hash, by use; the hash of each goes into ``data.json``."""
        hashes = {use: [content_hash(item) for item in items] for use, items in self.data.items()}
        with tempfile.TemporaryDirectory() as scratch:
            file = Path(scratch) / "data.json"
            file.write_text(json.dumps(hashes, indent=2), encoding="utf-8")
            self.tracker.artifact(file)
        told = dict[str, object]()
        for use, each in hashes.items():
            told[f"data.{use}.scans"] = len(each)
            told[f"data.{use}.sha256"] = hashlib.sha256("".join(sorted(each)).encode()).hexdigest()
        return told

    def _loss(self, engine: Engine) -> None:
        output: Any = engine.state.output
        self.tracker.metrics({"loss": float(output[0]["loss"])}, engine.state.epoch)

    def _figures(self, trainer: Engine) -> None:
        if self.tracker.run_id is not None:
            self.tracker.metrics(dict(self.evaluator.state.metrics), trainer.state.epoch)

    def _complete(self, engine: Engine) -> None:
        self.tracker.metrics({"train_time_s": time.perf_counter() - self.began}, engine.state.epoch)
        shown = next((item["image"] for item in self.blocks if item["image"]["blocks"]), None)
        if shown is not None:
            block = shown["blocks"][0]
            before, after = self._denoised(block, shown["centre"])
            figure, _ = pictures.planes(before, after, spacing_mm=(1.0, 1.0, 1.0), units="noise SD")
            self.tracker.picture(figure, "held_out_block")
            self.tracker.model(self.network, block.u)
        self.tracker.__exit__(None, None, None)
        self.note.unlink(missing_ok=True)

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


def _left_run(note: Path) -> str | None:
    """The run of a training that was stopped, if it was tracked."""
    if not note.is_file():
        return None
    return str(json.loads(note.read_text(encoding="utf-8"))["run_id"])


def close(handlers: Iterable[Any]) -> None:
    """End the runs that MONAI's own tracking handlers left open."""
    for handler in handlers:
        if hasattr(handler, "close"):
            handler.close()
