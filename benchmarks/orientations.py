"""What averaging over orientations of the volume gains, by the base weights and by those adapted to the scan.

    python benchmarks/orientations.py

On phantoms, noise and level known, a step of one, one seed, the plain network in one piece. A volume passed in some
orientation and turned back is the volume passed by a turned network, so any of the 48 costs one pass.
"""

from __future__ import annotations

import argparse
import itertools
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import torch
from arms.ours import trained_model
from cases import COLUMNS, Volume, phantom, scan_of
from records import grid, psnr, write_between_markers
from torch import Tensor

from n2s_med.compute import Compute, set_threads
from n2s_med.noise.correlation import Correlation
from n2s_med.score import base_model
from n2s_med.score.orientations import MOST, Orientation, orientations
from n2s_med.training import ADAPTATION

VOLUMES = ("brain", "ct", "pet")
AXES = (0, 1, 2)
EVERY = [
    Orientation(order, flips)
    for order in itertools.permutations(AXES)
    for n in range(len(AXES) + 1)
    for flips in itertools.combinations(AXES, n)
]
FLIPS = [way for way in EVERY if way.order == AXES]
AS_IT_IS, EXCHANGED = Orientation(AXES), (1, 0, 2)
CHOSEN = orientations(MOST, (1.0,) * 3, Correlation.white())
SETS: Mapping[str, Sequence[Orientation]] = {
    "flip of one axis of the planes": [AS_IT_IS, Orientation(AXES, (0,))],
    "flips of all axes": [AS_IT_IS, Orientation(AXES, AXES)],
    "the planes' axes exchanged": [AS_IT_IS, Orientation(EXCHANGED)],
    "**exchanged and all flipped: taken for two**": CHOSEN[:2],
    "the four flips of the planes": [way for way in FLIPS if 2 not in way.flips],
    "**taken for four**": CHOSEN,
    "all eight flips": FLIPS,
    "all 48 orientations": EVERY,
}


def main() -> None:
    """Measure and write the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--phantom", nargs="+", choices=VOLUMES, default=list(VOLUMES))
    parser.add_argument("--columns", nargs="+", choices=tuple(COLUMNS), default=["g25", "p05", "c25"])
    parser.add_argument("--adapt-steps", type=int, default=600, help="of the second table, of the first phantom")
    parser.add_argument("--threads", type=int, default=1, help="threads (default %(default)s)")
    parser.add_argument("--out", type=Path, default=Path("docs/performance.md"))
    arguments = parser.parse_args()
    set_threads(arguments.threads)
    volumes, columns, steps = [phantom(name) for name in arguments.phantom], arguments.columns, arguments.adapt_steps
    tables = [
        "PSNR over that of one pass, dB. Base weights as they are:",
        _table(list(itertools.product(volumes, columns)), 0),
        f"Base weights adapted in {steps} steps:",
        _table(list(itertools.product(volumes[:1], columns)), steps),
    ]
    write_between_markers(arguments.out, "\n\n".join(tables), "orientations")


def _table(cases: Sequence[tuple[Volume, str]], steps: int) -> str:
    """Gains of each set, case by case and in the mean."""
    gains = [_gains(volume, column, steps) for volume, column in cases]
    head = ["", "passes", *(f"{volume.name}, {COLUMNS[column].title}" for volume, column in cases), "mean"]

    def row(name: str) -> list[str]:
        found = [gain[name] for gain in gains]
        return [name, str(len(SETS[name])), *(f"{gain:+.2f}" for gain in found), f"{statistics.fmean(found):+.3f}"]

    return grid(head, [row(name) for name in SETS])


def _gains(volume: Volume, column: str, steps: int) -> dict[str, float]:
    """PSNR of the mean over each set of orientations, over that of one pass, of weights adapted in so many steps."""
    scan, compute = scan_of(volume, column, 0), Compute.choose()
    noise, u = scan.noise, scan.noise.law.to_unit(scan.y).float()
    model = base_model(3).centred(float(u.median()))
    if steps:
        blind = replace(scan, clean=None)
        model, _ = trained_model(blind, noise, replace(ADAPTATION, steps=steps), base_model(3), compute)
    traits = noise.correlation.traits[None]

    @torch.no_grad()
    def score(way: Orientation) -> Tensor:
        with compute.autocast():
            answer = way.of(model.network)(compute.place(u[None, None]), traits.to(compute.device))
        return model.scale * answer[0, 0].float().cpu()

    answers = {way: score(way) for way in EVERY}

    def decibels(ways: Sequence[Orientation]) -> float:
        mean = torch.stack([answers[way] for way in ways]).mean(dim=0)
        return psnr(noise.law.mean_from_unit(scan.y, mean), volume.x)

    found = {name: decibels(ways) - decibels([AS_IT_IS]) for name, ways in SETS.items()}
    print(f"{volume.name}, {column}: " + ", ".join(f"{gain:+.2f}" for gain in found.values()), flush=True)
    return found


if __name__ == "__main__":
    main()
