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
    suffix, save = FORMATS["onnx"]
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / f"model.{suffix}"
        save(ours, example(3), file)
        yield "ours, whole volume, onnxruntime", _onnxruntime(file, v), False
        yield "ours, whole volume, OpenVINO", _openvino(file, v, compute), compute.bf16


def _onnxruntime(file: Path, v: Tensor) -> Callable[[], object]:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    session = onnxruntime.InferenceSession(file, options, providers=["CPUExecutionProvider"])
    fed = {"v": v[None, None].numpy(), "traits": torch.zeros(1, 6).numpy()}
    return lambda: session.run(None, fed)


def _openvino(file: Path, v: Tensor, compute: Compute) -> Callable[[], object]:
    import openvino

    core = openvino.Core()
    network = core.read_model(file)
    network.reshape({"v": [1, 1, *v.shape], "traits": [1, 6]})
    number_type = "bf16" if compute.bf16 else "f32"
    settings = {"INFERENCE_PRECISION_HINT": number_type, "INFERENCE_NUM_THREADS": torch.get_num_threads()}
    program = core.compile_model(network, "CPU", settings)
    fed = {"v": v[None, None].numpy(), "traits": torch.zeros(1, 6).numpy()}
    return lambda: program(fed)
