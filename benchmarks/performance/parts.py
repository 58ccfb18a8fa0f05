"""The parts of the benchmark of speed, in the order of its page. A new one is a function, its table and an entry."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType

from n2s_med.compute import Compute
from performance import page
from performance.base import Record, Sizes
from performance.gpu import on_gpu
from performance.job import jobs
from performance.learning import quality, training
from performance.rates import bm4d_rate, fidelity, kinds, rates
from performance.size import sizes_and_streams


@dataclass(frozen=True)
class Part:
    """What is measured, and how it is told."""

    measure: Callable[[Sizes], Record]
    told: Callable[[Record], str]


def _network(sizes: Sizes) -> Record:
    return {**rates(sizes, Compute.choose("cpu")), "bm4d": bm4d_rate(sizes)}


PARTS: Mapping[str, Part] = MappingProxyType(
    {
        "network": Part(_network, page.network),
        "kinds": Part(kinds, page.kinds),
        "fidelity": Part(fidelity, page.fidelity),
        "size": Part(sizes_and_streams, page.size),
        "job": Part(jobs, page.job),
        "training": Part(training, page.training),
        "quality": Part(quality, page.quality),
        "gpu": Part(on_gpu, page.gpu),
    }
)
