"""DICOM files found by their content and read whole."""

from __future__ import annotations

import struct
import zlib
from pathlib import Path

import pydicom
from pydicom.dataset import Dataset
from pydicom.errors import BytesLengthException
from pydicom.uid import ExplicitVRBigEndian, ExplicitVRLittleEndian, ImplicitVRLittleEndian

from n2s_med.errors import InputError
from n2s_med.volumes.quiet import quiet

DECODER_ERRORS = (
    BytesLengthException,
    ValueError,  # of these also: InvalidDicomError, UnicodeDecodeError
    TypeError,
    LookupError,
    AttributeError,
    ArithmeticError,
    NotImplementedError,
    RuntimeError,  # also RecursionError
    EOFError,
    OSError,
    MemoryError,
    AssertionError,
    struct.error,
    zlib.error,
)
"""What pydicom and its pixel decoders raise on damaged files, one way or another."""


def is_dicom(path: Path) -> bool:
    """Say whether the content of ``path`` looks like DICOM, with or without a preamble."""
    try:
        with path.open("rb") as file:
            head = file.read(132)
    except OSError as error:
        raise InputError(f"it cannot be read ({error.strerror})", remedy="check its permissions", path=path) from error
    return head[128:] == b"DICM" or head[:4] in (b"\x02\0\0\0", b"\x08\0\0\0", b"\x08\0\5\0", b"\x08\0\x08\0")


def is_directory(ds: Dataset) -> bool:
    """Say whether ``ds`` is a DICOMDIR, which indexes other files."""
    meta = getattr(ds, "file_meta", Dataset())
    return bool(meta.get("MediaStorageSOPClassUID") == "1.2.840.10008.1.3.10")


def read_whole(path: Path) -> Dataset:
    """Return the complete data set at ``path``; its transfer syntax is filled in where the file lacks it."""
    try:
        with quiet():
            ds = pydicom.dcmread(path, force=True)
            if "TransferSyntaxUID" not in ds.file_meta:
                implicit, little = ds.original_encoding
                explicit = ExplicitVRLittleEndian if little else ExplicitVRBigEndian
                ds.file_meta.TransferSyntaxUID = ImplicitVRLittleEndian if implicit else explicit
            return ds
    except FileNotFoundError as error:
        raise InputError("it is no longer there", remedy="restore it and try again", path=path) from error
    except DECODER_ERRORS as error:
        raise InputError(
            f"the DICOM file cannot be read ({type(error).__name__})", remedy="export it again", path=path
        ) from error
