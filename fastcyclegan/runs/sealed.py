"""A folder of files that appears whole or not at all, and is verified when it is read.

Its state.json lists the CRC32 and size of every other file and has a CRC32 of its own.
"""

import errno
import json
import os
import re
import shutil
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from fastcyclegan.errors import UserError
from fastcyclegan.files import TEMPORARY_PREFIX, fsync_folder, write_durable

SCHEMA = 1
STATE = "state.json"
_FILE = re.compile(r"[A-Za-z0-9_]+\.safetensors")


class Damaged(UserError):
    """It is not what was written, and never will be again: no reading error, nor a newer version's.

    The message names the file.
    """


def state_bytes(
    step: int, state: Mapping[str, Any], files: Mapping[str, bytes], milestone: bool = False
) -> bytes:
    """state.json of a folder of ``files``: what JSON can hold of it, and their checksums."""
    body = {
        "schema": SCHEMA,
        "step": int(step),
        "milestone": milestone,
        "state": dict(state),
        "files": {name: {"crc32": zlib.crc32(d), "size": len(d)} for name, d in files.items()},
    }
    body = json.loads(json.dumps(body))
    return json.dumps({"crc32": _crc(body), "body": body}, indent=1).encode()


def _crc(body: Any) -> int:
    return zlib.crc32(json.dumps(body, sort_keys=True).encode())


def write_folder(path: Path, files: Mapping[str, bytes]) -> None:
    """Put a folder of ``files`` at ``path``, durable; what was there is beside it, as ``.old``.

    Raises OSError, a full disk say: what was there stays.
    """
    needed = sum(len(data) for data in files.values())
    if shutil.disk_usage(path.parent).free < needed:
        raise OSError(errno.ENOSPC, f"a checkpoint needs {needed} bytes", str(path.parent))
    temporary = path.with_name(f"{TEMPORARY_PREFIX}{path.name}-{os.getpid()}")
    old = path.with_name(f"{path.name}.old")
    try:
        temporary.mkdir()
        for name, data in files.items():
            write_durable(temporary / name, data)
        fsync_folder(temporary)
        if path.exists():
            shutil.rmtree(old, ignore_errors=True)
            os.replace(path, old)
        os.replace(temporary, path)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise
    fsync_folder(path.parent)


def verified_files(path: Path) -> tuple[dict[str, bytes], dict[str, Any]]:
    """The files of the folder ``path``, and the state of its state.json.

    Raises Damaged; UserError for what cannot be read, or by another version only.
    """
    body = verified_body(path / STATE)
    files = {}
    for name, expected in body["files"].items():
        if not _FILE.fullmatch(name):
            raise Damaged(f"{path}/{STATE} is damaged: it lists {name!r}")
        files[name] = _read(path / name)
        actual = {"crc32": zlib.crc32(files[name]), "size": len(files[name])}
        if actual != expected:
            raise Damaged(f"{path}/{name} is damaged: its checksum differs")
    return files, body["state"]


def verified_body(path: Path) -> dict[str, Any]:
    """What the state.json ``path`` holds, if it is sound. Raises as :func:`verified_files`."""
    data = _read(path)
    try:
        content = json.loads(data)
        body = content["body"]
        intact = content["crc32"] == _crc(body) and isinstance(body, dict)
    except (ValueError, KeyError, TypeError, RecursionError):
        intact = False
    if not intact:
        raise Damaged(f"{path} is damaged: its checksum differs")
    if body.get("schema") != SCHEMA:
        raise UserError(f"{path} has schema {body.get('schema')}, this version reads {SCHEMA}")
    wrong = [key for key in ("files", "state") if not isinstance(body.get(key), dict)]
    if wrong or type(body.get("step")) is not int:
        raise Damaged(f"{path} is damaged: it has no {(*wrong, 'step')[0]}")
    return body


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except (FileNotFoundError, NotADirectoryError, IsADirectoryError) as error:
        raise Damaged(f"{path} cannot be read ({error.strerror})") from None
    except OSError as error:
        raise UserError(f"{path} cannot be read ({error.strerror})") from None
