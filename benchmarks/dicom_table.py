"""Read every DICOM series of a folder with this package and with others, and write what comes out wrong.

    N2S_DATA=/path/to/data python benchmarks/dicom_table.py [--out docs/dicom.md]

Everything in the page from the heading of the first table on is written anew.

The right answer is made here, from the headers and pixels of each file alone and without any of the readers: where
each frame's corners lie and which values it has. A reader's slice is matched to a frame by its pattern; then its
corners and values are compared with the frame's. A second table says what becomes of each series that is written
back unchanged.
"""

from __future__ import annotations

import argparse
import os
import re
import shutil
import subprocess
import sys
import tempfile
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pydicom
import SimpleITK as sitk
from monai.data import ITKReader, PydicomReader
from numpy.typing import NDArray
from pydicom.uid import generate_uid

import n2s_med
from n2s_med.volumes import Provenance, write
from n2s_med.volumes import read as read_ours

Floats = NDArray[np.float64]
Volume = tuple[Floats, Floats]
"""Values (C, X, Y, Z) and the affine to LPS millimetres."""

RAS = np.diag([-1.0, -1.0, 1.0, 1.0])
MATCHING = 0.9999
"""Correlation from which a slice is that frame."""
SAMPLES = 2048

SERIES = {  # folder or file: the number of volumes that it holds
    "pet/dicom_ge_discoveryst_sts001": 1,
    "ibsi_sts002_cropped/dicom/PET": 1,
    "ibsi_sts002_cropped/dicom/CT": 1,
    "ibsi_sts002_cropped/dicom/MR_T1": 1,
    "ct/dicom_philips_ingenuity_phantom_5mm": 1,
    "ct/dicom_ge_hispeed_variable_tilt_spacing": 2,
    "ct/dicom_philips_ingenuity_phantom_localizer_and_summary": 0,
    "mr/dicom_siemens_avanto_t2_sts001": 1,
    "mr/dicom_ge_signa_breast_sagittal": 1,
    "mr/dicom_ge_architect_fmri_4d_classic": 3,
    "mr/dicom_uih_umr770_dti_mosaic": 0,
    "mr/dicom_siemens_trio_transfer_syntaxes": 0,
    "enhanced/mr_siemens_vida_xa10_fmri": 4,
    "enhanced/mr_philips_elition_pcasl_real": 1,
    "enhanced/ct_multiframe_supplemental_pydicom": 1,
    "enhanced/ct_multiframe_tiny_dcmqi": 1,
    "compressed/pydicom/CT_small.dcm": 1,
    "compressed/pydicom/J2K_pixelrep_mismatch.dcm": 1,
    "compressed/pydicom/MR_small.dcm": 1,
    "compressed/pydicom/MR_small_RLE.dcm": 1,
    "compressed/pydicom/MR_small_bigendian.dcm": 1,
    "compressed/pydicom/MR_small_implicit.dcm": 1,
    "compressed/pydicom/MR_small_jp2klossless.dcm": 1,
    "compressed/pydicom/MR_small_jpeg_ls_lossless.dcm": 1,
    "compressed/pydicom/MR_truncated.dcm": 0,
    "compressed/pydicom/JPEG-lossy.dcm": 0,
    "compressed/pydicom/image_dfl.dcm": 0,
    "compressed/pydicom/rtdose.dcm": 0,
    "compressed/pydicom-data/bad_sequence.dcm": 1,
    "compressed/pydicom-data/explicit_VR-UN.dcm": 1,
    "compressed/pydicom-data/emri_small.dcm": 0,
    "compressed/pydicom-data/emri_small_RLE.dcm": 0,
    "compressed/pydicom-data/emri_small_big_endian.dcm": 0,
    "compressed/pydicom-data/emri_small_jpeg_2k_lossless.dcm": 0,
    "compressed/pydicom-data/emri_small_jpeg_ls_lossless.dcm": 0,
    "compressed/pydicom-data/JLSL_16_15_1_1F.dcm": 0,
    "compressed/pydicom-data/JPEG-LL.dcm": 0,
    "compressed/pydicom-data/mlut_18.dcm": 0,
    "compressed/pydicom-data/parametric_map_float.dcm": 0,
    "ultrasound/pydicom-data/JPGLosslessP14SV1_1s_1f_8b.dcm": 1,
    "ultrasound/pydicom-data/OBXXXX1A_rle.dcm": 0,
    "ultrasound/pydicom-data/US1_J2KR.dcm": 0,
}
MADE = {"one slice missing": 2, "one position twice": 0, "PET, first slice empty": 1, "dynamic PET, 3 frames": 3}
"""Made of the cropped series, as real folders are broken."""
HEADING = "## Every series of the test data"
LEGEND = (
    "Each cell: how many volumes; the largest error of a corner of a slice, in mm; the largest error of a value, in"
    " per cent of the series' largest; and slices that are not there at all. Bold: wrong (another number of volumes,"
    " a tenth of the slice spacing, a thousandth of the largest value, or a slice lost). To refuse what is no scan is"
    " the business of a program that denoises, not of a general reader, so those are counted apart."
)


