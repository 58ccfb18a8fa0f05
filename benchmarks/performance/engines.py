"""Our network on other engines than the streamed one: what a compiler or another runtime would gain."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
from torch import Tensor

from n2s_med.bundle.export import FORMATS, example
from n2s_med.compute import Compute
from n2s_med.score import ScoreUNet


def engines(ours: ScoreUNet, v: Tensor, compute: Compute) -> Iterator[tuple[str, Callable[[], object], bool]]:
    """Name, one pass over the whole volume ``v`` of shape (X, Y, Z), and whether it is in bf16."""
    layout = torch.channels_last_3d
    network, placed = ours.to(memory_format=layout), v[None, None].to(memory_format=layout)

    def passed(program: Callable[[Tensor], Tensor]) -> Tensor:
        with compute.autocast():
            return program(placed)

    yield "ours, whole volume, channels-last", lambda: passed(network), compute.bf16
    if shutil.which("g++"):  # that torch.compile writes for
        compiled = torch.compile(network)
        yield "ours, whole volume, torch.compile", lambda: passed(compiled), compute.bf16
    yield "ours, whole volume, onnxruntime", _onnxruntime(ours, v), False


def _onnxruntime(ours: ScoreUNet, v: Tensor) -> Callable[[], object]:
    import onnxruntime

    suffix, save = FORMATS["onnx"]
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / f"model.{suffix}"
        save(ours, example(3), file)
        session = onnxruntime.InferenceSession(file, options, providers=["CPUExecutionProvider"])
    fed = {"v": v[None, None].numpy(), "traits": torch.zeros(1, 6).numpy()}
    return lambda: session.run(None, fed)
