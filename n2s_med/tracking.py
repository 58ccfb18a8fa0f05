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

What goes in: only what the caller hands over, and the software environment. Callers pass content hashes
instead of paths and names of files, which may hold a patient's name. :meth:`Tracker.model` keeps the shape
of its example but not the values, which are a patient's. Pictures do show the scan: a server that receives
them must be one that may receive the scan.

How runs end: FINISHED, FAILED (an exception) or KILLED (Ctrl-C), never left RUNNING by a ``with`` block.
A process killed outright (kill −9) leaves its run RUNNING until the same ``run_id`` is opened again.
"""

from __future__ import annotations

import copy
import json
import logging
import os
import platform
import re
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from importlib import metadata
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Protocol, Self

import torch
from torch import Tensor, nn

from n2s_med.errors import InputError, N2SError, OutputError

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_MODEL_NAME = "model"
_SWITCH_OFF = "or switch tracking off"


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
    return _MLflowTracker(experiment, run_name, directory, run_id)


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


class _MLflowTracker:
    """One MLflow run, driven through ``MlflowClient``: no global active run is touched or joined."""

    def __init__(self, experiment: str, run_name: str, directory: Path, run_id: str | None) -> None:
        self.run_id = run_id
        self._experiment, self._run_name, self._directory = experiment, run_name, directory
        self._continued = run_id is not None
        self._uri = os.environ.get("MLFLOW_TRACKING_URI") or ""
        self._client: Any = None

    def __enter__(self) -> Self:
        self._uri = self._uri or _default_store(self._directory)
        with _refusals(self._uri), _patience(retries=0, timeout_s=10):
            self._client = _mlflow().MlflowClient(tracking_uri=self._uri)
            self._reopen() if self._continued else self._create()
        try:
            self._environment()
        except BaseException:
            self.__exit__(*sys.exc_info())
            raise
        return self

    def _create(self) -> None:
        experiment_id = self._experiment_id()
        run = self._client.create_run(experiment_id, run_name=self._run_name, tags=_source_tags())
        self.run_id = run.info.run_id

    def _experiment_id(self) -> str:
        found = self._client.get_experiment_by_name(self._experiment)
        if found is not None:
            return str(found.experiment_id)
        artifacts = None if _is_server(self._uri) else (self._directory / "mlartifacts").resolve().as_uri()
        return str(self._client.create_experiment(self._experiment, artifact_location=artifacts))

    def _reopen(self) -> None:
        self._client.get_run(self.run_id)
        self._client.update_run(self.run_id, status="RUNNING")

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            with self._call():
                self._client.set_terminated(self.run_id, status=_end_status(error))
        except N2SError as refusal:
            if error is None:
                raise
            error.add_note(f"The tracked run could not be ended either: {refusal}")

    @contextmanager
    def _call(self) -> Iterator[None]:
        with _refusals(self._uri), _patience(retries=2, timeout_s=60):
            yield

    def params(self, values: Mapping[str, object]) -> None:
        with self._call():
            entity = _mlflow().entities.Param
            known = self._client.get_run(self.run_id).data.params
            told = _fresh({name: str(value) for name, value in values.items()}, known)
            self._client.log_batch(self.run_id, params=[entity(*item) for item in told.items()])

    def metrics(self, values: Mapping[str, float], step: int) -> None:
        now_ms = time.time_ns() // 1_000_000
        with self._call():
            entity = _mlflow().entities.Metric
            rows = [entity(name, float(value), now_ms, step) for name, value in values.items()]
            self._client.log_batch(self.run_id, metrics=rows)

    def picture(self, picture: Figure | bytes, name: str) -> None:
        from n2s_med.pictures import png

        self._file(picture if isinstance(picture, bytes) else png(picture), f"{name}.png", folder="pictures")

    def artifact(self, path: Path) -> None:
        if not path.exists():
            raise InputError("there is no such file to track", path=path)
        with self._call():
            if path.is_dir():
                self._client.log_artifacts(self.run_id, str(path), artifact_path=path.name)
            else:
                self._client.log_artifact(self.run_id, str(path))

    def _file(self, content: bytes, name: str, *, folder: str) -> None:
        with tempfile.TemporaryDirectory() as scratch, self._call():
            (Path(scratch) / name).write_bytes(content)
            self._client.log_artifact(self.run_id, str(Path(scratch) / name), artifact_path=folder)

    def model(self, network: nn.Module, example_input: Tensor) -> None:
        frozen, example = copy.deepcopy(network).cpu().eval(), _noise_like(example_input)
        with torch.no_grad():
            output = frozen(example)
        with self._call(), _store_of_models(self._uri):
            run = self._client.get_run(self.run_id)
            entry = self._client.create_logged_model(
                run.info.experiment_id, name=_MODEL_NAME, source_run_id=self.run_id
            )
            _mlflow().models.Model.log(
                artifact_path=None,
                flavor=_mlflow().pytorch,
                name=_MODEL_NAME,
                run_id=self.run_id,
                model_id=entry.model_id,
                pytorch_model=frozen,
                serialization_format="pickle",
                signature=_signature(example, output),
                input_example=example.numpy(),
                pip_requirements=_pins("mlflow", "cloudpickle", "torch", "monai", "numpy", "n2s-med"),
            )

    def _environment(self) -> None:
        """Log what the run is made with: versions, commit, threads, and every installed package."""
        environment = _environment()
        with self._call():
            entity = _mlflow().entities.RunTag
            tags = [entity(f"environment.{name}", value) for name, value in environment.items()]
            self._client.log_batch(self.run_id, tags=tags)
        self._file(json.dumps(environment, indent=2).encode(), "environment.json", folder="environment")
        self._file("\n".join(_installed()).encode(), "requirements.txt", folder="environment")


def _default_store(directory: Path) -> str:
    try:
        directory.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OutputError(
            f"no tracking store can be made here ({error.strerror})",
            remedy=f"name another folder {_SWITCH_OFF}",
            path=directory,
        ) from error
    from sqlalchemy.engine import URL

    # URL escapes what a path may hold and an address may not: "%", "?", "#".
    return str(URL.create("sqlite", database=str(directory.resolve() / "mlflow.db")))


def _is_server(uri: str) -> bool:
    return uri.startswith(("http://", "https://", "databricks"))


def _end_status(error: BaseException | None) -> str:
    if error is None or (isinstance(error, SystemExit) and error.code in (None, 0)):
        return "FINISHED"
    by_signal = isinstance(error, SystemExit) and isinstance(error.code, int) and error.code > 128
    return "KILLED" if by_signal or isinstance(error, KeyboardInterrupt) else "FAILED"


def _fresh(values: Mapping[str, str], known: Mapping[str, str]) -> dict[str, str]:
    """Return what a run does not know yet; a changed value gets a new name, as MLflow keeps the first."""
    told = {}
    for name, value in values.items():
        stem, n = name, 1
        while known.get(name, value) != value:
            n += 1
            name = f"{stem}.{n}"
        if name not in known:
            told[name] = value
    return told


# --- MLflow, tamed -----------------------------------------------------------------------------------------


def _mlflow() -> Any:
    """Import MLflow without its telemetry, its adverts on stdout and its chatter on stderr."""
    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
    os.environ.setdefault("MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT", "true")
    os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")
    with _quiet():
        import mlflow
        import mlflow.models
        import mlflow.pytorch
    return mlflow


_CHATTER = ("mlflow", "alembic")


@contextmanager
def _quiet() -> Iterator[None]:
    """Silence what a user cannot act on: MLflow's notes to its own developers, and those of its libraries."""
    levels = {name: logging.getLogger(name).level for name in _CHATTER}
    with warnings.catch_warnings():
        for category in (DeprecationWarning, FutureWarning):
            warnings.simplefilter("ignore", category)
        warnings.filterwarnings("ignore", category=UserWarning, module="mlflow")
        for name in _CHATTER:
            logging.getLogger(name).setLevel(logging.ERROR)
        try:
            yield
        finally:
            for name, level in levels.items():
                logging.getLogger(name).setLevel(level)


