"""Finding the domains and looking over a folder."""

import os
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from fastcyclegan.data import scan
from fastcyclegan.data.scan import find_domains, scan_folder
from fastcyclegan.errors import UserError
from fastcyclegan.files import printable


def put(path, size=(10, 12), **options):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.full((*size, 3), 128, np.uint8)).save(path, **options)
    return path


def names(result):
    return [p.relative_to(result.root).as_posix() for p in result.files]


def message(function, *args, **options):
    with pytest.raises(UserError) as caught:
        function(*args, **options)
    text = str(caught.value)
    assert text.isprintable()
    return text


@pytest.mark.parametrize("phase", ["train", "test"])
@pytest.mark.parametrize("layout", ["{}A {}B", "{}/A {}/B"])
def test_both_layouts(tmp_path, layout, phase):
    a, b = layout.format(phase, phase).split()
    put(tmp_path / a / "x.png")
    put(tmp_path / b / "sub" / "y.JPG")
    assert find_domains(tmp_path, None, None, phase) == (tmp_path / a, tmp_path / b)
    assert find_domains(str(tmp_path), phase=phase) == (tmp_path / a, tmp_path / b)


def test_two_roots(tmp_path):
    put(tmp_path / "horses" / "x.png")
    put(tmp_path / "zebras" / "y.png")
    pair = tmp_path / "horses", tmp_path / "zebras"
    assert find_domains(None, *pair, "train") == pair
    assert "without --dataroot_B" in message(find_domains, None, pair[0], None, "train")
    assert "without --dataroot_A" in message(find_domains, None, None, pair[1], "train")
    assert "not both" in message(find_domains, tmp_path, *pair, "train")
    assert "--dataroot_B" in message(find_domains, None, pair[0], tmp_path / "no", "train")


def test_missing_and_one_sided_say_what_was_found(tmp_path):
    assert "--dataroot" in message(find_domains, None)
    text = message(find_domains, tmp_path / "nowhere" / "deep")
    assert "does not exist" in text and printable(tmp_path) in text
    assert "is empty" in message(find_domains, tmp_path)
    put(tmp_path / "valA" / "x.png")
    text = message(find_domains, tmp_path)
    assert "neither trainA and trainB nor train/A and train/B" in text and "holds valA" in text
    put(tmp_path / "trainB" / "x.png")
    assert "has trainB but no folder trainA; it holds trainB, valA" in message(
        find_domains, tmp_path
    )
    file = put(tmp_path / "file.png")
    assert "is not a folder" in message(find_domains, file)


def test_empty_domain(tmp_path):
    put(tmp_path / "trainA" / "x.png")
    (tmp_path / "trainB").mkdir()
    text = message(find_domains, tmp_path)
    assert "trainB has no images (.jpg" in text and "is empty" in text
    (tmp_path / "trainB" / "notes.txt").touch()
    assert "holds notes.txt" in message(find_domains, tmp_path)
    assert "holds notes.txt" in message(scan_folder, tmp_path / "trainB")
    assert "does not exist" in message(scan_folder, tmp_path / "trainC")


def test_recursive_sorted_and_case_insensitive(tmp_path):
    suffixes = "jpg JPEG png WebP bmp PPM tif TIFF"
    for i, suffix in enumerate(suffixes.split()):
        put(tmp_path / f"{9 - i}.{suffix}")
    put(tmp_path / "3sub" / "deep" / "x.Jpg")
    result = scan_folder(tmp_path)
    assert names(result) == sorted(names(result)) and len(result.files) == 9
    assert "3sub/deep/x.Jpg" in names(result)
    assert result.sizes == [(10, 12)] * 9
    assert result.quarantined == [] and result.notes == {}


def test_what_is_passed_over_is_counted(tmp_path):
    put(tmp_path / "a.png")
    for name in ("._a.png", ".hidden.jpg", "Thumbs.db", "README"):
        (tmp_path / name).write_bytes(b"junk")
    put(tmp_path / ".cache" / "x.png")
    put(tmp_path.parent / "elsewhere" / "x.png")
    (tmp_path / "link").symlink_to(tmp_path.parent / "elsewhere")
    (tmp_path / "loop").symlink_to(tmp_path)
    (tmp_path / "b.png").symlink_to(tmp_path / "a.png")
    result = scan_folder(tmp_path)
    assert names(result) == ["a.png", "b.png"]
    assert result.quarantined == []
    assert result.notes == {scan.NOTE_HIDDEN: 3, scan.NOTE_LINKS: 2, scan.NOTE_OTHER: 2}


