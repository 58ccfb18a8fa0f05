"""The command line: options in, jobs out. No logic lives here.

Results go to stdout, logs and progress to stderr. Exit codes: 0 done; 1 refused, with one line that says why;
2 wrong usage; 3 some of several scans failed and the rest are done; 4 done, but a trust check failed and
``--strict`` was given; 130 interrupted.
"""

from __future__ import annotations

import argparse
import io
import math
import os
import signal
import sys
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from n2s_med import __version__
from n2s_med.errors import ConfigurationError, N2SError

if TYPE_CHECKING:
    from n2s_med.batch import Layout
    from n2s_med.compute import Compute
    from n2s_med.jobs.denoise import DenoiseJob
    from n2s_med.jobs.level_free import LevelByScore
    from n2s_med.jobs.noise import NoiseRequest
    from n2s_med.score import ScoreModel
    from n2s_med.training import TrainingConfig
    from n2s_med.volumes import Deidentifier

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
"""Before torch is imported: threads that wait by spinning stop each other where the machine is busy."""

LEVELS = ("sigma", "gain", "k", "power", "dispersion")
NOT_TRUSTED = 4


def main(argv: Sequence[str] | None = None) -> NoReturn:
    """Run the command line and exit with its code."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # names of files need not be text
    arguments = parser().parse_args(argv)
    try:
        code = arguments.run(arguments)
    except N2SError as error:
        _say(f"error: {error}")
        code = error.exit_code
    except KeyboardInterrupt:
        _say("interrupted: nothing half-written is left")
        code = 128 + signal.SIGINT
    except (MemoryError, RuntimeError) as error:
        if not _out_of_memory(error):
            raise
        _say("error: out of memory. Give --chunk-voxels a smaller number, or use a larger machine.")
        code = 1
    except BrokenPipeError:  # whoever read the results has left
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        code = 128 + signal.SIGPIPE
    sys.exit(code)


def _out_of_memory(error: Exception) -> bool:
    from n2s_med.compute import out_of_memory

    return out_of_memory(error)


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


# -- commands ------------------------------------------------------------------------------------------


def _denoise(arguments: argparse.Namespace) -> int:
    trusted = True
    for result in replace(_denoise_job(arguments), tracking=arguments.track).run(_say):
        for warning in result.warnings:
            _say(f"warning: {result.label}: {warning}")
        print(f"{result.label}")
        print(f"  noise   {result.noise}")
        print(f"  output  {result.output}")
        if result.sd_map:
            print(f"  sd map  {result.sd_map}")
        print(f"  report  {result.report}")
        failed = sum(not verdict.passed for verdict in result.verdicts)
        print(f"  trust   {len(result.verdicts) - failed} of {len(result.verdicts)} checks passed", flush=True)
        trusted = trusted and result.trusted
    return NOT_TRUSTED if arguments.strict and not trusted else 0


def _batch(arguments: argparse.Namespace) -> int:
    from n2s_med.batch import AnyTree

    return _run_batch(arguments, AnyTree())


def _bids(arguments: argparse.Namespace) -> int:
    from n2s_med.batch.bids import BidsTree

    return _run_batch(arguments, BidsTree(arguments.participant_label))


def _run_batch(arguments: argparse.Namespace, layout: Layout) -> int:
    from n2s_med.batch import BatchJob, State, table

    job = BatchJob(
        source=arguments.input,
        output=arguments.output,
        job=_denoise_job(arguments),
        device=arguments.device,
        precision=arguments.precision,
        workers=arguments.workers,
        threads=arguments.threads,
        scheduler=arguments.scheduler,
        layout=layout,
        overwrite=arguments.overwrite,
        quiet=arguments.quiet,
    )
    if arguments.dry_run:
        print(table(job.plan()))
        return 0
    summary = job.run(_say)
    done = summary.states[State.DONE]
    for state, count in sorted(summary.states.items()):
        print(f"{state:<9} {count}")
    print(f"trust     {summary.trusted} of {done} passed all checks")
    print(f"manifest  {summary.manifest}")
    return NOT_TRUSTED if arguments.strict and summary.trusted < done else 0


def _train(arguments: argparse.Namespace) -> int:
    from n2s_med.jobs.train import TrainJob

    job = TrainJob(modality=arguments.modality, noise=_noise(arguments), **_training(arguments))
    return _trained(job.run(_say), arguments.out, "voxels")


def _train_base(arguments: argparse.Namespace) -> int:
    from n2s_med.jobs.base import BaseJob

    job = BaseJob(spatial_dims=arguments.dims, attribution=arguments.attribution, **_training(arguments))
    return _trained(job.run(_say), arguments.out, "volumes")


def _trained(model: ScoreModel, out: Path, held_out: str) -> int:
    print(f"model   {out / 'model.pt'}")
    print(f"steps   {model.card['steps_done']} of {model.card['steps']}, best at {model.card['best_step']}")
    print(f"error   {model.card['sure']:.4f} noise variances left, estimated on held-out noisy {held_out}")
    return 0


def _inspect(arguments: argparse.Namespace) -> int:
    import json

    from n2s_med.jobs.inspect import inspect, table

    found = inspect(arguments.input)
    print(json.dumps([scan.figures() for scan in found], indent=2) if arguments.json else table(found))
    return 0


def _measure(arguments: argparse.Namespace) -> int:
    import json

    from n2s_med.compute import set_threads
    from n2s_med.jobs.measure import MeasureJob

    set_threads(arguments.threads)
    measured = []
    for label, choice in MeasureJob(arguments.input, arguments.modality, _noise(arguments)).run(_say):
        for warning in choice.warnings:
            _say(f"warning: {label}: {warning}")
        measured.append({"scan": label, **choice.figures()})
        if not arguments.json:
            print(f"{label}\n  {choice.sentence}", flush=True)
    if arguments.json:
        print(json.dumps(measured, indent=2))
    return 0


# -- options -------------------------------------------------------------------------------------------


def _denoise_job(arguments: argparse.Namespace) -> DenoiseJob:
    from n2s_med.denoise import DenoiseOptions
    from n2s_med.jobs.denoise import SD_PROBES, DenoiseJob

    config, trains = _adaptation(arguments)
    return DenoiseJob(
        source=arguments.input,
        output=arguments.output,
        model=arguments.model,
        from_scratch=arguments.from_scratch,
        modality=arguments.modality,
        noise=_noise(arguments),
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


def _noise(arguments: argparse.Namespace) -> NoiseRequest:
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


def _training(arguments: argparse.Namespace) -> dict[str, Any]:
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


class _Parser(argparse.ArgumentParser):
    """A parser whose refusals are one line, as all others are."""

    def error(self, message: str) -> NoReturn:
        self.exit(ConfigurationError.exit_code, f"error: {' '.join(message.split())}. See {self.prog} --help.\n")


def parser() -> argparse.ArgumentParser:
    """The parser of all commands."""
    top = _Parser(
        prog="n2s-med",
        description="Denoise PET, CT and MR scans with a score network trained on noisy scans only. For research use.",
    )
    top.add_argument("--version", action="version", version=f"n2s-med {__version__}")
    commands = top.add_subparsers(required=True, metavar="COMMAND")

    denoise = commands.add_parser("denoise", help="denoise a scan, DICOM to DICOM or NIfTI to NIfTI")
    denoise.set_defaults(run=_denoise)
    denoise.add_argument("input", type=Path, metavar="INPUT", help="NIfTI file, DICOM file or folder")
    denoise.add_argument("output", type=Path, metavar="OUTPUT", help="NIfTI file or folder, as the input is")
    denoise.add_argument("--track", type=Path, metavar="DIR", help="record the run with MLflow, stored in DIR")

    batch = commands.add_parser("batch", help="denoise every scan of a tree; run again, it takes up where it was")
    batch.set_defaults(run=_batch)
    batch.add_argument("input", type=Path, metavar="IN", help="folder of DICOM and NIfTI files, of any depth")
    batch.add_argument("output", type=Path, metavar="OUT", help="folder for the same tree, denoised")

    bids = commands.add_parser("bids", help="denoise a BIDS data set into a derivative, as a BIDS app")
    bids.set_defaults(run=_bids)
    bids.add_argument("input", type=Path, metavar="BIDS_DIR", help="BIDS data set")
    bids.add_argument("output", type=Path, metavar="OUT", help="folder for the derivative")
    bids.add_argument("level", choices=("participant",), help="level of the analysis")
    bids.add_argument(
        "--participant-label",
        "--participant_label",
        nargs="+",
        default=(),
        metavar="LABEL",
        help="participants to denoise, without sub- (default: all)",
    )

    train = commands.add_parser("train", help="train a model on noisy scans")
    train.set_defaults(run=_train)
    train.add_argument("inputs", type=Path, nargs="+", metavar="INPUT", help="files and folders of scans")
    train.add_argument("--modality", required=True, help="pet, nm, ct, mr or us")

    base = commands.add_parser("train-base", help="train the weights that every scan starts from")
    base.set_defaults(run=_train_base)
    base.add_argument("inputs", type=Path, nargs="*", metavar="INPUT", help="noisy scans, beside generated volumes")
    base.add_argument("--dims", type=int, choices=(2, 3), default=3, help="of the network (default: 3)")
    base.add_argument("--attribution", default="", help="source and licence of the scans, for the model's card")

    inspect = commands.add_parser("inspect", help="show what a path holds and what would be done with it")
    inspect.set_defaults(run=_inspect)
    inspect.add_argument("input", type=Path, metavar="INPUT")
    inspect.add_argument("--json", action="store_true", help="as JSON")

    noise = commands.add_parser("noise", help="measure the noise of a scan: law, level, variation, correlation")
    noise.set_defaults(run=_measure)
    noise.add_argument("input", type=Path, metavar="INPUT", help="NIfTI file, DICOM file or folder")
    noise.add_argument("--modality", help="pet, nm, ct, mr or us, where the file does not say")
    noise.add_argument("--json", action="store_true", help="as JSON")
    _add_noise(noise)
    _add_machine(noise.add_argument_group("machine"))

    for command in (train, base):
        command.add_argument("--out", type=Path, required=True, help="folder for the model; a killed run resumes there")
        command.add_argument("--no-track", action="store_true", help="do not record the run with MLflow")
    for command in (denoise, batch, bids):
        _add_denoising(command)
        command.set_defaults(deidentify=None)
    for command in (denoise, batch):
        command.add_argument(
            "--deidentify",
            type=Path,
            metavar="KEYFILE",
            help="take the patient's identity out of DICOM; see docs/dicom.md",
        )
    for command in (batch, bids):
        _add_workers(command)
    for command in (denoise, batch, bids, train):
        _add_noise(command)
        _add_training(command)
    _add_training(base)
    return top


def _add_denoising(command: argparse.ArgumentParser) -> None:
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
        "--orientations", type=int, choices=range(1, 5), default=2, help="passes to average over: 1 is fastest, 4 best"
    )
    command.add_argument(
        "--chunk-voxels", type=_positive, default=1_000_000, help="voxels in the network at once: bounds the memory"
    )
    command.add_argument("--strict", action="store_true", help="exit with 4 when a trust check fails")


def _add_workers(command: argparse.ArgumentParser) -> None:
    group = command.add_argument_group("batch")
    group.add_argument("--dry-run", action="store_true", help="show what would be done, and do nothing")
    group.add_argument("--workers", type=_positive, help="processes (default: one a GPU, or one for two cores)")
    group.add_argument(
        "--scheduler",
        metavar="WHERE",
        help="workers of a Dask scheduler, tcp://HOST:PORT, or jobs of a queue, configs/slurm.yaml",
    )


def _add_noise(command: argparse.ArgumentParser) -> None:
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


def _add_training(command: argparse.ArgumentParser) -> None:
    group = command.add_argument_group("training and machine")
    group.add_argument("--seconds", type=float, help="time budget of training (default: 120; of adapting: 30)")
    group.add_argument("--steps", type=_positive, help="step budget of training, instead of a time budget")
    group.add_argument("--config", type=Path, help="JSON file of training keys")
    group.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="one training key")
    group.add_argument("--precision", choices=("auto", "bf16", "fp32"), default="auto", help="of the convolutions")
    group.add_argument("--overwrite", action="store_true", help="replace what exists")
    _add_machine(group)


def _add_machine(group: argparse._ArgumentGroup) -> None:
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
