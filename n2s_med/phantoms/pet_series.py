"""Write a PET volume as a classic DICOM series, one file per slice (PET Image IOD: PS3.3 A.21)."""

from __future__ import annotations

import hashlib
import math
import tempfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import ExplicitVRLittleEndian, PositronEmissionTomographyImageStorage, generate_uid
from pydicom.valuerep import format_number_as_ds
from torch import Tensor

from n2s_med.errors import OutputError
from n2s_med.phantoms.grids import Triple

LARGEST_STORED = 65535
HALF_LIFE_S = 6586.2  # F-18
FRAME_S = 180.0
_DATE, _INJECTED, _SCANNED = "20250101", "090000", "100000"


def write_pet_series(activity: Tensor, folder: str | Path, *, spacing_mm: Triple, gain: float) -> None:
    """Write the activity as a series of an invented patient; equal input gives equal files, UIDs included.

    Every slice has a slope of its own, which spreads its values over 16 bits. A folder appears whole or not
    at all. Slices are named ``slice_0001.dcm`` from the feet up.

    Parameters
    ----------
    activity
        (X, Y, Z), Bq/mL, finite and not negative; X runs to the patient's left (columns), Y to the back
        (rows), Z to the head (slices). The middle of the volume is the patient origin.
    folder
        Does not exist yet, or is empty.
    spacing_mm
        Voxel size along (X, Y, Z).
    gain
        Bq/mL that one count stands for; tells how many counts each slice holds.

    Raises
    ------
    ValueError
        If the activity is no volume, negative, infinite or NaN, or a size or the gain is not positive.
    OutputError
        If the folder holds files already, or cannot be written.
    """
    _check(activity, spacing_mm, gain)
    target = Path(folder)
    try:
        if target.exists() and (not target.is_dir() or any(target.iterdir())):
            raise OutputError("exists already", remedy="delete it or name another folder", path=target)
        target.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=target.parent, prefix=f".{target.name}-") as beside:
            unfinished = Path(beside) / "series"
            unfinished.mkdir()
            for number, dataset in enumerate(_slices(activity, spacing_mm, gain), 1):
                dataset.save_as(unfinished / f"slice_{number:04d}.dcm", enforce_file_format=True)
            unfinished.replace(target)
    except OSError as error:
        remedy = "check the space left and the permissions"
        raise OutputError(f"cannot be written ({error.strerror})", remedy=remedy, path=target) from error


def _check(activity: Tensor, spacing_mm: Triple, gain: float) -> None:
    if activity.ndim != 3 or activity.numel() == 0:
        raise ValueError(f"activity has shape {tuple(activity.shape)}; give one volume (X, Y, Z)")
    if not bool(torch.isfinite(activity).all()) or float(activity.min()) < 0:
        raise ValueError("activity holds negative, infinite or NaN values; give finite Bq/mL from 0 up")
    if not all(math.isfinite(v) and v > 0 for v in (*spacing_mm, gain)):
        raise ValueError(f"spacing_mm {spacing_mm} and gain {gain} must be positive and finite")


def _slices(activity: Tensor, spacing_mm: Triple, gain: float) -> Iterator[Dataset]:
    """Yield one dataset per slice, all made from one series dataset."""
    values = activity.detach().cpu().double().numpy()
    seed = hashlib.sha256(values.tobytes() + repr((values.shape, spacing_mm, gain)).encode()).hexdigest()
    fallback = values.max() or 1.0
    for index in range(values.shape[2]):
        dataset = _series(values.shape, spacing_mm, seed)
        _place(dataset, index, values.shape, spacing_mm, seed)
        rows = values[:, :, index].T
        _store(dataset, rows, rows.max() or fallback)
        dataset.PrimaryPromptsCountsAccumulated = round(float(rows.sum()) / gain)
        yield dataset


def _series(shape: tuple[int, ...], spacing_mm: Triple, seed: str) -> Dataset:
    """Return what every slice shares."""
    dataset = Dataset()
    dataset.file_meta = FileMetaDataset()
    dataset.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    _identify(dataset, seed)
    _describe_scan(dataset)
    dataset.RadiopharmaceuticalInformationSequence = [_radiopharmaceutical()]
    _orient(dataset)
    dataset.Columns, dataset.Rows, dataset.NumberOfSlices = shape
    dataset.PixelSpacing = [_ds(spacing_mm[1]), _ds(spacing_mm[0])]
    dataset.SliceThickness = _ds(spacing_mm[2])
    return dataset


def _identify(dataset: Dataset, seed: str) -> None:
    """Fill the patient, study, series, frame of reference and equipment modules."""
    dataset.SpecificCharacterSet = "ISO_IR 192"
    dataset.PatientName, dataset.PatientID = "PHANTOM^NEMA", "PHANTOM-NEMA"
    dataset.PatientBirthDate, dataset.PatientSex = "", "O"
    dataset.PatientWeight, dataset.PatientSize = "70", "1.7"
    dataset.StudyInstanceUID = _uid("study", seed)
    dataset.SeriesInstanceUID = _uid("series", seed)
    dataset.FrameOfReferenceUID = _uid("frame of reference", seed)
    dataset.StudyID, dataset.SeriesNumber, dataset.AccessionNumber = "1", 1, ""
    dataset.StudyDescription, dataset.SeriesDescription = "Simulated phantom", "PET body phantom, simulated"
    dataset.ReferringPhysicianName, dataset.PositionReferenceIndicator = "", ""
    for level in ("Study", "Series", "Acquisition", "Content"):
        setattr(dataset, f"{level}Date", _DATE)
        setattr(dataset, f"{level}Time", _SCANNED)
    dataset.BodyPartExamined = "ABDOMEN"
    dataset.Manufacturer, dataset.ManufacturerModelName = "n2s-med", "Simulated PET scanner"
    dataset.DeviceSerialNumber, dataset.SoftwareVersions = "0", "1"


