"""Damaged files: each gives the volume that it states or a one-line error, quickly and in bounded memory.

A volume is held against a plain reading of the same file, and what is written against the volume.
The number of files is small by default; ``N2S_MUTATIONS=5000`` asks for more of each kind.
"""

from __future__ import annotations

import gzip
import os
import resource
import time
from collections.abc import Iterator
from pathlib import Path

import nibabel as nib
import numpy as np
import pydicom
import pytest
import torch
from made_nuclear import make_nuclear
from made_scans import CT, MR, PT, SECRETS, make_enhanced, make_slice, pixels, save
from monai.data import MetaTensor
from plain_reading import check_as_the_file_says
from pydicom.data import get_testdata_file

from n2s_med.errors import InputError, N2SError
from n2s_med.volumes import Provenance, read, valid_mask, write

COUNT = int(os.environ.get("N2S_MUTATIONS", "60"))
SLOWEST_S = 5.0
MEMORY_GB = 2  # beside what the process has already


def dicom_native(folder: Path) -> Path:
    return save(make_slice(CT, pixels((1, 16, 16))[0], 0, step=3.0, study="one"), folder / "seed")


def dicom_pet(folder: Path) -> Path:
    return save(make_slice(PT, pixels((1, 16, 16))[0], 0, step=3.0, study="one"), folder / "seed")


def dicom_deflated(folder: Path) -> Path:
    ds = pydicom.dcmread(dicom_native(folder))
    ds.file_meta.TransferSyntaxUID = pydicom.uid.DeflatedExplicitVRLittleEndian
    ds.save_as(folder / "seed", implicit_vr=False, little_endian=True)
    return folder / "seed"


def enhanced(sop_class: str):
    return lambda folder: make_enhanced(folder / "seed", sop_class, pixels((5, 8, 8)))


def nuclear(kind: str):
    return lambda folder: make_nuclear(folder / "seed", kind)


def carried(name: str):
    return lambda folder: Path(get_testdata_file(name))  # noqa: ARG005


def nifti(ending: str, kind: type = nib.Nifti1Image):
    def seed(folder: Path) -> Path:
        nib.save(kind(pixels((6, 5, 4)), np.diag([2.0, 2, 3, 1])), folder / f"seed{ending}")
        return folder / f"seed{ending}"

    return seed


SEEDS = {
    "native": dicom_native,
    "pet": dicom_pet,
    "deflated": dicom_deflated,
    "enhanced MR": enhanced(MR),
    "enhanced PET": enhanced(PT),
    "nuclear, projections": nuclear("GATED TOMO"),
    "nuclear, slices": nuclear("RECON GATED TOMO"),
    "rle": carried("MR_small_RLE.dcm"),
    "big-endian": carried("MR_small_bigendian.dcm"),
    "implicit": carried("MR_small_implicit.dcm"),
    "jpeg2000": carried("MR_small_jp2klossless.dcm"),
    "jpeg-ls": carried("MR_small_jpeg_ls_lossless.dcm"),
    "nifti": nifti(".nii"),
    "nifti.gz": nifti(".nii.gz"),
    "nifti-2": nifti(".nii", nib.Nifti2Image),
}


def mutated(content: bytes, rng: np.random.Generator, early: int = 1500) -> bytes:
    """Return ``content`` with a few bytes or words changed, a piece cut out or doubled, or its end gone."""
    data = bytearray(content)
    header = min(len(data), early)  # most of what matters is said early
    for _ in range(rng.integers(1, 4)):
        at = int(rng.integers(0, header if rng.random() < 0.8 else len(data)))
        match rng.integers(0, 6):
            case 0:
                data[at] ^= 1 << int(rng.integers(0, 8))
            case 1:
                data[at : at + 4] = bytes(rng.choice([0, 255, 127, 128], size=4).astype(np.uint8))
            case 2:
                del data[at : at + int(rng.integers(1, 40))]
            case 3:
                data[at:at] = data[at : at + int(rng.integers(1, 40))]
            case 4:
                data[at : at + 8] = rng.bytes(8)
            case _:
                del data[max(at, len(data) - int(rng.integers(1, 400))) :]
        header = max(1, min(len(data), header))
        if not data:
            break
    return bytes(data)


def try_to_use(path: Path) -> bool:
    """Read ``path`` and write it: what the file says and the same again, or one line without patient data.

    Say which it was: whether the file was used.
    """
    start = time.process_time()
    out = path.with_name("out.nii" if ".nii" in path.name else "out")
    try:
        volumes = read(path).volumes
        for volume in volumes:
            check_volume(volume, path)
        write(volumes[0], out, provenance=Provenance("m", "h", "l", {}, "0"), overwrite=True)
    except N2SError as error:
        message = str(error)
        assert "\n" not in message
        assert not any(secret in message for secret in SECRETS)
        starved = any(isinstance(cause, MemoryError) for cause in causes(error))
        used = False
    else:
        check_written(volumes[0], out)
        starved, used = False, True
    assert not starved
    assert time.process_time() - start < SLOWEST_S
    return used


