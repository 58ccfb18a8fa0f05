"""Reading and writing by path: which format it is, and what to say where there is nothing to read."""

from __future__ import annotations

import errno
import os
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path

from n2s_med.errors import InputError, OutputError, UnsupportedError
from n2s_med.volumes.contents import Contents, Refusal, Source, Survey, Volume, array_of
from n2s_med.volumes.dicom_files import is_dicom
from n2s_med.volumes.dicom_reader import survey_dicom
from n2s_med.volumes.dicom_writer import writing_series
from n2s_med.volumes.nifti import is_nifti_name, read_nifti, writing_nifti
from n2s_med.volumes.provenance import Provenance
from n2s_med.volumes.workers import hands

_FORMATS = "give a NIfTI image (.nii, .nii.gz) or a CT, MR, PET or NM series in DICOM"
_TOLD_REASONS = 3


def read(path: str | Path) -> Contents:
    """Return every volume at ``path``, and what was found there and refused.

    Parameters
    ----------
    path
        A NIfTI image, a DICOM file, or a folder that is searched through for both. DICOM is known by its
        content, whatever the names; files that are neither are passed over.

    Returns
    -------
    Contents
        Volumes (C, X, Y, Z), float32, in physical units, with affines to RAS mm; see
        :mod:`n2s_med.volumes.contents`.

    Raises
    ------
    InputError
        Nothing is there, or the file is damaged.
    UnsupportedError
        What is there is sound, but not what this package reads.
    """
    found = survey(path)
    volumes, refusals = [], list(found.refusals)
    for source in found.sources:
        try:
            volumes.append(source.load())
        except InputError as error:
            if source.path == Path(path) and is_nifti_name(source.path):
                raise
            refusals.append(refusal_of(source, error))
    if not volumes:
        raise nothing_usable(Path(path), refusals)
    return Contents(tuple(volumes), tuple(refusals))


def survey(path: str | Path) -> Survey:
    """Return every series and image at ``path`` without its voxels, and what was found there and refused.

    Sources are loaded one by one, so memory holds no more than one of them. What is damaged inside shows when
    it is loaded.

    Raises
    ------
    InputError
        Nothing is there, or the file is neither NIfTI nor DICOM.
    """
    path = Path(path)
    if not _present(path):
        raise InputError("no such file or folder", remedy="check the path", path=path)
    if not path.is_dir():
        return _survey_file(path)
    files, refusals = files_below(path)
    found = survey_files(files)
    return Survey(found.sources, (*found.refusals, *refusals))


def survey_ahead(path: Path) -> Callable[[], Survey]:
    """Begin :func:`survey` and the reading of the first scan where there are workers; return what waits for the survey.

    The scan is waited for when its source is read.
    """
    if hands() == 1:
        return partial(survey, path)
    thread = ThreadPoolExecutor(1, "reading")
    surveyed = thread.submit(survey, path)
    held = [thread.submit(lambda: surveyed.result().sources[0].arrays())]
    thread.shutdown(wait=False)

    def found() -> Survey:
        told = surveyed.result()
        if not told.sources:
            return told
        first, *others = told.sources
        ahead = replace(first, arrays=lambda: held.pop().result() if held else first.arrays())
        return replace(told, sources=(ahead, *others))

    return found


def refusal_of(source: Source, error: InputError) -> Refusal:
    """Return the refusal of a source that could not be loaded."""
    return Refusal(Path(error.path or source.path), source.label, error.cause)


def write(volume: Volume, path: Path, *, provenance: Provenance, overwrite: bool = False) -> Path:
    """Write ``volume`` (C, X, Y, Z) to ``path`` and return ``path``.

    A name that ends in ``.nii`` or ``.nii.gz`` gives a NIfTI image; any other a folder with a derived DICOM
    series, which the volume must have come from.

    Raises
    ------
    OutputError
        ``path`` exists and ``overwrite`` is false, or it cannot be written; nothing half-written is left.
    """
    with writing(volume, path, provenance=provenance, overwrite=overwrite):
        return Path(path)


@contextmanager
def writing(volume: Volume, path: Path, *, provenance: Provenance, overwrite: bool = False) -> Iterator[None]:
    """Do as :func:`write` beside the block; of DICOM after it, where there are no workers.

    Only when both have ended well is anything at ``path``.
    """
    path = Path(path)
    _spare_source(volume, path)
    if is_nifti_name(path):
        with _writing_nifti(volume, path, provenance, overwrite):
            yield
    elif volume.meta.get("format") == "dicom":
        with writing_series(volume, path, provenance=provenance, overwrite=overwrite):
            yield
    else:
        raise OutputError("its name is not a NIfTI image's", remedy="end it in .nii.gz", path=path)


