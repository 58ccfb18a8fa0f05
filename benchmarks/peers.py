#!/usr/bin/env python
"""Peers as their users run them, on the noisy volumes of quality.py, in an environment of their own.

    make peers
    .venv/bin/python benchmarks/quality.py --write-scans scans --seeds 1 --columns g25 p05 k50
    .venv-peers/bin/python benchmarks/peers.py scans --cache docs/peers.jsonl --beside docs/quality.jsonl

A peer that trains does so on the noisy volume alone, for as much CPU time as ours takes. ``--beside`` takes the rows
of ours, and of the classical methods, from the results of quality.py on the same volumes. The table goes between the
``peers`` markers of ``--out``.
"""

from __future__ import annotations

import argparse
import functools
import json
import os
import shlex
import statistics
import sys
import tempfile
import textwrap
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple
from unittest.mock import patch

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

sys.path.insert(0, str(Path(__file__).parents[1]))

from records import Cache, Record, cell, grid, psnr, ssim, write_between_markers

from n2s_med.noise import NoiseModel, law_named

PATCH = 24
BATCH = 2
CHANNELS = (16, 32, 64)
"""Of deepinv's 3D UNet, for which it leaves the choice to its user: those of ours."""

LEARNING_RATE = 5e-4
"""Adam's, in deepinv's examples of denoising."""

TIMED_STEPS = 8
"""Steps timed, after one to warm up, to turn the budget into a number of steps."""

KEY = ("volume", "shape", "column", "seed", "peer", "seconds")


@dataclass(frozen=True)
class Scan:
    """A noisy volume (X, Y, Z), the law of its noise with its level, and the seed."""

    y: Tensor
    law: NoiseModel
    seed: int


Scanned = tuple[str, tuple[int, ...], str, int]
"""Volume, shape, column and seed of a scan."""

Run = Callable[[Scan, float], Tensor]
"""From the scan and the CPU seconds that training may take to the denoised volume."""


# -- classical -------------------------------------------------------------------------------------------


def non_local_means(scan: Scan, seconds: float) -> Tensor:  # noqa: ARG001
    """scikit-image's fast mode, its patch size and distance, h = 0.6 σ as its examples have it."""
    from skimage.restoration import denoise_nl_means

    u = scan.law.to_unit(scan.y).numpy()
    return _from_unit(scan, denoise_nl_means(u, patch_size=5, patch_distance=5, h=0.6, sigma=1.0, fast_mode=True))


def bm4d(scan: Scan, seconds: float) -> Tensor:  # noqa: ARG001
    """BM4D's default profile, given the true level."""
    import bm4d as package

    u = scan.law.to_unit(scan.y).numpy().astype(np.float64)
    low, span = u.min(), np.ptp(u)
    with patch.object(np, "trapz", np.trapezoid, create=True):  # bm4d 4.2.5 needs it, NumPy 2.4 has it no more
        return _from_unit(scan, package.bm4d((u - low) / span, 1 / span) * span + low)


def _from_unit(scan: Scan, u_hat: Any) -> Tensor:
    return scan.law.unbiased_inverse(torch.as_tensor(u_hat, dtype=torch.float32).reshape(scan.y.shape))


# -- deepinv ---------------------------------------------------------------------------------------------


class Patches(Dataset[dict[str, Tensor]]):
    """Random patches of one noisy volume."""

    def __init__(self, y: Tensor, count: int, seed: int) -> None:
        self.y, self.count, self.seed = y, count, seed

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        generator = torch.Generator().manual_seed(1_000_003 * self.seed + index)
        corner = [int(torch.randint(max(1, n - PATCH + 1), (), generator=generator)) for n in self.y.shape]
        return {"y": self.y[tuple(slice(c, c + PATCH) for c in corner)][None].clone()}


def score_loss(scan: Scan, seconds: float) -> Tensor:
    """deepinv's Noise2Score: AR-DAE in image units, its own formula for each law."""
    _import_torchvision()
    import deepinv

    return _deepinv(scan, seconds, lambda law, steps: deepinv.loss.ScoreLoss(law, total_batches=steps))