@dataclass(frozen=True)
class Truth:
    """One frame as its own header has it: values (X, Y) and the affine (4, 3) of its plane to LPS mm."""

    values: Floats
    plane: Floats
    thickness_mm: float

    @property
    def corners(self) -> Floats:
        """The three corners (3, 3) that fix the plane."""
        x, y = self.values.shape
        corners: Floats = (self.plane @ np.array([[0, 0, 1], [x - 1, 0, 1], [0, y - 1, 1]]).T)[:3].T
        return corners


# -- the right answer ----------------------------------------------------------------------------------


def truths(path: Path) -> list[Truth]:
    """Return every frame of the files at ``path``."""
    return [truth for file in dicom_files(path) for truth in _truths(pydicom.dcmread(file))]


def dicom_files(path: Path) -> list[Path]:
    """Return the DICOM files at ``path``."""
    found = sorted(path.iterdir()) if path.is_dir() else [path]
    return [file for file in found if file.is_file() and file.read_bytes()[128:132] == b"DICM"]


def _truths(ds: pydicom.Dataset) -> Iterator[Truth]:
    groups = ds.get("PerFrameFunctionalGroupsSequence")
    pixels = ds.pixel_array.astype(np.float64)
    for index, stored in enumerate(pixels if groups else pixels[None]):
        header = pydicom.Dataset()
        for group in [ds.SharedFunctionalGroupsSequence[0], groups[index]] if groups else ():
            for element in group:
                if element.VR == "SQ" and element.value and not element.tag.is_private:
                    header.update(element.value[0])
        yield _truth(header if groups else ds, stored.T)


def _truth(header: pydicom.Dataset, stored: Floats) -> Truth:
    if header.get("Modality") == "US":  # it has a pixel size, in cm, and no place
        region = header.SequenceOfUltrasoundRegions[0]
        plane = np.diag([10 * region.PhysicalDeltaX, 10 * region.PhysicalDeltaY, 0, 1.0])[:, [0, 1, 3]]
        return Truth(stored, plane, 1.0)
    row, column = np.array(header.ImageOrientationPatient, dtype=float).reshape(2, 3)
    between_rows, between_columns = (float(x) for x in header.PixelSpacing)
    plane = np.column_stack([row * between_columns, column * between_rows, np.array(header.ImagePositionPatient)])
    slope, intercept = float(header.get("RescaleSlope", 1)), float(header.get("RescaleIntercept", 0))
    return Truth(
        stored * slope + intercept, np.vstack([plane.astype(float), [0, 0, 1]]), float(header.SliceThickness or 1)
    )


# -- the readers ---------------------------------------------------------------------------------------


def ours(path: Path) -> list[Volume]:
    """This package."""
    return [(v.numpy().astype(float), RAS @ v.affine.numpy()) for v in read_ours(path).volumes]


def simpleitk(path: Path) -> list[Volume]:
    """SimpleITK: every series that GDCM finds in the folder."""
    if path.is_file():
        return [_of_simpleitk(sitk.ReadImage(str(path)))]
    found = []
    for series in sitk.ImageSeriesReader.GetGDCMSeriesIDs(str(path)):
        names = sitk.ImageSeriesReader.GetGDCMSeriesFileNames(str(path), series)
        found.append(_of_simpleitk(sitk.ReadImage(names)))
    return found


def _of_simpleitk(image: Any) -> Volume:
    values = sitk.GetArrayFromImage(image).astype(float)
    if image.GetNumberOfComponentsPerPixel() > 1:
        values = values.mean(axis=-1)
    dims = image.GetDimension()
    values = values.reshape((-1, *values.shape[-3:])) if dims > 2 else values[None, None]
    affine = np.eye(4)
    used = min(dims, 3)
    directions = np.array(image.GetDirection()).reshape(dims, dims)[:used, :used]
    affine[:used, :used] = directions * np.array(image.GetSpacing())[:used]
    affine[:used, 3] = image.GetOrigin()[:used]
    return values.transpose(0, 3, 2, 1), affine


