"""Workers as jobs of a queueing system: what is submitted, and a batch on a queue that this machine plays."""

from __future__ import annotations

import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest
import yaml
from batch_scans import Identity, images
from job_scans import files_below
from test_workers import job

from n2s_med.batch.queues import Queue
from n2s_med.errors import ConfigurationError, N2SError

if find_spec("dask_jobqueue") is None:  # its import would take Ctrl-C from all tests of this process
    pytest.skip("dask-jobqueue is not installed", allow_module_level=True)

CONFIGS = Path(__file__).parents[2] / "configs"
SUBMIT = """#!/bin/sh
cat "$1" > "$0.job"
setsid bash "$0.job" >> "$0.out" 2>&1 &
echo "Submitted batch job $!"
"""
CANCEL = """#!/bin/sh
echo "$1" >> "$0.jobs"
kill -TERM -- "-$1"
"""


@pytest.fixture
def queue(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A queueing system whose commands start and end jobs at once, on this machine."""
    for name, text in (("sbatch", SUBMIT), ("scancel", CANCEL)):
        (tmp_path / name).write_text(text)
        (tmp_path / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    here = Path(__file__).parent
    monkeypatch.setenv("PYTHONPATH", f"{here}:{here.parent}")


def described(path: Path, **changes: object) -> str:
    """A file of the jobs of a queue on this machine."""
    options = {"interface": "lo", "scheduler_options": {"dashboard_address": ":0"}, "local_directory": str(path.parent)}
    content = {"system": "slurm", "jobs": 1, "cores": 1, "memory": "4GB", "options": options} | changes
    path.write_text(yaml.safe_dump(content))
    return str(path)


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("slurm", ["#SBATCH -p gpu", "#SBATCH --cpus-per-task=4", "#SBATCH --gres=gpu:1", "#SBATCH -t 08:00:00"]),
        ("pbs", ["#PBS -q gpu", "#PBS -l select=1:ncpus=4:ngpus=1:mem=16GB", "#PBS -l walltime=08:00:00"]),
    ],
)
def test_the_jobs_of_the_files_that_we_give(name: str, expected: list[str]) -> None:
    """One worker process with one thread of Dask for each job, and so for each GPU."""
    with Queue.read(CONFIGS / f"{name}.yaml").started() as cluster:
        script = cluster.job_script()
    lines = script.splitlines()
    assert set(expected) <= set(lines)
    (command,) = (line for line in lines if "dask_worker" in line)
    assert command.rindex("--nthreads 1") > command.rindex("--nthreads 4")  # the last one counts
    assert "--nworkers" not in command


@pytest.mark.usefixtures("queue")
def test_a_batch_on_a_queue(tmp_path: Path) -> None:
    """In the end no job is left in the queue."""
    images(tmp_path / "in", "ab")
    summary = job(Identity, tmp_path, scheduler=described(tmp_path / "queue.yaml")).run(lambda _: None)
    assert summary.states == {"done": 2}
    assert files_below(tmp_path / "out") == ["a.nii", "b.nii", "batch.jsonl"]
    assert f"{sys.executable} -m distributed.cli.dask_worker" in (tmp_path / "sbatch.job").read_text()
    assert len((tmp_path / "scancel.jobs").read_text().split()) == 1


@pytest.mark.usefixtures("queue")
def test_a_queue_that_takes_no_job(tmp_path: Path) -> None:
    images(tmp_path / "in")
    (tmp_path / "sbatch").write_text("#!/bin/sh\necho 'invalid partition' >&2\nexit 1\n")
    with pytest.raises(N2SError, match=r"did not take a job.*invalid partition"):
        job(Identity, tmp_path, scheduler=described(tmp_path / "queue.yaml")).run(lambda _: None)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"system": "tape"}, "its system is unknown"),
        ({"jobs": 0}, "no whole numbers"),
        ({"core": 1}, "its keys are not"),
        ({"options": {"cores": 4}}, "a key of its own"),
        ({"options": {"colour": "red"}}, "does not take it.*colour"),
    ],
)
@pytest.mark.filterwarnings("ignore:Exception ignored in. <function Cluster.__del__")  # a cluster that never began
def test_files_that_are_not_right(tmp_path: Path, changes: dict[str, object], words: str) -> None:
    """They are refused before anything is computed or submitted."""
    images(tmp_path / "in")
    with pytest.raises(ConfigurationError, match=words):
        job(Identity, tmp_path, scheduler=described(tmp_path / "queue.yaml", **changes)).run(lambda _: None)


def test_ctrl_c_stays_what_it_was() -> None:
    """In a process of its own, which has not imported dask-jobqueue before."""
    check = f"""
import pathlib, signal
from n2s_med.batch.queues import Queue
signal.signal(signal.SIGINT, signal.default_int_handler)
Queue.read(pathlib.Path({str(CONFIGS / "slurm.yaml")!r})).started().close()
assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
"""
    subprocess.run([sys.executable, "-c", check], check=True, timeout=300)


def test_a_file_that_is_not_there_and_a_library_that_is_not(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ConfigurationError, match="no readable YAML"):
        Queue.read(tmp_path / "absent.yaml")
    monkeypatch.setitem(sys.modules, "dask_jobqueue", None)
    with pytest.raises(ConfigurationError, match=r"n2s-med\[cluster\]"), Queue.read(CONFIGS / "pbs.yaml").started():
        pass
