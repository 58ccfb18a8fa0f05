#!/usr/bin/env python
"""Blind noise estimates against the truth, over laws, levels, correlations and a map; written as a Markdown table.

    python benchmarks/noise_levels.py --seeds 3
    python benchmarks/noise_levels.py --volume scan.nii.gz --score-steps 600

Noise is added to clean volumes: the generated anatomies, and files whose own noise is far below what is added.
With ``--score-steps`` the published methods (search, two perturbations) are in the table too: for each law and
volume a score is learned from the one noisy scan, as `--estimator` does.
"""

from __future__ import annotations

import argparse
import math
import os
import statistics
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from types import MappingProxyType

import torch
from cases import COLUMNS, Column, Scan, Volume, from_file, phantom, sample

from n2s_med.atomic import whole
from n2s_med.compute import set_threads
from n2s_med.errors import InputError
from n2s_med.jobs.level_free import TRAINING, learned_score
from n2s_med.noise import Gaussian, NoiseModel, Tweedie
from n2s_med.noise.by_score import Score, search, two_perturbations
from n2s_med.noise.correlation import Correlation
from n2s_med.noise.estimate import Estimate, estimate

HIDDEN = 0.01
"""Rescaling from the first to the last slice, either way, by which counts leave their lattice, as a scanner's
corrections make them."""

LEAST = 1e-6
"""Where a law admits no negative value, correlated noise, which is Gaussian given the clean value, stops here."""

METHODS: Mapping[str, Callable[..., NoiseModel]] = MappingProxyType(
    {"search": search, "two perturbations": two_perturbations}
)


@dataclass(frozen=True)
class Case:
    """One kind of noise, and whether counts are hidden."""

    column: Column
    hidden: bool = False