@contextmanager
def _patience(*, retries: int, timeout_s: int) -> Iterator[None]:
    """Bound how long MLflow tries a server that does not answer, unless the user has set it."""
    bounds = {"MLFLOW_HTTP_REQUEST_MAX_RETRIES": retries, "MLFLOW_HTTP_REQUEST_TIMEOUT": timeout_s}
    ours = {name: str(value) for name, value in bounds.items() if name not in os.environ}
    os.environ.update(ours)
    try:
        yield
    finally:
        for name in ours:
            os.environ.pop(name, None)


@contextmanager
def _store_of_models(uri: str) -> Iterator[None]:
    """Point MLflow's process-wide store at ours: saving a model goes through it."""
    before = _mlflow().get_tracking_uri() if _mlflow().is_tracking_uri_set() else None
    _mlflow().set_tracking_uri(uri)
    try:
        yield
    finally:
        _mlflow().set_tracking_uri(before)


@contextmanager
def _refusals(uri: str) -> Iterator[None]:
    """Turn what MLflow raises into one line with a remedy."""
    from sqlalchemy.exc import SQLAlchemyError

    refusals = (_mlflow().exceptions.MlflowException, SQLAlchemyError, ImportError)
    try:
        with _quiet():
            yield
    except refusals as error:
        raise N2SError(
            _without_secrets(f"tracking at {uri} failed: {_reason(error)}"),
            remedy=f"check that it runs and is yours, set MLFLOW_TRACKING_URI to another {_SWITCH_OFF}",
        ) from error
    except OSError as error:
        raise OutputError(
            f"tracking cannot write ({error.strerror or error})",
            remedy=f"free space, check permissions {_SWITCH_OFF}",
            path=error.filename,
        ) from error


