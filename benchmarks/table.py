"""Results kept in a JSON-lines cache, and the Markdown made of them."""

from __future__ import annotations

import json
import statistics
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from arms import ARMS
from cases import COLUMNS

from n2s_med.atomic import whole

BEGIN, END = "<!-- quality:begin -->", "<!-- quality:end -->"

Record = Mapping[str, Any]
KEY = ("volume", "shape", "column", "arm", "seed", "training", "code")
"""What a record is told apart by."""

PAIRS = (
    *(("ours", other) for other in ("supervised", "bm4d", "n2v", "paper")),
    *(("adapted", other) for other in ("twin", "bm4d")),
    ("adapted-blind", "bm4d"),
)
"""Arms of ours, and the arms that each is held against in a row of its own."""


class Cache:
    """Results on disk, one JSON line each; what a killed run has written is kept.

    Parameters
    ----------
    path
        The file, made when the first result is added; ``None`` keeps results in memory alone.
    """

    def __init__(self, path: Path | None) -> None:
        self.path = path
        self.records: dict[str, Record] = {}
        if path and path.exists():
            whole_lines = [line for line in path.read_text().splitlines(keepends=True) if line.endswith("\n")]
            path.write_text("".join(whole_lines))  # without the line in which a run was killed
            for record in map(json.loads, whole_lines):
                self.records[key_of(record)] = record

    def get(self, **key: Any) -> Record | None:
        """The record of this key, if there is one."""
        return self.records.get(key_of(key))

    def add(self, record: Record) -> None:
        """Keep a record, on disk at once."""
        self.records[key_of(record)] = record
        if self.path:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with self.path.open("a") as stream:
                stream.write(json.dumps(record) + "\n")


def key_of(record: Mapping[str, Any]) -> str:
    """The key as one string."""
    return json.dumps([record[k] for k in KEY], sort_keys=True)


# -- Markdown --------------------------------------------------------------------------------------------


def markdown(records: Sequence[Record]) -> str:
    """Tables of every volume: PSNR with time, SSIM, ours against the others, and what the blind arm found."""
    volumes = list(dict.fromkeys(r["volume"] for r in records))
    return "\n\n".join(_section([r for r in records if r["volume"] == v]) for v in volumes)


def _section(records: Sequence[Record]) -> str:
    first = records[0]
    shape = " × ".join(str(n) for n in first["shape"])
    parts = [
        f"### {first['volume'][0].upper()}{first['volume'][1:]}, {shape} voxels",
        f"Differences of neighbouring voxels above 0.1: {first['rough']:.0%} of all (7 % in a sharp brain MR).",
        "PSNR in dB (peak 1), and CPU time over BM4D's:",
        _table(records, "psnr", 2, last=("time", _times(records))),
        "SSIM:",
        _table(records, "ssim", 3),
        *_comparison(records),
        *_blind(records),
    ]
    return "\n\n".join(parts)


def _table(
    records: Sequence[Record], figure: str, digits: int, last: tuple[str, Mapping[str, str]] | None = None
) -> str:
    arms, columns = _present("arm", ARMS, records), _present("column", COLUMNS, records)
    head = ["", *(COLUMNS[c].title for c in columns), *([last[0]] if last else [])]
    rows = [
        [
            ARMS[a].title,
            *(_cell(_values(records, a, c, figure), digits) for c in columns),
            *([last[1].get(a, "–")] if last else []),
        ]
        for a in arms
    ]
    return _grid(head, rows)


def _grid(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def _cell(values: Sequence[float], digits: int) -> str:
    """Mean ± standard deviation over the seeds."""
    if not values:
        return "–"
    mean = f"{statistics.fmean(values):.{digits}f}"
    return f"{mean} ± {statistics.stdev(values):.{digits}f}" if len(values) > 1 else mean


def _values(records: Sequence[Record], arm: str, column: str, figure: str) -> list[float]:
    return [r[figure] for r in records if r["arm"] == arm and r["column"] == column]


def _present(field: str, order: Iterable[str], records: Sequence[Record]) -> list[str]:
    there = {r[field] for r in records}
    return [name for name in order if name in there]


def _times(records: Sequence[Record]) -> dict[str, str]:
    """Median over columns and seeds of an arm's CPU time over BM4D's in the same column."""
    bm4d: dict[str, list[float]] = {}
    for r in records:
        if r["arm"] == "bm4d":
            bm4d.setdefault(r["column"], []).append(r["cpu_s"])
    ratios: dict[str, list[float]] = {}
    for r in records:
        if r["column"] in bm4d and r["arm"] != "noisy":
            ratios.setdefault(r["arm"], []).append(r["cpu_s"] / statistics.median(bm4d[r["column"]]))
    return {arm: f"{statistics.median(values):.2f}" for arm, values in ratios.items()}


def _comparison(records: Sequence[Record]) -> list[str]:
    """Rows of ours minus each reference, over the seeds that both have."""
    columns = _present("column", COLUMNS, records)
    known = {r["arm"] for r in records}
    rows = [
        [f"{ARMS[a].title} − {ARMS[b].title}", *(_gap(records, a, b, c) for c in columns)]
        for a, b in PAIRS
        if {a, b} <= known
    ]
    if not rows:
        return []
    return [
        "Ours against the others (dB, mean over the seeds that both have):",
        _grid(["", *(COLUMNS[c].title for c in columns)], rows),
    ]


def _gap(records: Sequence[Record], arm: str, reference: str, column: str) -> str:
    def by_seed(arm: str) -> dict[int, float]:
        return {r["seed"]: r["psnr"] for r in records if r["arm"] == arm and r["column"] == column}

    ours, others = by_seed(arm), by_seed(reference)
    gaps = [ours[s] - others[s] for s in ours.keys() & others.keys()]
    return f"{statistics.fmean(gaps):+.2f}" if gaps else "–"


def _blind(records: Sequence[Record]) -> list[str]:
    columns = _present("column", COLUMNS, [r for r in records if r["arm"] == "blind"])
    if not columns:
        return []

    def notes(name: str, show: Callable[[float], str]) -> list[str]:
        found = {c: [r["notes"][name] for r in records if r["arm"] == "blind" and r["column"] == c] for c in columns}
        return [show(statistics.fmean(found[c])) for c in columns]

    rows = [
        ["level found / true", *notes("level", "{:.3f}".format)],
        ["neighbour correlation found", *notes("neighbour_correlation", "{:.2f}".format)],
    ]
    return ["What the blind arm found (mean over seeds):", _grid(["", *(COLUMNS[c].title for c in columns)], rows)]


def write_between_markers(path: Path, text: str) -> None:
    """Put ``text`` between the markers of a Markdown file, made where it does not exist."""
    old = path.read_text() if path.exists() else f"# Results\n\n{BEGIN}\n{END}\n"
    if BEGIN not in old or END not in old:
        old = f"{old.rstrip()}\n\n{BEGIN}\n{END}\n"
    before, after = old.split(BEGIN)[0], old.split(END)[1]
    with whole(path, overwrite=True) as partial:
        partial.write_text(f"{before}{BEGIN}\n{text}\n{END}{after}")
