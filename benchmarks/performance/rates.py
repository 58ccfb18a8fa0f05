"""Networks: voxels a second and share of the peak, fidelity of the fast paths, and where the time goes."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import torch
from arms import ARMS, Settings
from cases import phantom, scan_of
from monai.inferers import SlidingWindowInferer
from records import psnr
from torch import Tensor, nn
from torch.profiler import ProfilerActivity, profile
from unet import UNet

from n2s_med.compute import Compute
from n2s_med.denoise import FOR_OTHERS, DenoiseOptions
from n2s_med.noise.correlation import Correlation
from n2s_med.score import ScoreModel, ScoreUNet, base_model
from n2s_med.score.orientations import Orientation, orientations
from n2s_med.score.stream import StreamedNetwork
from n2s_med.training import TrainingConfig
from performance.base import Record, Sizes, best_s, flop_per_voxel, noisy_waves, peak, timed_s
from performance.engines import engines

DEFAULTS, TUNED = "plain UNet, MONAI's inferer as it is, fp32", "plain UNet, MONAI's inferer, tuned, bf16"
STREAMED, AVERAGED = "ours, streamed", "ours, streamed, mean of two orientations"
SMALL = "ours, base-3d-small, streamed"
"""Rows that goals are told from."""

WAYS = orientations(FOR_OTHERS, (1.0,) * 3, Correlation.white())
OVERLAPS = (0.25, 0.125)
"""Of the tuned sliding window."""

KINDS = {
    "convolution": ("conv",),
    "activation": ("leaky_relu",),
    "skips, features, filters": ("add", "mul", "sub", "div", "tanh", "log", "sqrt", "abs", "sign", "clamp", "pow"),
    "copies": ("copy", "cat", "clone", "pad", "fill_", "zero_", "contiguous", "flip"),
}
"""Kinds of operations, by parts of their names."""

Placed = TypeVar("Placed", Tensor, nn.Module)

WHITE = torch.zeros(6)
"""Traits of white noise."""


@dataclass(frozen=True)
class Way:
    """One way to run a network: its work, how many passes that is, the number type, and the voxels, if not all."""

    network: nn.Module
    run: Callable[[], object]
    passes: int = 1
    bf16: bool = False
    voxels: int | None = None


@torch.no_grad()
def rates(sizes: Sizes, compute: Compute) -> Record:
    """Voxels a second of each way, operations per voxel, and the peaks they are shares of."""
    plain, ours = UNet().eval(), ScoreUNet(3).eval()
    voxels = math.prod(sizes.volume)

    def row(name: str, way: Way, seconds: float) -> Record:
        work = way.passes * flop_per_voxel(way.network)
        return {"name": name, "voxels_per_s": (way.voxels or voxels) / seconds, "flop": work, "bf16": way.bf16}

    tuned = {name: (best_s(way.run, 1), way) for name, way in _tuned(sizes, compute, plain)}
    best = min(tuned, key=lambda name: tuned[name][0])
    return {
        "peak": {name: peak(sizes.product, bf16, compute.device) for name, bf16 in (("bf16", True), ("fp32", False))},
        "shape": sizes.volume,
        "rows": [
            *(row(name, way, best_s(way.run, sizes.repeats)) for name, way in _plain(sizes, compute, plain)),
            row(TUNED, tuned[best][1], tuned[best][0]),
            *(row(name, way, best_s(way.run, sizes.repeats)) for name, way in _ours(sizes, compute, ours)),
            *(row(name, way, best_s(way.run, sizes.repeats)) for name, way in _elsewhere(sizes, compute, ours)),
        ],
        "tuned": best,
    }


def _plain(sizes: Sizes, compute: Compute, plain: nn.Module) -> Iterator[tuple[str, Way]]:
    """The whole volume in one piece, and MONAI's inferer as it is."""
    v = noisy_waves(sizes.volume)[None, None]
    yield "plain UNet, whole volume, fp32", Way(plain, lambda: _place(compute, plain)(_place(compute, v)))
    yield "plain UNet, whole volume, bf16 channels-last", Way(plain, lambda: _fast(compute, plain, v), bf16=True)
    sliding = SlidingWindowInferer(roi_size=(64,) * 3)
    yield DEFAULTS, Way(plain, lambda: sliding(_place(compute, v), _place(compute, plain)))


def _tuned(sizes: Sizes, compute: Compute, plain: nn.Module) -> Iterator[tuple[str, Way]]:
    """MONAI's inferer in bf16, channels last, with larger windows that overlap less."""
    v = noisy_waves(sizes.volume)[None, None]
    for edge, overlap in itertools.product(sizes.windows, OVERLAPS):
        roi = tuple(min(edge, n) for n in sizes.volume)
        sliding = SlidingWindowInferer(roi_size=roi, overlap=overlap)
        name = f"windows of {'×'.join(str(n) for n in roi)} that overlap by {overlap:g}"
        yield name, Way(plain, lambda sliding=sliding: _fast(compute, plain, v, sliding), bf16=True)


