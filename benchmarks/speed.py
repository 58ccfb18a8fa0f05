#!/usr/bin/env python
"""How fast the package is: against plain PyTorch, MONAI and BM4D, in the same run on the same machine.

    N2S_DATA=/path/to/data python benchmarks/speed.py --out docs/performance.md
    python benchmarks/speed.py --quick
    python benchmarks/speed.py --out docs/performance.md --parts job size

Tables go between the markers of ``--out``, and the arithmetic of what many studies need between those of
``scaling.md`` beside it. What each part measured is kept in a JSON-lines file beside the page, so that some parts can
be measured anew. Without ``--out`` the tables are printed.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # before torch is imported, as the command line does

from performance.base import FULL, QUICK, Record, Sizes
from performance.goals import table
from performance.parts import PARTS
from performance.scaling import NEEDED, text
from quality import code_hash
from records import Cache, write_between_markers

from n2s_med.compute import set_threads

KEY = ("part", "sizes")
"""What a record is told apart by: the newest of a part counts."""


def main(argv: Sequence[str] | None = None, sizes: Sizes | None = None) -> None:
    """Measure, and write or print the tables."""
    options = _parser().parse_args(argv)
    sizes = sizes or (QUICK if options.quick else FULL)
    warnings.filterwarnings("ignore", module="monai")
    set_threads()
    cache = Cache(options.out and options.out.with_suffix(".jsonl"), KEY)
    for part in options.parts:
        kept = cache.get(part=part, sizes=sizes.name)
        if not (options.resume and kept and kept["code"] == code_hash()):
            begun = time.perf_counter()
            measured = PARTS[part].measure(sizes)
            cache.add({"part": part, "sizes": sizes.name, "code": code_hash(), "measured": measured})
            print(f"{part}: {time.perf_counter() - begun:.0f} s", file=sys.stderr, flush=True)
        _tell(options.out, {p: r["measured"] for p in PARTS if (r := cache.get(part=p, sizes=sizes.name))}, sizes)
    if not options.out:
        for record in cache.records.values():
            print(f"\n## {record['part']}\n\n{PARTS[record['part']].told(record['measured'])}")
        print(f"\n## goals\n\n{table({str(r['part']): r['measured'] for r in cache.records.values()})}")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--quick", action="store_true", help="small sizes, under a minute")
    add("--parts", nargs="+", choices=tuple(PARTS), default=list(PARTS), metavar="PART", help="of %(choices)s")
    add("--resume", action="store_true", help="measure no part again that this code has been measured with")
    add("--out", type=Path, help="Markdown file; what was measured is kept beside it")
    return parser


def _tell(out: Path | None, records: Mapping[str, Record], sizes: Sizes) -> None:
    """Write every table there are figures for."""
    if out is None:
        return
    cores = len(os.sched_getaffinity(0))
    note = f"Sizes: {sizes.name}. Cores: {cores}. Code {code_hash()}."
    for part, record in records.items():
        write_between_markers(out, PARTS[part].told(record), part)
    write_between_markers(out, f"{note}\n\n{table(records)}", "goals")
    if set(NEEDED) <= set(records):
        write_between_markers(out.with_name("scaling.md"), text(records), "scaling")


if __name__ == "__main__":
    main()
