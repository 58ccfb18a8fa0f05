"""Workers: what they read and write is what one process does, their errors come back, and they outlive nobody.

They are forked by a process without PyTorch, so each test has a process of its own.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from made_scans import CT, PT, make_series, pixels
from pydicom.dataset import Dataset

SLICES = 20


def run(code: str, *arguments: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", code, *map(str, arguments)],
        capture_output=True,
        text=True,
        env={**os.environ, "SOURCE_DATE_EPOCH": "0", "PYTHONWARNINGS": "error"},
    )


READ_AND_WRITE = """
import sys
from pathlib import Path
from n2s_med.volumes import Provenance, survey_ahead, workers, write
from n2s_med.volumes.workers import hands
count, folder, out = int(sys.argv[1]), *map(Path, sys.argv[2:])
with workers(count):
    assert hands() == count
    (source,) = survey_ahead(folder)().sources
    volume, again = source.arrays(), source.arrays()
    assert (volume.values == again.values).all()
    print(volume.values.shape, volume.values.sum(), volume.meta["valid"].sum(), volume.meta.get("suv"))
    values = volume.values
    values *= 0.5
    write(volume, out, provenance=Provenance("m", "h", "l", {}, "0"))
assert hands() == 1
"""


def padded(ds: Dataset, index: int) -> None:
    ds.PixelPaddingValue = -2000
    stored = np.frombuffer(ds.PixelData, np.uint16).reshape(ds.Rows, ds.Columns).astype(np.int16)
    stored[:index] = -2000
    ds.PixelRepresentation, ds.PixelData = 1, stored.tobytes()


@pytest.mark.parametrize(("sop_class", "edit"), [(CT, None), (CT, padded), (PT, None)])
def test_many_hands_do_what_one_does(
    tmp_path: Path, sop_class: str, edit: Callable[[Dataset, int], None] | None
) -> None:
    folder = make_series(tmp_path / "scan", sop_class, stored=pixels((SLICES, 24, 16)), edit=edit)
    alone, together = (run(READ_AND_WRITE, count, folder, tmp_path / f"out{count}") for count in (1, 3))
    assert (alone.returncode, alone.stderr) == (together.returncode, together.stderr) == (0, "")
    assert alone.stdout == together.stdout
    files = sorted((tmp_path / "out1").iterdir())
    assert len(files) == SLICES
    assert [file.name for file in files] == sorted(file.name for file in (tmp_path / "out3").iterdir())
    for file in files:
        assert file.read_bytes() == (tmp_path / "out3" / file.name).read_bytes()


def test_compressed_bytes_do_not_depend_on_the_hands(tmp_path: Path) -> None:
    """Of several megabytes, which are compressed in pieces of one."""
    values = np.random.default_rng(0).normal(size=(128, 128, 40)).astype(np.float32).round(2)
    nib.save(nib.Nifti1Image(values, np.eye(4)), tmp_path / "scan.nii.gz")
    written = []
    for count in (1, 3):
        done = run(READ_AND_WRITE, count, tmp_path / "scan.nii.gz", tmp_path / f"out{count}.nii.gz")
        assert (done.returncode, done.stderr) == (0, "")
        written.append((tmp_path / f"out{count}.nii.gz").read_bytes())
    assert written[0] == written[1]
    np.testing.assert_array_equal(nib.load(tmp_path / "out1.nii.gz").get_fdata(dtype=np.float32), values / 2)


def test_an_error_comes_back_as_it_is(tmp_path: Path) -> None:
    def cut(ds: Dataset, index: int) -> None:
        ds.PixelData = ds.PixelData[: -200 * (index == 13)] or ds.PixelData

    folder = make_series(tmp_path / "scan", stored=pixels((SLICES, 24, 16)), edit=cut)
    alone, together = (run(READ_AND_WRITE, count, folder, tmp_path / "out") for count in (1, 2))
    assert alone.returncode == together.returncode == 1
    assert "its pixels cannot be decoded" in alone.stderr
    assert alone.stderr.splitlines()[-1] == together.stderr.splitlines()[-1]


def test_nothing_is_left_of_a_series_whose_judging_failed(tmp_path: Path) -> None:
    folder = make_series(tmp_path / "scan", stored=pixels((SLICES, 24, 16)))
    code = READ_AND_WRITE.replace(
        "    write(volume, out, provenance=Provenance",
        "    from n2s_med.volumes import writing\n    with writing(volume, out, provenance=Provenance",
    ).replace('{}, "0"))\n', '{}, "0")):\n        raise SystemExit(7)\n')
    done = run(code, 2, folder, tmp_path / "out")
    assert (done.returncode, done.stderr) == (7, "")
    assert [path.name for path in tmp_path.iterdir()] == ["scan"]


def test_a_worker_that_is_killed_is_told() -> None:
    done = run("""
