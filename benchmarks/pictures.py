#!/usr/bin/env python
"""Show what some arms of the comparison make of a phantom: the middle plane, and the PSNR of the volume.

python benchmarks/pictures.py --out docs/figures/quality.png
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


def main(argv: Sequence[str] | None = None) -> None:
    """Run the arms and draw their planes, a row for each noise."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--phantom", choices=("brain", "ct", "pet"), default="brain")
    add("--crop", type=int, default=64, help="keep the middle, so many voxels an axis (default %(default)s)")
    add("--columns", nargs="+", choices=tuple(COLUMNS), default=["g25", "p05", "k50", "c25"], metavar="COLUMN")
    add("--arms", nargs="+", choices=tuple(ARMS), default=["noisy", "bm4d", "base", "adapted"], metavar="ARM")
    add("--adapt-steps", type=int, default=800)
    add("--out", type=Path, default=Path("docs/figures/quality.png"))
    options = parser.parse_args(argv)
    set_threads(1)
    settings = Settings(TrainingConfig(), replace(ADAPTATION, steps=options.adapt_steps), Compute.choose())
    volume = phantom(options.phantom).cropped(options.crop)
    plane = volume.x.shape[-1] // 2
    rows, columns = len(options.columns), 1 + len(options.arms)
    figure = Figure(figsize=(2.2 * columns, 2.4 * rows), dpi=80, layout="constrained")
    FigureCanvasAgg(figure)
    for row, column in enumerate(options.columns):
        scan = scan_of(volume, column, 0)
        shown = [("clean" if row == 0 else "", volume.x)]
        for arm in options.arms:
            x_hat = ARMS[arm].run(scan if ARMS[arm].truth else replace(scan, clean=None), settings).x_hat
            shown.append((f"{ARMS[arm].title}\n{COLUMNS[column].title}: {psnr(x_hat, volume.x):.2f} dB", x_hat))
        for place, (title, x) in enumerate(shown, start=1 + row * columns):
            axes = figure.add_subplot(rows, columns, place)
            axes.imshow(x[..., plane].T, cmap="gray", vmin=0, vmax=1)
            axes.set_title(title, fontsize=7)
            axes.axis("off")
    options.out.parent.mkdir(parents=True, exist_ok=True)
    with whole(options.out, overwrite=True) as partial:
        figure.savefig(partial, format="png")


if __name__ == "__main__":
    main()
