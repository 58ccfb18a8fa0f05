"""The map of standard deviations as a DICOM Parametric Map, which viewers lay over its source."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from highdicom import PixelMeasuresSequence, PlaneOrientationSequence, PlanePositionSequence, VOILUTTransformation
from highdicom.pm import ParametricMap, RealWorldValueMapping
from pydicom.dataset import Dataset
from pydicom.sr.codedict import codes
from pydicom.sr.coding import Code
from pydicom.uid import ExplicitVRLittleEndian

from n2s_med.atomic import whole
from n2s_med.errors import InputError, OutputError
from n2s_med.volumes.contents import Volume, array_of
from n2s_med.volumes.dicom_derive import series_description, series_number
from n2s_med.volumes.dicom_files import DECODER_ERRORS, read_whole
from n2s_med.volumes.dicom_writer import source_frames
from n2s_med.volumes.frames import Frame
from n2s_med.volumes.nuclear import NM_CLASS
from n2s_med.volumes.provenance import Provenance, moment_of_creation, one_line
from n2s_med.volumes.quiet import quiet

_STANDARD_DEVIATION = Code("113061", "DCM", "Standard Deviation")
_UNITS = {  # Units (0054,1001) and Rescale Type (0028,1054) in UCUM
    "BQML": Code("Bq/ml", "UCUM", "Becquerels/milliliter"),
    "GML": Code("g/ml{SUVbw}", "UCUM", "Standardized Uptake Value body weight"),
    "CNTS": Code("{counts}", "UCUM", "Counts"),
    "HU": Code("[hnsf'U]", "UCUM", "Hounsfield unit"),
    "HU_MOD": Code("[hnsf'U]", "UCUM", "Hounsfield unit"),
}
_NO_UNITS = codes.UCUM.NoUnits
_SD_SERIES_OFFSET = 1000
_DESCRIPTION = "(SD of denoised)"


def write_parametric_map(sd: Volume, path: Path, *, provenance: Provenance, overwrite: bool = False) -> Path:
    """Write ``sd`` (1, X, Y, Z), in the units of its source, to the file ``path``.

    Raises
    ------
    OutputError
        ``path`` exists or cannot be written, or ``sd`` is no single volume on its source's grid.
    """
    if len(sd.shape) == 4 and sd.shape[0] > 1:
        raise OutputError(
            f"a Parametric Map holds one volume, not {sd.shape[0]}", remedy="write it as NIfTI", path=path
        )
    if path.is_dir():
        raise OutputError("it is a folder", remedy="give the name of a file", path=path)
    sources = source_frames(sd)
    planes = np.ascontiguousarray(array_of(sd)[0].transpose(2, 1, 0))
    if not np.isfinite(planes).all():
        raise OutputError("the map holds NaN or infinite values", remedy="check the model", path=path)
    with whole(path, overwrite=overwrite, needed_bytes=planes.nbytes) as partial:
        try:
            with quiet():
                ds = _parametric_map(planes, sources, str(sd.meta.get("units")), provenance)
                ds.save_as(partial, enforce_file_format=True)
        except OSError:
            raise
        except DECODER_ERRORS as error:
            raise InputError(
                f"its header cannot be copied ({type(error).__name__})",
                remedy="export it again, or write the map as NIfTI",
                path=sources[0].file.path,
            ) from error
    return path


def _headers(frames: Sequence[Frame], provenance: Provenance) -> list[Dataset]:
    """Return the source files' headers; one without a frame of reference gets one that nothing shares."""
    headers = []
    for path in dict.fromkeys(frame.file.path for frame in frames):
        ds = read_whole(path)
        if "PixelData" in ds:
            del ds.PixelData
        if not ds.get("FrameOfReferenceUID"):
            ds.FrameOfReferenceUID = provenance.uid("frame of reference", ds.SOPInstanceUID)
            ds.PositionReferenceIndicator = ""
        if ds.SOPClassUID == NM_CLASS:
            _give_groups(ds, frames)
        headers.append(ds)
    return headers


