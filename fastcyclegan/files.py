"""File writing that leaves the old file or the new one after a crash, and printable names."""

import os
import shutil
import uuid
from contextlib import suppress
from pathlib import Path
from typing import TextIO

TEMPORARY_PREFIX = ".tmp-"


def fsync_file(path: Path, flags: int = 0) -> None:
    """Make what is in the file ``path`` durable. Raises OSError."""
    descriptor = os.open(path, os.O_RDONLY | flags)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def fsync_folder(path: Path) -> None:
    """Make the names in the folder ``path`` durable. Raises OSError."""
    fsync_file(path, os.O_DIRECTORY)


def make_folder(path: Path) -> None:
    """Make the folder ``path`` and those above it that are missing, durable. Raises OSError."""
    if not path.is_dir():
        make_folder(path.parent)
        path.mkdir(exist_ok=True)
        with suppress(OSError):  # a folder may allow what is made in it, and no look at it
            fsync_folder(path.parent)


def write_durable(path: Path, data: bytes) -> None:
    """Write ``data`` to ``path`` and force it to the disk. Raises OSError."""
    with open(path, "wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())


def write_atomic(path: Path, data: bytes) -> None:
    """Put ``data`` at ``path``: readers and crashes see the old content or all of the new.

    Raises OSError (a full disk, say); the old content then stays and nothing else is left behind.
    """
    temporary = path.with_name(f"{TEMPORARY_PREFIX}{uuid.uuid4().hex[:12]}")
    try:
        write_durable(temporary, data)
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    fsync_folder(path.parent)


def remove_temporaries(*folders: Path) -> None:
    """Remove what a crash of :func:`write_atomic` and its like left in ``folders``, if possible."""
    for path in (path for folder in folders for path in folder.glob(TEMPORARY_PREFIX + "*")):
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path, ignore_errors=True)
        else:
            with suppress(OSError):
                path.unlink()


def discard(stream: TextIO) -> None:
    """Let what ``stream`` could not write, and all that it is given later, go nowhere."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, stream.fileno())
    os.close(nowhere)


def printable(text: object) -> str:
    """``text`` on one line: line breaks, control codes and undecodable bytes become escapes.

    File names may hold any of these, and must not be able to break a line of a log.
    """
    return "".join(
        char if char.isprintable() else char.encode("unicode_escape", "surrogatepass").decode()
        for char in str(text)
    )
