"""Denoise a tree of 200 series by ``n2s-med batch``: how much faster two workers are than one, and what kills leave.

    N2S_DATA=/path/to/data python benchmarks/batch.py speed [--scans 42] [--turns 3]
    N2S_DATA=/path/to/data python benchmarks/batch.py kills [--scans 200] [--kills 10]

The series are pieces cut out of real ones, each with UIDs of its own. ``speed`` runs the command by one worker and by
two, in turns, and wants two idle cores. ``kills`` runs it by two workers in peace, and then so that a worker, or the
whole batch, is struck by ``kill -9`` at random moments; a batch that was killed is started again. Processor time is no
part of that, so other work on the machine does no harm. Each table goes between its markers of ``--out``.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import random
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pydicom
from pydicom.uid import ExplicitVRLittleEndian, generate_uid
from records import grid, write_between_markers

from n2s_med.batch import State, known
from n2s_med.volumes.quiet import quiet

SAMPLES = (
    "pet/dicom_ge_discoveryst_sts001",
    "ibsi_sts002_cropped/dicom/PET",
    "ibsi_sts002_cropped/dicom/CT",
    "ibsi_sts002_cropped/dicom/MR_T1",
    "ct/dicom_philips_ingenuity_phantom_5mm",
    "mr/dicom_siemens_avanto_t2_sts001",
    "mr/dicom_ge_signa_breast_sagittal",
)
SHAPE = (10, 20, 20)
"""Slices, rows and columns of a piece."""
OPTIONS = ("--adapt", "0", "--orientations", "1", "--threads", "1", "--device", "cpu", "--precision", "fp32", "--quiet")
REPORTS = (".report.html", ".report.json", "batch.jsonl")
"""Files that tell times and memory."""
TIMED = ("time_s", "peak_memory_mib", "attempts", "inputs_stat")
"""Fields of the manifest that do."""
LOOK_S = 0.5
RUNS_AT_MOST_S = 3 * 3600
PAGE_BYTES, TICKS = os.sysconf("SC_PAGE_SIZE"), os.sysconf("SC_CLK_TCK")


# -- the tree ------------------------------------------------------------------------------------------


def make_tree(data: Path, root: Path, scans: int) -> None:
    """Write ``scans`` series below ``root``, at several depths, without names that say what they are."""
    samples = [_slices(data / name) for name in SAMPLES]
    for number in range(scans):
        folder = root / f"site{number % 3}" / f"patient{number // 4:03d}" / f"{number:03d}"
        folder.mkdir(parents=True)
        _piece(samples[number % len(samples)], number, folder)


def _slices(folder: Path) -> list[Path]:
    """The files of a series in the order of their places."""
    places = {}
    for file in sorted(folder.iterdir()):
        if file.is_file() and file.read_bytes()[128:132] == b"DICM":
            with quiet():
                header = pydicom.dcmread(file, stop_before_pixels=True)
            row, column = np.array(header.ImageOrientationPatient, dtype=float).reshape(2, 3)
            places[file] = float(np.cross(row, column) @ np.array(header.ImagePositionPatient, dtype=float))
    return sorted(places, key=lambda file: places[file])


def _piece(files: Sequence[Path], number: int, folder: Path) -> None:
    """Cut a piece out of the middle of a series, each time a little elsewhere."""
    drawn = random.Random(number)
    first = drawn.randint(len(files) // 4, max(len(files) // 4, 3 * len(files) // 4 - SHAPE[0]))
    corner: tuple[int, int] | None = None
    for index, file in enumerate(files[first : first + SHAPE[0]]):
        with quiet():
            ds = pydicom.dcmread(file)
            pixels = ds.pixel_array
        corner = corner or tuple(_within(drawn, size, take) for size, take in zip(pixels.shape, SHAPE[1:], strict=True))
        _cut(ds, pixels, corner, number)
        with quiet():
            ds.save_as(folder / f"i{index:03d}", implicit_vr=False, little_endian=True, enforce_file_format=True)


def _within(drawn: random.Random, size: int, take: int) -> int:
    return drawn.randint(*sorted((min(size // 3, size - take), max(0, min(2 * size // 3, size) - take))))


def _cut(ds: pydicom.Dataset, pixels: np.ndarray, corner: tuple[int, int], number: int) -> None:
    row, column = np.array(ds.ImageOrientationPatient, dtype=float).reshape(2, 3)
    between_rows, between_columns = (float(x) for x in ds.PixelSpacing)
    moved = np.array(ds.ImagePositionPatient, dtype=float)
    moved += row * between_columns * corner[1] + column * between_rows * corner[0]
    ds.ImagePositionPatient = [f"{x:.6f}" for x in moved]
    cut = pixels[corner[0] : corner[0] + SHAPE[1], corner[1] : corner[1] + SHAPE[2]]
    ds.Rows, ds.Columns = cut.shape
    for keyword in ("SOPInstanceUID", "SeriesInstanceUID", "StudyInstanceUID"):
        ds[keyword].value = generate_uid(entropy_srcs=[str(ds[keyword].value), str(number)])
    ds.file_meta.MediaStorageSOPInstanceUID = ds.SOPInstanceUID
    ds.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    for keyword in ("SmallestImagePixelValue", "LargestImagePixelValue", "IconImageSequence"):
        if keyword in ds:
            del ds[keyword]
    ds.add_new("PixelData", "OW", np.ascontiguousarray(cut).astype(cut.dtype.newbyteorder("<")).tobytes())


# -- processes, as the system has them -----------------------------------------------------------------


def children(pid: int) -> list[int]:
    """Processes started by ``pid`` that work: those that multiprocessing spawned, without its resource tracker."""
    try:
        pids = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
        return [int(child) for child in pids if b"spawn_main" in Path(f"/proc/{child}/cmdline").read_bytes()]
    except OSError:
        return []  # it has ended


def resident_bytes(pid: int) -> int:
    """Memory that a process holds now."""
    try:
        return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * PAGE_BYTES
    except (OSError, IndexError):
        return 0


def cpu_s(pid: int) -> float:
    """Processor time that a process has had."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / TICKS
    except (OSError, IndexError):
        return 0.0


