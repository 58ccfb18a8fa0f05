"""The command line: options in, jobs out. No logic lives here.

Results go to stdout, logs and progress to stderr. Exit codes: 0 done; 1 refused, with one line that says why;
2 wrong usage; 3 some of several scans failed and the rest are done; 4 done, but a trust check failed and
``--strict`` was given; 130 interrupted.
"""

from __future__ import annotations

import argparse
import io
import os
import signal
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

from n2s_med import __version__
from n2s_med.errors import ConfigurationError, N2SError
from n2s_med.options import (
    add_denoising,
    add_machine,
    add_noise,
    add_training,
    add_workers,
    denoise_job,
    importing,
    noise_request,
    training,
)

if TYPE_CHECKING:
    from n2s_med.batch import Layout
    from n2s_med.jobs.denoise import Result
    from n2s_med.score import ScoreModel

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
"""Before torch is imported: threads that wait by spinning stop each other where the machine is busy."""

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
    from n2s_med.volumes import survey_ahead, workers

    trusted = True
    with workers(arguments.threads):
        surveyed = survey_ahead(arguments.input)  # while PyTorch is imported
        job = replace(denoise_job(arguments), tracking=arguments.track)
        for result in job.run(_say, surveyed):
            _tell(result)
            trusted = trusted and result.trusted
    return NOT_TRUSTED if arguments.strict and not trusted else 0


def _tell(result: Result) -> None:
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
        job=denoise_job(arguments),
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

    job = TrainJob(modality=arguments.modality, noise=noise_request(arguments), **training(arguments))
    return _trained(job.run(_say), arguments.out, "voxels")


def _train_base(arguments: argparse.Namespace) -> int:
    from n2s_med.jobs.base import BaseJob

    own = {key: getattr(arguments, key) for key in ("start", "teacher", "attribution")}
    job = BaseJob(spatial_dims=arguments.dims, **own, **training(arguments))
    return _trained(job.run(_say), arguments.out, "volumes")


def _trained(model: ScoreModel, out: Path, held_out: str) -> int:
    print(f"model   {out / 'model.pt'}")
    print(f"steps   {model.card['steps_done']} of {model.card['steps']}, best at {model.card['best_step']}")
    print(f"error   {model.card['sure']:.4f} noise variances left, estimated on held-out noisy {held_out}")
    return 0


def _inspect(arguments: argparse.Namespace) -> int:
    import json

    from n2s_med.jobs.inspect import inspect, table
    from n2s_med.volumes import workers

    with workers():
        found = inspect(arguments.input)
    print(json.dumps([scan.figures() for scan in found], indent=2) if arguments.json else table(found))
    return 0


def _measure(arguments: argparse.Namespace) -> int:
    import json

    with importing():
        from n2s_med.compute import set_threads
        from n2s_med.jobs.measure import MeasureJob

    set_threads(arguments.threads)
    measured = []
    for label, choice in MeasureJob(arguments.input, arguments.modality, noise_request(arguments)).run(_say):
        for warning in choice.warnings:
            _say(f"warning: {label}: {warning}")
        measured.append({"scan": label, **choice.figures()})
        if not arguments.json:
            print(f"{label}\n  {choice.sentence}", flush=True)
    if arguments.json:
        print(json.dumps(measured, indent=2))
    return 0


# -- the parser ---------------------------------------------------------------------------------------


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
    base.add_argument("--start", type=Path, help="model whose weights are trained on (default: new ones)")
    base.add_argument("--teacher", type=Path, help="model whose mean over all orientations is learned, in one pass")
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
    add_noise(noise)
    add_machine(noise.add_argument_group("machine"))

    for command in (train, base):
        command.add_argument("--out", type=Path, required=True, help="folder for the model; a killed run resumes there")
        command.add_argument("--no-track", action="store_true", help="do not record the run with MLflow")
    for command in (denoise, batch, bids):
        add_denoising(command)
        command.set_defaults(deidentify=None)
    for command in (denoise, batch):
        command.add_argument(
            "--deidentify",
            type=Path,
            metavar="KEYFILE",
            help="take the patient's identity out of DICOM; see docs/dicom.md",
        )
    for command in (batch, bids):
        add_workers(command)
    for command in (denoise, batch, bids, train):
        add_noise(command)
        add_training(command)
    add_training(base)
    return top
