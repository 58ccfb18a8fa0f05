"""De-identification of derived DICOM objects by the Basic Application Level Confidentiality Profile (PS3.15 E.2).

The table of attributes and actions, and what is done by them, are those of dicom-anonymizer. Beyond the profile: it is
applied in every item of every sequence; UIDs and the patient's ID are replaced by what a secret key makes of them, so
they stay consistent over a study, a patient and all runs with this key; and two of the profile's options are taken, as
without them PET has no SUV. *Modified dates* (E.3.6): dates of study, series and acquisition are moved by a number of
days that is one patient's own, times of day are kept. *Patient characteristics* (E.3.5): sex, size and weight are kept.
Private attributes are all dropped. Burned-in text, and faces that pixels show, are not looked for.
"""

from __future__ import annotations

import hashlib
import hmac
import uuid
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from functools import cached_property
from pathlib import Path
from typing import Self

from pydicom.datadict import tag_for_keyword
from pydicom.dataset import Dataset
from pydicom.sequence import Sequence

from n2s_med.errors import ConfigurationError

PROFILE = "dicomfields_2026c"
"""Edition of the standard, as dicom-anonymizer names its table."""
SHORTEST_KEY = 16
"""Bytes."""
_LONGEST_MOVE_DAYS = 3650
_METHODS = (  # CID 7050
    ("113100", "Basic Application Confidentiality Profile"),
    ("113107", "Retain Longitudinal Temporal Information Modified Dates Option"),
    ("113108", "Retain Patient Characteristics Option"),
)
_MOVED = (
    "StudyDate", "SeriesDate", "AcquisitionDate", "ContentDate", "InstanceCreationDate", "AcquisitionDateTime",
    "FrameAcquisitionDateTime", "FrameReferenceDateTime", "DecayCorrectionDateTime",
    "RadiopharmaceuticalStartDateTime", "RadiopharmaceuticalStopDateTime",
)  # fmt: skip
_KEPT = (
    "StudyTime", "SeriesTime", "AcquisitionTime", "ContentTime", "InstanceCreationTime",
    "RadiopharmaceuticalStartTime", "RadiopharmaceuticalStopTime", "PatientSex", "PatientSize", "PatientWeight",
    # their items are looked through like all others
    "SourceImageSequence", "ReferencedImageSequence",
)  # fmt: skip
_EMPTIED = ("PatientBirthDate",)
"""Dates that shall be there, without a value; dicom-anonymizer gives them one."""
_PSEUDONYMS = ("PatientID", "PatientName")

Tag = tuple[int, ...]
Action = Callable[[Dataset, Tag], None]