def _without_secrets(text: str) -> str:
    return re.sub(r"//[^/@\s]*@", "//", text)


def _reason(error: BaseException) -> str:
    """Return the cause in at most one line: MLflow's own runs to pages where a server is down."""
    from requests.exceptions import RequestException

    if any(isinstance(link, RequestException) for link in _chain(error)):
        return "the server does not answer"
    return str(error).strip().split("\n", 1)[0][:200].rstrip(".")


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__


def _noise_like(example: Tensor) -> Tensor:
    """Return unit noise of the example's layout, at most 32 voxels a side: nothing of the patient's."""
    shape = (1, example.shape[1], *(min(size, 32) for size in example.shape[2:]))
    return torch.randn(shape, generator=torch.Generator().manual_seed(0)).to(example.dtype)


def _signature(example: Tensor, output: Tensor) -> Any:
    """Describe one tensor in, one out; batch and every spatial axis may have any size."""
    specs = [_mlflow().types.TensorSpec(t.numpy().dtype, _any_size(t)) for t in (example, output)]
    schemas = [_mlflow().types.Schema([spec]) for spec in specs]
    return _mlflow().models.ModelSignature(inputs=schemas[0], outputs=schemas[1])


def _any_size(tensor: Tensor) -> tuple[int, ...]:
    return (-1, tensor.shape[1], *(-1 for _ in tensor.shape[2:]))


# --- The software environment ------------------------------------------------------------------------------


def _environment() -> dict[str, str]:
    facts: dict[str, Callable[[], str | None]] = {
        "n2s_med": lambda: _version("n2s-med"),
        "commit": _commit,
        "python": platform.python_version,
        "torch": lambda: torch.__version__,
        "monai": lambda: _version("monai"),
        "platform": lambda: f"{platform.system()} {platform.machine()}",
        "threads": lambda: str(torch.get_num_threads()),
    }
    known = {name: fact() for name, fact in facts.items()}
    return {name: value for name, value in known.items() if value is not None}


def _source_tags() -> dict[str, str]:
    """Return MLflow's own names for the source of a run, so that its pages show them; no user name."""
    tags = {"mlflow.source.name": "n2s-med", "mlflow.source.type": "LOCAL"}
    commit = _commit()
    return tags if commit is None else {**tags, "mlflow.source.git.commit": commit.removesuffix("-dirty")}


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def _pins(*packages: str) -> list[str]:
    return [f"{name}=={version}" for name in packages if (version := _version(name)) is not None]


def _installed() -> list[str]:
    names = {d.metadata["Name"].lower(): d.version for d in metadata.distributions()}
    return [f"{name}=={version}" for name, version in sorted(names.items())]


def _commit() -> str | None:
    """Return the commit of this code, ``-dirty`` if changed since; ``None`` outside its repository."""
    tracked = _git("ls-files", "--error-unmatch", Path(__file__).name)
    head = _git("rev-parse", "HEAD")
    if not tracked or not head:
        return None
    return f"{head}-dirty" if _git("status", "--porcelain", "--untracked-files=no", ".") else head


def _git(*arguments: str) -> str | None:
    here = Path(__file__).parent
    try:
        done = subprocess.run(["git", *arguments], cwd=here, capture_output=True, text=True, timeout=10, check=True)
    except (OSError, subprocess.SubprocessError):
        return None  # no git, or no repository: the run is then known by its version alone
    return done.stdout.strip()