def r2r_loss(scan: Scan, seconds: float) -> Tensor:
    """deepinv's (generalised) recorrupted-to-recorrupted loss, averaging five recorruptions."""
    _import_torchvision()
    import deepinv

    return _deepinv(scan, seconds, lambda law, _: deepinv.loss.R2RLoss(noise_model=law))


def _deepinv(scan: Scan, seconds: float, loss_of: Callable[[nn.Module, int], nn.Module]) -> Tensor:
    """Train deepinv's UNet by its Trainer, then denoise the whole volume."""
    start = time.process_time()
    _train_deepinv(scan, 1, loss_of)
    warm = time.process_time()
    _train_deepinv(scan, TIMED_STEPS, loss_of)
    spent = time.process_time()
    steps = max(1, int((seconds - (spent - start)) / ((spent - warm) / TIMED_STEPS)))
    model, physics = _train_deepinv(scan, steps, loss_of)
    with torch.no_grad():
        x_hat: Tensor = model.eval()(scan.y[None, None].clone(), physics)[0, 0]
    return x_hat


def _train_deepinv(
    scan: Scan, steps: int, loss_of: Callable[[nn.Module, int], nn.Module]
) -> tuple[nn.Module, nn.Module]:
    import deepinv

    (level,) = scan.law.parameters.values()
    noises = deepinv.physics
    laws = {"gaussian": noises.GaussianNoise, "poisson": noises.PoissonNoise, "gamma": noises.GammaNoise}
    law = laws[scan.law.name](level)
    physics = deepinv.physics.Denoising(law)
    torch.manual_seed(scan.seed)
    loss = loss_of(law, steps)
    network = deepinv.models.UNet(channels_per_scale=CHANNELS, dim=3, batch_norm=False)
    model = loss.adapt_model(deepinv.models.ArtifactRemoval(network))
    trainer = deepinv.Trainer(
        model=model,
        physics=physics,
        optimizer=torch.optim.Adam(model.parameters(), lr=LEARNING_RATE),
        train_dataloader=DataLoader(Patches(scan.y, steps * BATCH, scan.seed), batch_size=BATCH),
        epochs=1,
        losses=loss,
        metrics=None,
        compute_train_metrics=False,
        device="cpu",
        save_path=None,
        verbose=False,
    )
    return trainer.train(), physics


# -- CAREamics -------------------------------------------------------------------------------------------


def noise2void(scan: Scan, seconds: float) -> Tensor:
    """CAREamics' Noise2Void: its 3D UNet, masking, augmentation and optimizer, patches of 32³."""
    _import_torchvision()
    from careamics import CAREamist
    from careamics.config import create_advanced_n2v_config
    from lightning.pytorch.callbacks import Callback

    end = time.process_time() + seconds

    class Budget(Callback):
        """Stops the training when the CPU time is spent."""

        def on_train_batch_end(self, trainer: Any, *_: Any) -> None:
            trainer.should_stop = time.process_time() > end

    config = create_advanced_n2v_config(
        experiment_name="peer",
        data_type="array",
        axes="ZYX",
        patch_size=(32, 32, 32),
        batch_size=BATCH,
        num_epochs=100_000,
        num_workers=0,
        seed=scan.seed + 1,  # it takes none below one
    )
    with tempfile.TemporaryDirectory() as folder:
        careamist = CAREamist(config, work_dir=folder, callbacks=[Budget()], enable_progress_bar=False)
        careamist.train(train_data=scan.y.numpy())
        predictions, _ = careamist.predict(scan.y.numpy(), tile_size=(32, 64, 64), tile_overlap=(8, 16, 16))
    return torch.as_tensor(np.asarray(predictions[0]), dtype=torch.float32).reshape(scan.y.shape)


class Peer(NamedTuple):
    """One peer: its row of the table, its function, the package it is of, and whether it trains."""

    title: str
    run: Run
    package: str
    trains: bool = False