def _cases() -> dict[str, Case]:
    """Those of the comparison of denoisers, and more levels."""
    correlation = COLUMNS["c25"].correlation
    in_plane = Correlation.from_kernel(correlation.kernel[..., correlation.kernel.shape[-1] // 2, None])
    counts = {k: replace(COLUMNS[k], title=f"{COLUMNS[k].title}, hidden", quantum=0.0) for k in ("p01", "p05")}
    white = COLUMNS["g25"].correlation
    return {
        "g5": Case(Column("G σ=5", Gaussian(5 / 255), white)),
        **{key: Case(COLUMNS[key]) for key in ("g10", "g25", "g50")},
        "c10": Case(Column("correlated 10", Gaussian(10 / 255), correlation)),
        "c25": Case(COLUMNS["c25"]),
        "s25": Case(Column("correlated in plane 25", Gaussian(25 / 255), in_plane)),
        "v25": Case(COLUMNS["v25"]),
        **{key: Case(COLUMNS[key]) for key in ("p01", "p05")},
        **{f"{key}h": Case(column, hidden=True) for key, column in counts.items()},
        **{key: Case(COLUMNS[key]) for key in ("k100", "k50")},
        "t15": Case(Column("Tweedie 1.5, φ=0.01", Tweedie(1.5, 0.01), white)),
        "t17c": Case(Column("Tweedie 1.7, φ=0.02, correlated", Tweedie(1.7, 0.02), correlation)),
    }


CASES = MappingProxyType(_cases())
HEAD = (
    "noise",
    "level found / true",
    "in its interval",
    "neighbours found",
    "true",
    "power found",
    "true",
    "maps",
    *METHODS,
)


def main(argv: Sequence[str] | None = None) -> int:
    """Estimate, compare and write; the exit status."""
    options = _parser().parse_args(argv)
    os.environ["OMP_NUM_THREADS"] = str(options.threads)
    set_threads(options.threads)
    volumes = [phantom(name) for name in options.phantom] + [from_file(path) for path in options.volume]
    parts = []
    for volume in (v.cropped(options.crop) if options.crop else v for v in volumes):
        rows = []
        for key in options.cases:
            rows.append(_row(volume, CASES[key], options))
            print(f"{volume.name}: {' | '.join(rows[-1])}", flush=True)
        parts.append(_section(volume, rows))
        with whole(options.out, overwrite=True) as partial:
            partial.write_text(_document("\n\n".join(parts), options), encoding="utf-8")
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--phantom", nargs="*", default=["brain", "ct", "pet"], choices=["brain", "ct", "pet"])
    add("--volume", nargs="*", type=Path, default=[], help="clean NIfTI volumes")
    add("--cases", nargs="+", default=list(CASES), choices=list(CASES))
    add("--seeds", type=int, default=3)
    add("--crop", type=int, default=0, help="use the centre alone, so many voxels along each axis")
    add("--score-steps", type=int, default=0, help="training steps of a score for the published methods; 0 for none")
    add("--threads", type=int, default=1)
    add("--out", type=Path, default=Path("docs/noise_levels.md"))
    return parser


def _row(volume: Volume, case: Case, options: argparse.Namespace) -> list[str]:
    """One line of the table."""
    truth, found, published = case.column.noise_of(volume.x), [], {name: [] for name in METHODS}
    true = level_of(truth.law)
    for seed in range(options.seeds):
        generator = torch.Generator().manual_seed(seed)
        y = sample(volume.x, truth, generator)
        if case.hidden:
            y = y * torch.linspace(1 - HIDDEN, 1 + HIDDEN, y.shape[-1])
        if truth.law.variance_power and not truth.correlation.is_white:
            y = y.clamp_min(LEAST)
        inside = torch.ones_like(y, dtype=torch.bool)
        found.append(estimate(y, inside, volume.spacing_mm, truth.law.name, seed=seed))
        if options.score_steps and seed == 0 and _published(case):
            score = _score(Scan(y, truth, volume.spacing_mm, seed), options)
            for name, method in METHODS.items():
                published[name].append(_ratio(method, y, score, truth.law.name, true))
    ratios = [_level_ratio(e.noise.law, truth.law, volume.x.mean()) for e in found]
    covered = sum(e.level_interval[0] * r <= 1 <= e.level_interval[1] * r for e, r in zip(found, ratios, strict=True))
    counted = all(e.noise.quantum for e in found)
    return [
        case.column.title,
        _mean(ratios, 3),
        "exact" if counted else f"{covered} of {len(found)}",
        "/".join(
            f"{statistics.fmean(lags):.2f}" for lags in zip(*(e.neighbour_correlation for e in found), strict=True)
        ),
        "/".join(f"{lag:.2f}" for lag in truth.correlation.neighbours),
        _power(found),
        f"{truth.law.variance_power:.2g}",
        f"{sum(e.variation is not None for e in found)} of {len(found)}" + (" (true)" if case.column.varies else ""),
        *(", ".join(published[name]) or "–" for name in METHODS),
    ]


def _power(found: Sequence[Estimate]) -> str:
    """The exponents found, where there are flat blocks of more than one intensity."""
    if any(math.isnan(e.power) for e in found):
        return "–"
    mean = _mean([e.power for e in found], 2)
    return mean if all(e.power_told for e in found) else f"not told ({mean} at most)"


def level_of(law: NoiseModel) -> float:
    """The law's level: its last parameter, the median of a map."""
    return list(law.parameters.values())[-1]


def _level_ratio(found: NoiseModel, true: NoiseModel, at: torch.Tensor) -> float:
    """Level found over the true one, of a map the median; where the exponent is measured too, ratio of variances."""
    if true.fixed_power is None:
        return float((found.variance(at) / true.variance(at)).median())
    return level_of(found) / level_of(true)


def _published(case: Case) -> bool:
    """Whether the methods that need a score know such noise: a law of theirs, white, one level."""
    return (
        case.column.correlation.is_white
        and not (case.column.varies or case.hidden)
        and case.column.law.name != "tweedie"
    )


def _score(scan: Scan, options: argparse.Namespace) -> Score:
    config = replace(TRAINING, steps=options.score_steps, seed=scan.seed)
    return learned_score(scan.y, scan.valid, scan.spacing_mm, config, "auto", quiet=True)[0]


def _ratio(method: Callable[..., NoiseModel], y: torch.Tensor, score: Score, law: str, true: float) -> str:
    try:
        return f"{level_of(method(y, score, law)) / true:.2f}"
    except InputError:
        return "no solution"


def _mean(values: Sequence[float], digits: int) -> str:
    mean = f"{statistics.fmean(values):.{digits}f}"
    return f"{mean} ± {statistics.stdev(values):.{digits}f}" if len(values) > 1 else mean


def _section(volume: Volume, rows: Sequence[Sequence[str]]) -> str:
    shape = " × ".join(str(n) for n in volume.x.shape)
    lines = [HEAD, ["---"] * len(HEAD), *rows]
    table = "\n".join("| " + " | ".join(line) + " |" for line in lines)
    return f"## {volume.name[0].upper()}{volume.name[1:]}, {shape} voxels\n\n{table}"


def _document(tables: str, options: argparse.Namespace) -> str:
    used = options.score_steps
    told = (
        f"The two published methods are given a score learned from the first noisy scan in {used} steps without its"
        " level, as by `--estimator`, and white noise of one level and a law of theirs."
        if used
        else "The published methods were left out (`--score-steps`)."
    )
    lag = COLUMNS["c25"].correlation.neighbours[0]
    return f"""\
# Blind noise estimates against the truth

Written by `python benchmarks/noise_levels.py`, {options.seeds} seeds. Clean volumes are mapped to [0.02, 1]; σ in
255ths of that.
Levels: σ, ζ, k or φ found over the true one, mean ± standard deviation over the seeds; of a map its median; of a
Tweedie law, whose exponent is measured too, the variance at the mean intensity. In its
interval: in how many scans the 95 % interval held the truth. Neighbours: correlation of the noise of neighbouring
voxels along x/y/z (true: {lag:.2f} at most). Power: exponent of the variance function that the scan
shows; not told where fewer than three shades have flat blocks on a common line: then what upper bounds leave, and
the interval of the level holds all of it.
Maps: in how many scans the level was taken to vary in space. Hidden counts are rescaled slice by slice and lie on no
lattice. {told}

{tables}
"""


if __name__ == "__main__":
    sys.exit(main())