def monai(reader: type) -> Callable[[Path], list[Volume]]:
    """A reader of MONAI."""

    def read(path: Path) -> list[Volume]:
        made = reader()
        values, meta = made.get_data(made.read(str(path)))
        affine = np.asarray(meta["affine"], dtype=float)
        space = np.asarray(values, dtype=float)
        space = space[..., None] if space.ndim == 2 else space
        stacks = np.moveaxis(space, 3, 0) if space.ndim == 4 else space[None]
        whole = np.eye(4)
        whole[: len(affine) - 1, : len(affine) - 1] = affine[:-1, :-1]
        whole[: len(affine) - 1, 3] = affine[:-1, -1]
        return [(stacks, RAS @ whole)]

    return read


READERS: dict[str, Callable[[Path], list[Volume]]] = {
    "n2s-med": ours,
    "SimpleITK": simpleitk,
    "MONAI ITKReader": monai(ITKReader),
    "MONAI PydicomReader": monai(PydicomReader),
}


# -- the comparison ------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Outcome:
    """What a reader made of a series."""

    volumes: int
    geometry_mm: float = 0.0
    value_percent: float = 0.0
    lost: int = 0
    spacing_mm: float = 1.0

    def cell(self, right: int) -> str:
        """For the table: bold where it is wrong."""
        if self.volumes == 0:
            return "refused" if right == 0 else "**refused**"
        if right == 0:
            return f"**{self.volumes}**"
        count = f"{self.volumes}" if self.volumes == right else f"**{self.volumes}**"
        geometry = _marked(f"{_short(self.geometry_mm)} mm", self.geometry_mm > 0.1 * self.spacing_mm)
        value = _marked(f"{_short(self.value_percent)} %", self.value_percent > 0.1)
        lost = f", **{self.lost} lost**" if self.lost else ""
        return f"{count}, {geometry}, {value}{lost}"

    def is_right(self, right: int) -> bool:
        """Whether nothing is wrong."""
        return "**" not in self.cell(right)


def _short(number: float) -> str:
    """Return two digits of ``number``; what is below a thousandth is rounding."""
    return "0" if number < 1e-3 else f"{number:.2g}" if number < 10 else f"{number:.0f}"


def _marked(text: str, wrong: bool) -> str:
    return f"**{text}**" if wrong else text


def outcome(reader: Callable[[Path], list[Volume]], path: Path, frames: Sequence[Truth]) -> Outcome:
    """Return what ``reader`` makes of ``path``; whatever it raises is a refusal."""
    try:
        volumes = reader(path)
    except Exception:  # of any other library, for any reason
        return Outcome(0)
    return compare(volumes, frames)


def compare(volumes: Sequence[Volume], frames: Sequence[Truth]) -> Outcome:
    """Return how far ``volumes`` are from ``frames``, of which constant ones cannot be told apart and do not count."""
    count = sum(len(values) for values, _ in volumes)
    slices = [(values[c, :, :, z], affine, z) for values, affine in volumes for c, z in np.ndindex(values.shape[::3])]
    told = [frame for frame in frames if np.ptp(frame.values) > 0]
    if not told:
        return Outcome(count)
    largest = max(np.abs(frame.values).max() for frame in told)
    geometry = value = 0.0
    lost = 0
    shapes = {frame.values.shape for frame in told}
    patterns = {shape: _patterns([s for s, _, _ in slices if s.shape == shape]) for shape in shapes}
    for frame in told:
        alike = [entry for entry in slices if entry[0].shape == frame.values.shape]
        match = patterns[frame.values.shape] @ _patterns([frame.values])[0] if alike else np.zeros(1)
        if match.max() < MATCHING:
            lost += 1
            continue
        values, affine, z = min(
            (alike[i] for i in np.flatnonzero(match > match.max() - 1e-9)),
            key=lambda entry: _distance(frame, entry[1], entry[2]),
        )
        geometry = max(geometry, _distance(frame, affine, z))
        value = max(value, float(np.abs(values - frame.values).max() / largest * 100))
    return Outcome(count, geometry, value, lost, min(frame.thickness_mm for frame in frames))


