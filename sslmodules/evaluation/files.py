"""Files that several processes write, one at a time."""

import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

try:
    import fcntl
except ImportError:  # on Windows, where processes in one folder are not kept apart
    fcntl = None  # type: ignore[assignment]


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """Let one process at a time work on a file; the others wait here, and one that is killed lets the next one in.

    A file ``<path>.lock`` stands beside it meanwhile. On filesystems without locks nothing is waited for.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    lock = path.with_name(f"{path.name}.lock")
    while True:
        held = os.open(lock, os.O_RDWR | os.O_CREAT, 0o666)
        with suppress(AttributeError, OSError):  # ENOSYS of Lustre, ENOLCK of NFS
            fcntl.flock(held, fcntl.LOCK_EX)
        with suppress(FileNotFoundError):
            if os.path.samestat(os.fstat(held), os.stat(lock)):
                break
        os.close(held)  # the one before has removed it, and whoever comes now locks another
    try:
        yield
    finally:
        lock.unlink(missing_ok=True)
        with suppress(AttributeError, OSError):
            fcntl.flock(held, fcntl.LOCK_UN)  # the workers of a loader have inherited it, and closing is not enough
        os.close(held)