def _ours(sizes: Sizes, compute: Compute, ours: ScoreUNet) -> Iterator[tuple[str, Way]]:
    """Our network by MONAI's inferer, which tells the network from the engine; and streamed."""
    v = noisy_waves(sizes.volume)
    sliding = SlidingWindowInferer(roi_size=(64,) * 3)
    yield (
        "ours, by MONAI's inferer as it is, fp32",
        Way(ours, lambda: sliding(*(_place(compute, t) for t in (v[None, None], ours)))),
    )
    small = ScoreModel.load(Path("base-3d-small")).network
    for name, network, ways in ((STREAMED, ours, WAYS[:1]), (AVERAGED, ours, WAYS), (SMALL, small, WAYS[:1])):
        streamed = StreamedNetwork(network, WHITE, compute, ways)
        yield name, Way(network, lambda run=streamed: streamed_score(run, v), len(ways), compute.bf16)


def _elsewhere(sizes: Sizes, compute: Compute, ours: ScoreUNet) -> Iterator[tuple[str, Way]]:
    """Our network compiled, and on another runtime."""
    if sizes.engines and compute.device.type == "cpu":
        for engine in engines(ours, noisy_waves(sizes.volume), compute):
            yield engine.name, Way(ours, engine.run, bf16=engine.bf16, voxels=engine.voxels)


def _fast(compute: Compute, plain: nn.Module, v: Tensor, inferer: Callable[..., Tensor] | None = None) -> Tensor:
    """The plain network in bf16, channels last, in one piece or by an inferer."""
    x, network = _place(compute, v, True), _place(compute, plain, True)
    with torch.autocast(compute.device.type, torch.bfloat16):
        answer: Tensor = inferer(x, network) if inferer else network(x)
    return answer


def _place(compute: Compute, thing: Placed, channels_last: bool = False) -> Placed:
    layout = torch.channels_last_3d if channels_last else torch.contiguous_format
    return thing.to(device=compute.device, memory_format=layout)


def streamed_score(streamed: StreamedNetwork, v: Tensor) -> Tensor:
    """The score of a volume (X, Y, Z), streamed in chunks of the command's size."""
    stride = streamed.network.stride
    planes = max(1, DenoiseOptions().chunk_voxels // (v[..., 0].numel() * stride)) * stride
    return torch.cat(list(streamed(v[None].split(planes, dim=-1))), dim=-1)[0]


# -- BM4D ------------------------------------------------------------------------------------------------


def bm4d_rate(sizes: Sizes) -> float:
    """Voxels a second of BM4D, default profile, on a piece of the noisy brain phantom."""
    scan = scan_of(phantom("brain").cropped(sizes.bm4d), "g25", 0)
    settings = Settings(TrainingConfig(), TrainingConfig(), Compute.choose("cpu"))
    return scan.y.numel() / timed_s(lambda: ARMS["bm4d"].run(scan, settings))


# -- fidelity --------------------------------------------------------------------------------------------


@torch.no_grad()
def fidelity(sizes: Sizes) -> Record:
    """Each fast path against the plain fp32 pass of the same weights, on the noisy brain phantom."""
    whole = phantom("brain")
    volume = whole.cropped(sizes.crop) if sizes.crop else whole
    scan = scan_of(volume, "g25", 0)
    u = scan.noise.law.to_unit(scan.y).float()
    model = base_model(3).centred(float(u.median()))
    device = torch.device("cpu")

    def streamed(bf16: bool, ways: Sequence[Orientation]) -> Tensor:
        return streamed_score(StreamedNetwork(model.network, WHITE, Compute(device, bf16), ways), u)

    def plain(ways: Sequence[Orientation]) -> Tensor:
        return torch.stack([way.of(model.network)(u[None, None])[0, 0] for way in ways]).mean(dim=0)

    def decibels(score: Tensor) -> float:
        return psnr(scan.noise.law.mean_from_unit(scan.y, model.scale * score), volume.x)

    def row(name: str, fast: Tensor, slow: Tensor) -> Record:
        return {
            "name": name,
            "psnr_difference": decibels(fast) - decibels(slow),
            "largest": float((fast - slow).abs().max()),
            "rms": float((fast - slow).square().mean().sqrt()),
        }

    one, both = plain(WAYS[:1]), plain(WAYS)
    return {
        "psnr": decibels(one),
        "rows": [
            row("streamed, fp32", streamed(False, WAYS[:1]), one),
            row("streamed, bf16", streamed(True, WAYS[:1]), one),
            row("streamed, bf16, two orientations", streamed(True, WAYS), both),
        ],
    }


# -- where the time goes ---------------------------------------------------------------------------------


def kinds(sizes: Sizes) -> Record:
    """Share of the streamed network's time, two orientations, that each kind of operation takes."""
    streamed = StreamedNetwork(ScoreUNet(3), WHITE, Compute.choose("cpu"), WAYS)
    v = noisy_waves(sizes.volume)
    streamed_score(streamed, v)
    with profile(activities=[ProfilerActivity.CPU]) as profiled:
        streamed_score(streamed, v)
    times: dict[str, float] = dict.fromkeys([*KINDS, "other"], 0.0)
    for event in profiled.key_averages():
        times[_kind(event.key)] += event.self_cpu_time_total
    total = sum(times.values())
    return {"shares": {kind: time / total for kind, time in times.items()}}


def _kind(operation: str) -> str:
    return next((kind for kind, parts in KINDS.items() if any(part in operation for part in parts)), "other")
