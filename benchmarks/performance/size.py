"""Cost against size: one volume denoised, or streams of growing length, in a process of their own.

    python -m performance.size TOLD volume X Y Z
    python -m performance.size TOLD planes X Y N [N ...]

``TOLD`` is the JSON file that the figures go to.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import torch
from torch import Tensor

from n2s_med.compute import Compute, set_threads
from n2s_med.denoise import DenoiseOptions, Denoiser
from n2s_med.noise import Gaussian
from n2s_med.noise.correlation import Correlation
from n2s_med.noise.scan import ScanNoise
from n2s_med.score import base_model
from n2s_med.score.stream import StreamedNetwork
from performance.base import Record, Sizes, in_own_process, noisy_waves, peak_memory_bytes, timed_s

WARM_EDGE = 32


def sizes_and_streams(sizes: Sizes) -> Record:
    """Time and memory of every volume, each in a process of its own; memory of streams, one after the other."""
    return {
        "volumes": [in_own_process("size", "volume", *shape) for shape in sizes.volumes],
        "streams": in_own_process("size", "planes", *sizes.plane, *sizes.planes)["streams"],
    }


def _volume(shape: Sequence[int]) -> Record:
    denoiser = Denoiser(base_model(3), ScanNoise(Gaussian(1.0), Correlation.white()), Compute.choose("cpu"))
    denoiser(noisy_waves((WARM_EDGE,) * 3))
    before = peak_memory_bytes()
    y = noisy_waves(shape)
    seconds = timed_s(lambda: denoiser(y))
    return {
        "shape": list(shape),
        "voxels_per_s": y.numel() / seconds,
        "input_bytes": y.nbytes,
        "peak_bytes": peak_memory_bytes(),
        "before_bytes": before,
    }


def _streams(plane: Sequence[int], lengths: Sequence[int]) -> Record:
    streamed = StreamedNetwork(base_model(3).network, torch.zeros(6), Compute.choose("cpu"))
    stride = streamed.network.stride
    chunk = max(1, DenoiseOptions().chunk_voxels // (plane[0] * plane[1] * stride)) * stride

    def planes(count: int) -> Iterator[Tensor]:
        generator = torch.Generator().manual_seed(0)
        for first in range(0, count, chunk):
            yield torch.randn(1, *plane, min(chunk, count - first), generator=generator)

    def consume(count: int) -> None:
        for _ in streamed(planes(count)):
            pass

    rows = []
    for count in sorted(lengths):
        seconds = timed_s(lambda count=count: consume(count))
        voxels_per_s = plane[0] * plane[1] * count / seconds
        rows.append({"shape": [*plane, count], "voxels_per_s": voxels_per_s, "peak_bytes": peak_memory_bytes()})
    return {"streams": rows}


if __name__ == "__main__":
    set_threads()
    told, kind, *numbers = sys.argv[1:]
    first, second, *rest = (int(n) for n in numbers)
    found = _volume((first, second, *rest)) if kind == "volume" else _streams((first, second), rest)
    Path(told).write_text(json.dumps(found))
