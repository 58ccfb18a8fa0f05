"""Denoise a tree of 200 series by ``n2s-med batch``: in peace by one worker and by two, and while processes are killed.

    N2S_DATA=/path/to/data python benchmarks/batch.py [--scans 200] [--kills 10] [--out docs/batch.md]

The series are pieces cut out of real ones, each with UIDs of its own. The same command is run three times: by one
worker (on a quarter of the series), by two, and by two of which one, or the whole batch, is struck by ``kill -9`` at
random moments; a batch that was killed is started again. The table goes between the markers of the page.
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
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pydicom
from pydicom.uid import ExplicitVRLittleEndian, generate_uid

from n2s_med.batch import State, known
from n2s_med.volumes.quiet import quiet

BEGIN, END = "<!-- batch -->", "<!-- /batch -->"
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
OPTIONS = ("--adapt", "0", "--no-flips", "--threads", "1", "--device", "cpu", "--precision", "fp32", "--quiet")
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
    """

    wall_s: float = 0.0
    cpu_s: float = 0.0
    memory: list[tuple[int, float]] = field(default_factory=list)
    batches: int = 0
    killed: dict[str, int] = field(default_factory=lambda: {"worker": 0, "batch": 0})


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
    begun, before, spent = 0.0, 0, dict[int, float]()
    while process.poll() is None:
        time.sleep(LOOK_S)
        done, pids = finished(out), children(process.pid)
        now = time.monotonic()
        if done and not begun:
            begun, before, spent = now, done, {pid: cpu_s(pid) for pid in pids}
        if done and pids:
            seen.memory.append((done, statistics.mean(map(resident_bytes, pids))))
            seen.wall_s = (now - begun) / max(1, done - before)
            seen.cpu_s = sum(cpu_s(pid) - spent.get(pid, 0.0) for pid in pids) / max(1, done - before)
    _expect_end(process, out)
    return seen


def killed(tree: Path, out: Path, workers: int, scans: int, kills: int, seed: int) -> Run:
    """Run the command, strike a worker and the batch ``kills`` times each, and start it again when it was killed."""
    drawn, seen = random.Random(seed), Run()
    moments = sorted((drawn.randrange(1, scans - workers), kind) for kind in seen.killed for _ in range(kills))
    process, deadline = start(tree, out, workers), time.monotonic() + RUNS_AT_MOST_S
    seen.batches = 1
    while moments:
        moment, kind = moments[0]
        if process.poll() is not None or time.monotonic() > deadline:
            raise AssertionError(f"the batch ended with {process.poll()} before it was killed: see {out}.log")
        if sum(record.state is State.DONE for record in known(out).values()) < moment:
            time.sleep(LOOK_S / 5)
            continue
        time.sleep(drawn.uniform(0, 4))
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
    return seen


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


def table(
    scans: Mapping[int, int], runs: Mapping[int, Run], struck: Run, differing: Mapping[str, int], left: int
) -> list[str]:
    """The lines of the page between its markers."""
    one, two = runs[1], runs[2]
    memory = {n: list(quarters(run, scans[n])) for n, run in runs.items()}
    flat = {n: ", ".join(f"{q / sizes[0]:.2f}" for q in sizes[1:]) for n, sizes in memory.items()}
    return [
        f"{scans[2]} series ({scans[1]} for one worker) of {SHAPE[0]} slices of {SHAPE[1]}x{SHAPE[2]}, cut out of"
        f" {len(SAMPLES)} real ones, on two cores that other work shared.",
        "",
        "| undisturbed | one worker | two workers |",
        "|---|---|---|",
        f"| throughput, to that of one worker | 1 | {one.wall_s / two.wall_s:.2f} |",
        f"| cores that the workers were given | {one.cpu_s / one.wall_s:.2f} | {two.cpu_s / two.wall_s:.2f} |",
        f"| processor time a series, to that of one worker | 1 | {two.cpu_s / one.cpu_s:.2f} |",
        f"| memory of a worker in the 2nd, 3rd and last quarter of the series, to the first | {flat[1]} | {flat[2]} |",
        f"| results that differ from those of one worker | | {differing['two']} |",
        "",
        "| `kill -9` at random moments | |",
        "|---|---|",
        f"| workers killed | {struck.killed['worker']} |",
        f"| whole batches killed, and run again | {struck.killed['batch']} |",
        f"| series done in the end | {scans[2]} of {scans[2]} |",
        f"| results that differ from the undisturbed run's by a byte | {differing['struck']} |",
        f"| temporary files left | {left} |",
    ]


def main() -> None:
    """Make the tree, run and write the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--scans", type=int, default=200)
    parser.add_argument("--kills", type=int, default=10)
    parser.add_argument("--seed", type=int, default=0, help="of the moments")
    parser.add_argument("--out", type=Path, default=Path("docs/batch.md"))
    arguments = parser.parse_args()
    if not os.environ.get("N2S_DATA"):
        sys.exit("N2S_DATA names no folder of real scans")
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        data, scans = Path(os.environ["N2S_DATA"]), {1: max(1, arguments.scans // 4), 2: arguments.scans}
        runs = {}
        for workers in (2, 1):
            make_tree(data, work / f"tree{workers}", scans[workers])
            runs[workers] = undisturbed(work / f"tree{workers}", work / f"by{workers}", workers)
            print(f"{workers}: {runs[workers].wall_s:.2f} s, {runs[workers].cpu_s:.2f} s CPU a series", flush=True)
        struck = killed(work / "tree2", work / "struck", 2, scans[2], arguments.kills, arguments.seed)
        print(f"killed {struck.killed}, {struck.batches} batches", flush=True)
        by_two = content(work / "by2")
        few, all_ = content(work / "by1"), content(work / "struck")
        differing = {
            "two": differences(few, {key: by_two.get(key, "") for key in few}),
            "struck": differences(by_two, all_),
        }
        lines = table(scans, runs, struck, differing, left_over(work / "struck"))
    before, rest = arguments.out.read_text(encoding="utf-8").split(BEGIN)
    page = [before + BEGIN, *lines, END + rest.split(END)[1]]
    arguments.out.write_text("\n".join(page), encoding="utf-8")
    print("\n".join(lines))


if __name__ == "__main__":
    main()
