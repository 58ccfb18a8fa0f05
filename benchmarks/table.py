"""The Markdown made of the comparison's results."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterable, Mapping, Sequence

from arms import ARMS
from cases import COLUMNS
from records import Record, cell, grid

KEY = ("volume", "shape", "column", "arm", "seed", "training", "code")
"""What a record is told apart by."""

PAIRS = (
    *(("ours", other) for other in ("supervised", "n2n", "mcsure", "n2v", "dsm", "paper", "bm4d")),
    ("blind", "ours"),
    *(("adapted", other) for other in ("twin", "bm4d")),
    *(("adapted-blind", other) for other in ("adapted", "bm4d")),
)
"""Arms of ours, and the arms that each is held against in a row of its own."""


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
            *(cell(_values(records, a, c, figure), digits) for c in columns),
            *([last[1].get(a, "–")] if last else []),
        ]
        for a in arms
    ]
    return grid(head, rows)


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
        grid(["", *(COLUMNS[c].title for c in columns)], rows),
    ]


def _gap(records: Sequence[Record], arm: str, reference: str, column: str) -> str:
    def by_seed(arm: str) -> dict[int, float]:
        return {r["seed"]: r["psnr"] for r in records if r["arm"] == arm and r["column"] == column}

    ours, others = by_seed(arm), by_seed(reference)
    gaps = [ours[s] - others[s] for s in ours.keys() & others.keys()]
    return f"{statistics.fmean(gaps):+.2f}" if gaps else "–"


def _blind(records: Sequence[Record]) -> list[str]:
    """What the arms that are not told the level found."""
    found = [r for r in records if "neighbour_correlation" in r["notes"]]
    arms, columns = _present("arm", ARMS, found), _present("column", COLUMNS, found)

    def row(arm: str, title: str, name: str, show: Callable[[float], str]) -> list[str]:
        cells = ([r["notes"][name] for r in found if r["arm"] == arm and r["column"] == c] for c in columns)
        return [f"{ARMS[arm].title}: {title}", *(show(statistics.fmean(c)) if c else "–" for c in cells)]

    rows = [
        row(arm, *what)
        for arm in arms
        for what in (
            ("level found / true", "level", "{:.3f}".format),
            ("neighbour correlation found", "neighbour_correlation", "{:.2f}".format),
        )
    ]
    if not rows:
        return []
    return ["What the blind arms found (mean over seeds):", grid(["", *(COLUMNS[c].title for c in columns)], rows)]
