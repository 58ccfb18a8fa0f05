"""Run the walk-through of ``docs/bundles.md`` on real scans, as the page prints it, and write its table.

    N2S_DATA=/path/to/data python benchmarks/bundles.py

Each line runs in a process of its own, from a copy of the bundle's folder, on one thread. Time is the processor's,
and also told as a ratio to the first, so that it compares between machines; memory is the largest of the process.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

PAGE = Path("docs/bundles.md")
BEGIN, END = "<!-- walk -->", "<!-- /walk -->"
BLOCK = re.compile(r"^(\w+):\n\n```sh\ncd (bundles/\w+)\n(.*?)```", re.MULTILINE | re.DOTALL)
"""A modality, its bundle, and the lines to run there."""

COLUMNS = ("inference", "train", "evaluate")
"""What the lines of each block do, in their order."""


@dataclass(frozen=True)
class Taken:
    """What a line took."""

    seconds: float
    mib: float


def main() -> None:
    """Run every line of the page and rewrite its table."""
    argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None).parse_args()
    if not os.environ.get("N2S_DATA"):
        sys.exit("N2S_DATA names no folder of real scans")
    before, rest = PAGE.read_text(encoding="utf-8").split(BEGIN)
    rows, unit = list[str](), 0.0
    for modality, bundle, lines in BLOCK.findall(before):
        with tempfile.TemporaryDirectory() as work:
            folder = shutil.copytree(bundle, Path(work) / Path(bundle).name)
            taken = [_run(line, folder) for line in lines.replace("\\\n", " ").splitlines()]
            report = json.loads(next((folder / "OUT").glob("*.report.json")).read_text(encoding="utf-8"))
        unit = unit or taken[0].seconds
        figures = report["figures"]
        cells = [modality, f"{figures['resources']['voxels']:,}", figures["noise"]["law"]]
        cells += [f"{t.seconds:.0f} s, ×{t.seconds / unit:.1f}, {t.mib / 1024:.1f} GiB" for t in taken]
        rows.append("| " + " | ".join(cells) + " |")
        print(rows[-1], flush=True)
    head = f"| | voxels | law found | {' | '.join(COLUMNS)} |"
    table = "\n".join(["", head, "|" + "---|" * (head.count("|") - 1), *rows, ""])
    PAGE.write_text(before + BEGIN + table + END + rest.split(END)[1], encoding="utf-8")


def _run(line: str, folder: Path) -> Taken:
    """Run a line of the page from a folder."""
    line = line.replace("python", shlex.quote(sys.executable), 1)
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(Path.cwd())}
    process = subprocess.Popen(line, shell=True, cwd=folder, env=environment, stdout=subprocess.DEVNULL)
    _, status, usage = os.wait4(process.pid, 0)
    if status:
        sys.exit(f"failed: {line}")
    return Taken(usage.ru_utime + usage.ru_stime, usage.ru_maxrss / 1024)


if __name__ == "__main__":
    main()
