"""What the comparisons share: figures, results kept in a JSON-lines cache, and Markdown tables in a page.

It needs no more of the package than its noise laws do, so it runs in the peers' environment too.
"""

from __future__ import annotations

import json
import statistics
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from skimage.metrics import structural_similarity
from torch import Tensor

from n2s_med.atomic import whole

Record = Mapping[str, Any]


def psnr(x_hat: Tensor, x: Tensor) -> float:
    """Peak signal-to-noise ratio in dB, for a peak of 1."""
    return -10 * float((x_hat - x).double().square().mean().log10())


def ssim(x_hat: Tensor, x: Tensor) -> float:
    """Structural similarity in 3D for a data range of 1, scikit-image's defaults (uniform window of 7³)."""
    return float(structural_similarity(x.numpy(), x_hat.numpy(), data_range=1.0))


class Cache:
    """Results on disk, one JSON line each; what a killed run has written is kept.

    Parameters
    ----------
    path
        The file, made when the first result is added; ``None`` keeps results in memory alone.
    key
        What a record is told apart by.
    """

    def __init__(self, path: Path | None, key: Sequence[str]) -> None:
        self.path, self.key = path, key
        self.records: dict[str, Record] = {}
        if path and path.exists():
            whole_lines = [line for line in path.read_text().splitlines(keepends=True) if line.endswith("\n")]
            path.write_text("".join(whole_lines))  # without the line in which a run was killed
            for record in map(json.loads, whole_lines):
                self.records[self._key_of(record)] = record

    def get(self, **key: Any) -> Record | None:
        """The record of this key, if there is one."""
        return self.records.get(self._key_of(key))

    def add(self, record: Record) -> None:
        """Keep a record, on disk at once."""
        self.records[self._key_of(record)] = record
        if self.path:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with self.path.open("a") as stream:
                stream.write(json.dumps(record) + "\n")

    def _key_of(self, record: Record) -> str:
        return json.dumps([record[k] for k in self.key], sort_keys=True)


def grid(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A Markdown table."""
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def cell(values: Sequence[float], digits: int) -> str:
    """Mean ± standard deviation over the seeds."""
    if not values:
        return "–"
    mean = f"{statistics.fmean(values):.{digits}f}"
    return f"{mean} ± {statistics.stdev(values):.{digits}f}" if len(values) > 1 else mean


def write_between_markers(path: Path, text: str, name: str = "quality") -> None:
    """Put ``text`` between the markers called ``name`` of a Markdown file, made where it does not exist."""
    begin, end = f"<!-- {name}:begin -->", f"<!-- {name}:end -->"
    old = path.read_text() if path.exists() else f"# Results\n\n{begin}\n{end}\n"
    if begin not in old or end not in old:
        old = f"{old.rstrip()}\n\n{begin}\n{end}\n"
    before, after = old.split(begin)[0], old.split(end)[1]
    with whole(path, overwrite=True) as partial:
        partial.write_text(f"{before}{begin}\n{text}\n{end}{after}")
