"""What averaging over orientations of the volume gains, by the base weights as they are.

    python benchmarks/orientations.py

On phantoms, noise and level known, a step of one, one seed, the plain network in one piece. A volume passed in some
orientation and turned back is the volume passed by a turned network, so any of the 48 costs one pass.
"""

from __future__ import annotations

import argparse
import itertools
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from cases import COLUMNS, Volume, phantom, scan_of
from records import grid, psnr, write_between_markers
from torch import Tensor

from n2s_med.compute import Compute, set_threads
from n2s_med.noise.correlation import Correlation
from n2s_med.score import base_model
from n2s_med.score.orientations import MOST, Orientation, orientations

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
    parser.add_argument("--threads", type=int, default=1, help="threads (default %(default)s)")
    parser.add_argument("--out", type=Path, default=Path("docs/performance.md"))
    arguments = parser.parse_args()
    set_threads(arguments.threads)
    cases = [(phantom(name), column) for name in arguments.phantom for column in arguments.columns]
    gains = [_gains(*case) for case in cases]
    head = ["", "passes", *(f"{volume.name}, {COLUMNS[column].title}" for volume, column in cases), "mean"]
    rows = [
        [
            name,
            str(len(ways)),
            *(f"{gain[name]:+.2f}" for gain in gains),
            f"{sum(g[name] for g in gains) / len(gains):+.3f}",
        ]
        for name, ways in SETS.items()
    ]
    write_between_markers(arguments.out, f"PSNR over that of one pass, dB.\n\n{grid(head, rows)}", "orientations")


@torch.no_grad()
def _gains(volume: Volume, column: str) -> dict[str, float]:
    """PSNR of the mean over each set of orientations, over that of one pass."""
    scan, compute = scan_of(volume, column, 0), Compute.choose()
    noise, u = scan.noise, scan.noise.law.to_unit(scan.y).float()
    model = base_model(3).centred(float(u.median()))
    traits = noise.correlation.traits[None]

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
