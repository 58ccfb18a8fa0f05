"""How long the command line takes before it works, against a bare Python: ``--help`` and ``inspect`` of a small series.

python benchmarks/startup.py [--repeats 5] [--imports 8]
"""

from __future__ import annotations

import argparse
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

SLICES, EDGE, SPACING_MM = 32, 128, (4.0, 4.0, 4.0)
"""The series that is inspected."""


@dataclass(frozen=True)
class Start:
    """The start of one command.

    Attributes
    ----------
    command
        What was run.
    wall_s
        The shortest of several runs, with warm file caches.
    cpu_s
        The least processor time of these runs, which other work on the machine does not lengthen.
    ratio
        That time over a bare Python's, taken in turn with it.
    imports
        Modules whose own code took longest, with the share of all imports that each took.
    """

    command: str
    wall_s: float
    cpu_s: float
    ratio: float
    imports: tuple[tuple[str, float], ...]


def starts(repeats: int = 5, imports: int = 8) -> Iterator[Start]:
    """Measure each command ``repeats`` times, in turn with ``python -c pass``; tell its slowest ``imports``."""
    with tempfile.TemporaryDirectory() as folder:
        _series(Path(folder) / "series")
        for name, arguments in (("--help", ["--help"]), ("inspect", ["inspect", f"{folder}/series"])):
            command = ["-m", "n2s_med", *arguments]
            _seconds(command)
            times = [(*_seconds(["-c", "pass"]), *_seconds(command)) for _ in range(repeats)]
            _, bare, wall, cpu = (min(column) for column in zip(*times, strict=True))
            yield Start(f"n2s-med {name}", wall, cpu, cpu / bare, tuple(_slowest(command, imports)))


def _series(folder: Path) -> None:
    """A PET series of a phantom; made here, so that what it takes to make one is imported in this process alone."""
    from n2s_med.phantoms import pet_phantom, write_pet_series

    activity = pet_phantom((EDGE, EDGE, SLICES), SPACING_MM).activity
    write_pet_series(activity, folder, spacing_mm=SPACING_MM, gain=1.0)


def _seconds(arguments: Sequence[str]) -> tuple[float, float]:
    """Wall time and processor time of a Python process."""
    begun, before = time.perf_counter(), _children_s()
    subprocess.run([sys.executable, *arguments], check=True, stdout=subprocess.DEVNULL)
    return time.perf_counter() - begun, _children_s() - before


def _children_s() -> float:
    """Processor time of all child processes that have ended."""
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime


def _slowest(command: Sequence[str], count: int) -> list[tuple[str, float]]:
    """The modules whose own code takes longest, by ``python -X importtime``, and their shares."""
    told = subprocess.run([sys.executable, "-X", "importtime", *command], check=True, capture_output=True, text=True)
    rows = [line.removeprefix("import time:").split("|") for line in told.stderr.splitlines() if "|" in line]
    own = {name.strip(): int(microseconds) for microseconds, _, name in rows[1:]}
    slowest = sorted(own, key=own.__getitem__, reverse=True)[:count]
    return [(name, own[name] / sum(own.values())) for name in slowest]


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--imports", type=int, default=8, help="how many of the slowest imports to tell")
    arguments = parser.parse_args()
    print("| command | wall time, s | processor time, s | × `python -c pass` | slowest imports, share of all |")
    print("|---|---|---|---|---|")
    for start in starts(arguments.repeats, arguments.imports):
        told = ", ".join(f"{name} {share:.0%}" for name, share in start.imports)
        print(f"| {start.command} | {start.wall_s:.2f} | {start.cpu_s:.2f} | {start.ratio:.1f} | {told} |")


if __name__ == "__main__":
    main()
