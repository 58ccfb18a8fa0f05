"""Small noisy scans, and the command line called in this process."""

from __future__ import annotations

import json
import signal
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pydicom
import torch
from numpy.typing import NDArray
from pydicom.data import get_testdata_file

from n2s_med.cli import main
from n2s_med.noise import Gaussian
from n2s_med.noise.base import NoiseModel
from n2s_med.phantoms import pet_phantom, write_pet_series
from n2s_med.volumes.quiet import quiet

FAST = ("--threads", "1", "--precision", "fp32", "--quiet")
TINY = ("--set", "channels=[4,8]", "--set", "patch=12", "--steps", "4")
"""A network and a training that take a moment; what they learn is of no use."""

DOE = {"PatientName": "Doe^Jane", "PatientID": "ID-4711", "PatientBirthDate": "19610203", "InstitutionName": "Nowhere"}
SECRETS = ("Doe", "Jane", "ID-4711", "19610203", "Nowhere")
"""What stands for patient data."""

Image = NDArray[np.float32]


@dataclass(frozen=True)
class Ran:
    """What one command did."""

    code: int
    out: str
    err: str

    @property
    def error(self) -> str:
        """The only line of stderr that tells an error."""
        assert "Traceback" not in self.err, self.err
        (line,) = (line for line in self.err.splitlines() if line.startswith("error: "))
        assert self.err.splitlines()[-1] == line
        return line


Run = Callable[..., Ran]


def call(capsys: Any, *arguments: object) -> Ran:
    """Run ``n2s-med`` with arguments in this process."""
    handler = signal.getsignal(signal.SIGTERM)
    capsys.readouterr()
    try:
        main([str(argument) for argument in arguments])
    except SystemExit as ended:
        told = capsys.readouterr()
        return Ran(int(ended.code or 0), told.out, told.err)
    finally:
        signal.signal(signal.SIGTERM, handler)
    raise AssertionError("main returned")


def denoise(run: Run, source: Path, output: Path, *options: object) -> Ran:
    """``n2s-med denoise`` with a training of a moment from scratch, or with the model that the options name."""
    training = () if "--model" in options else ("--from-scratch", *TINY)
    return run("denoise", source, output, *FAST, *training, "--orientations", "1", *options)


def train(run: Run, out: Path, *inputs: object, modality: str = "ct", options: Sequence[object] = ()) -> Ran:
    """``n2s-med train`` of a moment."""
    return run("train", *inputs, "--modality", modality, "--out", out, *FAST, *TINY, *options)


def blob(shape: Sequence[int] = (20, 20, 20), low: float = 100.0, high: float = 160.0) -> torch.Tensor:
    """A bright ball in a flat field."""
    axes = torch.meshgrid(*((torch.arange(n) - n / 2) / n for n in shape), indexing="ij")
    radius = torch.stack(axes).square().sum(0).sqrt()
    return low + (high - low) * (radius < 0.3).float()


def noisy(law: NoiseModel | None = None, shape: Sequence[int] = (20, 20, 20), seed: int = 0, **levels: float) -> Image:
    """A noisy ball."""
    generator = torch.Generator().manual_seed(seed)
    sampled: Image = (law or Gaussian(10.0)).sample(blob(shape, **levels), generator).numpy()
    return sampled


def nifti(path: Path, values: Any = None, *, affine: Any = None, units: str = "mm") -> Path:
    """Write a NIfTI image; by default a noisy ball."""
    values = noisy() if values is None else values
    image = nib.Nifti1Image(
        np.asarray(values, dtype=np.float32), np.diag((2.0, 2.0, 3.0, 1.0)) if affine is None else affine
    )
    image.header.set_xyzt_units(units, "sec")
    nib.save(image, path)
    return path


def values_of(path: Path) -> Image:
    """Voxels of a NIfTI image."""
    return np.asarray(nib.load(path).dataobj, dtype=np.float32)


def pet_series(folder: Path, gain: float = 50.0, shape: tuple[int, int, int] = (24, 24, 12)) -> Path:
    """A PET phantom with Poisson noise of an invented patient."""
    generator = torch.Generator().manual_seed(3)
    activity = pet_phantom(shape, (7.0, 7.0, 7.0)).activity
    counts = torch.poisson(activity.clamp_min(0) / gain, generator=generator)
    write_pet_series(counts * gain, folder, spacing_mm=(7.0, 7.0, 7.0), gain=gain)
    for file in folder.iterdir():
        dataset = pydicom.dcmread(file)
        for keyword, value in DOE.items():
            setattr(dataset, keyword, value)
        dataset.save_as(file)
    return folder


def carried(name: str, folder: Path) -> Path:
    """A copy of an image that pydicom carries, with an invented patient."""
    folder.mkdir(parents=True, exist_ok=True)
    with quiet():
        dataset = pydicom.dcmread(get_testdata_file(name, download=False))
        for keyword, value in DOE.items():
            setattr(dataset, keyword, value)
        dataset.save_as(folder / name)
    return folder / name


def datasets(folder: Path) -> list[pydicom.Dataset]:
    """The images of a series, in the order of their names."""
    with quiet():
        return [pydicom.dcmread(file) for file in sorted(folder.iterdir())]


def report_of(output: Path) -> dict[str, Any]:
    """The JSON report beside an output."""
    stem = str(output).removesuffix(".gz").removesuffix(".nii")
    assert Path(f"{stem}.report.html").stat().st_size > 1000
    content: dict[str, Any] = json.loads(Path(f"{stem}.report.json").read_text(encoding="utf-8"))
    return content


def files_below(folder: Path) -> list[str]:
    """Every file below a folder, hidden ones too."""
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())
