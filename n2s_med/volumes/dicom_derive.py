"""The header of a derived image: what it keeps of its source, what it says is new, what it drops.

DICOM PS3.3 C.7.6.1.1.2 (image type), C.12.4.1 and C.7.6.16.2.6 (derivation), C.7.5.2 (contributing equipment).
"""

from __future__ import annotations

import copy
from collections.abc import Iterable
from collections.abc import Sequence as NumberSequence
from dataclasses import dataclass, replace
from datetime import datetime, tzinfo

from pydicom.datadict import tag_for_keyword
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.sequence import Sequence
from pydicom.uid import ExplicitVRLittleEndian
from pydicom.valuerep import VR

from n2s_med.errors import OutputError
from n2s_med.volumes.functional_groups import ENHANCED_CLASSES, FRAME_TYPES, all_groups
from n2s_med.volumes.provenance import DESCRIPTION_LENGTH, Provenance, one_line

SERIES_OFFSET = 1000
"""Added to the source's series number."""

_DROPPED = (
    "IconImageSequence", "DigitalSignaturesSequence", "MACParametersSequence", "EncryptedAttributesSequence",
    "ExtendedOffsetTable", "ExtendedOffsetTableLengths", "DataSetTrailingPadding", "PixelDataProviderURL",
    "SmallestImagePixelValue", "LargestImagePixelValue", "SmallestPixelValueInSeries",
    "LargestPixelValueInSeries", "SmallestImagePixelValueInPlane", "LargestImagePixelValueInPlane",
    "InstanceCreatorUID", "RetrieveAETitle", "RetrieveURL", "InstanceAvailability", "StorageMediaFileSetID",
    "StorageMediaFileSetUID",
)  # fmt: skip
_DROPPED_TAGS = {tag for tag in map(tag_for_keyword, _DROPPED) if tag is not None}
_OF_CONCATENATIONS = (
    "ConcatenationUID", "SOPInstanceUIDOfConcatenationSource", "InConcatenationNumber",
    "InConcatenationTotalNumber", "ConcatenationFrameOffsetNumber",
)  # fmt: skip
_ENHANCED_MR = "1.2.840.10008.5.1.4.1.1.4.1"
_OF_ORIGINAL_MR = (  # C.8.13.4, C.7.6.18.3: only ORIGINAL and MIXED enhanced MR may have them
    "PulseSequenceName", "MRAcquisitionType", "EchoPulseSequence", "MultipleSpinEcho", "MultiPlanarExcitation",
    "PhaseContrast", "VelocityEncodingAcquisitionSequence", "TimeOfFlightContrast", "ArterialSpinLabelingContrast",
    "SteadyStatePulseSequence", "EchoPlanarPulseSequence", "SaturationRecovery", "SpectrallySelectedSuppression",
    "OversamplingPhase", "GeometryOfKSpaceTraversal", "RectilinearPhaseEncodeReordering",
    "SegmentedKSpaceTraversal", "CoverageOfKSpace", "NumberOfKSpaceTrajectories",
    "BulkMotionCompensationTechnique",
)  # fmt: skip
_KEPT_PRIVATE = {  # creator: element offsets that other software needs to make sense of the values
    "GEMS_PETD_01": (0x0D,),  # (0009) start of the scan, for SUV
    "GEMS_PARM_01": (0x2F, 0x39),  # (0043) magnitude or phase, b-value
    "SIEMENS MR HEADER": (0x0C, 0x0D, 0x0E, 0x27),  # (0019) b-value and gradient
    "Philips Imaging DD 001": (0x03,),  # (2001) b-value
    "Philips MR Imaging DD 001": (0x0D, 0x0E),  # (2005) scale intercept and slope
    "Philips PET Private Group": (0x00, 0x09),  # (7053) SUV and activity factors
}
_LOSSY_METHODS = {  # transfer syntax: Lossy Image Compression Method (C.7.6.1.1.5.1)
    "1.2.840.10008.1.2.4.50": "ISO_10918_1",
    "1.2.840.10008.1.2.4.51": "ISO_10918_1",
    "1.2.840.10008.1.2.4.81": "ISO_14495_1",
    "1.2.840.10008.1.2.4.91": "ISO_15444_1",
}


@dataclass(frozen=True)
class Derivation:
    """What all images of one derived series share.

    Attributes
    ----------
    series_uid
        Series Instance UID of the derived series.
    moment
        When it was made, with its time zone.
    """

    provenance: Provenance
    series_uid: str
    moment: datetime

    def without_identity(self, ds: Dataset) -> Derivation:
        """Take the identity out of ``ds`` if that is asked for, and return what is then said of the derivation."""
        deidentifier = self.provenance.deidentifier
        if deidentifier is None:
            return self
        return replace(self, moment=deidentifier.moved(self.moment, deidentifier(ds)))


