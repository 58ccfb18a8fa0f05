"""The folder that a training leaves its model in, and in which a killed one is taken up again."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from n2s_med.atomic import check_free, whole
from n2s_med.errors import OutputError
from n2s_med.score import ScoreModel
from n2s_med.tracking import Tracker, open_tracker

_RESULTS = ("model.pt", "card.json", "MODEL_CARD.md")
_UNFINISHED = ("checkpoint.pt", "run.json")


@dataclass(frozen=True)
class ModelFolder:
    """``model.pt`` and ``card.json``; while training, ``checkpoint.pt`` and the note of the tracked run, ``run.json``.

    Attributes
    ----------
    path
        The folder, made when it is needed.
    overwrite
        Start anew where it holds a model or a run.
    """

    path: Path
    overwrite: bool

    def check(self) -> None:
        """Refuse, before any work, what cannot be written or must not be replaced.

        Raises
        ------
        OutputError
            If a finished model is there already, or none can be written there.
        """
        model, unfinished = self.path / "model.pt", self.path / "checkpoint.pt"
        if model.exists() and not unfinished.exists() and not self.overwrite:
            raise OutputError("there is a model already", remedy="give another --out or --overwrite", path=self.path)
        check_free(model, overwrite=True)

    @contextmanager
    def run(self, experiment: str, *, track: bool) -> Iterator[Tracker]:
        """Train inside: goes on with the run that was killed, tracked as the same one, or starts anew.

        Parameters
        ----------
        experiment
            Under what the run is filed.
        track
            Record it with MLflow.
        """
        if self.overwrite:
            self._remove(*_RESULTS, *_UNFINISHED)
        note = self.path / "run.json"
        with open_tracker(
            track, experiment=experiment, run_name=self.path.name, directory=self.path, run_id=_left_run(note)
        ) as tracker:
            if tracker.run_id is not None:
                _write(note, _json({"run_id": tracker.run_id}))
            yield tracker
        self._remove(*_UNFINISHED)

    def keep(self, model: ScoreModel, page: Callable[[Mapping[str, Any], str], str] | None = None) -> None:
        """Write the model, its card as JSON and, where ``page`` makes one of it and its name, as ``MODEL_CARD.md``."""
        model.save(self.path / "model.pt")
        card = {**model.card, "sha256": model.hash}
        _write(self.path / "card.json", _json(card))
        if page:
            _write(self.path / "MODEL_CARD.md", page(card, self.path.name))

    def _remove(self, *names: str) -> None:
        for name in names:
            (self.path / name).unlink(missing_ok=True)


def _left_run(note: Path) -> str | None:
    """The tracked run that a killed training left, if its note of it is there and whole."""
    try:
        return str(json.loads(note.read_text(encoding="utf-8"))["run_id"])
    except (OSError, ValueError, LookupError, TypeError):
        return None


def _json(content: Mapping[str, Any]) -> str:
    return json.dumps(content, indent=2) + "\n"


def _write(path: Path, text: str) -> None:
    with whole(path, overwrite=True) as partial:
        partial.write_text(text, encoding="utf-8")
