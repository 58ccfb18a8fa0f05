"""The command line itself: usage, exit codes, and which options reach which job."""

from __future__ import annotations

import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from n2s_med import __version__, cli
from n2s_med.errors import ConfigurationError, InputError, N2SError
from n2s_med.jobs.denoise import DenoiseJob, Result
from n2s_med.jobs.train import TrainJob
from n2s_med.report import Verdict
from n2s_med.training import ADAPTATION, TrainingConfig

COMMANDS = ("denoise", "batch", "bids", "train", "train-base", "inspect", "noise")


@pytest.fixture(autouse=True)
def handler() -> Iterator[None]:
    before = signal.getsignal(signal.SIGTERM)
    yield
    signal.signal(signal.SIGTERM, before)


def exit_code(*arguments: object) -> int:
    with pytest.raises(SystemExit) as ended:
        cli.main([str(argument) for argument in arguments])
    return int(ended.value.code or 0)


# -- usage ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "arguments",
    [
        [],
        ["polish"],
        ["denoise"],
        ["denoise", "in"],
        ["denoise", "in", "out", "--sharpen"],
        ["denoise", "in", "out", "--sigma", "much"],
        ["denoise", "in", "out", "--steps", "0"],
        ["denoise", "in", "out", "--steps", "many"],
        ["denoise", "in", "out", "--chunk-voxels", "-1"],
        ["denoise", "in", "out", "--formula", "exact"],
        ["denoise", "in", "out", "--precision", "fp8"],
        ["train", "in", "--out", "out"],
        ["train", "in", "--modality", "ct"],
        ["train", "--modality", "ct", "--out", "out"],
        ["inspect"],
        ["denoise", "in", "out", "--adapt", "-1"],
        ["batch", "in"],
        ["batch", "in", "out", "--workers", "0"],
        ["batch", "in", "out", "--track", "store"],
        ["bids", "in", "out"],
        ["bids", "in", "out", "group"],
        ["train-base", "in"],
        ["train-base", "--dims", "4", "--out", "out"],
    ],
    ids=" ".join,
)
def test_wrong_usage(capsys: pytest.CaptureFixture[str], arguments: list[str]) -> None:
    assert exit_code(*arguments) == 2
    told = capsys.readouterr()
    assert told.out == ""
    assert re.fullmatch(r"error: .+\. See n2s-med[ a-z-]* --help\.\n", told.err)
    assert " _" not in told.err  # no names of our functions


@pytest.mark.parametrize("command", COMMANDS)
def test_every_option_is_explained(capsys: pytest.CaptureFixture[str], command: str) -> None:
    assert exit_code(command, "--help") == 0
    assert "--help" in capsys.readouterr().out
    (commands,) = (a for a in cli.parser()._actions if hasattr(a, "choices") and a.choices)
    assert set(commands.choices) == set(COMMANDS)
    for action in commands.choices[command]._actions:
        assert action.help or action.dest == "input", f"{command} {action.option_strings}"


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    assert exit_code("--version") == 0
    assert capsys.readouterr().out == f"n2s-med {__version__}\n"


