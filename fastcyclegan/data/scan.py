"""Find the two folders of a data set, and look over the image files of one by their headers."""

import os
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TypeVar

from fastcyclegan.data.images import BadImage, Header, pillow_warnings, read_header
from fastcyclegan.errors import UserError
from fastcyclegan.files import printable

SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".ppm", ".tif", ".tiff")
NOTE_HIDDEN = "hidden files and folders skipped"
NOTE_OTHER = "files without an image suffix skipped"
NOTE_LINKS = "linked folders not followed"

T = TypeVar("T")
R = TypeVar("R")


@dataclass
class Scan:
    """The image files below one folder.

    Attributes:
        root: the folder.
        files: usable by their headers, sorted by their name relative to ``root``.
        quarantined: (path, reason) of the others.
        notes: counts of what is worth knowing (hidden files, rotated images, ...).
        sizes: (height, width) of each of ``files`` as its header says, upright.
        rest: files behind those, which were not looked at as enough had been found.
        before: usable files of the folder ahead of ``files``, decoded already.
    """

    root: Path
    files: list[Path] = field(default_factory=list)
    quarantined: list[tuple[Path, str]] = field(default_factory=list)
    notes: dict[str, int] = field(default_factory=dict)
    sizes: list[tuple[int, int]] = field(default_factory=list)
    rest: list[str] = field(default_factory=list)
    before: int = 0
    min_size: int = 8

    @property
    def looked_at(self) -> int:
        """Files whose headers were read, those before these included."""
        return self.before + len(self.files) + len(self.quarantined)

    def further(
        self, count: int, quarantined: list[tuple[Path, str]], before: int, threads: int = 8
    ) -> "Scan":
        """A scan of the next ``count`` usable files behind these, or as many as there are.

        Args:
            quarantined: what was found unusable so far; the scan goes on with this list.
            before: usable files so far.
        """
        rest = {"rest": self.rest, "before": before, "min_size": self.min_size}
        scan = Scan(self.root, quarantined=list(quarantined), **rest)
        notes: Counter = Counter()
        with pillow_warnings():
            _read_headers(scan, count, notes, threads)
        scan.notes = _counted(notes)
        return scan


def map_in_threads(function: Callable[[T], R], items: Iterable[T], threads: int) -> Iterator[R]:
    """``map`` in ``threads`` threads, results in order; closing it early drops what is waiting."""
    pool = ThreadPoolExecutor(max(1, threads))
    try:
        yield from pool.map(function, items)
    finally:
        pool.shutdown(cancel_futures=True)


def _list_dir(path: Path) -> str:
    try:
        names = sorted(os.listdir(path))
    except OSError as error:
        return f"cannot be listed: {error.strerror}"
    if not names:
        return "is empty"
    more = f" and {len(names) - 6} more" if len(names) > 6 else ""
    return "holds " + ", ".join(printable(name) for name in names[:6]) + more


def _require_folder(path: Path, flag: str) -> Path:
    if path.is_dir():
        return path
    if path.exists():
        raise UserError(f"{flag} {printable(path)} is not a folder")
    above = next((p for p in path.parents if p.is_dir()), None)
    hint = f"; {printable(above)} {_list_dir(above)}" if above else ""
    raise UserError(f"{flag} {printable(path)} does not exist{hint}")


def find_domains(
    dataroot: str | Path | None,
    dataroot_A: str | Path | None = None,
    dataroot_B: str | Path | None = None,
    phase: str = "train",
) -> tuple[Path, Path]:
    """The folders of domain A and domain B.

    They are ``dataroot_A`` and ``dataroot_B`` if given, else ``<phase>A`` and ``<phase>B`` or
    ``<phase>/A`` and ``<phase>/B`` in ``dataroot``; phase is "train" or "test".

    Raises:
        UserError: a folder is missing, is not a folder, or has no file with an image suffix.
    """
    if dataroot_A or dataroot_B:
        if not (dataroot_A and dataroot_B):
            given, missing = ("A", "B") if dataroot_A else ("B", "A")
            raise UserError(f"--dataroot_{given} is given without --dataroot_{missing}")
        if dataroot:
            raise UserError("give either --dataroot, or --dataroot_A and --dataroot_B, not both")
        pair = (
            _require_folder(Path(dataroot_A), "--dataroot_A"),
            _require_folder(Path(dataroot_B), "--dataroot_B"),
        )
    elif dataroot:
        pair = _domains_below(_require_folder(Path(dataroot), "--dataroot"), phase)
    else:
        raise UserError("--dataroot is missing: the folder that holds trainA and trainB")
    for folder in pair:
        _require_images(folder)
    return pair