def write_sd_map(sd: Volume, path: Path, *, provenance: Provenance, overwrite: bool = False) -> Path:
    """Write ``sd``, the standard deviation of each voxel in the volume's units, to ``path`` and return it.

    A name that ends in ``.nii`` or ``.nii.gz`` gives a NIfTI image; any other a DICOM Parametric Map.
    """
    path = Path(path)
    _spare_source(sd, path)
    if is_nifti_name(path):
        with _writing_nifti(sd, path, provenance, overwrite):
            return path
    if sd.meta.get("format") == "dicom":
        from n2s_med.volumes.parametric_map import write_parametric_map  # highdicom is slow to import

        return write_parametric_map(sd, path, provenance=provenance, overwrite=overwrite)
    raise OutputError("its name is not a NIfTI image's", remedy="end it in .nii.gz", path=path)


def _spare_source(volume: Volume, path: Path) -> None:
    if path.is_file() and any(path.samefile(source) for source in _existing(volume)):
        raise OutputError("it is the source, which is never replaced", remedy="choose another name", path=path)


def _existing(volume: Volume) -> Iterator[Path]:
    return (Path(name) for name in volume.meta.get("source", ()) if Path(name).exists())


def _writing_nifti(volume: Volume, path: Path, provenance: Provenance, overwrite: bool) -> AbstractContextManager[None]:
    return writing_nifti(
        array_of(volume),
        {**volume.meta, "affine": volume.affine},
        path,
        version=provenance.version,
        overwrite=overwrite,
        deidentify=provenance.deidentifier is not None,
    )


def _present(path: Path) -> bool:
    try:
        return path.exists()
    except (OSError, ValueError) as error:
        raise InputError("it cannot be reached", remedy="check the path", path=path) from error


def _survey_file(path: Path) -> Survey:
    if path.is_file() and is_nifti_name(path):
        return Survey((_nifti(path),))
    if path.is_file() and is_dicom(path):
        return survey_dicom([path])
    if path.suffix.lower() in (".hdr", ".img"):
        raise UnsupportedError("images in two files are not read", remedy="convert it to one .nii.gz", path=path)
    raise InputError("it is neither NIfTI nor DICOM", remedy=_FORMATS, path=path)


def survey_files(files: Iterable[Path]) -> Survey:
    """Return the series and images that ``files`` form, as :func:`survey` does; other files are passed over."""
    dicom, images, refusals = [], [], []
    for file in files:
        try:
            if is_nifti_name(file):
                images.append(_nifti(file))
            elif is_dicom(file):
                dicom.append(file)
        except InputError as error:
            refusals.append(Refusal(file, "file", error.cause))
    found = survey_dicom(dicom)
    return Survey((*found.sources, *images), (*found.refusals, *refusals))


def _nifti(path: Path) -> Source:
    return Source(path, "NIfTI", "nifti", partial(read_nifti, path))


def files_below(root: Path) -> tuple[list[Path], list[Refusal]]:
    """Return the regular files below ``root``, sorted, and folders that cannot be read.

    Hidden files are other programs' business; links to folders are not followed.

    Raises
    ------
    InputError
        ``root`` itself cannot be read.
    """
    refusals: list[Refusal] = []
    files = list(_below(root, refusals))
    if not files and refusals and refusals[0].path == root:
        raise InputError(refusals[0].reason, remedy="check its permissions", path=root)
    return files, refusals


def _below(folder: Path, refusals: list[Refusal]) -> Iterator[Path]:
    try:
        entries = sorted(folder.iterdir())
        if not os.access(folder, os.X_OK):  # it can be listed, and what is in it not be reached
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))
    except OSError as error:
        refusals.append(Refusal(folder, "folder", f"the folder cannot be read ({error.strerror})"))
        return
    for entry in entries:
        if entry.name.startswith("."):
            continue
        if entry.is_dir():
            yield from () if entry.is_symlink() else _below(entry, refusals)
        elif entry.is_file():
            yield entry


def nothing_usable(path: Path, refusals: Iterable[Refusal]) -> InputError:
    """Return the error of a path that holds nothing to denoise, with the most frequent reasons."""
    reasons = Counter(f"{refusal.label}: {refusal.reason}" for refusal in refusals)
    if not reasons:
        return InputError("it holds no NIfTI image and no DICOM", remedy=_FORMATS, path=path)
    told = [reason for reason, _ in reasons.most_common(_TOLD_REASONS)]
    more = f"; and {len(reasons) - len(told)} more reasons" if len(reasons) > len(told) else ""
    return UnsupportedError(f"nothing here can be used ({'; '.join(told)}{more})", remedy=_FORMATS, path=path)