def _give_groups(ds: Dataset, frames: Sequence[Frame]) -> None:
    """Say of each frame of nuclear medicine where it lies as enhanced files do; it has that with its detectors."""
    shared, each = Dataset(), [Dataset() for _ in frames]
    shared.PixelMeasuresSequence, shared.PlaneOrientationSequence = _measures(frames[0]), _orientation(frames[0])
    for groups, frame in zip(each, frames, strict=True):
        groups.PlanePositionSequence = PlanePositionSequence("PATIENT", frame.position_mm)
    ds.SharedFunctionalGroupsSequence, ds.PerFrameFunctionalGroupsSequence = [shared], each


def _measures(frame: Frame) -> PixelMeasuresSequence:
    return PixelMeasuresSequence(frame.spacing_mm, frame.thickness_mm)


def _orientation(frame: Frame) -> PlaneOrientationSequence:
    return PlaneOrientationSequence("PATIENT", frame.row_direction + frame.column_direction)


def _parametric_map(
    planes: np.ndarray[tuple[int, ...], np.dtype[np.float32]],
    frames: Sequence[Frame],
    units: str,
    provenance: Provenance,
) -> Dataset:
    sources = _headers(frames, provenance)
    first = sources[0]
    largest = float(planes.max(initial=0.0)) or 1.0
    mapping = RealWorldValueMapping(
        lut_label="SD",
        lut_explanation="Standard deviation of the denoised voxel",
        unit=_UNITS.get(units, _NO_UNITS),
        value_range=(0.0, largest),
        slope=1.0,
        intercept=0.0,
        quantity_definition=_STANDARD_DEVIATION,
    )
    ds = ParametricMap(
        source_images=sources[:1] if "NumberOfFrames" in first else sources,
        pixel_array=planes,
        pixel_measures=_measures(frames[0]),
        plane_orientation=_orientation(frames[0]),
        plane_positions=[PlanePositionSequence("PATIENT", frame.position_mm) for frame in frames],
        series_instance_uid=provenance.uid("sd series", first.SeriesInstanceUID, first.SOPInstanceUID),
        series_number=series_number(first.get("SeriesNumber")) + _SD_SERIES_OFFSET,
        sop_instance_uid=provenance.uid("sd image", first.SeriesInstanceUID, first.SOPInstanceUID),
        instance_number=1,
        manufacturer="n2s-med",
        manufacturer_model_name=one_line(provenance.model)[:64] or "unnamed",
        software_versions=one_line(provenance.version)[:64] or "0",
        device_serial_number=one_line(provenance.model_hash)[:64] or "0",
        contains_recognizable_visual_features=False,
        real_world_value_mappings=[mapping],
        voi_lut_transformations=[VOILUTTransformation(window_center=largest / 2, window_width=largest)],
        transfer_syntax_uid=ExplicitVRLittleEndian,
        content_description="Standard deviation",
        image_flavor="VOLUME",
        derived_pixel_contrast="QUANTITY",
        series_description=series_description(first.get("SeriesDescription"), _DESCRIPTION),
    )
    ds.DerivationDescription = provenance.description()
    ds.Laterality = first.get("Laterality") or ""
    _settle(ds, provenance.uid("sd dimensions", first.SeriesInstanceUID, first.SOPInstanceUID))
    if provenance.deidentifier:
        provenance.deidentifier(ds)
        ds.SeriesDescription = series_description("", _DESCRIPTION)
        ds.DerivationDescription = provenance.description()
    return ds


def _settle(ds: Dataset, dimensions: str) -> None:
    """Give what highdicom takes from chance and from the clock values that a repeated run gives again."""
    for item in (*ds.DimensionOrganizationSequence, *ds.DimensionIndexSequence):
        item.DimensionOrganizationUID = dimensions
    moment = moment_of_creation()
    ds.InstanceCreationDate = ds.ContentDate = moment.strftime("%Y%m%d")
    ds.InstanceCreationTime = ds.ContentTime = moment.strftime("%H%M%S.%f")
    for item in ds.ContributingEquipmentSequence:
        if item.get("ManufacturerModelName") == "highdicom":
            item.ContributionDateTime = moment.strftime("%Y%m%d%H%M%S.%f")
