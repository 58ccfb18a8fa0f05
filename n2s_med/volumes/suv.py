"""The factor from activity concentration to standardised uptake value by body weight.

SUVbw = activity [Bq/mL] · weight [g] / dose [Bq], the dose decayed to the time that the image's decay
correction refers to (QIBA FDG-PET/CT profile, vendor-neutral SUV). What is missing is said, never guessed.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

from pydicom.dataset import Dataset
from pydicom.valuerep import DA, DT, TM

from n2s_med.volumes.dicom_files import DECODER_ERRORS
from n2s_med.volumes.quiet import quiet

_PHILIPS_SUV_FACTOR = (0x7053, 0x1000)


@dataclass(frozen=True)
class _Dose:
    becquerel: float | None
    half_life_s: float | None
    start: datetime | None


def suv_of(first: Dataset, units: str, acquisitions: Sequence[datetime | None]) -> dict[str, Any]:
    """Return ``{"factor": …, "missing": (…)}`` of a PET series.

    Parameters
    ----------
    first
        Header of one of its files.
    units
        Units of its values.
    acquisitions
        Acquisition times of all its files.

    Returns
    -------
    dict
        ``factor`` times the volume is SUVbw in g/mL, or is ``None`` where something is missing; ``missing``
        names it, without patient data.
    """
    try:
        with quiet():
            factor, missing = _suv(first, units, acquisitions)
    except DECODER_ERRORS:
        factor, missing = None, ["readable dose, weight and times"]
    if factor is not None and not (math.isfinite(factor) and factor > 0):
        factor, missing = None, ["plausible dose, weight and times"]
    return {"factor": factor, "missing": tuple(missing)}


def acquisition_time(ds: Dataset) -> datetime | None:
    """Return when the slice ``ds`` was acquired, if its header says so."""
    try:
        with quiet():
            stated = ds.get("AcquisitionDateTime")
            return _moment(stated) if stated else _joined(ds, "AcquisitionDate", "AcquisitionTime")
    except DECODER_ERRORS:
        return None


def _suv(ds: Dataset, units: str, acquisitions: Sequence[datetime | None]) -> tuple[float | None, list[str]]:
    if units == "GML":
        kind = ds.get("SUVType") or "BW"
        return (1.0, []) if kind == "BW" else (None, ["SUV by body weight (it is by another measure)"])
    if units == "CNTS":
        private = ds.get(_PHILIPS_SUV_FACTOR)
        number = _positive(getattr(private, "value", None))
        return (number, []) if number else (None, ["activity units (it holds counts)"])
    if units != "BQML":
        return None, ["activity units"]
    return _by_body_weight(ds, acquisitions)


def _by_body_weight(ds: Dataset, acquisitions: Sequence[datetime | None]) -> tuple[float | None, list[str]]:
    weight, dose, correction = _positive(ds.get("PatientWeight")), _dose(ds), _decay_correction(ds)
    scan = _scan_start(ds, acquisitions)
    needs_times = correction != "ADMIN"
    missing = [
        name
        for name, present in (
            ("patient weight", weight),
            ("injected dose", dose.becquerel),
            ("decay correction", correction in ("START", "ADMIN")),
            ("half-life", dose.half_life_s or not needs_times),
            ("injection time", dose.start or not needs_times),
            ("scan start time", scan or not needs_times),
        )
        if not present
    ]
    if missing or weight is None or dose.becquerel is None:
        return None, missing
    left = 1.0
    if needs_times and dose.start and dose.half_life_s and scan:
        elapsed = (scan - dose.start).total_seconds()
        if elapsed < 0:
            return None, ["an injection before the scan"]
        left = 2.0 ** (-elapsed / dose.half_life_s)
    return weight * 1000.0 / (dose.becquerel * left), []


def _decay_correction(ds: Dataset) -> str | None:
    """Return what decay is corrected to; enhanced PET names the moment (Decay Correction DateTime)."""
    named = ds.get("DecayCorrected") == "YES" and ds.get("DecayCorrectionDateTime")
    return "START" if named else ds.get("DecayCorrection")


def _dose(ds: Dataset) -> _Dose:
    items = ds.get("RadiopharmaceuticalInformationSequence") or [Dataset()]
    item = items[0]
    stated = item.get("RadiopharmaceuticalStartDateTime")
    start = _moment(stated) if stated else _start_on_scan_day(ds, item)
    return _Dose(_positive(item.get("RadionuclideTotalDose")), _positive(item.get("RadionuclideHalfLife")), start)


def _start_on_scan_day(ds: Dataset, item: Dataset) -> datetime | None:
    """Return the injection time on the day of the series, or the day before if that is past its start."""
    clock, day = item.get("RadiopharmaceuticalStartTime"), ds.get("SeriesDate")
    if not clock or not day:
        return None
    start = _together(day, clock)
    series = _joined(ds, "SeriesDate", "SeriesTime")
    return start - timedelta(days=1) if series and start and start > series else start


def _scan_start(ds: Dataset, acquisitions: Sequence[datetime | None]) -> datetime | None:
    """Return the moment that decay is corrected to.

    Where it is not named, it is the series time, unless a slice was acquired before it: then the series was
    made later.
    """
    if ds.get("DecayCorrectionDateTime"):
        return _moment(ds.DecayCorrectionDateTime)
    series = _joined(ds, "SeriesDate", "SeriesTime")
    if series is None or any(moment is None or moment < series for moment in acquisitions):
        return None
    return series


def _joined(ds: Dataset, day: str, clock: str) -> datetime | None:
    return _together(ds[day].value, ds[clock].value) if ds.get(day) and ds.get(clock) else None


def _together(day: Any, clock: Any) -> datetime | None:
    date, time = DA(day), TM(clock)
    return None if date is None or time is None else datetime.combine(date, time)


def _moment(value: Any) -> datetime | None:
    moment = DT(value)
    return None if moment is None else moment.replace(tzinfo=None)


def _positive(value: Any) -> float | None:
    number = float(value) if value not in (None, "") else 0.0
    return number if math.isfinite(number) and number > 0 else None
