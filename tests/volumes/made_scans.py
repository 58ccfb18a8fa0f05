"""Small DICOM series made on the spot, so that the tests run anywhere."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from monai.data import MetaTensor
from numpy.typing import NDArray
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import ExplicitVRLittleEndian, generate_uid

CT, MR, PT = (f"1.2.840.10008.5.1.4.1.1.{end}" for end in ("2", "4", "128"))
SECRETS = ("Doe^Jane", "ID-4711", "19610203", "Clinic of Nowhere")
"""What stands for patient data in the made headers; no message or label may hold it."""

Edit = Callable[[Dataset, int], None]


def make_slice(sop_class: str, stored: NDArray[Any], index: int, *, step: float, study: str) -> Dataset:
    """Return one axial slice with the stored pixels (rows, columns), ``step`` mm from its neighbours."""
    ds = Dataset()
    ds.SOPClassUID, ds.SOPInstanceUID = sop_class, generate_uid(entropy_srcs=[study, str(index)])
    ds.StudyInstanceUID, ds.SeriesInstanceUID = (generate_uid(entropy_srcs=[study, x]) for x in ("st", "se"))
    ds.FrameOfReferenceUID = generate_uid(entropy_srcs=[study, "frame"])
    ds.PatientName, ds.PatientID, ds.PatientBirthDate, ds.InstitutionName = SECRETS
    ds.PatientSex, ds.StudyID, ds.AccessionNumber, ds.ReferringPhysicianName = "F", "1", "77", ""
    ds.StudyDate = ds.SeriesDate = ds.ContentDate = ds.AcquisitionDate = "20200102"
    ds.StudyTime, ds.SeriesTime, ds.ContentTime, ds.AcquisitionTime = "090000", "100000", "110000", "100100"
    ds.Manufacturer, ds.SeriesDescription, ds.SeriesNumber = "Maker", "Series of slices", 4
    ds.Modality = {CT: "CT", MR: "MR", PT: "PT"}.get(sop_class, "OT")
    ds.ImageType = ["ORIGINAL", "PRIMARY", "AXIAL"]
    ds.InstanceNumber, ds.AcquisitionNumber, ds.PatientPosition = index + 1, 1, "HFS"
    ds.ImagePositionPatient, ds.ImageOrientationPatient = (
        [-10.0, -20.0, 5.0 + index * step],
        [1, 0, 0, 0, 1, 0],
    )
    ds.PixelSpacing, ds.SliceThickness = [2.0, 1.5], step
    put_pixels(ds, stored)
    if sop_class == CT:
        ds.RescaleSlope, ds.RescaleIntercept, ds.KVP = "1", "-1024", "120"
    if sop_class == PT:
        _as_pet(ds, index)
    return ds


def put_pixels(ds: Dataset, stored: NDArray[Any]) -> None:
    """Make ``stored`` the native pixels of ``ds``."""
    ds.Rows, ds.Columns = stored.shape
    ds.SamplesPerPixel, ds.PhotometricInterpretation = 1, "MONOCHROME2"
    ds.BitsAllocated = ds.BitsStored = 8 * stored.dtype.itemsize
    ds.HighBit = ds.BitsStored - 1
    ds.PixelRepresentation = int(stored.dtype.kind == "i")
    data = stored.tobytes()
    ds.add_new("PixelData", "OW", data + b"\0" * (len(data) % 2))


def _as_pet(ds: Dataset, index: int) -> None:
    ds.ImageType = ["ORIGINAL", "PRIMARY"]
    ds.RescaleSlope, ds.RescaleIntercept = f"{0.1 + 0.05 * index:.2f}", "0"
    ds.Units, ds.DecayCorrection, ds.SeriesType = "BQML", "START", ["WHOLE BODY", "IMAGE"]
    ds.CorrectedImage, ds.FrameReferenceTime, ds.DecayFactor = ["DECY", "ATTN"], "1000.0", "1.01"
    ds.PatientWeight, ds.NumberOfSlices, ds.ImageIndex = "70", 4, index + 1
    dose = Dataset()
    dose.RadionuclideTotalDose, dose.RadionuclideHalfLife = "3.5E8", "6586.2"
    dose.RadiopharmaceuticalStartTime = "090000"
    ds.RadiopharmaceuticalInformationSequence = [dose]


def save(ds: Dataset, path: Path) -> Path:
    """Write ``ds`` to ``path`` as explicit VR little endian."""
    ds.file_meta = FileMetaDataset()
    ds.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    ds.save_as(path, enforce_file_format=True)
    return path


def make_series(
    folder: Path,
    sop_class: str = CT,
    *,
    stored: NDArray[Any] | None = None,
    step: float = 3.0,
    study: str = "one",
    edit: Edit | None = None,
) -> Path:
    """Write a series of ``stored`` (slices, rows, columns) into ``folder``; ``edit`` changes each slice."""
    folder.mkdir(parents=True, exist_ok=True)
    stored = pixels() if stored is None else stored
    for index, image in enumerate(stored):
        ds = make_slice(sop_class, image, index, step=step, study=study)
        if edit is not None:
            edit(ds, index)
        save(ds, folder / f"{study}-{len(stored) - index:03d}")
    return folder


def regridded(volume: MetaTensor, values: Any, affine: Any) -> MetaTensor:
    """Return ``values`` with the metadata of ``volume`` and another affine."""
    meta = {key: value for key, value in volume.meta.items() if key != "affine"}
    return MetaTensor(values.as_tensor(), affine=torch.as_tensor(affine), meta=meta)


def pixels(shape: tuple[int, int, int] = (4, 6, 5), low: int = 0, high: int = 2000, kind: str = "i2") -> NDArray[Any]:
    """Return random stored values (slices, rows, columns)."""
    return np.random.default_rng(7).integers(low, high, size=shape, dtype=kind)


ENHANCED = {
    CT: "1.2.840.10008.5.1.4.1.1.2.1",
    MR: "1.2.840.10008.5.1.4.1.1.4.1",
    PT: "1.2.840.10008.5.1.4.1.1.130",
}
"""The enhanced class of each classic one."""
_FRAME_TYPE = {CT: "CTImageFrameTypeSequence", MR: "MRImageFrameTypeSequence", PT: "PETFrameTypeSequence"}


def make_enhanced(
    path: Path, sop_class: str, stored: NDArray[Any], *, study: str = "one", step: float = 3.0, edit: Edit | None = None
) -> Path:
    """Write one enhanced file of ``stored`` (frames, rows, columns); ``edit`` changes the groups of each frame."""
    ds = make_slice(sop_class, stored[0], 0, step=step, study=study)
    for keyword in ("ImagePositionPatient", "ImageOrientationPatient", "PixelSpacing", "SliceThickness",
                    "RescaleSlope", "RescaleIntercept", "Units", "DecayCorrection", "FrameReferenceTime"):  # fmt: skip
        if keyword in ds:
            del ds[keyword]
    ds.SOPClassUID, ds.NumberOfFrames = ENHANCED[sop_class], len(stored)
    ds.ImageType = ["ORIGINAL", "PRIMARY", "VOLUME", "NONE"]
    ds.SharedFunctionalGroupsSequence = [
        groups(
            PlaneOrientationSequence={"ImageOrientationPatient": [1, 0, 0, 0, 1, 0]},
            PixelMeasuresSequence={"PixelSpacing": [2.0, 1.5], "SliceThickness": step},
        )
    ]
    ds.PerFrameFunctionalGroupsSequence = [_frame_groups(sop_class, n, len(stored), step) for n in range(len(stored))]
    ds.PixelData = stored.tobytes() + b"\0" * (stored.nbytes % 2)
    for index, frame in enumerate(ds.PerFrameFunctionalGroupsSequence):
        if edit is not None:
            edit(frame, index)
    path.parent.mkdir(parents=True, exist_ok=True)
    return save(ds, path)


def _frame_groups(sop_class: str, index: int, count: int, step: float) -> Dataset:
    """Return the groups of one frame; the last frame lies lowest."""
    slope = {CT: 1.0, MR: 0.5, PT: 0.1 + 0.05 * index}[sop_class]
    world = {"RealWorldValueSlope": slope, "RealWorldValueIntercept": 0.0, "MeasurementUnitsCodeSequence": [bq_ml()]}
    rescale = {"RescaleSlope": f"{slope:.2f}", "RescaleIntercept": "-1024" if sop_class == CT else "0",
               "RescaleType": "HU" if sop_class == CT else "US"}  # fmt: skip
    return groups(
        FrameContentSequence={"StackID": "1", "InStackPositionNumber": count - index},
        PlanePositionSequence={"ImagePositionPatient": [-10.0, -20.0, 5.0 + (count - 1 - index) * step]},
        PixelValueTransformationSequence=rescale,
        **{_FRAME_TYPE[sop_class]: {"FrameType": ["ORIGINAL", "PRIMARY", "VOLUME", "NONE"]}},
        **({"RealWorldValueMappingSequence": world} if sop_class == PT else {}),
    )


def groups(**macros: dict[str, Any]) -> Dataset:
    """Return functional groups with one item in each macro."""
    made = Dataset()
    for keyword, values in macros.items():
        item = Dataset()
        for name, value in values.items():
            setattr(item, name, value)
        setattr(made, keyword, [item])
    return made


def bq_ml() -> Dataset:
    """Return the code of Bq/ml."""
    code = Dataset()
    code.CodeValue, code.CodingSchemeDesignator, code.CodeMeaning = "Bq/ml", "UCUM", "Becquerels/milliliter"
    return code
