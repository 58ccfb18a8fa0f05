"""Batches and figures of MONAI's SupervisedEvaluator, where scan differs from scan in shape."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from ignite.engine import Engine, Events
from ignite.metrics import Metric
from ignite.metrics.metric import reinit__is_reduced, sync_all_reduce
from torch import Tensor

from n2s_med.atomic import whole
from n2s_med.bundle.processes import rank
from n2s_med.errors import InputError


def only(items: Sequence[Any]) -> Any:
    """The one item of a batch: scans differ in shape and do not stack."""
    (item,) = items
    return item


def one_scan(batch: Mapping[str, Any], *_: Any, **__: Any) -> tuple[Any, None]:
    """What an evaluator hands its inferer: the volume (1, C, X, Y, Z), or the held-out blocks as they are."""
    image = batch["image"]
    return (image[None] if isinstance(image, Tensor) else image), None


def is_lower(current: float, best: float) -> bool:
    """Whether a figure of which less is better has improved."""
    return current < best


class _Sums(Metric):
    """Sums over scans, and over processes where there are several."""

    @reinit__is_reduced
    def reset(self) -> None:
        """Start anew."""
        self.sums = torch.zeros(2, dtype=torch.float64)

    @sync_all_reduce("sums")
    def compute(self) -> float:
        """Return the quotient of the sums."""
        if not float(self.sums[1]):
            raise InputError("no scan gave this figure", remedy="give scans with voxels to hold out")
        return float(self.sums[0] / self.sums[1])


class HeldOutRisk(_Sums):
    """Remaining error over the held-out voxels of all scans, in noise variances; the noisy scans have one."""

    part = slice(0, 2)

    def __init__(self) -> None:
        super().__init__(output_transform=lambda output: output["pred"])

    @reinit__is_reduced
    def update(self, output: Tensor) -> None:
        """Add a scan: what :class:`~n2s_med.bundle.RiskInferer` says of it."""
        self.sums += output[self.part].double().cpu()


class WholeCounts(HeldOutRisk):
    """Share of the held-out blocks that are whole counts: learned by splitting them where they are few."""

    part = slice(2, 4)


class FigureMean(_Sums):
    """Mean of a figure over the scans that have it.

    Parameters
    ----------
    name
        Name of the figure.
    """

    def __init__(self, name: str) -> None:
        super().__init__(output_transform=lambda output: output["figures"].get(name, math.nan))

    @reinit__is_reduced
    def update(self, output: float) -> None:
        """Add a scan; NaN says that it has no such figure."""
        if not math.isnan(output):
            self.sums += torch.tensor([output, 1.0], dtype=torch.float64)


class FiguresSaver:
    """Handler that writes the figures of every scan to ``figures.json`` as an evaluation ends.

    Parameters
    ----------
    output_dir
        Its folder; with several processes each writes a file of its own.
    """

    def __init__(self, output_dir: str) -> None:
        self.folder, self.rows = Path(output_dir), list[dict[str, Any]]()

    def attach(self, engine: Engine) -> None:
        """Collect scan by scan."""
        engine.add_event_handler(Events.STARTED, self.rows.clear)
        engine.add_event_handler(Events.ITERATION_COMPLETED, self._collect)
        engine.add_event_handler(Events.COMPLETED, self._save)

    def _collect(self, engine: Engine) -> None:
        output: Any = engine.state.output
        self.rows.append({"scan": output["scan"], **output["figures"]})

    def _save(self) -> None:
        name = f"figures-{rank()}.json" if rank() else "figures.json"
        self.folder.mkdir(parents=True, exist_ok=True)
        with whole(self.folder / name, overwrite=True) as partial:
            partial.write_text(json.dumps(self.rows, indent=2) + "\n", encoding="utf-8")
