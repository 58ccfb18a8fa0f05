"""Files and folders that appear whole or not at all.

Everything is written into a hidden sibling ``.<name>.partial-<pid>-<host>``, flushed to disk and renamed. What was
there before is moved aside first and removed last, so it survives any failure. Several processes, on several
machines, may write the same place at once: the last to end has it.
"""

from __future__ import annotations

import contextlib
import errno
import glob
import hashlib
import os
import shutil
import socket
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from n2s_med.errors import OutputError

_HOST = hashlib.sha256(socket.gethostname().encode()).hexdigest()[:8]
"""This machine: process numbers mean something on it alone."""
FLUSHERS = 8
"""Files that are brought to disk at once."""
_CAUSES = {
    errno.ENOSPC: ("no space is left for it", "free some space or choose another place"),
    errno.EDQUOT: ("the disk quota is used up", "free some space or choose another place"),
    errno.EROFS: ("the place is read-only", "choose a place that can be written"),
    errno.EACCES: ("permission to write it is denied", "choose a place that can be written"),
    errno.EPERM: ("permission to write it is denied", "choose a place that can be written"),
    errno.ENOTDIR: ("a part of the path is a file, not a folder", "choose another place"),
    errno.EEXIST: ("a part of the path is a file, not a folder", "choose another place"),
    errno.EISDIR: ("a folder is there already", "choose another name"),
    errno.ENAMETOOLONG: ("the name is too long", "choose a shorter name"),
}


@contextlib.contextmanager
def whole(path: Path, *, overwrite: bool, needed_bytes: int = 0) -> Iterator[Path]:
    """Yield the temporary sibling of ``path``; rename it to ``path`` when the block ends well.

    Parameters
    ----------
    path
        The file or folder that shall appear. The block creates it under the yielded name.
    overwrite
        Whether an existing ``path`` is replaced, after the block has ended well.
    needed_bytes
        Size in bytes of what will be written; refused at once where there is no room for it.

    Raises
    ------
    OutputError
        ``path`` exists, or the system refuses to write it. Nothing is left behind.
    """
    _tidy(path)
    if _exists(path) and not overwrite:
        raise OutputError("it exists already", remedy="choose another name or allow overwriting", path=path)
    partial = beside(path, "partial")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        _require_space(path, needed_bytes)
        _remove(partial)
        yield partial
        _flush(partial)
        _put_in_place(partial, path)
    except OSError as error:
        raise refused(error, path) from error
    finally:
        _remove(partial)


def beside(path: Path, kind: str, pid: int | None = None) -> Path:
    """Return where a process of this machine, by default this one, keeps what becomes ``path`` or was there."""
    return path.with_name(f".{path.name}.{kind}-{os.getpid() if pid is None else pid}-{_HOST}")


def check_free(path: Path, *, overwrite: bool) -> None:
    """Refuse before any work what :func:`whole` would refuse after it.

    Raises
    ------
    OutputError
        ``path`` exists, or nothing can be written where it shall be.
    """
    if _exists(path) and not overwrite:
        raise OutputError("it exists already", remedy="choose another name or --overwrite", path=path)
    place = next(folder for folder in path.absolute().parents if _exists(folder))
    if not place.is_dir():
        raise refused(NotADirectoryError(errno.ENOTDIR, ""), path)
    if not os.access(place, os.W_OK | os.X_OK):
        raise refused(PermissionError(errno.EACCES, ""), path)
    if len(os.fsencode(beside(path, "replaced").name)) > os.pathconf(place, "PC_NAME_MAX"):
        raise refused(OSError(errno.ENAMETOOLONG, ""), path)


def check_apart(source: Path, target: Path, *, spare: Path | None = None) -> None:
    """Refuse an output in the input, which the next run would read, or around it.

    Parameters
    ----------
    source, target
        Input and output, files or folders; the output need not exist.
    spare
        Folder of the input that is not read, so that an output may lie in it.

    Raises
    ------
    OutputError
        The output is the input, lies in it or holds it.
    """
    read, written = source.resolve(), target.absolute().resolve()
    if spare is not None and spare.resolve() in written.parents:
        return
    if read == written or read in written.parents:
        raise OutputError("it is the input or lies inside it", remedy="choose a place outside it", path=target)
    if written in read.parents:
        raise OutputError("it holds the input", remedy="choose a place outside it", path=target)


def tidy_below(folder: Path) -> None:
    """Clear away what killed processes left anywhere below ``folder``; what they had moved aside comes back.

    Nobody can tell whether a process of another machine lives: what it has here is taken for left behind. If it does
    live, it fails, and what it writes does not appear.
    """
    kinds = (left for kind in ("partial", "replaced") for left in folder.rglob(f".*.{kind}-*"))
    for left in sorted(kinds):
        _tidy(left.with_name(left.name[1:].rpartition(".")[0]), elsewhere=True)


def refused(error: OSError, path: Path) -> OutputError:
    """Return the system's refusal to write ``path`` as an error of this package."""
    cause, remedy = _CAUSES.get(
        error.errno or 0,
        (f"the system cannot write it ({error.strerror or type(error).__name__})", "choose another place"),
    )
    return OutputError(cause, remedy=remedy, path=path)


def _tidy(path: Path, *, elsewhere: bool = False) -> None:
    """Clear away what killed processes left beside ``path``; what they had moved aside comes back.

    What processes of other machines have there stays, unless ``elsewhere``.
    """
    with contextlib.suppress(OSError, ValueError):
        for left in path.parent.glob(f".{glob.escape(path.name)}.*-*-*"):
            kind, _, owner = left.name.removeprefix(f".{path.name}.").partition("-")
            pid, _, host = owner.partition("-")
            if kind not in ("partial", "replaced") or not pid.isdecimal():
                continue
            if _alive(int(pid)) if host == _HOST else not elsewhere:
                continue
            if kind == "replaced" and not os.path.lexists(path):
                left.rename(path)
            else:
                _remove(left)


def _alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except (PermissionError, OverflowError):
        return True
    return True


def _exists(path: Path) -> bool:
    try:
        path.lstat()
    except (FileNotFoundError, NotADirectoryError):
        return False
    except OSError as error:
        raise refused(error, path) from error
    except ValueError as error:
        raise OutputError("it is not a usable name", remedy="choose another name", path=path) from error
    return True


def _require_space(path: Path, needed_bytes: int) -> None:
    if shutil.disk_usage(path.parent).free < needed_bytes:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def _put_in_place(partial: Path, path: Path) -> None:
    """Rename ``partial`` to ``path``; what is there steps aside and comes back if that fails."""
    old = beside(path, "replaced")
    try:
        while True:
            try:
                partial.replace(path)  # atomic; a folder refuses it where another one is
                break
            except OSError as error:
                if error.errno not in (errno.ENOTEMPTY, errno.EEXIST) or not partial.is_dir():
                    raise
            _remove(old)
            with contextlib.suppress(FileNotFoundError):  # another process has moved it
                path.rename(old)
    except BaseException:
        if old.exists() and not _exists(path):
            old.rename(path)
        raise
    _remove(old)
    _flush_entry(path.parent)


def _flush(path: Path) -> None:
    """Bring the file, or every file of the folder, to disk."""
    if path.is_dir():
        with ThreadPoolExecutor(FLUSHERS) as pool:
            list(pool.map(_flush_entry, path.rglob("*")))
    _flush_entry(path)


def _flush_entry(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _remove(path: Path) -> None:
    with contextlib.suppress(OSError, ValueError):
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink(missing_ok=True)