import os
from n2s_med.errors import N2SError
from n2s_med.volumes.workers import spread, workers
with workers(2):
    try:
        with spread(os._exit, range(40)) as results:
            list(results)
    except N2SError as error:
        print(error)
    with spread(abs, [-1, 2]) as results:
        print(*results)
""")
    assert (done.returncode, done.stderr) == (0, "")
    told, after = done.stdout.splitlines()
    assert "was killed" in told
    assert after == "1 2"


@pytest.mark.parametrize("which", [0, 1])
def test_a_worker_that_was_killed_while_it_waited_is_not_missed(which: int) -> None:
    done = run(f"""
import os, signal, time
from pathlib import Path
from n2s_med.volumes.workers import hands, spread, workers
with workers(2):
    with spread(abs, range(40)) as results:
        list(results)
    children = Path(f"/proc/{{os.getpid()}}/task/{{os.getpid()}}/children").read_text().split()
    os.kill(int(children[{which}]), signal.SIGKILL)
    time.sleep(0.5)
    for _ in range(2):
        with spread(abs, [-1, 2]) as results:
            print(*results, hands())
""")
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout == "1 2 1\n" * 2


def test_a_full_disk_is_told(tmp_path: Path) -> None:
    values = np.random.default_rng(0).normal(size=(64, 64, 40)).astype(np.float32)
    nib.save(nib.Nifti1Image(values, np.eye(4)), tmp_path / "scan.nii.gz")
    limit = "import resource, signal\nsignal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
    limit += "resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))\n"
    done = run(limit + READ_AND_WRITE, 1, tmp_path / "scan.nii.gz", tmp_path / "out.nii.gz")
    assert "out.nii.gz: the system cannot write it (File too large)" in done.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["scan.nii.gz"]


ORPHANS = """
import os, time
from n2s_med.volumes.workers import spread, workers
with workers(3), spread(os.getpgid, [0] * 40) as pids:
    print(*set(pids), flush=True)
    time.sleep(60)
"""


def test_workers_end_with_their_parent() -> None:
    with subprocess.Popen([sys.executable, "-c", ORPHANS], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        process.stdout.readline()
        children = _children(process.pid)
        process.send_signal(signal.SIGKILL)
    assert len(children) == 3
    _wait(lambda: not any(map(_lives, children)))


def _children(pid: int) -> list[int]:
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def _wait(until: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 30
    while not until():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def _lives(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().split(")")[-1].split()[0] != "Z"
    except FileNotFoundError:
        return False


def test_a_process_with_threads_is_not_forked() -> None:
    done = run(
        "import threading\n"
        "from n2s_med.volumes.workers import hands, workers\n"
        "held = threading.Event()\n"
        "threading.Thread(target=held.wait).start()\n"
        "with workers(2):\n"
        "    print(hands())\n"
        "held.set()\n"
    )
    assert (done.returncode, done.stdout) == (0, "1\n")


@pytest.mark.parametrize("delay_s", [0.0, 0.05, 0.2, 0.5, 1.0])
@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_interrupted_command(tmp_path: Path, number: signal.Signals, code: int, delay_s: float) -> None:
    """While it reads and imports."""
    folder = make_series(tmp_path / "scan", stored=pixels((400, 64, 64)))
    command = [sys.executable, "-m", "n2s_med", "denoise", str(folder), str(tmp_path / "out"), "--threads", "2"]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True, start_new_session=True) as process:
        _wait(lambda: len(_children(process.pid)) == 2)
        children = _children(process.pid)
        time.sleep(delay_s)
        os.killpg(process.pid, number)
        _, err = process.communicate(timeout=60)
    assert err == ("interrupted: nothing half-written is left\n" if number == signal.SIGINT else "")
    assert process.returncode == code
    assert [path.name for path in tmp_path.iterdir()] == ["scan"]
    _wait(lambda: not any(map(_lives, children)))
