#!/usr/bin/env python
"""Show what some arms of the comparison make of the phantoms: the middle plane, and the PSNR of the volume.

    python benchmarks/pictures.py --out docs/figures/quality.png

A row for each phantom and noise: the clean volume, the noisy one, and what the arms make of it.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from arms import ARMS, Settings
from cases import COLUMNS, phantom, scan_of
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from records import psnr

from n2s_med.atomic import whole
from n2s_med.compute import Compute, set_threads
from n2s_med.training import ADAPTATION, TrainingConfig

ROWS = ("brain:g25", "ct:c25", "pet:p05")
"""Phantoms and their noise, unless others are named."""


def main(argv: Sequence[str] | None = None) -> None:
    """Run the arms and draw their planes, a row for each phantom and noise."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--rows", nargs="+", type=_row, default=[_row(r) for r in ROWS], metavar="PHANTOM:COLUMN", help=" ".join(ROWS))
    add("--crop", type=int, default=64, help="keep the middle, so many voxels an axis (default %(default)s)")
    add("--arms", nargs="+", choices=tuple(ARMS), default=["noisy", "bm4d", "adapted"], metavar="ARM")
    add("--adapt-steps", type=int, default=800, help="steps that adapt the base weights (default %(default)s)")
    add("--out", type=Path, default=Path("docs/figures/quality.png"))
    options = parser.parse_args(argv)
    set_threads(1)
    settings = Settings(TrainingConfig(), replace(ADAPTATION, steps=options.adapt_steps), Compute.choose())
    rows = options.rows
    across = 1 + len(options.arms)
    figure = Figure(figsize=(1.8 * across, 2.1 * len(rows)), dpi=80, layout="constrained")
    FigureCanvasAgg(figure)
    for row, (name, column) in enumerate(rows):
        volume = phantom(name).cropped(options.crop)
        plane = volume.x.shape[-1] // 2
        scan = scan_of(volume, column, 0)
        shown = [(f"{volume.name}\nclean", volume.x)]
        for arm in options.arms:
            x_hat = ARMS[arm].run(scan if ARMS[arm].truth else replace(scan, clean=None), settings).x_hat
            title = f"{ARMS[arm].title}\n{COLUMNS[column].title}: {psnr(x_hat, volume.x):.2f} dB"
            print(f"{name}, {title.replace(chr(10), ', ')}", flush=True)
            shown.append((title, x_hat))
        top = float(volume.x[..., plane].max())
        for place, (title, x) in enumerate(shown, start=1 + row * across):
            axes = figure.add_subplot(len(rows), across, place)
            axes.imshow(x[..., plane].T.numpy(), cmap="gray", vmin=0, vmax=top)
            axes.set_title(title, fontsize=7)
            axes.axis("off")
    options.out.parent.mkdir(parents=True, exist_ok=True)
    with whole(options.out, overwrite=True) as partial:
        figure.savefig(partial, format="png", pil_kwargs={"optimize": True})


def _row(word: str) -> tuple[str, str]:
    name, _, column = word.partition(":")
    if name not in ("brain", "ct", "pet") or column not in COLUMNS:
        raise argparse.ArgumentTypeError(
            f"{word}: a phantom (brain, ct or pet), a colon and one of {', '.join(COLUMNS)}"
        )
    return name, column


if __name__ == "__main__":
    main()
