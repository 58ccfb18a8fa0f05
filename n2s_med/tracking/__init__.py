"""Experiment tracking: the only module that imports MLflow, and only once tracking is on.

::

    with open_tracker(True, experiment="n2s-med", run_name="pet", directory=out) as tracker:
        tracker.params({"law": "poisson", "gain": 0.02, "inputs_sha256": "9f2c…"})
        tracker.metrics({"loss": 0.91}, step=100)
        tracker.picture(figure, "slice")
        tracker.model(network, patch)

Where it goes: the server or store that ``MLFLOW_TRACKING_URI`` names, else an SQLite file ``mlflow.db`` with
``mlartifacts/`` beside it, in the directory given. ``mlflow ui --backend-store-uri sqlite:///DIR/mlflow.db``
shows it.

What goes in: only what the caller hands over, the software environment, and the machine's load (processor, memory,
disk, network, and a GPU where ``nvidia-ml-py`` is installed): every ten seconds, or every
``MLFLOW_SYSTEM_METRICS_SAMPLING_INTERVAL``, and once at the end. Callers pass content hashes
instead of paths and names of files, which may hold a patient's name. :meth:`Tracker.model` keeps the shape
of its example but not the values, which are a patient's. Pictures do show the scan: a server that receives
them must be one that may receive the scan.

How runs end: FINISHED, FAILED (an exception) or KILLED (Ctrl-C), never left RUNNING by a ``with`` block.
A process killed outright (kill −9) leaves its run RUNNING until the same ``run_id`` is opened again.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Protocol, Self

from torch import Tensor, nn

from n2s_med.tracking.runs import MLflowTracker

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["Tracker", "open_tracker"]


class Tracker(Protocol):
    """What training and denoising report to: a context manager, open while the run lasts.

    Attributes
    ----------
    run_id
        The run's identifier, to continue it later; ``None`` where tracking is off or not yet entered.
    """

    run_id: str | None

    def __enter__(self) -> Self:
        """Start the run, or continue it."""
        ...

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """End the run as FINISHED, FAILED or KILLED."""
        ...

    def params(self, values: Mapping[str, object]) -> None:
        """Log settings by name; a continued run keeps its first values and logs what changed beside them."""
        ...

    def metrics(self, values: Mapping[str, float], step: int) -> None:
        """Log figures at a training step; the unit belongs into the name."""
        ...

    def picture(self, picture: Figure | bytes, name: str) -> None:
        """Log a matplotlib figure or the bytes of a PNG as ``pictures/<name>.png``."""
        ...

    def artifact(self, path: Path) -> None:
        """Log a file, or a folder with all it holds."""
        ...

    def model(self, network: nn.Module, example_input: Tensor) -> None:
        """Log a network of one input and one output, loadable by ``mlflow.pyfunc``.

        ``example_input`` is (batch, channel, spatial…): its shape and type are kept, its values are not.
        """
        ...


def open_tracker(
    enabled: bool, *, experiment: str, run_name: str, directory: Path, run_id: str | None = None
) -> Tracker:
    """Return the tracker of one run; nothing is contacted or written before ``with`` enters it.

    Parameters
    ----------
    enabled
        The one switch. ``False`` returns a tracker that does nothing and never imports MLflow.
    experiment, run_name
        Under what the run is filed. Free of patient data.
    directory
        Where the default SQLite store and its artifacts lie; made if absent.
    run_id
        A stopped run to continue; ``None`` starts a new one.
    """
    if not enabled:
        return _NullTracker()
    return MLflowTracker(experiment, run_name, directory, run_id)


class _NullTracker:
    """Tracking switched off."""

    run_id: str | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        return None

    def params(self, values: Mapping[str, object]) -> None:
        """Do nothing."""

    def metrics(self, values: Mapping[str, float], step: int) -> None:
        """Do nothing."""

    def picture(self, picture: Figure | bytes, name: str) -> None:
        """Do nothing."""

    def artifact(self, path: Path) -> None:
        """Do nothing."""

    def model(self, network: nn.Module, example_input: Tensor) -> None:
        """Do nothing."""
