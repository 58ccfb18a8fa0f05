"""Which scans a bundle works on: a folder, a file, a glob pattern or a Decathlon-style list."""

from __future__ import annotations

import difflib
import glob
import hashlib
import json
import logging
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from monai.data import CacheDataset, PersistentDataset
from monai.data.utils import pickle_hashing

from n2s_med.errors import ConfigurationError, InputError
from n2s_med.volumes import Source, survey

Item = dict[str, Any]
"""One scan of a data set: ``image``, perhaps ``reference``, and the ``stamp`` of the files on disk."""

LIST_KEYS = ("image", "reference", "label")
"""Keys of an entry of a list; ``label``, of lists made for segmentation, is passed over."""

IN_MEMORY = 6
"""Bytes that a scan takes in memory, per byte of its files: compressed integers become floats and masks."""

log = logging.getLogger(__name__)


def scan_items(dataset_dir: str, *sections: str) -> list[Item]:
    """Return the scans at a place, their voxels not read yet.

    Parameters
    ----------
    dataset_dir
        A NIfTI or DICOM file, a folder of either, a glob pattern, or a JSON list in the form of the Medical
        Segmentation Decathlon, whose entries name an ``image`` and may name a clean ``reference``.
    sections
        Sections of the list to take, the first that is there; none takes all of it.

    Raises
    ------
    InputError
        If there is nothing to read.
    ConfigurationError
        If the list has another form.
    """
    if dataset_dir.endswith(".json"):
        items = _listed(Path(dataset_dir), sections)
    else:
        items = [{"image": source} for path in _matches(dataset_dir) for source in _sources(path)]
    return [item | {"stamp": _stamp(item)} for item in items]


def _matches(pattern: str) -> list[Path]:
    """The path itself, or what a pattern stands for."""
    if Path(pattern).exists() or not glob.has_magic(pattern):
        return [Path(pattern)]
    found = sorted(glob.glob(pattern, recursive=True))  # noqa: PTH207  # a pattern may be absolute
    if not found:
        raise InputError("nothing matches this pattern", remedy="check --dataset_dir", path=pattern)
    return [Path(name) for name in found]


def _sources(path: Path) -> Sequence[Source]:
    """Every scan at a path; what was refused there goes to the log."""
    found = survey(path)
    for refusal in found.refusals:
        log.warning("left out: %s", refusal)
    if not found.sources:
        raise InputError("no scan that can be read", remedy="check --dataset_dir", path=path)
    return found.sources


def _listed(file: Path, sections: Sequence[str]) -> list[Item]:
    """The scans of a Decathlon-style list."""
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise InputError("no readable JSON list of scans", remedy="check --dataset_dir", path=file) from error
    lists = (
        {name: rows for name, rows in content.items() if isinstance(rows, list)} if isinstance(content, dict) else {}
    )
    wanted = next(([name] for name in sections if name in lists), list(lists) if not sections else [])
    items = [_entry(file, row) for name in wanted for row in lists[name]]
    if not items:
        raise ConfigurationError(
            "the list names no scans", remedy=f"give it a section {' or '.join(sections) or 'training'}", path=file
        )
    return items


def _entry(file: Path, row: Any) -> Item:
    """One scan of a list; paths are relative to the list's folder."""
    entry: Mapping[str, Any] = {"image": row} if isinstance(row, str) else row if isinstance(row, dict) else {}
    for key in entry:
        if key not in LIST_KEYS:
            near = difflib.get_close_matches(key, LIST_KEYS, n=1, cutoff=0.0)[0]
            raise ConfigurationError(f"unknown key {key!r} in the list", remedy=f"did you mean {near!r}?", path=file)
    if "image" not in entry:
        raise ConfigurationError("an entry of the list names no image", remedy="add its key 'image'", path=file)
    return {key: _single(file.parent / entry[key]) for key in ("image", "reference") if key in entry}


def _single(path: Path) -> Source:
    """The one scan at a path."""
    found = _sources(path)
    if len(found) > 1:
        raise InputError(f"{len(found)} scans here, an entry is one", remedy="name each of them", path=path)
    return found[0]


def _files(path: Path) -> Iterable[Path]:
    return path.rglob("*") if path.is_dir() else [path]


def _stamp(item: Mapping[str, Source]) -> tuple[int, int]:
    """Bytes and newest change of an item's files: a cache on disk knows by it that they are the same."""
    stats = [file.stat() for source in item.values() for file in _files(source.path)]
    return sum(stat.st_size for stat in stats), max(stat.st_mtime_ns for stat in stats)


def content_hash(item: Item) -> str:
    """SHA-256 over the files of an item's scan, in hexadecimal: it tells the data without their names."""
    digest = hashlib.sha256()
    for file in sorted(file for file in _files(item["image"].path) if file.is_file()):
        with file.open("rb") as stream:
            digest.update(hashlib.file_digest(stream, "sha256").digest())
    return digest.hexdigest()


def scan_dataset(
    data: Sequence[Item], transform: Any, *, cache_dir: str, cache_gib: float = 8.0
) -> CacheDataset | PersistentDataset:
    """Return a data set that reads each scan once: kept in memory, or on disk where memory would not hold them.

    Parameters
    ----------
    data
        What :func:`scan_items` gives, or items with a path as ``image``.
    transform
        What is done to an item; all up to its first random transform is kept.
    cache_dir
        Folder for what is kept on disk. Who may write there can run code here: keep it as safe as the bundle.
    cache_gib
        Memory for what is kept, in GiB.
    """
    known = sum(item["stamp"][0] for item in data if "stamp" in item)
    if IN_MEMORY * known <= cache_gib * 2**30:
        return CacheDataset(data, transform, progress=False, copy_cache=False, num_workers=None)
    return PersistentDataset(data, transform, cache_dir, hash_transform=pickle_hashing, weights_only=False)