# -- runs ----------------------------------------------------------------------------------------------


@dataclass
class Run:
    """What was seen of one run of the command, or of one that was started again until it ended.

    Attributes
    ----------
    wall_s
        From the first scan that was begun to the last one that ended, without the start of processes.
    cpu_s
        Processor time of the workers.
    memory
        Pairs: scans that were done, and bytes that a worker held then, the mean of all.
    batches
        How often the command was started.
    killed
        Workers, and whole batches.
    done
        Scans that the manifest says are done in the end.
    """

    wall_s: float = 0.0
    cpu_s: float = 0.0
    memory: list[tuple[int, float]] = field(default_factory=list)
    batches: int = 0
    killed: dict[str, int] = field(default_factory=lambda: {"worker": 0, "batch": 0})
    done: int = 0


def finished(out: Path) -> int:
    """Scans of which the manifest says that they are done."""
    path = out / "batch.jsonl"
    return path.read_bytes().count(b'"state": "done"') if path.exists() else 0


def start(tree: Path, out: Path, workers: int) -> subprocess.Popen[bytes]:
    """Start the command."""
    command = [sys.executable, "-m", "n2s_med", "batch", str(tree), str(out), *OPTIONS, "--workers", str(workers)]
    environment = {**os.environ, "SOURCE_DATE_EPOCH": "1700000000", "OMP_NUM_THREADS": "1"}
    log = out.with_suffix(".log").open("ab")
    return subprocess.Popen(command, env=environment, start_new_session=True, stdout=log, stderr=log)


def undisturbed(tree: Path, out: Path, workers: int) -> Run:
    """Run the command in peace."""
    seen, process = Run(batches=1), start(tree, out, workers)
    begun, first, last, spent = 0.0, 0, 0, dict[int, float]()
    while process.poll() is None:
        time.sleep(LOOK_S)
        done, pids, now = finished(out), children(process.pid), time.monotonic()
        if not done or not pids:
            continue
        if not begun:
            begun, first, spent = now, done, {pid: cpu_s(pid) for pid in pids}
        seen.memory.append((done, statistics.mean(map(resident_bytes, pids))))
        if done > max(last, first):
            seen.wall_s = (now - begun) / (done - first)
            seen.cpu_s = sum(cpu_s(pid) - spent.get(pid, 0.0) for pid in pids) / (done - first)
        last = done
    _expect_end(process, out)
    seen.done = _done(out)
    return seen


