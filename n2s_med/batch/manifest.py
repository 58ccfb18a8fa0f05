"""The manifest: what became of each scan, as JSON lines in the output folder.

While a batch runs, lines are appended, each brought to disk before the work goes on; of a scan's lines the last one
holds. A line that a killed batch left unfinished is dropped. At the end the file is written anew, whole, with one
line per scan. It holds relative paths, hashes and figures, and no patient data. One batch at a time may have it open.
"""

from __future__ import annotations

import errno
import fcntl
import json
import os
from dataclasses import asdict, dataclass, fields
from enum import StrEnum
from io import FileIO
from pathlib import Path
from typing import Self

from n2s_med.atomic import refused, whole
from n2s_med.errors import OutputError

NAME = "batch.jsonl"


class State(StrEnum):
    """What became of a scan."""

    BEGUN = "begun"
    """Handed to a worker; what lies at its output is from an attempt and is replaced by the next one."""
    DONE = "done"
    FAILED = "failed"
    """Tried without success; tried again by the next run."""
    EXISTS = "exists"
    """Not tried: something is in its place that no run with these inputs and options left there."""
    LEFT_OUT = "left out"
    """Not for denoising."""


@dataclass(frozen=True)
class Record:
    """One scan's line.

    Attributes
    ----------
    key
        What tells the scan from the others, in every run: a hash.
    scan
        What it is, free of patient data.
    source, output
        Its file or folder and its result, relative to the input and output folders.
    reason
        Why it is not done.
    files
        Number of its files.
    inputs_stat
        Hash over names, sizes and modification times of its files.
    inputs_sha256
        Hash over the content of its files.
    options
        Hash over all that determines the result but the inputs.
    noise
        The noise that it was taken to have, in a sentence.
    failed_checks
        Names of the trust checks that failed.
    attempts
        How often it was tried in the last run.
    """

    key: str
    state: State
    scan: str
    source: str
    output: str = ""
    reason: str = ""
    files: int = 0
    inputs_stat: str = ""
    inputs_sha256: str = ""
    options: str = ""
    noise: str = ""
    failed_checks: tuple[str, ...] = ()
    time_s: float = 0.0
    peak_memory_mib: float = 0.0
    attempts: int = 0

    def line(self) -> bytes:
        """The record as a line of JSON."""
        return json.dumps(asdict(self)).encode() + b"\n"

    @classmethod
    def of_line(cls, line: bytes) -> Self:
        """Return the record of a line.

        Raises
        ------
        ValueError
            It is not the line of a record.
        """
        content = json.loads(line)
        if not isinstance(content, dict) or set(content) != {field.name for field in fields(cls)}:
            raise ValueError("not a record")
        content |= {"state": State(content["state"]), "failed_checks": tuple(content["failed_checks"])}
        return cls(**content)


class Manifest:
    """The manifest of an output folder, opened for one batch; a context manager.

    Attributes
    ----------
    records
        The last record of each scan, by its key.
    """

    def __init__(self, folder: Path) -> None:
        self.path = folder / NAME
        self.records: dict[str, Record] = {}
        self._file: FileIO | None = None

    def __enter__(self) -> Self:
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self._file = _locked(self.path)
        except OSError as error:
            raise refused(error, self.path) from error
        try:
            self.records = _records(self._file, self.path)
        except BaseException:
            self._file.close()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        assert self._file is not None
        try:
            with whole(self.path, overwrite=True) as partial:
                partial.write_bytes(b"".join(record.line() for record in self.records.values()))
        finally:
            self._file.close()

    def add(self, *records: Record) -> None:
        """Bring records to disk.

        Raises
        ------
        OutputError
            They cannot be written.
        """
        assert self._file is not None
        try:
            lines = memoryview(b"".join(record.line() for record in records))
            while lines:
                lines = lines[self._file.write(lines) :]
            os.fsync(self._file.fileno())
        except OSError as error:
            raise refused(error, self.path) from error
        self.records |= {record.key: record for record in records}

    def forget_left_out(self) -> None:
        """Drop what was not for denoising: whoever plans anew finds it again if it still is not."""
        self.records = {key: record for key, record in self.records.items() if record.state is not State.LEFT_OUT}


def known(folder: Path) -> dict[str, Record]:
    """Return the records of a folder without opening its manifest for a batch."""
    path = folder / NAME
    if not path.is_file():
        return {}
    with path.open("rb") as file:
        return _parsed(file.read(), path)[0]


def _locked(path: Path) -> FileIO:
    """Open the manifest for this process alone; it is locked until it is closed or the process ends."""
    while True:
        file = path.open("a+b", buffering=0)  # what a full disk does not take is not tried again when it is closed
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if os.path.samestat(os.fstat(file.fileno()), path.stat()):
                return file
        except OSError as error:
            file.close()
            if error.errno not in (errno.EAGAIN, errno.ENOENT):
                raise
            if error.errno == errno.EAGAIN:
                raise OutputError(
                    "another batch is writing here", remedy="wait for it or choose another folder", path=path.parent
                ) from None
        else:
            file.close()  # another batch put a new file in its place


def _records(file: FileIO, path: Path) -> dict[str, Record]:
    """Return the records of an open manifest, from which an unfinished last line is cut off."""
    file.seek(0)
    records, length = _parsed(file.read(), path)
    file.truncate(length)
    return records


def _parsed(content: bytes, path: Path) -> tuple[dict[str, Record], int]:
    """Return the records by key, and the length in bytes of the finished lines."""
    length = content.rfind(b"\n") + 1
    records = {}
    for number, line in enumerate(content[:length].splitlines(), start=1):
        try:
            record = Record.of_line(line)
        except (ValueError, TypeError, KeyError) as error:
            raise OutputError(
                f"line {number} is not of a manifest of this version",
                remedy="choose another output folder, or remove the file and give --overwrite",
                path=path,
            ) from error
        records[record.key] = record
    return records, length
