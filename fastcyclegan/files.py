"""File writing that leaves the old file or the new one after a crash, and printable names."""

import os
import uuid
from pathlib import Path
from typing import TextIO

TEMPORARY_PREFIX = ".tmp-"


def fsync_folder(path: Path) -> None:
    """Make the names in the folder ``path`` durable. Raises OSError."""
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


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