def test_as_a_program_without_heavy_imports() -> None:
    code = (
        "import sys; from n2s_med.cli import main\ntry: main(['--version'])\nfinally: assert 'torch' not in sys.modules"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert re.fullmatch(r"n2s-med \S+\n", done.stdout)
    assert done.stderr == ""
    module = subprocess.run([sys.executable, "-m", "n2s_med", "--nonsense"], capture_output=True, text=True)
    assert module.returncode == 2


# -- exit codes ----------------------------------------------------------------------------------------

OUT_OF_MEMORY = "error: out of memory. Give --chunk-voxels a smaller number, or use a larger machine."


@pytest.mark.parametrize(
    ("error", "code", "line"),
    [
        (InputError("broken", remedy="mend it", path="a.nii"), 1, "error: a.nii: broken. Mend it."),
        (N2SError("several\nlines"), 1, "error: several lines"),
        (ConfigurationError("unknown", remedy="ask"), 2, "error: unknown. Ask."),
        (KeyboardInterrupt(), 130, "interrupted: nothing half-written is left"),
        (MemoryError(), 1, OUT_OF_MEMORY),
        (RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: 12"), 1, OUT_OF_MEMORY),
        (torch.OutOfMemoryError("CUDA out of memory"), 1, OUT_OF_MEMORY),
    ],
    ids=lambda value: type(value).__name__,
)
def test_errors_are_one_line(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, error: BaseException, code: int, line: str
) -> None:
    def fail(*_: object) -> None:
        raise error

    monkeypatch.setattr(DenoiseJob, "run", fail)
    assert exit_code("denoise", "in", "out", "--threads", "1") == code
    told = capsys.readouterr()
    assert told.err == line + "\n"
    assert told.out == ""


@pytest.mark.parametrize("mistake", [ZeroDivisionError(), RuntimeError("sizes differ")], ids=str)
def test_our_own_mistakes_keep_their_traceback(monkeypatch: pytest.MonkeyPatch, mistake: Exception) -> None:
    def fail(*_: object) -> None:
        raise mistake

    monkeypatch.setattr(DenoiseJob, "run", fail)
    with pytest.raises(type(mistake)):
        cli.main(["denoise", "in", "out", "--threads", "1"])


TOLD = """
import sys
from pathlib import Path
from n2s_med import cli
from n2s_med.jobs.denoise import DenoiseJob, Result
name = Path(b"\\xff.nii".decode("utf-8", "surrogateescape"))
DenoiseJob.run = lambda *_: [Result(name, None, name, "a scan", "gaussian", [], [])] * 1000
cli.main(["denoise", "in", "out", "--threads", "1", "--precision", "fp32"])
"""


def test_names_that_are_no_text_and_a_reader_that_leaves() -> None:
    """Both come when all is done: a traceback would tell of a failure that there was not."""
    command = [sys.executable, "-c", TOLD]
    done = subprocess.run(command, capture_output=True, check=True)
    assert done.stdout.count(b"output  \\udcff.nii") == 1000
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as left:
        assert left.stdout is not None
        assert left.stderr is not None
        left.stdout.close()
        assert left.stderr.read() == b""
    assert left.returncode == 128 + signal.SIGPIPE


def result(passed: bool, warnings: tuple[str, ...] = ()) -> Result:
    verdict = Verdict("residual mean", 0.0, -1.0, 1.0, passed, "Holds." if passed else "Does not hold.")
    good = Verdict("step length", 1.0, 0.8, 1.2, True, "Holds.")
    return Result(Path("o.nii"), None, Path("o.report.html"), "a scan", "gaussian", [verdict, good], warnings)


@pytest.mark.parametrize(
    ("passed", "strict", "code"),
    [([True, True], True, 0), ([True, False], True, 4), ([True, False], False, 0), ([False], True, 4)],
)
def test_trust_and_strictness(
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    passed: list[bool],
    strict: bool,
    code: int,
) -> None:
    monkeypatch.setattr(DenoiseJob, "run", lambda *_: [result(p, ("look here",)) for p in passed])
    assert exit_code("denoise", "in", "out", "--threads", 1, *(["--strict"] if strict else [])) == code
    told = capsys.readouterr()
    assert told.out.count("a scan\n  noise   gaussian\n  output  o.nii\n  report  o.report.html\n") == len(passed)
    assert told.out.count("2 of 2 checks passed") == sum(passed)
    assert told.err.count("warning: a scan: look here") == len(passed)


# -- options -------------------------------------------------------------------------------------------


@pytest.fixture
def jobs(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """The jobs that would have run."""
    seen: list[Any] = []

    def note(self: Any, *_: object) -> Any:
        seen.append(self)
        raise InputError("not run")

    for kind in (DenoiseJob, TrainJob):
        monkeypatch.setattr(kind, "run", note)
    return seen


def test_defaults(jobs: list[Any]) -> None:
    exit_code("denoise", "in", "out", "--threads", 1)
    exit_code("train", "a", "b", "--modality", "pet", "--out", "m", "--threads", 1)
    denoise, train = jobs
    assert (denoise.source, denoise.output, denoise.model, denoise.tracking) == (Path("in"), Path("out"), None, None)
    assert (denoise.noise.law, denoise.noise.parameters, denoise.noise.correlation) == ("auto", {}, "auto")
    assert (denoise.options.orientations, denoise.options.sd_probes, denoise.options.formula) == (None, 0, "mean")
    assert denoise.config == ADAPTATION
    assert (denoise.from_scratch, denoise.overwrite, denoise.quiet) == (False, False, False)
    assert train.inputs == [Path("a"), Path("b")]
    assert (train.modality, train.out, train.track) == ("pet", Path("m"), True)


@pytest.mark.parametrize(
    ("options", "config"),
    [
        (["--adapt", "0"], None),
        (["--adapt", "7"], replace(ADAPTATION, seconds=7.0)),
        (["--steps", "9"], replace(ADAPTATION, steps=9)),
        (["--model", "m"], None),
        (["--model", "m", "--adapt", "5"], replace(ADAPTATION, seconds=5.0)),
        (["--from-scratch"], TrainingConfig()),
        (["--from-scratch", "--set", "channels=[4,8]"], TrainingConfig(channels=(4, 8))),
        (["--from-scratch", "--set", "objective=dsm"], TrainingConfig(objective="dsm")),
    ],
    ids=str,
)
def test_how_denoise_trains(jobs: list[Any], options: list[str], config: TrainingConfig | None) -> None:
    exit_code("denoise", "in", "out", "--threads", 1, *options)
    assert jobs[0].config == config


@pytest.mark.parametrize("untrained", [["--adapt", "0"], ["--model", "m"]], ids=" ".join)
def test_keys_are_looked_at_where_nothing_is_trained(
    capsys: pytest.CaptureFixture[str], jobs: list[Any], untrained: list[str]
) -> None:
    assert exit_code("denoise", "in", "out", "--threads", 1, *untrained, "--set", "patches_=1") == 2
    assert "'patches_'" in capsys.readouterr().err
    exit_code("denoise", "in", "out", "--threads", 1, *untrained, "--set", "seed=5")
    (job,) = jobs
    assert (job.config, job.options.seed) == (None, 5)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--from-scratch", "--adapt", "5"], "--from-scratch takes no model to adapt"),
        (["--from-scratch", "--model", "m"], "--from-scratch takes no model to adapt"),
        (["--set", "channels=[4,8]"], "a model that is adapted keeps its channels"),
    ],
    ids=str,
)
def test_training_that_makes_no_sense(capsys: pytest.CaptureFixture[str], options: list[str], words: str) -> None:
    assert exit_code("denoise", "in", "out", *options) == 2
    assert words in capsys.readouterr().err


def test_options_reach_the_job(jobs: list[Any], tmp_path: Path) -> None:
    keys = tmp_path / "keys.json"
    keys.write_text('{"patch": 16, "seed": 9, "ema": 0.9}')
    exit_code(
        *("denoise", "in", "out", "--threads", 1, "--model", "m", "--modality", "ct", "--sd-map"),
        *("--orientations", 1, "--formula", "published", "--chunk-voxels", 999, "--track", "store"),
        *("--noise", "tweedie", "--power", 1.5),
        *("--dispersion", 2, "--correlation", "white", "--rician", "off", "--steps", 7),
        *("--config", keys, "--set", "ema=0.5"),
        *("--device", "cpu", "--precision", "bf16", "--overwrite", "--quiet"),
    )
    (job,) = jobs
    assert (job.model, job.modality, job.tracking) == (Path("m"), "ct", Path("store"))
    assert (job.noise.law, job.noise.parameters) == ("tweedie", {"power": 1.5, "dispersion": 2.0})
    assert (job.noise.correlation, job.noise.rician) == ("white", "off")
    assert (job.config.steps, job.config.patch, job.config.seed, job.config.ema) == (7, 16, 9, 0.5)
    options = job.options
    assert (options.orientations, options.formula, options.chunk_voxels, options.seed) == (1, "published", 999, 9)
    assert options.sd_probes > 0
    assert (job.compute.bf16, str(job.compute.device), job.overwrite, job.quiet) == (True, "cpu", True, True)


def test_the_command_line_has_the_last_word_on_the_seed(jobs: list[Any], tmp_path: Path) -> None:
    keys = tmp_path / "keys.json"
    keys.write_text('{"seed": 9, "seconds": 5}')
    exit_code(
        "train", "a", "--modality", "ct", "--out", "m", "--config", keys, "--seed", 3, "--threads", 1, "--no-track"
    )
    (job,) = jobs
    assert (job.config.seed, job.config.seconds, job.track) == (3, 5, False)
