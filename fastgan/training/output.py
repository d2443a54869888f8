"""Files that are there whole or not at all, and errors that say which one could not be written."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path

_PARTIAL = ".partial."


@contextlib.contextmanager
def written(path: Path, *, durable: bool = False) -> Iterator[Path]:
    """Gives a path beside ``path``, with its suffix, to write to; what was written there then takes its place.

    ``durable``: it is on the disk, not in the system's memory, when this ends.

    Raises:
        OSError: it cannot be written; what was there before still is.
    """
    partial = path.with_name(f"{_PARTIAL}{path.name}")
    try:
        yield partial
        if durable:
            _sync(partial)
        os.replace(partial, path)
        if durable:
            _sync(path.parent)
    except OSError as error:
        raise OSError(f"{path} cannot be written: {error.strerror or error}") from error
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
