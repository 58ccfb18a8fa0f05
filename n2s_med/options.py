"""The options that commands share: how they are given, and the parts of a job that they stand for.

What takes seconds to import is imported where it is asked for.
"""

from __future__ import annotations

import argparse
import gc
import math
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from n2s_med.errors import ConfigurationError
from n2s_med.interrupts import held_back

if TYPE_CHECKING:
    from n2s_med.compute import Compute
    from n2s_med.jobs.denoise import DenoiseJob
    from n2s_med.jobs.level_free import LevelByScore
    from n2s_med.jobs.noise import NoiseRequest
    from n2s_med.training import TrainingConfig
    from n2s_med.volumes import Deidentifier

LEVELS = ("sigma", "gain", "k", "power", "dispersion")


@contextmanager
def importing() -> Iterator[None]:
    """Import PyTorch and what needs it, whole, without looking for garbage among what is imported, then or later.

    There is none, and looking takes a quarter of the time. An interruption would come out of PyTorch as another error.
    """
    if "torch" in sys.modules:
        yield
        return
    gc.disable()
    try:
        with held_back():
            yield
    finally:
        gc.freeze()
        gc.enable()


# -- parts of a job -----------------------------------------------------------------------------------------


def denoise_job(arguments: argparse.Namespace) -> DenoiseJob:
    """The job of ``denoise``, and of ``batch`` for each scan."""
    with importing():
        from n2s_med.denoise import DenoiseOptions
        from n2s_med.jobs.denoise import SD_PROBES, DenoiseJob

    config, trains = _adaptation(arguments)
    return DenoiseJob(
        source=arguments.input,
        output=arguments.output,
        model=arguments.model,
        from_scratch=arguments.from_scratch,
        modality=arguments.modality,
        noise=noise_request(arguments),
        config=config if trains else None,
        options=DenoiseOptions(
            orientations=arguments.orientations,
            formula=arguments.formula,
            chunk_voxels=arguments.chunk_voxels,
            sd_probes=SD_PROBES if arguments.sd_map else 0,
            seed=config.seed,
        ),
        compute=_compute(arguments),
        deidentifier=_deidentifier(arguments),
        overwrite=arguments.overwrite,
        quiet=arguments.quiet,
    )


def _deidentifier(arguments: argparse.Namespace) -> Deidentifier | None:
    from n2s_med.volumes import Deidentifier

    return Deidentifier.of_file(arguments.deidentify) if arguments.deidentify else None


def noise_request(arguments: argparse.Namespace) -> NoiseRequest:
    """What is said of the noise."""
    from n2s_med.jobs.noise import NoiseRequest

    given = {level: getattr(arguments, level) for level in LEVELS if getattr(arguments, level) is not None}
    by_score = None if arguments.estimator == "blocks" else _level_by_score(arguments)
    return NoiseRequest(arguments.noise, given, arguments.correlation, arguments.rician, by_score)


def _level_by_score(arguments: argparse.Namespace) -> LevelByScore:
    from n2s_med.jobs.level_free import TRAINING, LevelByScore

    config = replace(TRAINING, seed=arguments.seed or 0)
    if arguments.estimator_seconds is not None:
        config = replace(config, seconds=arguments.estimator_seconds)
    return LevelByScore(arguments.estimator, config, arguments.device, arguments.quiet)


def _adaptation(arguments: argparse.Namespace) -> tuple[TrainingConfig, bool]:
    """How ``denoise`` trains a new network or adapts a given one, and whether it does."""
    from n2s_med.training import ADAPTATION, TrainingConfig

    config = _config(arguments, TrainingConfig() if arguments.from_scratch else ADAPTATION)
    if arguments.from_scratch:
        if arguments.model or arguments.adapt is not None:
            raise ConfigurationError("--from-scratch takes no model to adapt", remedy="leave out --model and --adapt")
        return config, True
    if config.channels != ADAPTATION.channels:
        raise ConfigurationError("a model that is adapted keeps its channels", remedy="use --from-scratch")
    budget = arguments.adapt, arguments.seconds, arguments.steps
    if arguments.adapt == 0 or (arguments.model and budget == (None, None, None)):
        return config, False
    return config if arguments.adapt is None else replace(config, seconds=arguments.adapt), True


def training(arguments: argparse.Namespace) -> dict[str, Any]:
    """What both kinds of training take."""
    return {
        "inputs": arguments.inputs,
        "out": arguments.out,
        "config": _config(arguments),
        "compute": _compute(arguments),
        "overwrite": arguments.overwrite,
        "track": not arguments.no_track,
        "quiet": arguments.quiet,
    }


