"""Refuse a bundle's configuration that holds an unknown key, before anything is computed.

MONAI merges files and overrides, and passes over keys that nothing refers to: a misspelt ``--epochz 1`` trains in
full. Here every key must either be used by the run, or be as the bundle ships it.
"""

from __future__ import annotations

import difflib
import inspect
import json
import logging
import pydoc
import re
import signal
import sys
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from types import FrameType, TracebackType
from typing import Any, NoReturn

from monai.bundle import ConfigWorkflow

from n2s_med.errors import ConfigurationError, N2SError

SHIPPED = ("train.json", "evaluate.json", "multi_gpu_train.json", "inference.json")
"""Configuration files of a bundle."""

ROOTS = ("initialize", "run", "finalize", "imports")
"""What MONAI evaluates by itself."""

SET_BY_MONAI = ("bundle_root", "dataset_dir", "device", "run_name", "experiment_name", "tracking_uri", "output_dir")
"""Properties that MONAI and its consumers set, whether a run uses them or not."""

TRACKING = ("save_execute_config", "is_not_rank0")
"""What ``--tracking mlflow`` adds."""

COMPONENT_KEYS = ("_target_", "_disabled_", "_requires_", "_desc_", "_mode_")

REFERENCE = re.compile(r"@(\w+(?:(?:#|::)\w+)*)")

SEPARATOR = "::"
"""What MONAI makes of ``#``."""

log = logging.getLogger(__name__)


def check_config() -> None:
    """Check the configuration of the bundle that is being initialised; it calls this itself, first of all.

    Raises
    ------
    ConfigurationError
        For a key that does not exist or has no effect, naming the nearest that has.
    """
    _behave_as_a_command()
    workflow = _workflow()
    if workflow is None:
        raise ConfigurationError("no bundle is being initialised", remedy="call this from 'initialize' of a bundle")
    config: dict[str, Any] = workflow.parser.get()
    shipped = [_shipped(workflow.config_root_path / name) for name in SHIPPED]
    roots = {*ROOTS, str(workflow.init_id), str(workflow.run_id), str(workflow.final_id), *SET_BY_MONAI, *TRACKING}
    used = {identity.split(SEPARATOR)[0] for identity in _reached(config, roots)} | roots
    for key, value in config.items():
        if key != "_meta_" and key not in used and not any(_alike(file, key, value) for file in shipped):
            _refuse(key, used & {*config, *SET_BY_MONAI})
    _check_truth_values(config, shipped)
    _check_inside(workflow, config, shipped)


def _check_truth_values(config: Mapping[str, Any], shipped: Iterable[Mapping[str, Any]]) -> None:
    """Refuse words for truth values: the command line reads ``False``, but ``false`` as a word, which is true."""
    switches = {key for file in shipped for key, value in file.items() if isinstance(value, bool)}
    for key in switches & config.keys():
        word = config[key]
        if isinstance(word, str) and not word.startswith(("$", "@")):
            error = ConfigurationError(f"--{key} {word} is no truth value", remedy=f"write --{key} True or False")
            log.error("%s", error)
            raise error