PEERS: Mapping[str, Peer] = MappingProxyType(
    {
        "nlm": Peer("non-local means, true level", non_local_means, "scikit-image"),
        "bm4d": Peer("BM4D, true level", bm4d, "bm4d"),
        "score": Peer("deepinv ScoreLoss, true level", score_loss, "deepinv", trains=True),
        "r2r": Peer("deepinv R2RLoss (GR2R), true level", r2r_loss, "deepinv", trains=True),
        "n2v": Peer("CAREamics Noise2Void", noise2void, "careamics", trains=True),
    }
)


BESIDE: Mapping[str, str] = MappingProxyType(
    {
        "nlm": "non-local means, true level",
        "bm4d": "BM4D, true level",
        "ours": "ours, a new network",
        "base": "ours, base weights as they are",
        "adapted": "ours, base weights adapted",
    }
)
"""Arms of quality.py that have a row in the table."""


# -- the comparison --------------------------------------------------------------------------------------


def main(argv: Sequence[str] | None = None) -> None:
    """Run the peers on every scan of a folder, and write their table."""
    given = list(sys.argv[1:] if argv is None else argv)
    options = _parser().parse_args(given)
    os.environ["OMP_NUM_THREADS"] = "1"
    torch.set_num_threads(1)
    cache = Cache(options.cache, KEY)
    paths = sorted(options.scans.glob("*.npz"))
    if not paths:
        sys.exit(f"peers: {options.scans}: holds no scans; write some with quality.py --write-scans")
    records: list[Record] = []
    scans = set()
    for path in paths:
        with np.load(path) as archive:
            content = {name: archive[name][()] for name in archive.files}
        scans.add((str(content["volume"]), content["y"].shape, str(content["column"]), int(content["seed"])))
        for peer in options.peers:
            record = _result(content, peer, options.seconds, cache, options.cached_only)
            if record is None:
                continue
            records.append(record)
            beside = _beside(options.beside, scans) if options.beside else []
            write_between_markers(options.out, _document(records, beside, options.seconds, given), "peers")
    print(f"table: {options.out}")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("scans", type=Path, help="folder that quality.py --write-scans has filled")
    add("--peers", nargs="+", choices=tuple(PEERS), default=list(PEERS), metavar="PEER", help="of %(choices)s")
    add("--seconds", type=float, default=45.0, help="CPU seconds that a peer may train (default %(default)s)")
    add("--cache", type=Path, help="JSON-lines file of finished results; a killed run goes on from it")
    add("--beside", type=Path, help="cache of quality.py, from which the rows of ours are taken")
    add("--cached-only", action="store_true", help="run nothing, write the table of what the cache holds")
    add("--out", type=Path, default=Path("docs/peers.md"), help="Markdown file (default %(default)s)")
    return parser


def _result(content: Mapping[str, Any], peer: str, seconds: float, cache: Cache, cached_only: bool) -> Record | None:
    """One cell's record of one seed, from the cache or made now."""
    key: dict[str, Any] = {
        "volume": str(content["volume"]),
        "shape": list(content["y"].shape),
        "column": str(content["column"]),
        "seed": int(content["seed"]),
        "peer": peer,
        "seconds": seconds if PEERS[peer].trains else 0,
    }
    kept = cache.get(**key)
    if kept or cached_only:
        return kept
    level = {name.removeprefix("law_"): float(content[name]) for name in content if name.startswith("law_")}
    scan = Scan(torch.as_tensor(content["y"]), law_named(str(content["law"]), **level), key["seed"])
    clean = torch.as_tensor(content["clean"])
    start = time.process_time()
    x_hat = PEERS[peer].run(scan, seconds)
    record = {
        **key,
        "title": str(content["title"]),
        "packages": [f"{name} {version(name)}" for name in (PEERS[peer].package, "torch")],
        "psnr": psnr(x_hat, clean),
        "ssim": ssim(x_hat, clean),
        "noisy_psnr": psnr(scan.y, clean),
        "cpu_s": time.process_time() - start,
    }
    cache.add(record)
    print(json.dumps(record), flush=True)
    return record


