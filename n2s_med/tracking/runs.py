"""One run of MLflow: what goes in, and how it ends."""

from __future__ import annotations

import copy
import json
import os
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

import torch
from torch import Tensor, nn

from n2s_med.errors import InputError, N2SError, OutputError
from n2s_med.tracking import environment
from n2s_med.tracking.calls import SWITCH_OFF, is_server, mlflow, patience, refusals, store_of_models, transaction

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_MODEL_NAME = "model"


class MLflowTracker:
    """One MLflow run, driven through ``MlflowClient``: no global active run is touched or joined."""

    def __init__(self, experiment: str, run_name: str, directory: Path, run_id: str | None) -> None:
        self.run_id = run_id
        self._experiment, self._run_name, self._directory = experiment, run_name, directory
        self._continued = run_id is not None
        self._uri = os.environ.get("MLFLOW_TRACKING_URI") or ""
        self._client: Any = None
        self._load: Any = None

    def __enter__(self) -> Self:
        self._uri = self._uri or _default_store(self._directory)
        with transaction(self._uri), refusals(self._uri), patience(retries=0, timeout_s=10):
            self._client = mlflow().MlflowClient(tracking_uri=self._uri)
            self._reopen() if self._continued else self._create()
        try:
            self._environment()
            self._watch_load()
        except BaseException:
            self.__exit__(*sys.exc_info())
            raise
        return self

    def _create(self) -> None:
        experiment_id = self._experiment_id()
        run = self._client.create_run(experiment_id, run_name=self._run_name, tags=environment.source_tags())
        self.run_id = run.info.run_id

    def _experiment_id(self) -> str:
        found = self._client.get_experiment_by_name(self._experiment)
        if found is not None:
            return str(found.experiment_id)
        artifacts = None if is_server(self._uri) else (self._directory / "mlartifacts").resolve().as_uri()
        return str(self._client.create_experiment(self._experiment, artifact_location=artifacts))

    def _reopen(self) -> None:
        self._client.get_run(self.run_id)
        self._client.update_run(self.run_id, status="RUNNING")

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            with self._call():
                try:
                    self._tell_load()
                finally:
                    self._client.set_terminated(self.run_id, status=_end_status(error))
        except N2SError as refusal:
            if error is None:
                raise
            error.add_note(f"The tracked run could not be ended either: {refusal}")

    def _watch_load(self) -> None:
        """Record the machine's load from now on, by a thread of MLflow's; a sample costs it some milliseconds."""
        with self._call():
            self._load = mlflow().system_metrics.system_metrics_monitor.SystemMetricsMonitor(
                self.run_id, resume_logging=self._continued, tracking_uri=self._uri
            )
            self._load.collect_metrics()  # the processor's share is counted from this thread's last look at it
            for part in self._load.monitors:
                part.clear_metrics()
            self._load.start()

    def _tell_load(self) -> None:
        """End that thread, and record a last sample: a run shorter than the interval would have none."""
        if self._load is None:
            return
        self._load.finish()
        for part in self._load.monitors:
            part.clear_metrics()
        self._load.collect_metrics()
        self._load.publish_metrics(self._load.aggregate_metrics())
        self._load.mlflow_logger.flush()
        self._load = None

    @contextmanager
    def _call(self) -> Iterator[None]:
        with transaction(self._uri), refusals(self._uri), patience(retries=2, timeout_s=60):
            yield

    def params(self, values: Mapping[str, object]) -> None:
        with self._call():
            entity = mlflow().entities.Param
            known = self._client.get_run(self.run_id).data.params
            told = _fresh({name: str(value) for name, value in values.items()}, known)
            self._client.log_batch(self.run_id, params=[entity(*item) for item in told.items()])

    def metrics(self, values: Mapping[str, float], step: int) -> None:
        now_ms = time.time_ns() // 1_000_000
        with self._call():
            entity = mlflow().entities.Metric
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
        with self._call(), store_of_models(self._uri):
            run = self._client.get_run(self.run_id)
            entry = self._client.create_logged_model(
                run.info.experiment_id, name=_MODEL_NAME, source_run_id=self.run_id
            )
            mlflow().models.Model.log(
                artifact_path=None,
                flavor=mlflow().pytorch,
                name=_MODEL_NAME,
                run_id=self.run_id,
                model_id=entry.model_id,
                pytorch_model=frozen,
                serialization_format="pickle",
                signature=_signature(example, output),
                input_example=example.numpy(),
                pip_requirements=environment.pins("mlflow", "cloudpickle", "torch", "monai", "numpy", "n2s-med"),
            )

    def _environment(self) -> None:
        """Log what the run is made with: versions, commit, threads, and every installed package."""
        facts = environment.facts()
        with self._call():
            entity = mlflow().entities.RunTag
            tags = [entity(f"environment.{name}", value) for name, value in facts.items()]
            self._client.log_batch(self.run_id, tags=tags)
        self._file(json.dumps(facts, indent=2).encode(), "environment.json", folder="environment")
        self._file("\n".join(environment.installed()).encode(), "requirements.txt", folder="environment")


def _default_store(directory: Path) -> str:
    try:
        directory.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OutputError(
            f"no tracking store can be made here ({error.strerror})",
            remedy=f"name another folder {SWITCH_OFF}",
            path=directory,
        ) from error
    from sqlalchemy.engine import URL

    # URL escapes what a path may hold and an address may not: "%", "?", "#".
    return str(URL.create("sqlite", database=str(directory.resolve() / "mlflow.db")))


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


def _noise_like(example: Tensor) -> Tensor:
    """Return unit noise of the example's layout, at most 32 voxels a side: nothing of the patient's."""
    shape = (1, example.shape[1], *(min(size, 32) for size in example.shape[2:]))
    return torch.randn(shape, generator=torch.Generator().manual_seed(0)).to(example.dtype)


def _signature(example: Tensor, output: Tensor) -> Any:
    """Describe one tensor in, one out; batch and every spatial axis may have any size."""
    specs = [mlflow().types.TensorSpec(t.numpy().dtype, _any_size(t)) for t in (example, output)]
    schemas = [mlflow().types.Schema([spec]) for spec in specs]
    return mlflow().models.ModelSignature(inputs=schemas[0], outputs=schemas[1])


def _any_size(tensor: Tensor) -> tuple[int, ...]:
    return (-1, tensor.shape[1], *(-1 for _ in tensor.shape[2:]))