def _describe_scan(dataset: Dataset) -> None:
    """Fill the PET series and image modules: one static bed position, decay-corrected to its start.

    The mean activity of a frame of length T is what decays reach at its mean time; with L = ln 2 T over the
    half-life, the correction to the start is L / (1 − exp(−L)) (PS3.3 C.8.9.4.1.5).
    """
    decay = math.log(2) * FRAME_S / HALF_LIFE_S
    factor = decay / -math.expm1(-decay)
    dataset.SOPClassUID = PositronEmissionTomographyImageStorage
    dataset.Modality, dataset.ImageType = "PT", ["ORIGINAL", "PRIMARY"]
    dataset.SeriesType, dataset.Units, dataset.CountsSource = ["STATIC", "IMAGE"], "BQML", "EMISSION"
    dataset.CorrectedImage = ["DECY", "ATTN", "SCAT", "DTIM", "RAN", "NORM", "DCAL"]
    dataset.RandomsCorrectionMethod, dataset.ScatterCorrectionMethod = "NONE", "NONE"
    dataset.AttenuationCorrectionMethod, dataset.ReconstructionMethod = "NONE", "Simulated"
    dataset.CollimatorType = "NONE"
    dataset.DecayCorrection, dataset.DecayFactor = "START", _ds(factor)
    dataset.FrameReferenceTime = _ds(1000 * HALF_LIFE_S * math.log2(factor))
    dataset.ActualFrameDuration = round(1000 * FRAME_S)
    dataset.DoseCalibrationFactor = "1"
    dataset.EnergyWindowRangeSequence = [_energy_window()]
    dataset.BurnedInAnnotation, dataset.LossyImageCompression = "NO", "00"


def _energy_window() -> Dataset:
    window = Dataset()
    window.EnergyWindowLowerLimit, window.EnergyWindowUpperLimit = "425", "650"
    return window


def _radiopharmaceutical() -> Dataset:
    item = Dataset()
    item.Radiopharmaceutical = "Fluorodeoxyglucose"
    item.RadiopharmaceuticalStartTime = _INJECTED
    item.RadiopharmaceuticalStartDateTime = _DATE + _INJECTED
    item.RadionuclideTotalDose = "350000000"
    item.RadionuclideHalfLife, item.RadionuclidePositronFraction = _ds(HALF_LIFE_S), "0.9673"
    item.RadionuclideCodeSequence = [_code("77004003", "^18^Fluorine")]
    item.RadiopharmaceuticalCodeSequence = [_code("35321007", "Fluorodeoxyglucose F^18^")]
    return item


def _orient(dataset: Dataset) -> None:
    """Fill the patient's orientation: supine, head first, rows to the left, columns to the back."""
    posture = _code("102538003", "recumbent")
    posture.PatientOrientationModifierCodeSequence = [_code("40199007", "supine")]
    dataset.PatientOrientationCodeSequence = [posture]
    dataset.PatientGantryRelationshipCodeSequence = [_code("102540008", "headfirst")]
    dataset.ImageOrientationPatient = [1, 0, 0, 0, 1, 0]


def _place(dataset: Dataset, index: int, shape: tuple[int, ...], spacing_mm: Triple, seed: str) -> None:
    """Give the slice its number, UID and position."""
    corner = [-(n - 1) / 2 * h for n, h in zip(shape, spacing_mm, strict=True)]
    corner[2] += index * spacing_mm[2]
    dataset.SOPInstanceUID = _uid(f"slice {index}", seed)
    dataset.file_meta.MediaStorageSOPClassUID = dataset.SOPClassUID
    dataset.file_meta.MediaStorageSOPInstanceUID = dataset.SOPInstanceUID
    dataset.InstanceNumber = dataset.ImageIndex = index + 1
    dataset.ImagePositionPatient = [_ds(c) for c in corner]
    dataset.SliceLocation = _ds(corner[2])


def _store(dataset: Dataset, rows: NDArray[np.float64], largest: float) -> None:
    """Store the slice with the slope that puts ``largest`` at the top of 16 bits.

    The slope is rounded to the text that is written before the values are divided by it.
    """
    slope = _ds(largest / LARGEST_STORED)
    stored = np.rint(rows / float(slope)).clip(0, LARGEST_STORED).astype("<u2")
    dataset.RescaleSlope, dataset.RescaleIntercept = slope, "0"
    dataset.SamplesPerPixel, dataset.PhotometricInterpretation = 1, "MONOCHROME2"
    dataset.BitsAllocated, dataset.BitsStored, dataset.HighBit = 16, 16, 15
    dataset.PixelRepresentation = 0
    dataset.PixelData = stored.tobytes()


def _code(value: str, meaning: str) -> Dataset:
    """Return a SNOMED CT code item."""
    item = Dataset()
    item.CodeValue, item.CodingSchemeDesignator, item.CodeMeaning = value, "SCT", meaning
    return item


def _uid(what: str, seed: str) -> str:
    return str(generate_uid(entropy_srcs=["n2s-med phantom", what, seed]))


def _ds(value: float) -> str:
    """Return a decimal string of at most 16 characters."""
    return str(format_number_as_ds(float(value)))
