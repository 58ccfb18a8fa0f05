"""Where and how the arithmetic runs: device, number type, threads."""

from __future__ import annotations

import ctypes
import json
import os
import platform
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor

from n2s_med.atomic import whole
from n2s_med.errors import ConfigurationError, OutputError

PrecisionName = Literal["auto", "bf16", "fp32"]

M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3
"""Parameters of mallopt, from glibc's malloc.h."""

KEPT_BLOCK = 40 << 20
"""Bytes of a block up to which its memory is kept when it is freed; larger ones last as long as a stream does."""

TRIAL_CHANNELS, TRIAL_EDGE, TRIALS = 32, 24, 4
"""The convolution by which number types are compared, and how often it is timed."""


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
        """Pick the GPU where there is one, and the number type in which this machine was measured to be faster."""
        if device == "auto":
            device = "cuda" if torch.cuda.is_available() else "cpu"
        try:
            chosen = torch.device(device)
            torch.empty(0, device=chosen)
        except (RuntimeError, AssertionError) as error:
            raise ConfigurationError(f"device {device!r} is not available", remedy="use --device cpu") from error
        if precision == "auto":
            return cls(chosen, bf16=bf16_is_faster(chosen.type))
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


def out_of_memory(error: Exception) -> bool:
    """Whether an error says that memory has run out, the machine's or the device's."""
    return isinstance(error, MemoryError | torch.OutOfMemoryError) or "can't allocate memory" in str(error)


@lru_cache
def bf16_is_faster(device_type: str) -> bool:
    """Whether convolutions take less time in bfloat16 than in float32, by a measurement that is kept on the machine.

    The file is ``n2s-med/number_types.json`` in the user's cache folder (``XDG_CACHE_HOME``); it is kept so that runs
    can be repeated to the bit. Where it cannot be read or written, every process measures.
    """
    file = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "n2s-med" / "number_types.json"
    machine = f"{device_type} {_processor(device_type)} torch {torch.__version__}"
    known: dict[str, bool] = {}
    with suppress(OSError, ValueError, TypeError):
        known = dict(json.loads(file.read_text(encoding="utf-8")))
    if machine not in known:
        device = torch.device(device_type)
        known[machine] = _convolution_time(device, torch.bfloat16) < _convolution_time(device, torch.float32)
        with suppress(OSError, OutputError):
            file.parent.mkdir(parents=True, exist_ok=True)
            with whole(file, overwrite=True) as partial:
                partial.write_text(json.dumps(known, indent=2) + "\n", encoding="utf-8")
    return known[machine]


def _processor(device_type: str) -> str:
    if device_type == "cuda":
        return torch.cuda.get_device_name()
    return f"{platform.machine()} {torch.backends.cpu.get_cpu_capability()} amx {torch.cpu._is_amx_tile_supported()}"


@torch.no_grad()
def _convolution_time(device: torch.device, dtype: torch.dtype) -> float:
    """Seconds of one convolution, the shortest of a few."""
    convolution = torch.nn.Conv3d(TRIAL_CHANNELS, TRIAL_CHANNELS, 3, padding=1, device=device, dtype=dtype)
    x = torch.ones(1, TRIAL_CHANNELS, *(TRIAL_EDGE,) * 3, device=device, dtype=dtype)
    x = x.to(memory_format=torch.channels_last_3d)
    times = []
    for _ in range(TRIALS):
        began = time.perf_counter()
        float(convolution(x).flatten()[0])
        times.append(time.perf_counter() - began)
    return min(times)


def onednn_in_bf16() -> bool:
    """Whether oneDNN is there and this processor has its bfloat16."""
    return torch._C._has_mkldnn and bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())


def set_threads(count: int | None = None) -> int:
    """Set torch's thread count once for the process; the cores this process may use by default, and at most."""
    cores = len(os.sched_getaffinity(0))
    chosen = min(count or cores, cores)
    torch.set_num_threads(chosen)
    _keep_freed_memory()
    return chosen


def _keep_freed_memory() -> None:
    """Let glibc, where it is the C library, keep large blocks that are freed: each chunk of a volume asks for the same.

    Given back to the system, each has to be zeroed anew: a tenth of the time of a large volume. (mallopt(3).)
    """
    if platform.libc_ver()[0] == "glibc":
        library = ctypes.CDLL(None)
        library.mallopt(M_MMAP_THRESHOLD, KEPT_BLOCK)
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