def _domains_below(root: Path, phase: str) -> tuple[Path, Path]:
    layouts = [(f"{phase}A", f"{phase}B"), (f"{phase}/A", f"{phase}/B")]
    for a, b in layouts:
        if (root / a).is_dir() and (root / b).is_dir():
            return root / a, root / b
    for a, b in layouts:
        for there, missing in ((a, b), (b, a)):
            if (root / there).is_dir():
                raise UserError(
                    f"--dataroot {printable(root)} has {there} but no folder {missing}; "
                    f"it {_list_dir(root)}"
                )
    (a, b), (c, d) = layouts
    raise UserError(
        f"--dataroot {printable(root)} has neither {a} and {b} nor {c} and {d}; "
        f"it {_list_dir(root)}"
    )


def _require_images(folder: Path) -> None:
    if next(_walk(folder, Counter(), []), None) is None:
        raise UserError(
            f"{printable(folder)} has no images ({' '.join(SUFFIXES)}); it {_list_dir(folder)}"
        )


def _walk(root: Path, notes: Counter, unreadable: list[OSError]) -> Iterator[str]:
    for folder, subfolders, names in os.walk(root, onerror=unreadable.append):
        hidden = [name for name in subfolders if name.startswith(".")]
        links = [n for n in subfolders if n not in hidden and os.path.islink(Path(folder, n))]
        subfolders[:] = [n for n in subfolders if n not in hidden and n not in links]
        notes[NOTE_HIDDEN] += len(hidden)
        notes[NOTE_LINKS] += len(links)
        for name in names:
            if name.startswith("."):
                notes[NOTE_HIDDEN] += 1
            elif not name.lower().endswith(SUFFIXES):
                notes[NOTE_OTHER] += 1
            else:
                yield os.path.join(folder, name)


def _look(path: str, min_size: int) -> Header | BadImage:
    try:
        header = read_header(path)
    except BadImage as error:
        return error
    if min(header.height, header.width) < min_size:
        return BadImage(f"{header.width}x{header.height} has a side below {min_size} pixels")
    return header


def scan_folder(
    path: str | Path,
    *,
    max_dataset_size: float | None = None,
    min_size: int = 8,
    threads: int = 8,
    called: str = "the image folder",
) -> Scan:
    """Look over the image files below a folder: suffix, file size and header.

    Files and folders whose names begin with a dot are passed over, linked folders are not followed.

    Args:
        path: the folder, searched with all its subfolders.
        max_dataset_size: stop after that many usable files, in sorted order.
        min_size: images with a side shorter than this, in pixels, are quarantined.
        threads: files read at the same time.
        called: what to say of ``path``, the flag that named it say.

    Raises:
        UserError: not a folder, or no file in it has an image suffix.
    """
    root = _require_folder(Path(path), called)
    notes: Counter = Counter()
    unreadable: list[OSError] = []
    paths = sorted(_walk(root, notes, unreadable))
    scan = Scan(
        root,
        quarantined=[(Path(e.filename), f"cannot be listed: {e.strerror}") for e in unreadable],
        rest=paths,
        min_size=min_size,
    )
    if not paths:
        _require_images(root)
    limit = len(paths) if max_dataset_size is None else int(min(max_dataset_size, len(paths)))
    with pillow_warnings():
        _read_headers(scan, limit, notes, threads)
    scan.notes = _counted(notes)
    return scan


def _counted(notes: Counter) -> dict[str, int]:
    return {note: count for note, count in sorted(notes.items()) if count}


def _read_headers(scan: Scan, limit: int, notes: Counter, threads: int) -> None:
    """Move files from ``scan.rest`` to where they belong until ``limit`` usable ones are found."""
    look = partial(_look, min_size=scan.min_size)
    while len(scan.files) < limit and scan.rest:
        wanted = limit - len(scan.files)
        some, scan.rest = scan.rest[:wanted], scan.rest[wanted:]
        with closing(map_in_threads(look, some, threads)) as headers:
            for path, header in zip(some, headers, strict=True):
                if isinstance(header, BadImage):
                    scan.quarantined.append((Path(path), str(header)))
                else:
                    scan.files.append(Path(path))
                    scan.sizes.append((header.height, header.width))
                    notes.update(header.notes)
