#!/usr/bin/env python
"""Compare n2s-med with its peers on clean volumes to which noise is added: PSNR, SSIM and time.

    python benchmarks/quality.py --cache quality.jsonl
    python benchmarks/quality.py --phantom ct --columns g25 c25 --arms bm4d ours --seeds 1

Arms named oracle or supervised are given the clean volume, and Noise2Noise a second scan; no other arm is. A run
that was killed goes on from its cache. The tables go between the markers of ``--out``.
"""

from __future__ import annotations

import argparse
import functools
import hashlib
import itertools
import os
import shlex
import sys
import textwrap
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch
from arms import ARMS, Settings
from cases import COLUMNS, CORRELATION_SD, Scan, Volume, from_file, phantom, save_scan, scan_of
from records import Cache, Record, psnr, ssim, write_between_markers
from table import KEY, markdown
from torch import Tensor

import n2s_med
from n2s_med.compute import Compute, set_threads
from n2s_med.errors import N2SError
from n2s_med.score import ScoreModel, base_model
from n2s_med.training import ADAPTATION, TrainingConfig

TRAINS = ("noise", "score", "training")
"""Folders of the package on which a trained arm's result depends."""

EDGE = 0.1
"""Difference of neighbouring voxels that counts as an edge when a volume's roughness is told."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run the comparison; the exit status."""
    given = list(sys.argv[1:] if argv is None else argv)
    options = _parser().parse_args(given)
    try:
        _compare(options, given)
    except N2SError as error:
        print(f"quality: {error}", file=sys.stderr)
        return error.exit_code
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--volume", nargs="+", type=Path, default=[], help="clean NIfTI volumes, besides any --phantom")
    add("--phantom", nargs="+", choices=("brain", "fine-brain", "ct", "pet"), default=[], help="default: brain")
    add("--crop", type=int, help="keep the middle of each volume, at most so many voxels an axis")
    add("--columns", nargs="+", choices=tuple(COLUMNS), default=list(COLUMNS), metavar="COLUMN", help="of %(choices)s")
    add("--arms", nargs="+", choices=tuple(ARMS), default=list(ARMS), metavar="ARM", help="of %(choices)s")
    add("--steps", type=int, default=600, help="training steps of every network (default %(default)s)")
    add("--adapt-steps", type=int, default=800, help="steps that adapt the base weights (default %(default)s)")
    add("--seeds", type=int, default=3, help="seeds of noise and training (default %(default)s)")
    add("--classical-seeds", type=int, help="seeds of the arms that do not train (default: --seeds)")
    add("--set", nargs="+", default=[], metavar="KEY=VALUE", help="training keys of the networks")
    add("--threads", type=int, default=1, help="threads of every arm (default %(default)s)")
    add("--cache", type=Path, help="JSON-lines file of finished results; a killed run goes on from it")
    add("--also-code", nargs="+", default=[], metavar="HASH", help="take cached results of these versions of the code")
    add("--cached-only", action="store_true", help="run nothing, write the tables of what the cache holds")
    add("--write-scans", type=Path, metavar="DIR", help="only write the noisy volumes there, for peers.py")
    add("--out", type=Path, default=Path("docs/results.md"), help="Markdown file (default %(default)s)")
    return parser


def _compare(options: argparse.Namespace, given: Sequence[str]) -> None:
    os.environ["OMP_NUM_THREADS"] = str(options.threads)
    set_threads(options.threads)
    if options.write_scans:
        for volume, seed, column in itertools.product(_volumes(options), range(options.seeds), options.columns):
            save_scan(options.write_scans, volume, column, seed)
        print(f"scans: {options.write_scans}")
        return
    overrides = dict(pair.split("=", 1) for pair in options.set)
    adaptation = replace(ADAPTATION, steps=options.adapt_steps)
    settings = Settings(
        TrainingConfig.from_mapping({**overrides, "steps": options.steps}), adaptation, Compute.choose()
    )
    code_hash()  # of what is loaded now, whatever happens to the files during the run
    cache = Cache(options.cache, KEY)
    records = []
    for volume in _volumes(options):
        for seed in range(options.seeds):
            for column in options.columns:
                for arm in options.arms:
                    if ARMS[arm].learns or seed < (options.classical_seeds or options.seeds):
                        record = _result(volume, column, arm, seed, settings, cache, options)
                        records += [record] if record else []
            if records:
                write_between_markers(options.out, _document(records, settings, given))
    print(f"tables: {options.out}")


def _volumes(options: argparse.Namespace) -> list[Volume]:
    names = options.phantom or ([] if options.volume else ["brain"])
    volumes = [phantom(name) for name in names] + [from_file(path) for path in options.volume]
    return [v.cropped(options.crop) if options.crop else v for v in volumes]


