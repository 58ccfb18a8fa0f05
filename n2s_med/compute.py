"""Where and how the arithmetic runs: device, number type, threads."""

from __future__ import annotations

import ctypes
import os
import platform
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from n2s_med.errors import ConfigurationError

PrecisionName = Literal["auto", "bf16", "fp32"]

M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3
"""Parameters of mallopt, from glibc's malloc.h."""


@dataclass(frozen=True)
class Compute:
    """One choice of device and number type.

    Attributes
    ----------
    device
        ``"cpu"``, ``"cuda"`` or ``"cuda:N"``.
    bf16
        Whether convolutions run in bfloat16 (weights, losses and results stay float32).
    """

    device: torch.device
    bf16: bool

    @classmethod
    def choose(cls, device: str = "auto", precision: PrecisionName = "auto") -> Compute:
        """Pick the GPU where there is one, and bfloat16 where the processor has instructions for it."""
        if device == "auto":
            device = "cuda" if torch.cuda.is_available() else "cpu"
        try:
            chosen = torch.device(device)
            torch.empty(0, device=chosen)
        except (RuntimeError, AssertionError) as error:
            raise ConfigurationError(f"device {device!r} is not available", remedy="use --device cpu") from error
        if precision == "auto":
            fast = chosen.type == "cuda" or torch.cpu._is_avx512_bf16_supported()
            return cls(chosen, bf16=fast)
        return cls(chosen, bf16=precision == "bf16")

    @contextmanager
    def autocast(self) -> Iterator[None]:
        """Run the convolutions inside in the chosen number type."""
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.bf16):
            yield

    def place(self, batch: Tensor) -> Tensor:
        """Move a batch (N, C, spatial) to the device, in the memory layout that convolutions like."""
        layout = torch.channels_last_3d if batch.ndim == 5 else torch.channels_last
        return batch.to(self.device, memory_format=layout)


def set_threads(count: int | None = None) -> int:
    """Set torch's thread count once for the process; the cores this process may use by default."""
    chosen = count or len(os.sched_getaffinity(0))
    torch.set_num_threads(chosen)
    _keep_freed_memory()
    return chosen


def _keep_freed_memory() -> None:
    """Let glibc, where it is the C library, keep large blocks that are freed: each chunk of a volume asks for the same.

    Given back to the system, each has to be zeroed anew: a tenth of the time of a large volume. (mallopt(3).)
    """
    if platform.libc_ver()[0] == "glibc":
        library = ctypes.CDLL(None)
        library.mallopt(M_MMAP_THRESHOLD, 1 << 30)
        library.mallopt(M_TRIM_THRESHOLD, (1 << 31) - 1)


def fastest_threads(seconds: Callable[[], float]) -> float:
    """Leave torch at one thread or at all it has, whichever is faster, and return the time taken.

    Parameters
    ----------
    seconds
        Does a piece of the work and says how long it took.
    """
    everything = torch.get_num_threads()
    if everything == 1:
        return seconds()
    taken = {}
    for count in (everything, 1):
        torch.set_num_threads(count)
        taken[count] = seconds()
    best = min(taken, key=taken.__getitem__)
    torch.set_num_threads(best)
    return taken[best]