def _config(arguments: argparse.Namespace, base: TrainingConfig | None = None) -> TrainingConfig:
    import json

    from n2s_med.training import TrainingConfig

    values: dict[str, Any] = {}
    if arguments.config:
        try:
            values = json.loads(arguments.config.read_text(encoding="utf-8"))
        except (OSError, ValueError, RecursionError) as error:
            raise ConfigurationError(
                "no readable JSON", remedy="give a JSON object of training keys", path=arguments.config
            ) from error
        if not isinstance(values, dict):
            raise ConfigurationError("no JSON object", remedy="give training keys and values", path=arguments.config)
        try:
            TrainingConfig.from_mapping(values)
        except ConfigurationError as error:
            raise error.at(arguments.config) from None
    for pair in arguments.set:
        key, equals, value = pair.partition("=")
        if not equals:
            raise ConfigurationError(f"--set {pair!r} is not KEY=VALUE", remedy="e.g. --set patch=32")
        try:
            values[key] = json.loads(value)
        except ValueError:  # a word
            values[key] = value
    for key in ("steps", "seconds", "seed"):
        if getattr(arguments, key) is not None:
            values[key] = getattr(arguments, key)
    return TrainingConfig.from_mapping(values, base)


def _compute(arguments: argparse.Namespace) -> Compute:
    from n2s_med.compute import Compute, set_threads

    set_threads(arguments.threads)
    return Compute.choose(arguments.device, arguments.precision)


# -- how options are given ----------------------------------------------------------------------------------


def add_denoising(command: argparse.ArgumentParser) -> None:
    """Options of commands that denoise."""
    command.add_argument(
        "--model",
        type=Path,
        help="model to use, as it is: of a training, or base-3d-small, in half the time; by default base-3d, adapted",
    )
    command.add_argument("--adapt", type=_seconds, metavar="SECONDS", help="time to adapt the model; 0 for none")
    command.add_argument("--from-scratch", action="store_true", help="train a new network on the scan alone")
    command.add_argument("--modality", help="pet, nm, ct, mr or us, where the file does not say")
    command.add_argument("--sd-map", action="store_true", help="write the standard deviation of each voxel too")
    command.add_argument("--formula", choices=("mean", "published"), default="mean", help="see docs (default: mean)")
    command.add_argument(
        "--orientations",
        type=int,
        choices=range(1, 5),
        help="passes to average (default: 4, or 2 with --adapt 0)",
    )
    command.add_argument(
        "--chunk-voxels", type=_positive, default=1_000_000, help="voxels in the network at once: bounds the memory"
    )
    command.add_argument("--strict", action="store_true", help="exit with 4 when a trust check fails")


def add_workers(command: argparse.ArgumentParser) -> None:
    """Options of commands that denoise many scans."""
    group = command.add_argument_group("batch")
    group.add_argument("--dry-run", action="store_true", help="show what would be done, and do nothing")
    group.add_argument("--workers", type=_positive, help="processes (default: one a GPU, or one for two cores)")
    group.add_argument(
        "--scheduler",
        metavar="WHERE",
        help="workers of a Dask scheduler, tcp://HOST:PORT, or jobs of a queue, configs/slurm.yaml",
    )


def add_noise(command: argparse.ArgumentParser) -> None:
    """What may be said of the noise."""
    group = command.add_argument_group("noise", "by default the modality's law, its level estimated from the scan")
    group.add_argument("--noise", default="auto", help="auto, gaussian, poisson, gamma or tweedie")
    for level in LEVELS:
        group.add_argument(f"--{level}", type=float, help=f"{level} of the law, in units of the scan")
    group.add_argument("--correlation", choices=("auto", "white"), default="auto", help="estimate it, or take none")
    group.add_argument("--rician", choices=("auto", "off"), default="auto", help="correct the bias of MR magnitude")
    group.add_argument(
        "--estimator",
        choices=("blocks", "search", "two-perturbations"),
        default="blocks",
        help="of the level: on flat blocks, in seconds (default), or as published, by a score learned for it alone",
    )
    group.add_argument("--estimator-seconds", type=_seconds, help="time to learn that score (default: 60)")


def add_training(command: argparse.ArgumentParser) -> None:
    """Options of commands that train, and of the machine."""
    group = command.add_argument_group("training and machine")
    group.add_argument("--seconds", type=float, help="time budget of training (default: 120; of adapting: 30)")
    group.add_argument("--steps", type=_positive, help="step budget of training, instead of a time budget")
    group.add_argument("--config", type=Path, help="JSON file of training keys")
    group.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="one training key")
    group.add_argument("--precision", choices=("auto", "bf16", "fp32"), default="auto", help="of the convolutions")
    group.add_argument("--overwrite", action="store_true", help="replace what exists")
    add_machine(group)


def add_machine(group: argparse._ArgumentGroup) -> None:
    """Options of all commands that compute."""
    group.add_argument("--seed", type=int, help="seed of everything random (default: 0)")
    group.add_argument("--device", default="auto", help="auto, cpu or cuda[:N]")
    group.add_argument("--threads", type=_positive, help="CPU threads (default: all cores of this process)")
    group.add_argument("--quiet", action="store_true", help="no progress bars")


def _seconds(text: str) -> float:
    with suppress(ValueError):
        if 0 <= (value := float(text)) < math.inf:
            return value
    raise argparse.ArgumentTypeError(f"{text!r} is no time in seconds")


def _positive(text: str) -> int:
    with suppress(ValueError):
        if (value := int(text)) > 0:
            return value
    raise argparse.ArgumentTypeError(f"{text!r} is no whole number above zero")
