"""Files that are there whole or not at all, and errors that say which one could not be written."""

from __future__ import annotations

import contextlib
import errno
import os
from collections.abc import Iterator
from pathlib import Path

try:
    import fcntl
except ImportError:  # not on Windows
    fcntl = None  # type: ignore[assignment]

_PARTIAL = ".partial."


@contextlib.contextmanager
def naming(path: Path) -> Iterator[None]:
    """Has an OSError, of a full disk say, tell that it was ``path`` that could not be written."""
    try:
        yield
    except OSError as error:
        raise OSError(f"{path} cannot be written: {error.strerror or error}") from error


@contextlib.contextmanager
def atomic_write(path: Path, *, durable: bool = False) -> Iterator[Path]:
    """Gives a path beside ``path``, with its suffix, to write to; what was written there then takes its place.

    ``durable``: it is on the disk, not in the system's memory, when this ends.

    Raises:
        OSError: it cannot be written; what was there before still is.
    """
    partial = path.with_name(f"{_PARTIAL}{path.name}")
    try:
        with naming(path):
            with partial.open("wb") as file:
                mode = os.fstat(file.fileno()).st_mode
            yield partial
            with contextlib.suppress(OSError):
                partial.chmod(mode)  # safetensors makes files that nobody else may read
            if durable:
                _sync(partial)
            os.replace(partial, path)
            if durable:
                _sync(path.parent)
    finally:
        with contextlib.suppress(OSError):
            partial.unlink()


def remove_partial(folder: Path) -> None:
    """Removes what a process that was killed while writing left in ``folder``."""
    for partial in folder.glob(f"{_PARTIAL}*"):
        with contextlib.suppress(FileNotFoundError):
            partial.unlink()


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def make_folder(argument: str, path: Path) -> None:
    """Makes a folder and those above it, where they are not there.

    Raises:
        OSError: it cannot be made; the message names the argument.
    """
    try:
        path.mkdir(parents=True, exist_ok=True)
    except (FileExistsError, NotADirectoryError) as error:
        raise NotADirectoryError(f"{argument} must be a folder, and {path} is a file or lies in one") from error
    except OSError as error:
        raise OSError(f"{argument}: {path} cannot be made: {error.strerror or error}") from error


@contextlib.contextmanager
def locked(path: Path) -> Iterator[bool]:
    """Whether this process holds the lock file ``path`` alone: until this ends, or the process, however it ends.

    A file system that has no locks gives it to everyone.
    """
    with path.open("a") as file:
        ours = True
        try:
            if fcntl is not None:  # a record lock: worker processes that are forked do not inherit it, and outlive us
                fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            ours = error.errno not in (errno.EAGAIN, errno.EACCES)
        yield ours
