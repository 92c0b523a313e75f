"""Files that are whole or not there, and what is said where they cannot be written."""

import contextlib
import os
import re
import secrets
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

try:
    import fcntl
except ImportError:  # Windows, where a file that is open cannot be removed anyway
    fcntl = None  # type: ignore[assignment]

UNFINISHED = re.compile(r"\..+\.[0-9a-f]{8}\.unfinished")


class StorageError(OSError, ValueError):
    """A file cannot be written: the disk is full, the folder is read-only, a permission is missing."""


@contextlib.contextmanager
def atomic_write(path: str | os.PathLike[str], needed: int | None = None) -> Iterator[BinaryIO]:
    """Open a file for writing that takes the place of ``path`` when the block ends, and not before.

    The bytes go to ``.{name}.{8 hex digits}.unfinished`` in the same folder, reach the disk, and are renamed. Until
    then, and where anything fails, the file that is there already stays whole.

    Args:
        path: the file; its folder is made where there is none.
        needed: bytes that will be written, where they are known; the message of a failure tells them.

    Raises:
        StorageError: the file cannot be written.

    >>> import tempfile
    >>> path = Path(tempfile.mkdtemp()) / "a.txt"
    >>> with atomic_write(path) as file:
    ...     _ = file.write(b"whole")
    >>> path.read_bytes()
    b'whole'
    """
    path = Path(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        file, unfinished = _create(path)
        recorder = _Recorder(file)
        try:
            try:
                yield recorder  # type: ignore[misc]
            except Exception:
                if recorder.error is not None:  # torch.save raises something else after a failed write
                    raise recorder.error from None
                raise
            file.flush()
            os.fsync(file.fileno())
            os.replace(unfinished, path)
        except BaseException:
            unfinished.unlink(missing_ok=True)
            raise
        finally:
            with contextlib.suppress(OSError):  # closing flushes once more, in vain where the disk is full
                file.close()
        _sync_folder(path.parent)
    except OSError as error:
        raise StorageError(_sentence(path, error, needed)) from error


@contextlib.contextmanager
def atomic_path(path: str | os.PathLike[str]) -> Iterator[Path]:
    """As :func:`atomic_write`, for what opens a path by itself; the bytes are not waited for to reach the disk.

    Raises:
        StorageError: the file cannot be written.

    >>> import tempfile
    >>> target = Path(tempfile.mkdtemp()) / "a.txt"
    >>> with atomic_path(target) as path:
    ...     _ = path.write_text("whole")
    >>> target.read_text()
    'whole'
    """
    path = Path(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        file, unfinished = _create(path)
        with file:  # locked
            try:
                yield unfinished
                os.replace(unfinished, path)
            except BaseException:
                unfinished.unlink(missing_ok=True)
                raise
    except OSError as error:
        raise StorageError(_sentence(path, error, None)) from error


def check_writable(path: str | os.PathLike[str], needed: int = 0) -> None:
    """Raise where the file ``path`` cannot be written, before there is something to write. Leaves nothing behind.

    Args:
        path: the file; its folder need not exist yet.
        needed: bytes that have to be free.

    Raises:
        StorageError: a permission is missing, the filesystem is read-only, or less is free.
    """
    path = Path(path)
    folder = next(p for p in path.absolute().parents if p.exists())
    try:
        if path.is_dir():
            raise IsADirectoryError(None, "it is a folder")
        if path.exists() and not os.access(path, os.W_OK):
            raise PermissionError(None, "the file is write-protected")
        file, unfinished = _create(folder / path.name)
        file.close()
        unfinished.unlink()
    except OSError as error:
        raise StorageError(_sentence(path, error, None)) from error
    if shutil.disk_usage(folder).free < needed:
        raise StorageError(_sentence(path, OSError(None, "there is too little space"), needed))


def remove_unfinished(folder: str | os.PathLike[str]) -> list[Path]:
    """Remove what runs that died while they were writing have left in a folder, and return it.

    A file that is being written is locked by its process, on this machine or another one, and stays.
    """
    removed = []
    for path in Path(folder).iterdir() if Path(folder).is_dir() else ():
        if UNFINISHED.fullmatch(path.name):
            with contextlib.suppress(OSError), path.open("r+b") as file:
                if fcntl is not None:
                    fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                path.unlink()
                removed.append(path)
    return removed


class _Recorder:
    """A file that remembers the first error of the system."""

    def __init__(self, file: BinaryIO) -> None:
        self.error: OSError | None = None
        self._file = file

    def write(self, data: bytes) -> int:
        try:
            return self._file.write(data)
        except OSError as error:
            self.error = self.error or error
            raise

    def flush(self) -> None:
        self._file.flush()


def _create(path: Path) -> tuple[BinaryIO, Path]:
    while True:
        unfinished = path.with_name(f".{path.name}.{secrets.token_hex(4)}.unfinished")
        file = os.fdopen(os.open(unfinished, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o666), "wb")
        if fcntl is None:
            return file, unfinished
        with contextlib.suppress(OSError):  # a filesystem without locks
            fcntl.flock(file, fcntl.LOCK_EX)
        if os.fstat(file.fileno()).st_nlink:  # else another run has tidied up before it was locked
            return file, unfinished
        file.close()


def _sync_folder(folder: Path) -> None:
    with contextlib.suppress(OSError):  # not every system can
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def _sentence(path: Path, error: OSError, needed: int | None) -> str:
    folder = next(p for p in path.absolute().parents if p.exists())
    space = f"{shutil.disk_usage(folder).free:,} bytes are free there"
    if needed is not None:
        space = f"{needed:,} bytes are needed and {space}"
    kept = "; the file that was there before is whole" if path.is_file() else ""
    return f"{path} cannot be written ({error.strerror or error}): {space}{kept}"
