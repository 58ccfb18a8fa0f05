"""The processes that train together, and what a run is called."""

from __future__ import annotations

import os
import time
from collections.abc import Callable

import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from n2s_med.errors import ConfigurationError


def rank() -> int:
    """Number of this process among those that train together; 0 if it is alone."""
    return dist.get_rank() if dist.is_available() and dist.is_initialized() else 0


def local_device() -> torch.device:
    """The device of this process among those that ``torchrun`` started on this machine."""
    if not torch.cuda.is_available():
        return torch.device("cpu")
    return torch.device("cuda", int(os.environ["LOCAL_RANK"]))


def join_processes() -> None:
    """Join the processes that ``torchrun`` started."""
    if "RANK" not in os.environ:
        raise ConfigurationError(
            "one process alone", remedy="start it with torchrun, or leave out multi_gpu_train.json"
        )
    device = local_device()
    if device.type == "cuda":
        torch.cuda.set_device(device)
    dist.init_process_group("nccl" if device.type == "cuda" else "gloo")


def part_processes() -> None:
    """Wait for the others, and part: a process that leaves early makes the others fail."""
    dist.barrier()
    dist.destroy_process_group()


def unwrapped(network: nn.Module) -> nn.Module:
    """The network itself, of one that is wrapped for several processes."""
    return network.module if isinstance(network, DistributedDataParallel) else network


def run_name(bundle: str, now: Callable[[], float] = time.time) -> str:
    """A name that no other run has: unnamed runs of MLflow would join one that was left open."""
    return f"{bundle} {time.strftime('%Y-%m-%d %H:%M:%S', time.gmtime(now()))}"
