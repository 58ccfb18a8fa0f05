"""Our network on other engines than the streamed one: what a compiler or another runtime would gain."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from n2s_med.bundle.export import FORMATS, example
from n2s_med.compute import Compute
from n2s_med.score import ScoreUNet

WINDOW = 224
"""Edge of the window whose layers OpenVINO keeps in about a GiB, as the streamed network is allowed for any volume."""


@dataclass(frozen=True)
class Engine:
    """One way to run the network: its name, one pass, the voxels that it answers, and whether it is in bf16."""

    name: str
    run: Callable[[], object]
    voxels: int
    bf16: bool


def engines(ours: ScoreUNet, v: Tensor, compute: Compute) -> Iterator[Engine]:
    """Passes over the whole volume ``v`` (X, Y, Z), and over one of the windows that a larger one would need."""
    layout = torch.channels_last_3d
    network, placed = ours.to(memory_format=layout), v[None, None].to(memory_format=layout)

    def passed(program: Callable[[Tensor], Tensor]) -> Tensor:
        with compute.autocast():
            return program(placed)

    def whole(name: str, run: Callable[[], object], bf16: bool) -> Engine:
        return Engine(f"ours, whole volume, {name}", run, v.numel(), bf16)

    yield whole("channels-last", lambda: passed(network), compute.bf16)
    if shutil.which("g++"):  # that torch.compile writes for
        compiled = torch.compile(network)
        yield whole("torch.compile", lambda: passed(compiled), compute.bf16)
    suffix, save = FORMATS["onnx"]
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / f"model.{suffix}"
        save(ours, example(3), file)
        yield whole("onnxruntime", _onnxruntime(file, v), False)
        yield whole("OpenVINO", _openvino(file, v, compute), compute.bf16)
        inner = WINDOW - 2 * _reach(ours)
        name = f"ours, windows of {WINDOW}³ that answer {inner}³, OpenVINO"
        yield Engine(name, _openvino(file, torch.randn((WINDOW,) * 3), compute), inner**3, compute.bf16)


def _reach(network: ScoreUNet) -> int:
    """How many voxels away an answer depends on the input."""
    v = torch.randn(1, 1, 16, 16, 128, generator=torch.Generator().manual_seed(0))
    other = v.clone()
    other[..., 64] += 1
    changed = (network(v) != network(other)).flatten(0, 3).any(dim=0).nonzero()
    return int((changed - 64).abs().max())


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
