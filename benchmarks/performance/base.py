"""What the parts share: their sizes, the machine's peak, timing, processes of their own."""

from __future__ import annotations

import functools
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

import n2s_med

Shape = tuple[int, int, int]
Record = Mapping[str, Any]
"""What a part measured: plain numbers and names."""

MIB = 1 << 20
COUNTED_EDGE = 32
"""Edge of the volume on which floating-point operations are counted."""


@dataclass(frozen=True)
class Sizes:
    """How much each part does.

    Attributes
    ----------
    name
        Kept with the results.
    product
        Edge of the matrices whose product is the machine's peak.
    volume
        Voxels along each axis, for the rates of networks.
    windows
        Edges of the windows from which the tuned sliding window takes the best.
    repeats
        Of which the shortest time counts.
    bm4d
        Edge of the volume that BM4D is timed on.
    volumes
        Denoised one after the other, for cost against size.
    planes, plane
        Lengths of the streams, and the size of their planes.
    series
        Planes of the long DICOM series, made by repeating the short one; 0 makes none, and takes a phantom's.
    steps
        Training steps that are timed.
    crop
        Edge of the piece of the brain phantom, or ``None`` for all of it.
    adapt_steps
        Steps of adapting the base weights.
    starts
        Repeats of the commands whose start-up is timed.
    engines
        Whether our network is also compiled, and exported to another runtime, which take half a minute to begin.
    """

    name: str
    product: int
    volume: Shape
    windows: tuple[int, ...]
    repeats: int
    bm4d: int
    volumes: tuple[Shape, ...]
    planes: tuple[int, ...]
    plane: tuple[int, int]
    series: int
    steps: int
    crop: int | None
    adapt_steps: tuple[int, ...]
    starts: int
    engines: bool = False


FULL = Sizes(
    name="full",
    product=4096,
    volume=(192, 192, 64),
    windows=(96, 128, 192),
    repeats=5,
    bm4d=64,
    volumes=((64,) * 3, (128,) * 3, (256,) * 3, *((512, 512, n) for n in (100, 300, 1000))),
    planes=(64, 256, 1024),
    plane=(512, 512),
    series=300,
    steps=60,
    crop=None,
    adapt_steps=(50, 150, 500, 1000),
    starts=5,
    engines=True,
)
QUICK = Sizes(
    name="quick",
    product=4096,
    volume=(96, 96, 64),
    windows=(96,),
    repeats=1,
    bm4d=32,
    volumes=((64,) * 3, (128,) * 3),
    planes=(16, 64),
    plane=(256, 256),
    series=0,
    steps=5,
    crop=40,
    adapt_steps=(20,),
    starts=1,
)


# -- time and arithmetic ---------------------------------------------------------------------------------


def timed_s(work: Callable[[], object]) -> float:
    """Wall time of a piece of work, of the GPU's too."""
    _wait()
    begun = time.perf_counter()
    work()
    _wait()
    return time.perf_counter() - begun


def best_s(work: Callable[[], object], repeats: int) -> float:
    """The shortest of several, after one to warm up."""
    work()
    return min(timed_s(work) for _ in range(repeats))


def _wait() -> None:
    if torch.cuda.is_initialized():
        torch.cuda.synchronize()


@functools.cache
def peak(edge: int, bf16: bool, device: torch.device) -> float:
    """Floating-point operations a second of a product of two square matrices, measured once in a run."""
    a = torch.randn(edge, edge, device=device).to(torch.bfloat16 if bf16 else torch.float32)
    return 2 * edge**3 / best_s(lambda: a @ a, 2)


@torch.no_grad()
def flop_per_voxel(network: nn.Module) -> float:
    """Floating-point operations of a network of one input channel, per voxel of its input, its layers as they are."""
    x = torch.zeros(1, 1, *(COUNTED_EDGE,) * 3)
    as_exported = patch("n2s_med.score.network._in_a_program", return_value=True)  # without the zeros of blocks
    with as_exported, FlopCounterMode(display=False) as counter:
        network.cpu()(x)
    return counter.get_total_flops() / x.numel()


def noisy_waves(shape: Sequence[int]) -> Tensor:
    """A volume of smooth waves under unit noise, made without a second volume in memory."""
    y = torch.randn(*shape, generator=torch.Generator().manual_seed(0))
    for axis, n in enumerate(shape):
        wave = 10 * torch.sin(torch.arange(n) / 9)
        y += wave.view(*(-1 if a == axis else 1 for a in range(len(shape))))
    return y


# -- processes -------------------------------------------------------------------------------------------


def in_own_process(module: str, *arguments: object) -> Record:
    """What a module of this folder measures when it runs alone, and the wall time of its process."""
    folders = [Path(__file__).parents[1], Path(n2s_med.__file__).parents[1], os.environ.get("PYTHONPATH", "")]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(str(f) for f in folders if str(f))}
    with tempfile.TemporaryDirectory() as folder:
        told = Path(folder) / "told.json"
        command = [sys.executable, "-m", f"performance.{module}", str(told), *(str(a) for a in arguments)]
        process_s = timed_s(lambda: subprocess.run(command, check=True, env=environment, stdout=subprocess.DEVNULL))
        return {**json.loads(told.read_text()), "process_s": process_s}


def peak_memory_bytes() -> int:
    """The most memory that this process has had, as the kernel counts it (VmHWM)."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM:"))
