"""From the measured figures, what so many studies a day need; the arithmetic is written out."""

from __future__ import annotations

import math
from collections.abc import Mapping

from records import grid

from n2s_med.training import ADAPTATION
from performance import page
from performance.base import MIB, Record
from performance.rates import AVERAGED

STUDIES = (1_000, 100_000)
"""A day."""

STUDY = (512, 512, 300)
"""Voxels of the CT that stands for a study."""

BUSIEST_HOUR = 0.12
"""Share of the day's studies that come in its busiest hour."""

USED = 0.7
"""Share of the cores' time that is planned to be used in that hour."""

NODE = 64
"""Cores of a node."""

DAY_S, HOUR_S, YEAR_DAYS = 86_400, 3_600, 365

NEEDED = ("network", "size", "job")
"""Parts whose figures are used."""


def text(records: Mapping[str, Record]) -> str:
    """The arithmetic and the table."""
    voxels = math.prod(STUDY)
    job = records["job"]["rows"][-1]
    cores, done = records["job"]["cores"], math.prod(job["shape"])
    plain = job["process_s"] * cores * voxels / done
    adapted = plain + ADAPTATION.seconds * cores
    memory = 2 * 4 * voxels + max(page.beside(row) for row in records["size"]["volumes"])
    read, written = (job[f"{way}_bytes"] * voxels / done for way in ("input", "output"))
    flop = page.row_of(records["network"], AVERAGED)["flop"] * voxels
    size = page.shape(STUDY)
    steps = [
        f"- **Time.** The job on {page.shape(job['shape'])} voxels took {job['process_s']:.1f} s on {cores} cores:"
        f" {job['process_s']:.1f} × {cores} × {voxels / done:.2f} (voxels of a study over these) ="
        f" **{plain:,.0f} core-seconds** a study as the weights are; adapted for {ADAPTATION.seconds:g} s,"
        f" {plain:,.0f} + {ADAPTATION.seconds:g} × {cores} = **{adapted:,.0f}**.",
        f"- **Memory of a worker.** Input and output in 4 bytes a voxel, and the most that was measured beside them:"
        f" 2 × 4 × {voxels / 1e6:.1f} M + {(memory - 8 * voxels) / MIB:,.0f} MiB = **{memory / MIB / 1024:.1f} GiB**.",
        f"- **Storage and network.** {read / 1e6:,.0f} MB read and {written / 1e6:,.0f} MB written a study, as the"
        " series and its output had a voxel.",
        f"- **Arithmetic.** {flop / voxels / 1e3:,.0f} kFLOP a voxel (two orientations) × {voxels / 1e6:.1f} M voxels ="
        f" **{flop / 1e12:.1f} TFLOP** a study: what a card must sustain follows from this"
        + (_card(records, voxels) if "rates" in records.get("gpu", {}) else "; none was at hand to measure it on."),
        f"- **Load.** {BUSIEST_HOUR:.0%} of the day's studies in its busiest hour, and {USED:.0%} of the cores' time"
        " used then.",
    ]
    head = ["", *(f"{n:,} studies a day" for n in STUDIES)]
    hourly = [n * BUSIEST_HOUR for n in STUDIES]
    needs = {
        f"studies in the busiest hour ({BUSIEST_HOUR:.0%})": [f"{n:,.0f}" for n in hourly],
        "cores, weights as they are": [f"{_cores(n, plain):,}" for n in hourly],
        f"cores, adapted for {ADAPTATION.seconds:g} s each": [f"{_cores(n, adapted):,}" for n in hourly],
        f"nodes of {NODE} cores, as they are / adapted": [
            " / ".join(f"{math.ceil(_cores(n, each) / NODE):,}" for each in (plain, adapted)) for n in hourly
        ],
        f"memory of such a node, {NODE // cores} workers of {cores} cores, GiB": [
            f"{NODE // cores * memory / MIB / 1024:,.0f}" for _ in hourly
        ],
        "network in the busiest hour, Gbit/s": [f"{n * (read + written) * 8 / HOUR_S / 1e9:,.2f}" for n in hourly],
        "written a day, TB": [f"{n * written / 1e12:,.2f}" for n in STUDIES],
        "written a year, TB": [f"{n * written * YEAR_DAYS / 1e12:,.0f}" for n in STUDIES],
        "arithmetic sustained in the busiest hour, TFLOP/s": [f"{n * flop / HOUR_S / 1e12:,.2f}" for n in hourly],
    }
    return "\n\n".join(
        [
            f"A study is a CT of {size} = {voxels / 1e6:.1f} million voxels, 16 bits each.",
            "\n".join(steps),
            grid(head, [[name, *values] for name, values in needs.items()]),
            f"Cores = studies in the busiest hour × core-seconds ÷ ({HOUR_S:,} s × {USED:g}), rounded up.",
        ]
    )


def _cores(studies_an_hour: float, core_seconds: float) -> int:
    return math.ceil(studies_an_hour * core_seconds / (HOUR_S * USED))


def _card(records: Mapping[str, Record], voxels: int) -> str:
    rate = records["gpu"]["volumes"][0]["voxels_per_s"]
    return (
        f"; on {records['gpu']['name']} {rate / 1e6:,.0f} million voxels/s were measured, {voxels / rate:.1f} s a study"
        f" or {DAY_S * USED * rate / voxels:,.0f} studies a day and card."
    )