def derive(ds: Dataset, derivation: Derivation, frames: NumberSequence[int]) -> None:
    """Turn the data set ``ds``, read from the source, into that of the derived image, all but its pixels.

    Parameters
    ----------
    ds
        Classic or multi-frame image.
    derivation
        What was done.
    frames
        The frames, counted from 0, that the derived image has; of a classic image, the only one.

    Raises
    ------
    OutputError
        The image's kind cannot do without some of its frames.
    """
    source = _reference(ds.SOPClassUID, ds.SOPInstanceUID)
    evidence = _evidence(ds)
    _keep_lossy(ds)
    _drop(ds)
    _identify(ds, derivation)
    _date(ds, derivation.moment)
    if ds.SOPClassUID in ENHANCED_CLASSES:
        _derive_frames(ds, derivation.provenance, frames, source)
        ds.SourceImageEvidenceSequence = Sequence([*(ds.get("SourceImageEvidenceSequence") or ()), evidence])
    elif len(frames) == int(ds.get("NumberOfFrames") or 1):
        _describe(ds, derivation.provenance)
        ds.SourceImageSequence = Sequence([source])
    else:
        raise OutputError("not all frames of its source are there", remedy="write it as NIfTI")
    equipment = list(ds.get("ContributingEquipmentSequence") or ())
    ds.ContributingEquipmentSequence = Sequence([*equipment, _equipment(derivation)])


def _derive_frames(ds: Dataset, provenance: Provenance, frames: NumberSequence[int], source: Dataset) -> None:
    """Keep ``frames`` of an enhanced image; each says that it is derived, and from which frame."""
    for keyword in (*_OF_CONCATENATIONS, *(_OF_ORIGINAL_MR if ds.SOPClassUID == _ENHANCED_MR else ())):
        if keyword in ds:
            del ds[keyword]
    groups = [ds.PerFrameFunctionalGroupsSequence[index] for index in frames]
    ds.PerFrameFunctionalGroupsSequence = Sequence(groups)
    ds.NumberOfFrames = len(groups)
    for group in all_groups(ds):
        for keyword in FRAME_TYPES:
            for item in group.get(keyword) or ():
                item.FrameType = _image_type(item.get("FrameType"), ds.Modality)
    for index, group in zip(frames, groups, strict=True):
        item, image = Dataset(), copy.deepcopy(source)
        image.ReferencedFrameNumber = index + 1
        _describe(item, provenance)
        item.SourceImageSequence = Sequence([image])
        group.DerivationImageSequence = Sequence([*(group.get("DerivationImageSequence") or ()), item])


def _evidence(ds: Dataset) -> Dataset:
    """Return the reference to the image ``ds`` within its study and series."""
    image, series, study = Dataset(), Dataset(), Dataset()
    image.ReferencedSOPClassUID, image.ReferencedSOPInstanceUID = ds.SOPClassUID, ds.SOPInstanceUID
    series.SeriesInstanceUID, series.ReferencedSOPSequence = ds.SeriesInstanceUID, Sequence([image])
    study.StudyInstanceUID, study.ReferencedSeriesSequence = ds.get("StudyInstanceUID"), Sequence([series])
    return study


def coded(value: str, meaning: str) -> Dataset:
    """Return the item of a code of DICOM's own dictionary (scheme DCM)."""
    item = Dataset()
    item.CodeValue, item.CodingSchemeDesignator, item.CodeMeaning = value, "DCM", meaning
    return item


def series_number(source: object) -> int:
    """Return the number of the series derived from series number ``source``."""
    return SERIES_OFFSET + (int(str(source)) if source not in (None, "") else 0)


def series_description(source: object, what: str) -> str:
    """Return ``source`` followed by ``what``, at most 64 characters."""
    text = str(source or "").strip()[: 63 - len(what)]
    return f"{text} {what}".strip()


def _drop(ds: Dataset) -> None:
    for tag in _DROPPED_TAGS & ds.keys():
        del ds[tag]
    if "NumberOfTimeSlices" in ds and "DYNAMIC" not in list(ds.get("SeriesType") or ())[:1]:
        del ds.NumberOfTimeSlices  # C.8.9.1: may be present in dynamic series only; some scanners count with it
    kept = [ds[tag] for tag in sorted(ds.keys()) if tag.is_private and _is_kept(ds, tag)]
    _drop_private(ds)
    for element in kept:
        ds.add(element)
    _drop_overlays(ds)


def _drop_private(ds: Dataset) -> None:
    """Drop private elements, those of items too; elements that are no sequences are not decoded for it."""
    for tag in list(ds.keys()):
        if tag.is_private:
            del ds[tag]
        elif ds.get_item(tag).VR in (None, VR.SQ, VR.UN) and ds[tag].VR == VR.SQ:
            for item in ds[tag].value:
                _drop_private(item)