def _behave_as_a_command() -> None:
    """On MONAI's command line, end in order when terminated, and a refusal's traceback with what to do, in one line."""
    main = getattr(sys.modules["__main__"], "__spec__", None)
    if main is None or main.name != "monai.bundle.__main__":
        return
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    before = sys.excepthook

    def told(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
        before(kind, error, trace)
        cause: BaseException | None = error
        while cause is not None and not isinstance(cause, N2SError):
            cause = cause.__cause__
        if cause is not None:
            print(f"error: {cause}", file=sys.stderr)

    sys.excepthook = told


def _alike(file: Mapping[str, Any], key: str, value: Any) -> bool:
    """Whether a file of the bundle gives a key this value, but for the handlers that ``--tracking mlflow`` adds."""
    if key not in file:
        return False
    return json.dumps(file[key]).replace("#", SEPARATOR) == json.dumps(_untracked(value), default=str)


def _untracked(node: Any) -> Any:
    """A part of a configuration without MONAI's own tracking handlers."""
    if isinstance(node, Mapping):
        return {key: _untracked(value) for key, value in node.items()}
    if isinstance(node, list):
        return [_untracked(value) for value in node if not _is_tracking(value)]
    return node


def _is_tracking(node: Any) -> bool:
    return isinstance(node, Mapping) and node.get("_target_") == "MLFlowHandler"


def bundle_root() -> str:
    """The folder of the bundle whose configuration is being read; the working directory where no one runs it."""
    workflow = _workflow()
    return "." if workflow is None else str(workflow.config_root_path.parent)


def _workflow() -> ConfigWorkflow | None:
    """The workflow that is at work, if one is: MONAI hands it to no expression, so it is looked up."""
    frame: FrameType | None = inspect.currentframe()
    while frame is not None:
        owner = frame.f_locals.get("self")
        if isinstance(owner, ConfigWorkflow):
            return owner
        frame = frame.f_back
    return None


def _shipped(file: Path) -> Mapping[str, Any]:
    """A configuration as it is on disk; empty if the folder has none of that name."""
    if not file.is_file():
        return {}
    content: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
    return content


def _reached(config: Mapping[str, Any], roots: Iterable[str]) -> set[str]:
    """Every identity that the roots refer to, directly or not."""
    reached: set[str] = set()
    waiting = [root for root in roots if root in config]
    while waiting:
        identity = waiting.pop()
        if identity not in reached:
            reached.add(identity)
            waiting += _references(_at(config, identity))
    return reached


def _at(config: Any, identity: str) -> Any:
    """What an identity such as ``train#trainer#max_epochs`` stands for; nothing if it is not there."""
    for part in identity.split(SEPARATOR):
        if isinstance(config, Mapping):
            config = config.get(part)
        elif isinstance(config, list) and part.isdigit() and int(part) < len(config):
            config = config[int(part)]
        else:
            return None
    return config


def _references(node: Any) -> Iterator[str]:
    """Identities that a part of a configuration refers to."""
    if isinstance(node, str):
        yield from (found.replace("#", SEPARATOR) for found in REFERENCE.findall(node))
    elif isinstance(node, Mapping):
        for value in node.values():
            yield from _references(value)
    elif isinstance(node, list):
        for value in node:
            yield from _references(value)


def _check_inside(workflow: ConfigWorkflow, node: Any, shipped: list[Any], path: str = "") -> None:
    """Check the arguments of components, and the keys of sections, at any depth."""
    if isinstance(node, list):
        for index, value in enumerate(node):
            _check_inside(workflow, value, [], f"{path}#{index}")
    if not isinstance(node, Mapping):
        return
    known = _arguments(workflow, node) if "_target_" in node else _section(shipped)
    for key, value in node.items():
        if key == "_meta_":
            continue
        if path and known and key not in known:
            _refuse(f"{path}#{key}", [f"{path}#{name}" for name in known])
        below = [file[key] for file in shipped if isinstance(file, Mapping) and key in file]
        _check_inside(workflow, value, below, f"{path}#{key}" if path else key)


def _section(shipped: list[Any]) -> set[str]:
    """Keys that a section has in the bundle's files; empty where anything goes."""
    return {key for file in shipped if isinstance(file, Mapping) for key in file}


def _arguments(workflow: ConfigWorkflow, component: Mapping[str, Any]) -> set[str]:
    """Names of the arguments that a component takes; empty where anything goes, or it is not known."""
    name = component["_target_"]
    located = workflow.parser.locator.get_component_module_name(name)
    module = located[0] if isinstance(located, list) else located
    target = pydoc.locate(f"{module}.{name}" if module else name)
    if not callable(target):
        return set()
    parameters = inspect.signature(target).parameters
    if any(p.kind is inspect.Parameter.VAR_KEYWORD for p in parameters.values()):
        return set()
    return {*parameters, *COMPONENT_KEYS}


def _refuse(key: str, known: Iterable[str]) -> NoReturn:
    near = difflib.get_close_matches(key, sorted(known), n=1, cutoff=0.0)[0]
    error = ConfigurationError(
        f"the key {key!r} does not exist, or has no effect in this run", remedy=f"did you mean {near!r}?"
    )
    log.error("%s", error)  # MONAI wraps what its expressions raise: this line tells it plainly
    raise error