def _patterns(planes: Sequence[Floats]) -> Floats:
    """Return samples of each plane, as vectors of mean 0 and length 1."""
    if not planes:
        return np.zeros((1, 1))
    flat = np.stack([plane.ravel() for plane in planes])
    sampled = (
        flat[:, np.random.default_rng(0).permutation(flat.shape[1])[:SAMPLES]] if flat.shape[1] > SAMPLES else flat
    )
    centred = sampled - sampled.mean(axis=1, keepdims=True)
    lengths = np.linalg.norm(centred, axis=1, keepdims=True)
    return centred / np.where(lengths > 0, lengths, 1)


def _distance(frame: Truth, affine: Floats, z: int) -> float:
    """Return the largest distance in mm of a corner of slice ``z`` from where it belongs."""
    x, y = frame.values.shape
    corners = (affine @ np.array([[0, 0, z, 1], [x - 1, 0, z, 1], [0, y - 1, z, 1]]).T)[:3].T
    return float(np.linalg.norm(corners - frame.corners, axis=1).max())


# -- series that are made ------------------------------------------------------------------------------


def make(name: str, data: Path, folder: Path) -> Path:
    """Write the series ``name`` of :data:`MADE` into ``folder``."""
    source = data / "ibsi_sts002_cropped/dicom" / ("PET" if "PET" in name else "MR_T1")
    files = sorted(dicom_files(source), key=lambda file: float(pydicom.dcmread(file).ImagePositionPatient[2]))
    for index, file in enumerate(files):
        if name == "one slice missing" and index == len(files) // 2:
            continue
        copies = {"dynamic PET, 3 frames": 3, "one position twice": 1 + (index == 5)}.get(name, 1)
        for copy in range(copies):
            ds = pydicom.dcmread(file)
            if copy:
                ds.SOPInstanceUID = generate_uid(entropy_srcs=[ds.SOPInstanceUID, str(copy)])
                ds.file_meta.MediaStorageSOPInstanceUID = ds.SOPInstanceUID
                ds.PixelData = np.roll(ds.pixel_array, copy).tobytes()
            if copies == 3:
                ds.FrameReferenceTime, ds.InstanceNumber = str(1000 * (copy + 1)), copy * len(files) + index + 1
            if name == "PET, first slice empty" and index == 0:
                ds.PixelData, ds.RescaleSlope = bytes(len(ds.PixelData)), "1"
            ds.save_as(folder / f"{copy}-{index:03d}.dcm")
    return folder


# -- written back --------------------------------------------------------------------------------------


def written(name: str, path: Path, work: Path) -> Iterator[str]:
    """Yield a row for each volume of ``path``: what becomes of it when it is written unchanged."""
    for index, volume in enumerate(read_ours(path).volumes):
        out = work / f"{index}"
        provenance = Provenance("identity", "00", "none", {}, n2s_med.__version__)
        write(volume, out, provenance=provenance)
        again = read_ours(out).volumes[0]
        sources = dict.fromkeys(Path(source) for source in volume.meta["source"])
        error = float((again - volume).abs().max() / volume.abs().max() * 100)
        cells = [name, f"{_short(error)} %", _new_errors(list(sources), sorted(out.iterdir())),
                 _cross_check([*sources, *out.iterdir()], list(sources)), _dcm2niix(out, again, work)]  # fmt: skip
        yield f"| {' | '.join(cells)} |"
        shutil.rmtree(out)