def test_bad_files_are_quarantined_with_a_reason(tmp_path):
    put(tmp_path / "good.png")
    (tmp_path / "empty.jpg").touch()
    (tmp_path / "text.jpg").write_text("no image")
    (tmp_path / "gone.png").symlink_to(tmp_path / "nowhere")
    put(tmp_path / "tiny.png", (7, 100))
    result = scan_folder(tmp_path)
    assert names(result) == ["good.png"]
    reasons = {path.name: reason for path, reason in result.quarantined}
    assert reasons == {
        "empty.jpg": "empty file",
        "gone.png": "cannot be read: No such file or directory",
        "text.jpg": "not a JPEG, PNG, WEBP, BMP, PPM or TIFF image",
        "tiny.png": "100x7 has a side below 8 pixels",
    }
    assert names(scan_folder(tmp_path, min_size=7)) == ["good.png", "tiny.png"]


def test_unreadable_subfolder(tmp_path, monkeypatch):
    put(tmp_path / "a.png")
    put(tmp_path / "locked" / "b.png")
    scandir = os.scandir

    def refuse(path):
        if str(path).endswith("locked"):
            raise PermissionError(13, "Permission denied", str(path))
        return scandir(path)

    monkeypatch.setattr(os, "scandir", refuse)
    result = scan_folder(tmp_path)
    assert names(result) == ["a.png"]
    assert result.quarantined == [(tmp_path / "locked", "cannot be listed: Permission denied")]


def test_upright_sizes_and_notes(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6
    put(tmp_path / "a.jpg", (10, 20), exif=exif)
    put(tmp_path / "b.jpg", (10, 20))
    result = scan_folder(tmp_path)
    assert result.sizes == [(20, 10), (10, 20)]
    assert result.notes == {"turned upright by EXIF": 1}


@pytest.mark.parametrize("limit", [1, 3, 6, 100, float("inf"), None])
def test_max_dataset_size_counts_usable_files(tmp_path, limit):
    for i in range(8):
        if i in (1, 2):
            (tmp_path / f"{i}.png").touch()
        else:
            put(tmp_path / f"{i}.png")
    result = scan_folder(tmp_path, max_dataset_size=limit)
    good = ["0.png", "3.png", "4.png", "5.png", "6.png", "7.png"]
    assert names(result) == (good if limit is None else good[: int(min(limit, 6))])
    assert len(result.quarantined) == (0 if limit == 1 else 2)


ODD = [b"with space.png", "schön-漢字-🐴.png".encode(), b"line\nbreak.png", b"\xff\xfe.png",
       b"-rf.png", b"%s{0}.png", b"tab\t'\".png", "\u202egnp.exe.png".encode(),
       b"x" * 251 + b".png"]  # fmt: skip


@pytest.mark.parametrize("bad", [False, True])
def test_odd_names(tmp_path, bad):
    put(tmp_path / "plain.png")
    content = b"" if bad else (tmp_path / "plain.png").read_bytes()
    for name in ODD:
        with open(os.path.join(os.fsencode(tmp_path), name), "wb") as file:
            file.write(content)
    result = scan_folder(tmp_path)
    found = {os.fsencode(p.name) for p in result.files} | {
        os.fsencode(p.name) for p, _ in result.quarantined
    }
    assert found == {*ODD, b"plain.png"}
    assert len(result.files) == (1 if bad else 1 + len(ODD))
    for path in found:
        text = printable(Path(os.fsdecode(path)))
        assert text.isprintable() and text.encode("utf-8")


def test_scanning_changes_nothing(tmp_path):
    put(tmp_path / "a.png")
    (tmp_path / "b.jpg").write_bytes(b"\xff\xd8\xff\xe0 cut")

    def state():
        return [(p.name, p.stat().st_mtime_ns, p.read_bytes()) for p in sorted(tmp_path.iterdir())]

    before = state()
    scan_folder(tmp_path)
    assert state() == before


def test_nothing_is_printed(tmp_path, capfd):
    put(tmp_path / "a.png")
    (tmp_path / "b.jpg").write_bytes(b"\xff\xd8\xff\xe0 cut")
    (tmp_path / "c.tif").write_bytes(b"II*\0\x08\0\0\0\xff\xff" + b"\xee" * 40)
    scan_folder(tmp_path)
    assert capfd.readouterr() == ("", "")
