"""Calls to MLflow, tamed: no telemetry, no chatter, a bound on waiting, and refusals in one line."""

from __future__ import annotations

import logging
import os
import re
import warnings
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

from n2s_med.errors import N2SError, OutputError
from n2s_med.interrupts import held_back

SWITCH_OFF = "or switch tracking off"
"""The remedy that always helps."""


def mlflow() -> Any:
    """Import MLflow without its telemetry, its adverts on stdout and its chatter on stderr."""
    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
    os.environ.setdefault("MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT", "true")
    os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")
    with _quiet():
        import mlflow
        import mlflow.models
        import mlflow.pytorch
        import mlflow.system_metrics.system_metrics_monitor
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
def patience(*, retries: int, timeout_s: int) -> Iterator[None]:
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
def store_of_models(uri: str) -> Iterator[None]:
    """Point MLflow's process-wide store at ours: saving a model goes through it."""
    before = mlflow().get_tracking_uri() if mlflow().is_tracking_uri_set() else None
    mlflow().set_tracking_uri(uri)
    try:
        yield
    finally:
        mlflow().set_tracking_uri(before)


@contextmanager
def refusals(uri: str) -> Iterator[None]:
    """Turn what MLflow raises into one line with a remedy."""
    from sqlalchemy.exc import SQLAlchemyError

    refusals = (mlflow().exceptions.MlflowException, SQLAlchemyError, ImportError)
    try:
        with _quiet():
            yield
    except refusals as error:
        raise N2SError(
            _without_secrets(f"tracking at {uri} failed: {_reason(error)}"),
            remedy=f"check that it runs and is yours, set MLFLOW_TRACKING_URI to another {SWITCH_OFF}",
        ) from error
    except OSError as error:
        raise OutputError(
            f"tracking cannot write ({error.strerror or error})",
            remedy=f"free space, check permissions {SWITCH_OFF}",
            path=error.filename,
        ) from error


def transaction(uri: str) -> AbstractContextManager[None]:
    """Hold a Ctrl-C or SIGTERM back until the block has ended, where it writes to a file.

    One that comes in the middle of a transaction leaves the file locked as long as its exception lives, so that the
    run could not even be ended.
    """
    return nullcontext() if is_server(uri) else held_back()


def is_server(uri: str) -> bool:
    """Whether a store is a server's, not a file."""
    return uri.startswith(("http://", "https://", "databricks"))


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