def killed(tree: Path, out: Path, workers: int, scans: int, kills: int, seed: int) -> Run:
    """Run the command, strike a worker and the batch ``kills`` times each, and start it again when it was killed."""
    drawn, seen = random.Random(seed), Run()
    moments = sorted((drawn.randrange(1, scans - 4 * workers), kind) for kind in seen.killed for _ in range(kills))
    process, deadline = start(tree, out, workers), time.monotonic() + RUNS_AT_MOST_S
    seen.batches = 1
    while moments:
        moment, kind = moments[0]
        if process.poll() is not None or time.monotonic() > deadline:
            raise AssertionError(f"the batch ended with {process.poll()} before it was killed: see {out}.log")
        if _done(out) < moment:
            time.sleep(LOOK_S / 5)
            continue
        time.sleep(drawn.uniform(0, 3))
        victims = children(process.pid) if kind == "worker" else [process.pid]
        if not victims or process.poll() is not None:
            continue
        os.kill(drawn.choice(victims), signal.SIGKILL)
        seen.killed[kind] += 1
        moments.pop(0)
        if kind == "batch":
            process.wait()
            process = start(tree, out, workers)
            seen.batches += 1
    process.wait()
    if process.returncode:  # a scan that was struck twice has failed: the next run tries it again
        process = start(tree, out, workers)
        seen.batches += 1
    _expect_end(process, out)
    seen.done = _done(out)
    return seen


def _done(out: Path) -> int:
    return sum(record.state is State.DONE for record in known(out).values())


def _expect_end(process: subprocess.Popen[bytes], out: Path) -> None:
    if process.wait() != 0:
        log = out.with_suffix(".log").read_text(errors="replace").splitlines()
        sys.exit("\n".join([*log[-5:], f"the batch ended with {process.returncode}"]))


# -- what came out -------------------------------------------------------------------------------------


def content(folder: Path) -> dict[str, str]:
    """Hash of every file but reports and manifest, by its path; of the manifest what does not tell times."""
    files = {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and not path.name.endswith(REPORTS)
    }
    for line in (folder / "batch.jsonl").read_text().splitlines():
        record = {key: value for key, value in json.loads(line).items() if key not in TIMED}
        files[f"manifest: {record['key']}"] = json.dumps(record, sort_keys=True)
    return files


def differences(a: Mapping[str, str], b: Mapping[str, str]) -> int:
    """Files and lines of the manifest that differ, or that one of the two lacks."""
    return sum(a.get(key) != b.get(key) for key in a.keys() | b.keys())


def left_over(out: Path) -> int:
    """Hidden files and folders: what is half-written or moved aside has such a name."""
    return sum(path.name.startswith(".") for path in out.rglob("*"))


def quarters(run: Run, scans: int) -> Iterator[float]:
    """Median memory of a worker in each quarter of the run."""
    for quarter in range(4):
        seen = [
            size for done, size in run.memory if quarter * scans <= 4 * done < (quarter + 1) * scans + (quarter == 3)
        ]
        yield statistics.median(seen)


# -- tables --------------------------------------------------------------------------------------------


def _what(scans: int) -> str:
    return (
        f"{scans} series of {SHAPE[0]} slices of {SHAPE[1]}x{SHAPE[2]}, cut out of {len(SAMPLES)} real ones,"
        " each worker with one thread"
    )


