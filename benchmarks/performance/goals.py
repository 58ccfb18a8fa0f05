"""What the project set out to reach, and what the figures say of it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

from records import grid

from performance import page
from performance.base import MIB, Record
from performance.rates import AVERAGED, DEFAULTS, SMALL, STREAMED


@dataclass(frozen=True)
class Goal:
    """One goal.

    Attributes
    ----------
    part
        The part whose figures tell.
    title
        What is measured.
    bound
        The value to be reached.
    least
        Whether the figure is to be at least that, and not at most.
    figure
        What was measured, from the part's record.
    form
        How both are written.
    """

    part: str
    title: str
    bound: float
    least: bool
    figure: Callable[[Record], float]
    form: str


def _over(name: str, other: str) -> Callable[[Record], float]:
    return lambda r: page.row_of(r, name)["voxels_per_s"] / page.row_of(r, other)["voxels_per_s"]


def _over_bm4d(name: str) -> Callable[[Record], float]:
    return lambda r: float(page.row_of(r, name)["voxels_per_s"] / r["bm4d"])


GOALS = (
    *(Goal("network", f"{name}, over MONAI's inferer as it is", 10, True, _over(name, DEFAULTS), "{:.1f}×")
      for name in (SMALL, STREAMED, AVERAGED)),
    *(Goal("network", f"{name}, over BM4D", 200, True, _over_bm4d(name), "{:.0f}×")
      for name in (SMALL, STREAMED, AVERAGED)),
    Goal("network", "share of the peak in the network", 0.7, True,
         lambda r: page.share(r, page.row_of(r, AVERAGED)), "{:.0%}"),
    Goal("fidelity", "PSNR lost in bf16, dB", 0.01, False,
         lambda r: max(0.0, -min(row["psnr_difference"] for row in r["rows"])), "{:.4f}"),
    Goal("size", "peak memory beside input and output, MiB", 1024, False,
         lambda r: max(page.beside(row) for row in r["volumes"]) / MIB, "{:,.0f}"),
    Goal("size", "memory of the longest stream over the shortest's", 1.1, False, page.growth, "{:.2f}"),
    Goal("job", "whole job over its network's time, longest series", 1.3, False,
         lambda r: page.over_network(r["rows"][-1]), "{:.2f}"),
    Goal("job", "start-up of `--help`, s", 1, False, lambda r: r["starts"][0]["wall_s"], "{:.2f}"),
    Goal("job", "start-up of `inspect`, s", 2, False, lambda r: r["starts"][1]["wall_s"], "{:.2f}"),
)  # fmt: skip


def table(records: Mapping[str, Record]) -> str:
    """Each goal whose part was measured, and whether it is met."""
    return grid(["", "goal", "measured", ""], _rows(records))


def _rows(records: Mapping[str, Record]) -> Iterator[list[str]]:
    for goal in GOALS:
        if goal.part in records:
            figure = goal.figure(records[goal.part])
            met = figure >= goal.bound if goal.least else figure <= goal.bound
            sense = "at least" if goal.least else "at most"
            bound = f"{sense} {goal.form.format(goal.bound)}"
            yield [goal.title, bound, goal.form.format(figure), "met" if met else "**missed**"]