def _is_kept(ds: Dataset, tag: object) -> bool:
    """Say whether the private ``tag`` is on the allow-list, or names the owner of one that is."""
    group, element = int(tag) >> 16, int(tag) & 0xFFFF  # type: ignore[call-overload]
    block = element >> 8 if element > 0xFF else element
    creator = ds.get((group, block))
    offsets = _KEPT_PRIVATE.get(str(creator.value).strip() if creator is not None else "", ())
    if element > 0xFF:
        return element & 0xFF in offsets
    return any((group, block << 8 | offset) in ds for offset in offsets)


def _drop_overlays(ds: Dataset) -> None:
    """Drop overlays that lie in unused bits of the source's pixels, or whose words would need swapping."""
    swapped = not ds.file_meta.TransferSyntaxUID.is_little_endian
    tags = [tag for tag in ds.keys() if 0x6000 <= tag.group <= 0x60FF]  # noqa: SIM118
    for tag in tags:
        if swapped or (tag.group, 0x3000) not in ds:
            del ds[tag]


def _keep_lossy(ds: Dataset) -> None:
    """Say that the image was compressed with loss once, where only its transfer syntax said so."""
    method = _LOSSY_METHODS.get(str(ds.file_meta.TransferSyntaxUID))
    if method is None or ds.get("LossyImageCompression") == "01":
        return
    plain = ds.Rows * ds.Columns * ds.BitsAllocated // 8 * int(ds.get("NumberOfFrames") or 1)
    ds.LossyImageCompression = "01"
    ds.LossyImageCompressionRatio = f"{plain / max(1, len(ds.PixelData)):.2f}"
    ds.LossyImageCompressionMethod = method


def _identify(ds: Dataset, derivation: Derivation) -> None:
    ds.SOPInstanceUID = derivation.provenance.uid("image", ds.SOPInstanceUID)
    ds.SeriesInstanceUID = derivation.series_uid
    ds.SeriesNumber = series_number(ds.get("SeriesNumber"))
    ds.SeriesDescription = series_description(ds.get("SeriesDescription"), "(denoised)")
    ds.ImageType = _image_type(ds.get("ImageType"), ds.get("Modality"))
    ds.file_meta = FileMetaDataset()
    ds.file_meta.MediaStorageSOPClassUID = ds.SOPClassUID
    ds.file_meta.MediaStorageSOPInstanceUID = ds.SOPInstanceUID
    ds.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian


def _image_type(source: Iterable[object] | None, modality: object) -> list[str]:
    further = [str(value) for value in list(source or ())[2:]]
    if not further:
        further = {"CT": ["AXIAL"], "MR": ["OTHER"]}.get(str(modality), [])
    return ["DERIVED", "PRIMARY", *further]


def _date(ds: Dataset, moment: datetime) -> None:
    """Set creation, series and content date-times.

    A PET series keeps its own: Frame Reference Time and decay correction count from it (C.8.9.1), and so
    does SUV.
    """
    local = moment.astimezone(_zone(ds))
    day, clock = local.strftime("%Y%m%d"), local.strftime("%H%M%S.%f")
    ds.InstanceCreationDate, ds.InstanceCreationTime = day, clock
    ds.ContentDate, ds.ContentTime = day, clock
    if ds.get("Modality") != "PT":
        ds.SeriesDate, ds.SeriesTime = day, clock


def _zone(ds: Dataset) -> tzinfo | None:
    """Return the time zone that the times in ``ds`` are in; ``None``, this machine's, where it says none."""
    try:
        return datetime.strptime(str(ds.get("TimezoneOffsetFromUTC")), "%z").tzinfo
    except ValueError:
        return None


def _describe(ds: Dataset, provenance: Provenance) -> None:
    ours, before = provenance.description(), str(ds.get("DerivationDescription") or "").strip()
    room = DESCRIPTION_LENGTH - len(ours) - 2
    ds.DerivationDescription = f"{before[:room]}; {ours}" if before and room > 0 else ours
    codes = list(ds.get("DerivationCodeSequence") or ())
    ds.DerivationCodeSequence = Sequence([*codes, coded("113087", "Smoothing")])


def _reference(sop_class: str, instance: str) -> Dataset:
    item = Dataset()
    item.ReferencedSOPClassUID, item.ReferencedSOPInstanceUID = sop_class, instance
    item.PurposeOfReferenceCodeSequence = Sequence([coded("121322", "Source image for image processing operation")])
    return item


def _equipment(derivation: Derivation) -> Dataset:
    provenance, item = derivation.provenance, Dataset()
    item.PurposeOfReferenceCodeSequence = Sequence([coded("109102", "Processing Equipment")])
    item.Manufacturer = "n2s-med"
    item.ManufacturerModelName = one_line(provenance.model)[:64]
    item.SoftwareVersions = one_line(provenance.version)[:64]
    item.ContributionDateTime = derivation.moment.strftime("%Y%m%d%H%M%S.%f")
    item.ContributionDescription = one_line(f"Noise2Score denoising, model hash {provenance.model_hash}")
    return item