def speed_table(scans: int, runs: Mapping[int, Sequence[Run]], differing: int) -> str:
    """Throughput of two workers against that of one, each turn against the one beside it."""
    pairs = list(zip(runs[1], runs[2], strict=True))

    def median(figure: Callable[[Run, Run], float]) -> str:
        return f"{statistics.median(figure(one, two) for one, two in pairs):.2f}"

    rows = [
        ("throughput, to that of one worker", "1", median(lambda one, two: one.wall_s / two.wall_s)),
        (
            "cores that the workers were given",
            median(lambda one, _: one.cpu_s / one.wall_s),
            median(lambda _, two: two.cpu_s / two.wall_s),
        ),
        ("processor time a series, to that of one worker", "1", median(lambda one, two: two.cpu_s / one.cpu_s)),
        ("files that differ from those of one worker", "", f"{differing}"),
    ]
    a_series = f"A series takes {statistics.median(run.cpu_s for run in runs[1]):.1f} s of processor time."
    return f"{_what(scans)}; median of {len(pairs)} turns. {a_series}\n\n" + grid(
        ("undisturbed", "one worker", "two workers"), rows
    )


def kills_table(scans: int, peace: Run, struck: Run, differing: int, left: int) -> str:
    """Memory over an undisturbed run, and what one that was struck left."""
    sizes = list(quarters(peace, scans))
    rows = [
        (
            "memory of a worker in the 2nd, 3rd and last quarter of an undisturbed run, to the first",
            ", ".join(f"{size / sizes[0]:.2f}" for size in sizes[1:]),
        ),
        ("workers killed at random moments", f"{struck.killed['worker']}"),
        ("whole batches killed, and run again", f"{struck.killed['batch']}"),
        ("series done in the end", f"{struck.done} of {scans}"),
        ("files, and lines of the manifest, that differ from the undisturbed run's by a byte", f"{differing}"),
        ("temporary files left", f"{left}"),
    ]
    return f"{_what(scans)}, two workers.\n\n{grid(('memory, and `kill -9`', ''), rows)}"


# -- commands ------------------------------------------------------------------------------------------


def measure_speed(data: Path, work: Path, scans: int, turns: int) -> str:
    """Run by one worker and by two in turns; return the table."""
    make_tree(data, work / "tree", scans)
    runs: dict[int, list[Run]] = {1: [], 2: []}
    for turn in range(turns):
        for workers in (1, 2):
            run = undisturbed(work / "tree", work / f"by{workers}-{turn}", workers)
            print(f"{workers}: {run.wall_s:.2f} s, {run.cpu_s:.2f} s of processor time a series", flush=True)
            runs[workers].append(run)
    outputs = [content(path) for path in sorted(work.glob("by*")) if path.is_dir()]
    return speed_table(scans, runs, sum(differences(outputs[0], other) for other in outputs[1:]))


def measure_kills(data: Path, work: Path, scans: int, kills: int, seed: int) -> str:
    """Run in peace and struck; return the table."""
    make_tree(data, work / "tree", scans)
    peace = undisturbed(work / "tree", work / "peace", 2)
    print(f"in peace: {peace.wall_s:.2f} s, {peace.cpu_s:.2f} s of processor time a series", flush=True)
    struck = killed(work / "tree", work / "struck", 2, scans, kills, seed)
    print(f"killed {struck.killed}, {struck.batches} batches", flush=True)
    differing = differences(content(work / "peace"), content(work / "struck"))
    return kills_table(scans, peace, struck, differing, left_over(work / "struck"))


def main() -> None:
    """Make the tree, run and write a table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("what", choices=("speed", "kills"))
    parser.add_argument("--scans", type=int, help="42 for speed, 200 for kills")
    parser.add_argument("--turns", type=int, default=3, help="of speed")
    parser.add_argument("--kills", type=int, default=10, help="of workers, and as many of batches")
    parser.add_argument("--seed", type=int, default=0, help="of the moments of the kills")
    parser.add_argument("--out", type=Path, default=Path("docs/batch.md"))
    arguments = parser.parse_args()
    if not os.environ.get("N2S_DATA"):
        sys.exit("N2S_DATA names no folder of real scans")
    data = Path(os.environ["N2S_DATA"])
    with tempfile.TemporaryDirectory() as folder:
        if arguments.what == "speed":
            table = measure_speed(data, Path(folder), arguments.scans or 42, arguments.turns)
        else:
            table = measure_kills(data, Path(folder), arguments.scans or 200, arguments.kills, arguments.seed)
    write_between_markers(arguments.out, table, f"batch-{arguments.what}")
    print(table)


if __name__ == "__main__":
    main()