def causes(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__


def check_volume(volume: MetaTensor, path: Path) -> None:
    assert volume.ndim == 4
    assert volume.dtype == torch.float32
    assert bool(torch.isfinite(volume).all())
    assert bool(torch.isfinite(volume.affine).all())
    check_as_the_file_says(volume, path)


def check_written(volume: MetaTensor, out: Path) -> None:
    """Half a step of 16 bits is less than a 60,000th of the largest value, if a slope holds for a frame."""
    (again,) = read(out).volumes
    assert again.shape == volume.shape
    np.testing.assert_allclose(again.affine, volume.affine, rtol=1e-6, atol=1e-6)
    np.testing.assert_array_equal(valid_mask(again), valid_mask(volume))
    largest = volume.abs().amax(dim=(1, 2), keepdim=True)
    assert bool(((again - volume).abs() <= largest / 60_000).all())


@pytest.fixture
def bounded_memory() -> Iterator[None]:
    """Let an allocation fail that takes the process ``MEMORY_GB`` beyond where it stands.

    The most memory that the process has had would tell of whatever ran in it before.
    """
    taken = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (taken + MEMORY_GB * 2**30, hard))
    yield
    resource.setrlimit(resource.RLIMIT_AS, (soft, hard))


@pytest.mark.usefixtures("bounded_memory")
@pytest.mark.parametrize("kind", SEEDS)
def test_mutated_files_give_a_volume_or_an_error(tmp_path, kind):
    seed = SEEDS[kind](tmp_path)
    content = seed.read_bytes()
    packed = seed.name.endswith(".gz")
    target = tmp_path / f"mutant{'.nii.gz' if packed else seed.suffix if 'nifti' in kind else ''}"
    rng = np.random.default_rng(list(SEEDS).index(kind))
    early = 5000 if kind.startswith(("enhanced", "nuclear")) else 1500
    used = 0
    for index in range(COUNT):
        inside = packed and index % 2  # damage the packed bytes, or what they hold
        changed = gzip.compress(mutated(gzip.decompress(content), rng)) if inside else mutated(content, rng, early)
        target.write_bytes(changed)
        try:
            used += try_to_use(target)
        except BaseException:
            print(f"mutation {index} of {kind}: {changed[:4000].hex()}")
            raise
    assert 0 < used < COUNT, "all were sound, or none"
    print(f"{kind}: {used} of {COUNT} used")


@pytest.mark.parametrize("keyword", [
    "Rows", "Columns", "BitsAllocated", "BitsStored", "HighBit", "PixelRepresentation", "SamplesPerPixel",
    "PhotometricInterpretation", "RescaleSlope", "RescaleIntercept", "ImagePositionPatient", "PixelSpacing",
    "ImageOrientationPatient", "SliceThickness", "SeriesNumber", "InstanceNumber", "ImageType", "Modality",
    "SOPClassUID", "SOPInstanceUID", "SeriesInstanceUID", "FrameOfReferenceUID", "Units",
    "DecayCorrection", "PatientWeight", "SeriesTime", "AcquisitionTime",
    "RadiopharmaceuticalInformationSequence",
])  # fmt: skip
def test_any_value_of_any_attribute_gives_a_volume_or_an_error(tmp_path, keyword):
    seed = pydicom.dcmread(dicom_pet(tmp_path))
    element = seed[keyword]
    values: list[object] = [None]
    if element.VR in ("US", "SS"):
        values += [0, 1, 3, 65535]
    elif element.VR in ("DS", "IS"):
        values += ["0", "-1", "1e300" if element.VR == "DS" else "2147483647", ["1", "2"]]
    elif element.VR == "SQ":
        values += [[pydicom.Dataset()]]
    elif element.VR in ("CS", "UI", "LO", "TM"):
        values += ["", "X" if element.VR == "CS" else "1", ["1", "2"]]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pydicom.config.settings, "writing_validation_mode", pydicom.config.IGNORE)
        patch.setattr(pydicom.config.settings, "reading_validation_mode", pydicom.config.IGNORE)
        for index, value in enumerate(values):
            ds = pydicom.dcmread(tmp_path / "seed")
            ds[keyword].value = value
            try:
                ds.save_as(tmp_path / f"value{index}")
            except (ValueError, TypeError, AttributeError):
                continue  # pydicom itself will not write it
    for path in sorted(tmp_path.glob("value*")):
        try_to_use(path)


@pytest.mark.parametrize("length", [0, 1, 100, 131, 132, 133, 200, 1000])
def test_every_beginning_of_a_file_is_refused(tmp_path, length):
    content = dicom_native(tmp_path).read_bytes()
    (tmp_path / "part").write_bytes(content[:length])
    with pytest.raises(InputError):
        read(tmp_path / "part")
