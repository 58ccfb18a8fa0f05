"""Export a bundle's network for runtimes without Python: ONNX, ``torch.export`` and TorchScript.

Batch and every spatial axis may have any size; in a ``.pt2``, spatial axes more voxels than the network's stride.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor, nn

from n2s_med.atomic import whole
from n2s_med.bundle.network import DenoisingNetwork, bundle_network
from n2s_med.errors import ConfigurationError
from n2s_med.noise import NoiseModel

EXAMPLE = (2, 1, 16, 20, 24)
"""Shape that exporters see; the sizes differ, so that none takes one axis for another."""

OPSET = 18


def export(bundle: Path, formats: Sequence[str], law: NoiseModel | None = None) -> list[Path]:
    """Export the network of a bundle into its ``models/`` and return the files.

    Parameters
    ----------
    bundle
        Folder of the bundle.
    formats
        Keys of :data:`FORMATS`.
    law
        Noise law with its level, for the network with the Tweedie step (``denoiser.*``); none for the network
        alone (``model.*``).

    Raises
    ------
    N2SError
        If the bundle has no network, or a file cannot be written.
    """
    network = bundle_network(bundle).eval()
    subject: nn.Module = network if law is None else DenoisingNetwork(network, law).eval()
    inputs = example(network.spatial_dims, law)
    written = []
    for name in formats:
        suffix, save = FORMATS[name]
        file = bundle / "models" / f"{'model' if law is None else 'denoiser'}.{suffix}"
        file.parent.mkdir(parents=True, exist_ok=True)
        with warnings.catch_warnings(), torch.no_grad():
            warnings.simplefilter("ignore")  # exporters' notes to their own developers
            with whole(file, overwrite=True) as partial:
                save(subject, inputs, partial)
        written.append(file)
    return written


def example(dims: int, law: NoiseModel | None = None) -> dict[str, Tensor]:
    """Inputs of the network, by name: an image and its noise's traits; with a law also a typical value."""
    generator = torch.Generator().manual_seed(0)
    image = torch.randn(EXAMPLE[: 2 + dims], generator=generator)
    traits = torch.zeros(len(image), 2 * dims)
    if law is None:
        return {"v": image, "traits": traits}
    y = law.from_unit(10 + image)
    return {"y": y, "typical": y.flatten(1).median(1).values, "traits": traits}


def _dynamic(inputs: Mapping[str, Tensor]) -> dict[str, dict[int, Any]]:
    """Which sizes may change: the batch, and every spatial axis."""
    any_size = torch.export.Dim.AUTO
    return {name: dict.fromkeys((0, *range(2, tensor.ndim)), any_size) for name, tensor in inputs.items()}


def _onnx(network: nn.Module, inputs: Mapping[str, Tensor], file: Path) -> None:
    try:
        import onnxscript  # noqa: F401
    except ImportError as error:
        raise ConfigurationError(
            "ONNX export needs onnx and onnxscript", remedy="pip install n2s-med[export]"
        ) from error
    program = torch.onnx.export(
        network,
        tuple(inputs.values()),
        input_names=list(inputs),
        output_names=["score" if "v" in inputs else "x_hat"],
        dynamic_shapes=tuple(_dynamic(inputs).values()),
        opset_version=OPSET,
        dynamo=True,
        verbose=False,
    )
    assert program is not None
    file.write_bytes(program.model_proto.SerializeToString())


def _program(network: nn.Module, inputs: Mapping[str, Tensor], file: Path) -> None:
    program = torch.export.export(network, tuple(inputs.values()), dynamic_shapes=tuple(_dynamic(inputs).values()))
    with file.open("wb") as stream:
        torch.export.save(program, stream)


def _script(network: nn.Module, inputs: Mapping[str, Tensor], file: Path) -> None:
    traced = torch.jit.trace(network, tuple(inputs.values()), check_trace=False)  # type: ignore[no-untyped-call]
    file.write_bytes(traced.save_to_buffer())


FORMATS: Mapping[str, tuple[str, Callable[[nn.Module, Mapping[str, Tensor], Path], None]]] = MappingProxyType(
    {"onnx": ("onnx", _onnx), "torch": ("pt2", _program), "torchscript": ("ts", _script)}
)
"""Formats by name: the ending of the file, and what writes it."""