def _beside(cache: Path, scans: Collection[Scanned]) -> list[Record]:
    """What quality.py has found on these scans; of several trainings the one in the file's last line."""
    found: dict[tuple[Any, ...], Record] = {}
    for record in map(json.loads, cache.read_text().splitlines()):
        scan = (record["volume"], tuple(record["shape"]), record["column"], record["seed"])
        if record["arm"] in BESIDE and scan in scans:
            found[(*scan, record["arm"])] = {**record, "peer": record["arm"]}
    return list(found.values())


@functools.cache
def _import_torchvision() -> torch.library.Library | None:
    """Import torchvision even where its compiled operators cannot load; none of the peers calls them.

    PyPI's torchvision is compiled against PyTorch for CUDA. Beside a PyTorch for CPU its library does not load, and
    its import fails at the operators that it would then describe.
    """
    try:
        import torchvision
    except RuntimeError:
        library = torch.library.Library("torchvision", "DEF")
        for name in ("nms", "qnms"):
            library.define(f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
        for name in [m for m in sys.modules if m.partition(".")[0] == "torchvision"]:
            del sys.modules[name]
        import torchvision  # noqa: F401

        return library  # its definitions last as long as it does
    return None


def _document(records: Sequence[Record], beside: Sequence[Record], seconds: float, given: Sequence[str]) -> str:
    """What goes between the markers."""
    names = [Path(word).name if "/" in word else word for word in given]
    packages = ", ".join(sorted({package for r in records for package in r["packages"]}))
    width = "/".join(map(str, CHANNELS))
    text = f"""The noisy volumes of [results.md](results.md), one seed, read from files. Peers that train do so on the
    noisy volume alone for {seconds:g} s of CPU time on one thread; deepinv with its 3D UNet of {width} channels without
    batch normalisation, Adam at {LEARNING_RATE:g} and {BATCH} patches of {PATCH}³ a step; CAREamics with its defaults
    and patches of 32³. All but Noise2Void are told the law and its level. {packages}. Rows of ours, and of what was not
    run in this environment, are those of results.md."""
    every = [*records, *beside]
    volumes = dict.fromkeys(r["volume"] for r in records)
    parts = [
        "## Peers, as their users run them",
        "Made by `make peers` and\n\n    python benchmarks/peers.py " + shlex.join(names),
        textwrap.fill(" ".join(text.split()), 120, break_on_hyphens=False),
        *(_section([r for r in every if r["volume"] == v], records) for v in volumes),
    ]
    return "\n\n".join(parts) + "\n"


def _section(records: Sequence[Record], run: Sequence[Record]) -> str:
    """The table of one volume; columns and noisy figures are those of the peers that were run here."""
    titles = {r["column"]: r["title"] for r in run if r["volume"] == records[0]["volume"]}
    noisy = {r["column"]: r["noisy_psnr"] for r in run if r["volume"] == records[0]["volume"]}
    here = {(r["peer"], r["column"]) for r in run if r["volume"] == records[0]["volume"]}
    used = [r for r in records if r in run or (r["peer"], r["column"]) not in here]
    names = {name: peer.title for name, peer in PEERS.items()} | BESIDE
    bm4d_s = {r["column"]: r["cpu_s"] for r in used if r["peer"] == "bm4d"}
    rows = [["noisy", *(f"{noisy[c]:.2f}" for c in titles), "–"]]
    for peer in [name for name in names if any(r["peer"] == name for r in used)]:
        mine = [r for r in used if r["peer"] == peer]
        cells = [[r for r in mine if r["column"] == c] for c in titles]
        times = [r["cpu_s"] / bm4d_s[r["column"]] for r in mine if r["column"] in bm4d_s]
        rows.append([names[peer], *map(_cell, cells), f"{statistics.median(times):.2f}" if times else "–"])
    first = records[0]
    shape = " × ".join(str(n) for n in first["shape"])
    return (
        f"{first['volume'][0].upper()}{first['volume'][1:]}, {shape} voxels: PSNR in dB (peak 1) / SSIM, and CPU time"
        f" over BM4D's:\n\n{grid(['', *titles.values(), 'time'], rows)}"
    )


def _cell(records: Sequence[Record]) -> str:
    return " / ".join(cell([r[name] for r in records], d) for name, d in (("psnr", 2), ("ssim", 3))) if records else "–"


if __name__ == "__main__":
    main()