def _result(
    volume: Volume, column: str, arm: str, seed: int, settings: Settings, cache: Cache, options: argparse.Namespace
) -> Record | None:
    """One cell's record of one seed, from the cache or made now."""
    given = settings.adaptation if ARMS[arm].adapts else settings.config
    training = asdict(replace(given, seed=seed)) if ARMS[arm].learns else {}
    if ARMS[arm].adapts:
        weights = ARMS[arm].weights
        training["base"] = (ScoreModel.load(weights) if weights else base_model(volume.x.ndim)).hash[:10]
    key: dict[str, Any] = {
        "volume": volume.name,
        "shape": list(volume.x.shape),
        "column": column,
        "arm": arm,
        "seed": seed,
        "training": {**training, "channels": list(training["channels"])} if training else {},
        "code": code_hash() if ARMS[arm].learns else "",
    }
    codes = [key["code"], *options.also_code]
    kept = next(filter(None, (cache.get(**{**key, "code": code}) for code in codes)), None)
    if kept or options.cached_only:
        return kept
    scan = scan_of(volume, column, seed)
    start = time.process_time()
    result = ARMS[arm].run(scan if ARMS[arm].truth else _without_truth(scan), settings)
    record = {
        **key,
        "psnr": psnr(result.x_hat, volume.x),
        "ssim": ssim(result.x_hat, volume.x),
        "cpu_s": time.process_time() - start,
        "rough": roughness(volume.x),
        "notes": dict(result.notes),
    }
    cache.add(record)
    print(f"{volume.name}, {column}, {arm}, seed {seed}: {record['psnr']:.2f} dB, {record['cpu_s']:.0f} s", flush=True)
    return record


def _without_truth(scan: Scan) -> Scan:
    return replace(scan, clean=None)


# -- figures ---------------------------------------------------------------------------------------------


def roughness(x: Tensor) -> float:
    """Share of neighbouring voxels that differ by more than 0.1."""
    steps = torch.cat([x.diff(dim=axis).abs().flatten() for axis in range(x.ndim)])
    return float((steps > EDGE).float().mean())


@functools.cache
def code_hash() -> str:
    """Short SHA-256 over the package's sources: networks trained by other code are not in the same table.

    Without the defaults of training keys: what they were is part of each record.
    """
    digest = hashlib.sha256()
    root = Path(n2s_med.__file__).parent
    for path in sorted(
        [root / "denoise.py", root / "few_counts.py", *(p for d in TRAINS for p in (root / d).glob("*.py"))]
    ):
        if path.name != "config.py":
            digest.update(path.read_bytes())
    return digest.hexdigest()[:10]


# -- the document ----------------------------------------------------------------------------------------


def _document(records: Sequence[Record], settings: Settings, given: Sequence[str]) -> str:
    """What goes between the markers."""
    names = [Path(word).name if "/" in word else word for word in given]
    config = settings.config
    law = COLUMNS["c25"].correlation
    here, diagonal, two = (law.autocorrelation(lag) for lag in ((1, 0, 0), (1, 1, 0), (2, 0, 0)))
    kernel = f"a Gaussian of SD {CORRELATION_SD} voxel"
    channels = "/".join(str(c) for c in config.channels)
    codes = ", ".join(f"{code} ({n})" for code, n in Counter(r["code"] for r in records if r["code"]).items()) or "–"
    twice = "by ours and MC-SURE" if config.antithetic else "by MC-SURE"
    paragraphs = (
        f"""Clean volumes are mapped to [0.02, 1] and noise levels are on that scale, σ in 255ths. Cells are the
        mean ± standard deviation over the seeds, of noise and training together. The noise of the correlated
        column is white noise convolved with {kernel}: correlation {here:.2f} between neighbours along an axis,
        {diagonal:.2f} along the diagonal of a face, {two:.2f} two voxels apart. The brain phantom is rougher than
        real scans, and so harder.""",
        f"""Every network is the same 3D UNet {channels}; four orientations are averaged, two of base weights as they
        are. New ones are trained on this one volume for {config.steps} steps of {config.patches} patches of
        {config.patch}³, each passed once ({twice} twice); base weights are adapted in {settings.adaptation.steps}
        steps. The clean volume is used for scoring, by the oracle filter and the supervised arms, and to draw
        Noise2Noise's second scan; the other arms are not given it. Times are CPU times. Code (and trained cells by
        it): {codes}.""",
    )
    text = "\n\n".join(textwrap.fill(" ".join(p.split()), 120) for p in paragraphs)
    return f"""\
## Quality on simulated noise

Made by

    python benchmarks/quality.py {shlex.join(names)}

{text}

{markdown(records)}
"""


if __name__ == "__main__":
    sys.exit(main())
