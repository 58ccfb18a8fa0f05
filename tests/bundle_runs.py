"""Bundles, scans and runs that take a moment."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import torch
from monai.bundle import ConfigWorkflow

from n2s_med.bundle import DenoisingNetwork, score_network
from n2s_med.noise import Gamma, Gaussian, NoiseModel, Poisson
from n2s_med.score import ScoreUNet

BUNDLES = Path(__file__).parents[1] / "bundles"
NAMES = ("ct_gaussian", "pet_poisson", "mr_gaussian", "us_gamma")
CONFIGS = ("train", "evaluate", "inference", "multi_gpu_train")
MODALITY = {name: name.split("_")[0] for name in NAMES}
DIMS = {"ct_gaussian": 3, "pet_poisson": 3, "mr_gaussian": 3, "us_gamma": 2}
SMALL = {"channels": [4, 8]}
"""Architecture of a network of a moment."""

LAWS: dict[str, tuple[NoiseModel, float, float]] = {
    "ct_gaussian": (Gaussian(20.0), -20.0, 60.0),
    "pet_poisson": (Poisson(50.0), 500.0, 4000.0),
    "mr_gaussian": (Gaussian(10.0), 100.0, 300.0),
    "us_gamma": (Gamma(8.0), 40.0, 120.0),
}
"""Law of the noise, low and high intensity."""

TINY = {"epochs": 1, "steps_per_epoch": 2, "patch": 12, "patches": 2, "held_out": 0.1, "precision": "fp32"}
"""Overrides of a training of a moment; what it learns is of no use."""


def network_of(dims: int) -> ScoreUNet:
    """A network that does next to nothing, the same every time."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return score_network(dims, SMALL)


def small_bundle(name: str, folder: Path) -> Path:
    """Copy a bundle, with a small network in place of its own."""
    shutil.copytree(BUNDLES / name, folder, ignore=shutil.ignore_patterns("models", "eval", "cache", "data"))
    for config in ("train", "inference"):
        file = folder / "configs" / f"{config}.json"
        content = json.loads(file.read_text(encoding="utf-8"))
        content["architecture"] = SMALL
        file.write_text(json.dumps(content), encoding="utf-8")
    (folder / "models").mkdir()
    torch.save(network_of(DIMS[name]).state_dict(), folder / "models" / "model.pt")
    return folder


def clean_values(name: str, shape: tuple[int, ...]) -> torch.Tensor:
    """A ball, or a disc, in a flat field."""
    _, low, high = LAWS[name]
    axes = torch.meshgrid(*((torch.arange(n) - n / 2) / n for n in shape), indexing="ij")
    return low + (high - low) * (torch.stack(axes).square().sum(0).sqrt() < 0.3).float()


def write_scan(name: str, path: Path, *, seed: int = 0, dims: int | None = None, clean: bool = False) -> Path:
    """Write a scan of a bundle's modality as NIfTI."""
    shape = (28, 24, 20) if (dims or DIMS[name]) == 3 else (128, 112)
    x = clean_values(name, shape)
    y = x if clean else LAWS[name][0].sample(x, torch.Generator().manual_seed(seed))
    values = y.numpy().reshape(*shape, *(1,) * (3 - len(shape)))
    nib.save(nib.Nifti1Image(values.astype(np.float32), np.diag((2.0, 2.0, 2.0, 1.0))), path)
    return path


def count_scan(path: Path) -> Path:
    """Write a PET scan of a few whole counts a voxel as NIfTI."""
    mean = 1 + 3 * clean_values("ct_gaussian", (28, 24, 20)).gt(0).float()
    counts = torch.poisson(mean, generator=torch.Generator().manual_seed(0))
    nib.save(nib.Nifti1Image(counts.numpy(), np.diag((2.0, 2.0, 2.0, 1.0))), path)
    return path


def values_of(path: Path) -> Any:
    """Voxels of a NIfTI image."""
    return np.asarray(nib.load(path).dataobj, dtype=np.float32)


def exported_inputs(dims: int, law: NoiseModel | None) -> list[torch.Tensor]:
    """Inputs of an exported network, of another shape than those that the exporters saw."""
    generator = torch.Generator().manual_seed(1)
    v = torch.randn((3, 1, 9, 14, 11)[: 2 + dims], generator=generator)
    traits = torch.rand(3, 2 * dims, generator=generator) / 2
    return [v, traits] if law is None else [law.from_unit(12 + v), law.from_unit(torch.full((3,), 12.0)), traits]


def check_exports(files: Sequence[Path], dims: int, law: NoiseModel | None) -> None:
    """Hold what was exported as ONNX, by ``torch.export`` and as TorchScript to the network."""
    import onnxruntime  # not in the environments of the consumers

    inside = network_of(dims).eval()
    subject = inside if law is None else DenoisingNetwork(inside, law)
    inputs = exported_inputs(dims, law)
    image, *others = inputs
    tiny = [image[(..., *(slice(n) for n in range(1, 1 + dims)))], *others]  # fewer places than the stride
    session = onnxruntime.InferenceSession(files[0])
    program, script = torch.export.load(files[1]).module(), torch.jit.load(files[2])
    with torch.no_grad():
        for given in (inputs, tiny):
            expected = subject(*given)
            feed = {node.name: tensor.numpy() for node, tensor in zip(session.get_inputs(), given, strict=True)}
            assert np.allclose(session.run(None, feed)[0], expected.numpy(), rtol=1e-4, atol=1e-5)
            torch.testing.assert_close(script(*given), expected)
        torch.testing.assert_close(program(*inputs), subject(*inputs))


def files_of(bundle: Path, *configs: str) -> list[str]:
    """Configuration files of a bundle."""
    return [str(bundle / "configs" / f"{config}.json") for config in configs]


def workflow(
    bundle: Path, *configs: str, kind: str = "train", tracking: Any = None, **overrides: Any
) -> ConfigWorkflow:
    """A workflow of a bundle, initialised, in this process."""
    made = ConfigWorkflow(
        files_of(bundle, *configs),
        workflow_type=kind,
        logging_file=False,
        tracking=tracking,
        **({"bundle_root": str(bundle)} | overrides),
    )
    made.initialize()
    return made


def run(bundle: Path, *configs: str, **overrides: Any) -> ConfigWorkflow:
    """Run a bundle in this process, as ``monai.bundle run`` does."""
    made = workflow(bundle, *configs, **overrides)
    made.run()
    made.finalize()
    return made


def cause(error: BaseException) -> BaseException:
    """What MONAI wrapped."""
    while error.__cause__ is not None:
        error = error.__cause__
    return error


def command_words(*arguments: object, module: str) -> tuple[list[str], dict[str, str]]:
    """Words and environment that run a module in a process of its own."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(BUNDLES.parent)}
    return [sys.executable, "-W", "ignore", "-m", module, *map(str, arguments)], environment


def command(folder: Path, *arguments: object, module: str = "monai.bundle") -> subprocess.CompletedProcess[str]:
    """Run a module in a process of its own, from a folder."""
    words, environment = command_words(*arguments, module=module)
    return subprocess.run(words, cwd=folder, env=environment, capture_output=True, text=True, timeout=900)