def _new_errors(sources: Sequence[Path], derived: Sequence[Path]) -> str:
    """Return the errors of derived files that their sources lack; to name a source's bad UID is not a new one."""
    known, found = (_errors([files[0], files[len(files) // 2], files[-1]]) for files in (sources, derived))
    values = {value for error in known for value in re.findall(r"= <[^>]+>", error)}
    new = [error for error in found - known if not values & set(re.findall(r"= <[^>]+>", error))]
    return f"**{len(new)}**" if new else "none"


def _errors(files: Sequence[Path]) -> set[str]:
    found = set()
    for file in files:
        done = subprocess.run(["dciodvfy", "-new", file], capture_output=True, text=True, errors="replace", check=False)
        found |= {re.sub(r"[\d.]+", "#", line) for line in done.stderr.splitlines() if line.startswith("Error")}
    return found


def _cross_check(together: Sequence[Path], alone: Sequence[Path]) -> str:
    statuses = [
        subprocess.run(["dcentvfy", *f], capture_output=True, check=False).returncode for f in (alone, together)
    ]
    return "clean" if statuses[1] == 0 else "as the source" if statuses[0] == statuses[1] else "**errors**"


def _dcm2niix(folder: Path, volume: Any, work: Path) -> str:
    """Return how far dcm2niix puts the corners of the derived series from where this package does."""
    target = work / "nifti"
    target.mkdir()
    subprocess.run(["dcm2niix", "-z", "n", "-f", "%s_%e", "-o", target, folder], capture_output=True, check=False)
    found = [nib.load(file) for file in sorted(target.glob("*.nii"))]
    shape = sorted(volume.shape[1:])
    same = [image for image in found if sorted(image.shape[:3] + (1,) * (3 - image.ndim)) == shape]
    result = "does not read it"
    if same:
        distances = [_apart(image, volume) for image in same]
        result = f"{_short(min(distances))} mm"
    elif found:
        result = "another shape"
    shutil.rmtree(target)
    return result


def _apart(image: Any, volume: Any) -> float:
    """Return the largest distance between the corners of two volumes, whatever their axes' order and sense."""
    corners = [_corners(image.affine, image.shape[:3]), _corners(volume.affine.numpy(), tuple(volume.shape[1:]))]
    distances = np.linalg.norm(corners[0][:, None] - corners[1][None], axis=2)
    return float(distances.min(axis=1).max())


def _corners(affine: Floats, shape: Sequence[int]) -> Floats:
    ends = np.array([(*np.multiply(corner, np.subtract(shape, 1)), 1) for corner in np.ndindex(2, 2, 2)])
    corners: Floats = (affine @ ends.T)[:3].T
    return corners


# -- the command ---------------------------------------------------------------------------------------


def main() -> None:
    """Write both tables."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--out", type=Path, default=Path("docs/dicom.md"))
    arguments = parser.parse_args()
    if not os.environ.get("N2S_DATA"):
        sys.exit("N2S_DATA names no folder of real scans")
    warnings.simplefilter("ignore")
    sitk.ProcessObject.SetGlobalWarningDisplay(False)
    data = Path(os.environ["N2S_DATA"])
    rows, back = [], []
    wrong = {scans: dict.fromkeys(READERS, 0) for scans in (True, False)}
    with tempfile.TemporaryDirectory() as work:
        for name, right in {**SERIES, **MADE}.items():
            staged = _staged(name, data, Path(work) / "staged")
            frames = truths(staged) if right else []
            outcomes = {reader: outcome(read, staged, frames) for reader, read in READERS.items()}
            for reader, found in outcomes.items():
                wrong[right > 0][reader] += not found.is_right(right)
            rows.append(f"| {name} | {right or 'refuse'} | {' | '.join(o.cell(right) for o in outcomes.values())} |")
            print(rows[-1], flush=True)
            if right:
                back += written(name, staged, Path(work))
                print(back[-1], flush=True)
            shutil.rmtree(Path(work) / "staged")
    before = arguments.out.read_text(encoding="utf-8").partition(HEADING)[0] if arguments.out.exists() else ""
    arguments.out.write_text(before + "\n".join(_page(rows, back, wrong)), encoding="utf-8")


def _staged(name: str, data: Path, folder: Path) -> Path:
    """Return where the series ``name`` lies alone: the others would stumble over a licence beside it."""
    folder.mkdir()
    if name in MADE:
        return make(name, data, folder)
    for file in dicom_files(data / name):
        (folder / file.name).symlink_to(file)
    return folder if (data / name).is_dir() else folder / Path(name).name


def _page(rows: Sequence[str], back: Sequence[str], wrong: dict[bool, dict[str, int]]) -> list[str]:
    rights = [*SERIES.values(), *MADE.values()]
    return [
        HEADING,
        "",
        "Written by `python benchmarks/dicom_table.py`. " + LEGEND,
        "",
        f"| series | right | {' | '.join(READERS)} |",
        "|---|---|" + "---|" * len(READERS),
        *rows,
        f"| **wrong, of {sum(right > 0 for right in rights)} scans** | | {_joined(wrong[True])} |",
        f"| **read, of {rights.count(0)} that are none, or ambiguous** | | {_joined(wrong[False])} |",
        "",
        "### Written back unchanged",
        "",
        "Value: the largest change, in per cent of the largest value. dciodvfy: errors in derived files that their"
        " sources lack. dcentvfy: of source and derived series together. dcm2niix: how far it puts a corner of the"
        " derived series from where this package does; it has no sheared grid for a tilted gantry, and no scale for"
        " ultrasound.",
        "",
        "| series | value | dciodvfy | dcentvfy | dcm2niix |",
        "|---|---|---|---|---|",
        *back,
        "",
    ]


def _joined(counts: dict[str, int]) -> str:
    return " | ".join(str(count) for count in counts.values())


if __name__ == "__main__":
    main()