@dataclass(frozen=True)
class Deidentifier:
    """What takes the identity out of a data set: the same key, the same replacements.

    Attributes
    ----------
    key
        Secret; who has it can tell whether a replacement belongs to a UID or a patient's ID.
    """

    key: bytes = field(repr=False)

    @classmethod
    def of_file(cls, path: Path) -> Self:
        """Return the de-identifier of the key in the file at ``path``.

        Raises
        ------
        ConfigurationError
            There is no such file, its key is too short, or dicom-anonymizer is not installed.
        """
        try:
            import dicomanonymizer  # noqa: F401
        except ImportError as error:
            raise ConfigurationError(
                "--deidentify needs dicom-anonymizer, which is not installed",
                remedy="pip install 'n2s-med[deidentify]'",
            ) from error
        remedy = "make one with: openssl rand -hex 32"
        try:
            key = path.read_bytes().strip()
        except OSError as error:
            raise ConfigurationError(f"no key can be read ({error.strerror})", remedy=remedy, path=path) from error
        if len(key) < SHORTEST_KEY:
            raise ConfigurationError(f"the key has fewer than {SHORTEST_KEY} bytes", remedy=remedy, path=path)
        return cls(key)

    @property
    def fingerprint(self) -> str:
        """Hexadecimal digits that go with the key and do not tell it."""
        return self._digest("fingerprint").hex()

    def uid(self, source: str) -> str:
        """Return what replaces the UID ``source``: a UUID-derived UID (PS3.5 B.2)."""
        return f"2.25.{uuid.UUID(bytes=self._digest('uid', source)[:16], version=5).int}"

    def moved(self, moment: datetime, patient: str) -> datetime:
        """Return ``moment`` with the date moved by the patient's own number of days, into the past."""
        days = int.from_bytes(self._digest("days", patient)[:8], "big") % _LONGEST_MOVE_DAYS
        return moment - timedelta(days=1 + days)

    def __call__(self, ds: Dataset) -> str:
        """Take the identity out of ``ds``, and return the patient's former ID, by which its dates were moved."""
        patient = str(ds.get("PatientID") or "")
        self._apply(ds, self._rules(patient))
        ds.PatientIdentityRemoved = "YES"
        ds.DeidentificationMethod = "DICOM PS3.15 Basic Profile, by n2s-med"
        ds.DeidentificationMethodCodeSequence = Sequence([_method(*code) for code in _METHODS])
        ds.LongitudinalTemporalInformationModified = "MODIFIED"
        return patient

    def _apply(self, ds: Dataset, rules: Mapping[Tag, Action]) -> None:
        from dicomanonymizer.simpledicomanonymizer import anonymize_dataset

        anonymize_dataset(ds, base_rules_gen=lambda: dict(rules))
        for element in ds:
            if element.VR == "SQ":
                for item in element.value:
                    self._apply(item, rules)

    def _rules(self, patient: str) -> dict[Tag, Action]:
        """The profile's actions by tag, with ours in place of some."""

        def move(ds: Dataset, tag: Tag) -> None:
            if ds.get(tag) and ds[tag].value:
                ds[tag].value = self._moved_text(str(ds[tag].value), patient)

        def pseudonym(ds: Dataset, tag: Tag) -> None:
            if tag in ds:
                ds[tag].value = self._digest("patient", patient)[:8].hex().upper() if patient else ""

        return {
            **self._profile,
            **dict.fromkeys(map(_tag, _MOVED), move),
            **dict.fromkeys(map(_tag, _PSEUDONYMS), pseudonym),
            **dict.fromkeys(map(_tag, _EMPTIED), _empty),
        }

    @cached_property
    def _profile(self) -> dict[Tag, Action]:
        from dicomanonymizer import simpledicomanonymizer as library

        ours = {library.replace_UID: self._replace_uid, library.delete: _remove}
        profile: dict[Tag, Action] = {
            tag: ours.get(action, action) for tag, action in library.initialize_actions(PROFILE).items()
        }
        return {tag: action for tag, action in profile.items() if tag not in set(map(_tag, _KEPT))}

    def _replace_uid(self, ds: Dataset, tag: Tag) -> None:
        if tag in ds and ds[tag].value:
            value = ds[tag].value
            ds[tag].value = self.uid(value) if isinstance(value, str) else [self.uid(uid) for uid in value]

    def _moved_text(self, value: str, patient: str) -> str:
        """Return a date or date-time with the date moved and the rest kept; empty where it is neither."""
        try:
            day = datetime.strptime(value[:8], "%Y%m%d")
        except ValueError:
            return ""
        return self.moved(day, patient).strftime("%Y%m%d") + value[8:]

    def _digest(self, *what: str) -> bytes:
        return hmac.digest(self.key, "\0".join(what).encode(errors="surrogateescape"), hashlib.sha256)


def _tag(keyword: str) -> Tag:
    number = tag_for_keyword(keyword)
    assert number is not None, keyword
    return number >> 16, number & 0xFFFF


def _remove(ds: Dataset, tag: Tag) -> None:
    if tag in ds:
        del ds[tag]


def _empty(ds: Dataset, tag: Tag) -> None:
    if tag in ds:
        ds[tag].value = None


def _method(value: str, meaning: str) -> Dataset:
    item = Dataset()
    item.CodeValue, item.CodingSchemeDesignator, item.CodeMeaning = value, "DCM", meaning
    return item
