"""Workers that die, a batch that is killed, Ctrl-C: one attempt of one scan is lost, and nothing is half-written."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from batch_scans import OPTIONS, Deadly, Greedy, Identity, content, images
from job_scans import files_below

from n2s_med.batch import BatchJob, known
from n2s_med.errors import PartialError

DEADLINE_S = 400
"""For processes to start on a machine that is busy with other work."""


def job(kind: type[Identity], tmp_path: Path, **options: Any) -> BatchJob:
    options = {"workers": 1, "threads": 1, "quiet": True, "device": "cpu", "precision": "fp32"} | options
    denoising = kind(Path(), Path(), **({"from_scratch": True} | options.pop("job", {})))
    return BatchJob(tmp_path / "in", tmp_path / "out", denoising, **options)


def states(out: Path) -> dict[str, tuple[str, int]]:
    return {record.source: (str(record.state), record.attempts) for record in known(out).values()}


def test_a_worker_that_is_killed_costs_one_attempt_of_one_scan(tmp_path: Path) -> None:
    images(tmp_path / "in", "abcd")
    said: list[str] = []
    summary = job(Deadly, tmp_path, workers=2, job={"mark": tmp_path / "mark"}).run(said.append)
    assert summary.states == {"done": 4}
    assert states(tmp_path / "out") == {f"{n}.nii": ("done", 2 if n == "b" else 1) for n in "abcd"}
    assert sorted(files_below(tmp_path / "out")) == ["a.nii", "b.nii", "batch.jsonl", "c.nii", "d.nii"]
    assert any("attempt 2" in line for line in said)


def test_a_scan_that_kills_every_worker_fails_alone(tmp_path: Path) -> None:
    images(tmp_path / "in")
    said: list[str] = []
    with pytest.raises(PartialError, match="1 of 3 scans failed"):
        job(Deadly, tmp_path).run(said.append)
    assert states(tmp_path / "out") == {"a.nii": ("done", 1), "b.nii": ("failed", 2), "c.nii": ("done", 1)}
    assert any("its worker was killed (signal 9). Out of memory?" in line for line in said)
    summary = job(Identity, tmp_path).run(said.append)
    assert summary.states == {"done": 3}
    assert sorted(files_below(tmp_path / "out")) == ["a.nii", "b.nii", "batch.jsonl", "c.nii"]


@pytest.mark.parametrize("always", [False, True])
def test_out_of_memory_costs_one_attempt_of_one_scan(tmp_path: Path, always: bool) -> None:
    images(tmp_path / "in")
    said: list[str] = []
    batch = job(Greedy, tmp_path, job={} if always else {"mark": tmp_path / "mark"})
    if always:
        with pytest.raises(PartialError, match="1 of 3 scans failed"):
            batch.run(said.append)
        assert any("out of memory. Give fewer --workers or a smaller --chunk-voxels" in line for line in said)
    else:
        batch.run(said.append)
    outcome = ("failed" if always else "done", 2)
    assert states(tmp_path / "out") == {"a.nii": ("done", 1), "b.nii": outcome, "c.nii": ("done", 1)}
    assert files_below(tmp_path / "out") == ["a.nii", *([] if always else ["b.nii"]), "batch.jsonl", "c.nii"]


# -- the whole batch -----------------------------------------------------------------------------------


def command(source: Path, out: Path) -> list[str]:
    return [
        sys.executable,
        "-m",
        "n2s_med",
        "batch",
        str(source),
        str(out),
        *OPTIONS,
        "--noise",
        "gaussian",
        "--sigma",
        "10",
    ]


def wait_for(out: Path, state: str, count: int, process: subprocess.Popen[bytes]) -> None:
    """Wait until the manifest has so many lines of a state."""
    deadline = time.monotonic() + DEADLINE_S
    while time.monotonic() < deadline and process.poll() is None:
        lines = (out / "batch.jsonl").read_bytes() if (out / "batch.jsonl").exists() else b""
        if lines.count(f'"state": "{state}"'.encode()) >= count:
            return
        time.sleep(0.02)
    raise AssertionError(f"the batch did not come to {count} scans {state}: {process.poll()}")


def test_the_batch_is_killed_and_run_again(tmp_path: Path) -> None:
    source = images(tmp_path / "in", "abc")
    undisturbed = subprocess.run([*command(source, tmp_path / "undisturbed"), "--sd-map"], capture_output=True)
    assert undisturbed.returncode == 0, undisturbed.stderr
    out = tmp_path / "out"
    process = subprocess.Popen([*command(source, out), "--sd-map"], start_new_session=True, stderr=subprocess.DEVNULL)
    wait_for(out, "begun", 2, process)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    done = [r.source for r in known(out).values() if r.state == "done"]
    assert len(done) < 3
    again = subprocess.run([*command(source, out), "--sd-map"], capture_output=True, text=True)
    assert again.returncode == 0, again.stderr
    assert not any(line.startswith(f"done: {name}") for name in done for line in again.stderr.splitlines())
    assert content(out) == content(tmp_path / "undisturbed")
    assert files_below(out) == files_below(tmp_path / "undisturbed")


INTERRUPTED = """
import sys
sys.path[:0] = json_paths
from pathlib import Path
from batch_scans import Slow
from test_workers import job
if __name__ == "__main__":
    try:
        job(Slow, Path(sys.argv[1])).run(print)
    except KeyboardInterrupt:
        sys.exit(130)
"""


@pytest.mark.parametrize("times", [1, 2])
def test_ctrl_c_ends_orderly(tmp_path: Path, times: int) -> None:
    """As a terminal sends it: to the batch and to its workers at once; who is in a hurry sends it twice."""
    images(tmp_path / "in")
    here = Path(__file__).parent
    paths = json.dumps([str(here), str(here.parent)])
    script = tmp_path / "interrupted.py"
    script.write_text(INTERRUPTED.replace("json_paths", paths))
    process = subprocess.Popen(
        [sys.executable, str(script), str(tmp_path)], start_new_session=True, stderr=subprocess.PIPE, text=True
    )
    half = tmp_path / "out"
    deadline = time.monotonic() + DEADLINE_S
    while not list(half.glob(".slow.txt.partial-*")) and time.monotonic() < deadline and process.poll() is None:
        time.sleep(0.05)
    for _ in range(times):
        os.killpg(process.pid, signal.SIGINT)
        time.sleep(0.1)
    _, told = process.communicate(timeout=DEADLINE_S)
    assert process.returncode == 130, told
    assert "Traceback" not in told
    assert files_below(half) == ["batch.jsonl"]
    assert states(half) == {"a.nii": ("begun", 0)}
