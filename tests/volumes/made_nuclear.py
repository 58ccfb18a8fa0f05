"""Nuclear medicine objects that keep the rules, made on the spot: every kind that Image Type names."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from made_scans import CT, Edit, make_slice, put_pixels, save
from numpy.typing import NDArray
from pydicom.dataset import Dataset
from pydicom.tag import Tag

NM = "1.2.840.10008.5.1.4.1.1.20"

KINDS = {  # Image Type, value 3: the indices that its frames run through, the slowest first
    "STATIC": {"EnergyWindowVector": 2, "DetectorVector": 2},
    "WHOLE BODY": {"EnergyWindowVector": 1, "DetectorVector": 2},
    "DYNAMIC": {"EnergyWindowVector": 1, "DetectorVector": 2, "PhaseVector": 1, "TimeSliceVector": 6},
    "GATED": {
        "EnergyWindowVector": 1,
        "DetectorVector": 1,
        "RRIntervalVector": 1,
        "TimeSlotVector": 8,
    },
    "TOMO": {"EnergyWindowVector": 1, "DetectorVector": 2, "RotationVector": 1, "AngularViewVector": 5},
    "GATED TOMO": {
        "EnergyWindowVector": 1,
        "DetectorVector": 1,
        "RotationVector": 1,
        "RRIntervalVector": 1,
        "TimeSlotVector": 3,
        "AngularViewVector": 4,
    },
    "RECON TOMO": {"SliceVector": 7},
    "RECON GATED TOMO": {"RRIntervalVector": 1, "TimeSlotVector": 2, "SliceVector": 7},
}
COUNTS_OF = {  # vector: how many it counts
    "EnergyWindowVector": "NumberOfEnergyWindows",
    "DetectorVector": "NumberOfDetectors",
    "PhaseVector": "NumberOfPhases",
    "RotationVector": "NumberOfRotations",
    "RRIntervalVector": "NumberOfRRIntervals",
    "TimeSlotVector": "NumberOfTimeSlots",
    "SliceVector": "NumberOfSlices",
}


def counts(kind: str, mean: float = 6.0) -> NDArray[np.uint16]:
    """Return Poisson counts (frames, 8, 10) for all frames of ``kind``; each has a mean of its own."""
    frames = int(np.prod(list(KINDS[kind].values())))
    means = mean * (1 + np.arange(frames) / frames)
    return np.random.default_rng(5).poisson(means[:, None, None], size=(frames, 8, 10)).astype(np.uint16)


def make_nuclear(path: Path, kind: str, stored: NDArray[Any] | None = None, *, edit: Edit | None = None) -> Path:
    """Write one object of ``kind`` with the frames ``stored`` (frames, rows, columns); ``edit`` changes it."""
    stored = counts(kind) if stored is None else stored
    ds = make_slice(CT, stored[0], 0, step=4.0, study="nm")
    for keyword in ("ImagePositionPatient", "ImageOrientationPatient", "SliceThickness", "AcquisitionNumber",
                    "RescaleSlope", "RescaleIntercept", "KVP", "PatientPosition", "PixelSpacing"):  # fmt: skip
        if keyword in ds:
            del ds[keyword]
    put_pixels(ds, stored[0])
    ds.PixelData, ds.NumberOfFrames = stored.tobytes(), len(stored)
    ds.SOPClassUID, ds.Modality, ds.Laterality, ds.PositionReferenceIndicator = NM, "NM", "", ""
    ds.ImageType = ["ORIGINAL", "PRIMARY", kind, "EMISSION"]
    ds.PixelSpacing = [4.0, 4.0]
    ds.CountsAccumulated = int(stored.sum())
    ds.AcquisitionTerminationCondition, ds.PatientOrientation = "TIME", ""
    ds.PatientOrientationCodeSequence = [code("F-10450", "recumbent", modifier=code("F-10340", "supine"))]
    ds.PatientGantryRelationshipCodeSequence = [code("F-10470", "headfirst")]
    _vectors(ds, kind)
    _isotope(ds)
    _detectors(ds, kind)
    _of_kind(ds, kind)
    if edit is not None:
        edit(ds, 0)
    path.parent.mkdir(parents=True, exist_ok=True)
    return save(ds, path)


def code(value: str, meaning: str, *, modifier: Dataset | None = None) -> Dataset:
    """Return a code of SNOMED-RT, as NM objects have them."""
    item = Dataset()
    item.CodeValue, item.CodingSchemeDesignator, item.CodeMeaning = value, "SRT", meaning
    if modifier is not None:
        item.PatientOrientationModifierCodeSequence = [modifier]
    return item


def item_of(**values: object) -> Dataset:
    """Return an item with these values."""
    item = Dataset()
    for keyword, value in values.items():
        setattr(item, keyword, value)
    return item


def _vectors(ds: Dataset, kind: str) -> None:
    sizes = KINDS[kind]
    indices = np.indices(tuple(sizes.values())).reshape(len(sizes), -1) + 1
    ds.FrameIncrementPointer = [Tag(keyword) for keyword in sizes]
    for (keyword, size), vector in zip(sizes.items(), indices, strict=True):
        setattr(ds, keyword, [int(index) for index in vector])
        if keyword in COUNTS_OF:
            setattr(ds, COUNTS_OF[keyword], size)
    for keyword in ("NumberOfEnergyWindows", "NumberOfDetectors"):
        if keyword not in ds:
            setattr(ds, keyword, 1)


def _isotope(ds: Dataset) -> None:
    window = item_of(EnergyWindowLowerLimit="126", EnergyWindowUpperLimit="154")
    ds.EnergyWindowInformationSequence = [
        item_of(EnergyWindowName=f"window {n}", EnergyWindowRangeSequence=[window])
        for n in range(ds.NumberOfEnergyWindows)
    ]
    technetium = code("C-163A8", "99m Technetium")
    ds.RadiopharmaceuticalInformationSequence = [
        item_of(RadionuclideCodeSequence=[technetium], EnergyWindowNumber=n + 1)
        for n in range(ds.NumberOfEnergyWindows)
    ]


def _detectors(ds: Dataset, kind: str) -> None:
    place = {"ImagePositionPatient": [-18.0, -14.0, 30.0], "ImageOrientationPatient": [1, 0, 0, 0, 1, 0]}
    if not kind.startswith("RECON"):
        place["ImageOrientationPatient"] = [1, 0, 0, 0, 0, -1]
    ds.DetectorInformationSequence = [
        item_of(CollimatorType="PARA", FocalDistance="0", StartAngle="0", **place) for _ in range(ds.NumberOfDetectors)
    ]


def _of_kind(ds: Dataset, kind: str) -> None:
    if "GATED" in kind:
        heart = item_of(LowRRValue="800", HighRRValue="1000", IntervalsAcquired="90", IntervalsRejected="2")
        if kind == "GATED":
            heart.TimeSlotInformationSequence = [item_of(TimeSlotTime="100") for _ in range(ds.NumberOfTimeSlots)]
        heart.FrameTime = "100"
        ds.GatedInformationSequence = [item_of(FrameTime="100", DataInformationSequence=[heart])]
        ds.BeatRejectionFlag, ds.TriggerSourceOrType = "Y", "EKG"
    if kind in ("STATIC", "WHOLE BODY"):
        ds.ActualFrameDuration = "1500"
    if kind == "WHOLE BODY":
        ds.ScanLength, ds.ScanVelocity = 2000, "2"
    if kind == "DYNAMIC":
        ds.PhaseInformationSequence = [
            item_of(PhaseDelay="0", ActualFrameDuration="1500", PauseBetweenFrames="0", NumberOfFramesInPhase=6,
                    TriggerVector=[1], NumberOfTriggersInPhase=0)
        ]  # fmt: skip
    if "TOMO" in kind:
        views = KINDS[kind].get("AngularViewVector", 60)
        ds.NumberOfRotations = 1
        ds.RotationInformationSequence = [
            item_of(StartAngle="0", AngularStep="6", RotationDirection="CW", ScanArc="180", ActualFrameDuration="1500",
                    RadialPosition=["200"] * views, NumberOfFramesInRotation=views,
                    TableTraverse="0", TableHeight="0")
        ]  # fmt: skip
        ds.TypeOfDetectorMotion = "STEP AND SHOOT"
    if kind.startswith("RECON"):
        ds.SpacingBetweenSlices, ds.SliceThickness, ds.ReconstructionDiameter = "4", "4", "40"
        ds.SliceProgressionDirection = ""
