"""The image policy, one file per rule; each is made here."""

import os
import struct
import warnings
import zlib

import numpy as np
import pytest
import torch
from PIL import Image

from fastcyclegan.data import images
from fastcyclegan.data.images import (
    BadImage,
    from_uint8,
    read_header,
    read_image,
    to_uint8,
    write_image,
)
from fastcyclegan.errors import UserError
from fastcyclegan.pixel_range import PIXEL_RANGES

RNG = np.random.default_rng(0)
PHOTO = RNG.integers(0, 256, (12, 17, 3), dtype=np.uint8)

# What must be done to an image stored with this EXIF orientation to see it upright.
UPRIGHT = {
    1: lambda a: a,
    2: lambda a: a[:, ::-1],
    3: lambda a: a[::-1, ::-1],
    4: lambda a: a[::-1],
    5: lambda a: a.swapaxes(0, 1),
    6: lambda a: np.rot90(a, -1),
    7: lambda a: a[::-1, ::-1].swapaxes(0, 1),
    8: lambda a: np.rot90(a, 1),
}


def save(path, array, mode=None, **options):
    image = Image.fromarray(array)
    (image.convert(mode) if mode else image).save(path, **options)
    return path


def exif(orientation):
    data = Image.Exif()
    data[0x0112] = orientation
    return data


def png_chunk(kind, data):
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def write_hollow_png(path, width, height):
    head = png_chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + head + png_chunk(b"IDAT", zlib.compress(b"")))
    return path


def reason(path, read=read_image):
    with pytest.raises(BadImage) as caught:
        read(path, 3) if read is read_image else read(path)
    text = str(caught.value)
    assert text and text.isprintable()
    return text


@pytest.mark.parametrize("suffix", ["png", "bmp", "ppm", "tif", "tiff", "webp"])
def test_lossless_formats_keep_every_pixel(tmp_path, suffix):
    path = save(tmp_path / f"a.{suffix}", PHOTO, lossless=True)
    assert np.array_equal(read_image(path, 3), PHOTO)
    assert read_header(path) == images.Header(12, 17, ())


def test_jpeg_is_what_pillow_decodes(tmp_path):
    path = save(tmp_path / "a.jpg", PHOTO, quality=90)
    assert np.array_equal(read_image(path, 3), np.asarray(Image.open(path).convert("RGB")))


@pytest.mark.parametrize("suffix", ["png", "webp", "tif"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_is_applied(tmp_path, orientation, suffix):
    path = save(tmp_path / f"a.{suffix}", PHOTO, lossless=True, exif=exif(orientation))
    want = UPRIGHT[orientation](PHOTO)
    assert np.array_equal(read_image(path, 3), want)
    header = read_header(path)
    assert (header.height, header.width) == want.shape[:2]
    assert header.notes == (() if orientation == 1 else (images.NOTE_ROTATED,))


@pytest.mark.parametrize("orientation", [1, 3, 6])
def test_exif_orientation_of_jpeg(tmp_path, orientation):
    plain = read_image(save(tmp_path / "plain.jpg", PHOTO), 3)
    path = save(tmp_path / "a.jpg", PHOTO, exif=exif(orientation))
    assert np.array_equal(read_image(path, 3), UPRIGHT[orientation](plain))
    assert (read_header(path).height == 17) == (orientation == 6)


def test_exif_behind_the_pixels_of_a_png(tmp_path):
    path = save(tmp_path / "a.png", PHOTO)
    data = path.read_bytes()
    block = png_chunk(b"eXIf", exif(6).tobytes()[6:])
    path.write_bytes(data[:-12] + block + data[-12:])
    assert np.array_equal(read_image(path, 3), UPRIGHT[6](PHOTO))


@pytest.mark.parametrize("suffix", ["jpg", "png", "webp"])
def test_broken_exif_does_not_cost_the_image(tmp_path, suffix):
    path = save(tmp_path / f"a.{suffix}", PHOTO, exif=b"Exif\0\0not a tiff header at all")
    assert read_image(path, 3).shape == PHOTO.shape
    assert read_header(path).height == 12


@pytest.mark.parametrize("suffix", ["png", "tif", "ppm"])
def test_16_bit_grey_is_divided_by_257(tmp_path, suffix):
    grey = np.linspace(0, 65535, 12 * 17).astype(np.uint16).reshape(12, 17)
    path = save(tmp_path / f"a.{suffix}", grey)
    got = read_image(path, 1)[..., 0]
    assert np.array_equal(got, (grey // 257).astype(np.uint8))
    assert np.array_equal(read_image(path, 3), np.repeat(got[..., None], 3, axis=2))
    assert read_header(path).notes == (images.NOTE_16BIT,)


@pytest.mark.parametrize("dtype", [np.int32, np.float32])
def test_32_bit_pixels_are_refused(tmp_path, dtype):
    path = save(tmp_path / "a.tif", np.ones((12, 17), dtype))
    assert "32-bit" in reason(path)
    assert "32-bit" in reason(path, read_header)


def transparent():
    rgba = np.zeros((10, 10, 4), np.uint8)
    rgba[..., 0] = 200
    rgba[:, 5:, 3] = 255
    rgba[0, 0, 3] = 51
    return rgba


@pytest.mark.parametrize(("alpha", "hidden", "mixed"), [
    ("white", [255, 255, 255], [244, 204, 204]),
    ("black", [0, 0, 0], [40, 0, 0]),
    ("drop", [200, 0, 0], [200, 0, 0]),
])  # fmt: skip
def test_alpha(tmp_path, alpha, hidden, mixed):
    path = save(tmp_path / "a.png", transparent())
    got = read_image(path, 3, alpha)
    assert got[5, 2].tolist() == hidden
    assert got[0, 0].tolist() == mixed
    assert got[5, 7].tolist() == [200, 0, 0]
    assert read_header(path).notes == (images.NOTE_ALPHA,)
    assert np.array_equal(read_image(path, 4), transparent())


def test_grey_with_alpha_and_palette_with_transparency(tmp_path):
    la = np.stack([np.full((9, 9), 100, np.uint8), np.zeros((9, 9), np.uint8)], axis=2)
    assert (read_image(save(tmp_path / "la.png", la), 1) == 255).all()
    palette = Image.fromarray(np.zeros((9, 9), np.uint8), "L").convert("P")
    palette.putpalette([10, 20, 30] * 256)
    palette.save(tmp_path / "p.png", transparency=0)
    assert (read_image(tmp_path / "p.png", 3) == 255).all()
    assert (read_image(tmp_path / "p.png", 3, "drop") == [10, 20, 30]).all()


def test_cmyk_and_lab_are_converted_and_noted(tmp_path):
    flat = np.full((12, 12, 3), [200, 30, 60], np.uint8)
    path = save(tmp_path / "a.jpg", flat, "CMYK", quality=100)
    assert np.abs(read_image(path, 3).astype(int) - flat).max() <= 3
    assert read_header(path).notes == ("converted from CMYK",)
    lab = np.dstack([np.full((12, 12), v, np.uint8) for v in (255, 0, 0)])
    Image.frombytes("LAB", (12, 12), lab.tobytes()).save(tmp_path / "b.tif")
    assert (read_image(tmp_path / "b.tif", 3) >= 253).all()
    assert read_header(tmp_path / "b.tif").notes == ("converted from LAB",)


def test_palette_bilevel_and_grey(tmp_path):
    grey = RNG.integers(0, 256, (12, 17), dtype=np.uint8)
    assert np.array_equal(read_image(save(tmp_path / "l.png", grey), 1)[..., 0], grey)
    assert np.array_equal(read_image(save(tmp_path / "l.png", grey), 3)[..., 2], grey)
    bits = save(tmp_path / "1.png", (grey > 127).astype(np.uint8) * 255, "1")
    assert np.array_equal(read_image(bits, 1)[..., 0], (grey > 127) * 255)
    few = np.array([[1, 2, 3], [200, 100, 50]], np.uint8)[RNG.integers(0, 2, (12, 17))]
    Image.fromarray(few).quantize(2).save(tmp_path / "p.png")
    assert Image.open(tmp_path / "p.png").mode == "P"
    assert np.array_equal(read_image(tmp_path / "p.png", 3), few)
    rgb = read_image(save(tmp_path / "c.png", PHOTO), 1)[..., 0]
    assert np.abs(rgb - PHOTO @ [0.299, 0.587, 0.114]).max() <= 0.51


@pytest.mark.parametrize("suffix", ["png", "webp", "tif"])
def test_first_frame_of_several(tmp_path, suffix):
    frames = [Image.fromarray(np.full((9, 9, 3), v, np.uint8)) for v in (10, 200, 90)]
    path = tmp_path / f"a.{suffix}"
    frames[0].save(path, save_all=True, append_images=frames[1:], lossless=True)
    assert (read_image(path, 3) == 10).all()
    assert read_header(path).notes == (images.NOTE_FRAMES,)


@pytest.mark.parametrize("suffix", ["jpg", "png", "webp", "bmp", "ppm", "tif"])
def test_truncated(tmp_path, suffix):
    path = save(tmp_path / f"a.{suffix}", RNG.integers(0, 256, (64, 64, 3), dtype=np.uint8))
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    assert reason(path).startswith(("cannot be", "not a"))


def test_what_is_no_image(tmp_path):
    (tmp_path / "empty.jpg").touch()
    assert reason(tmp_path / "empty.jpg") == "empty file"
    (tmp_path / "text.png").write_text("<html>404</html>")
    assert reason(tmp_path / "text.png") == "not a JPEG, PNG, WEBP, BMP, PPM or TIFF image"
    (tmp_path / "dir.png").mkdir()
    assert reason(tmp_path / "dir.png") == "not a regular file"
    (tmp_path / "link.png").symlink_to(tmp_path / "nowhere.png")
    assert reason(tmp_path / "link.png") == "cannot be read: No such file or directory"
    save(tmp_path / "gif.png", PHOTO, format="GIF")
    assert "not a JPEG" in reason(tmp_path / "gif.png", read_header)


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no named pipes on this system")
def test_a_named_pipe_does_not_block(tmp_path):
    os.mkfifo(tmp_path / "a.png")
    assert reason(tmp_path / "a.png", read_header) == "not a regular file"


def test_flipped_byte_in_a_png(tmp_path):
    path = save(tmp_path / "a.png", PHOTO)
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 0xFF
    path.write_bytes(data)
    assert reason(path).startswith("cannot be decoded")


@pytest.mark.parametrize("side", [8193, 10_000, 13_000, 30_000, 2**31 - 1])
def test_bombs_are_refused_by_their_header(tmp_path, side):
    path = write_hollow_png(tmp_path / "a.png", side, side)
    with images.pillow_warnings():
        assert "megapixels" in reason(path, read_header)
        assert "megapixels" in reason(path)


def test_pillows_own_limit_counts_if_lower(tmp_path, monkeypatch):
    path = save(tmp_path / "a.png", PHOTO)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 150)
    with images.pillow_warnings():
        assert "megapixels" in reason(path)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        assert "megapixels" in reason(path)


def test_file_size_cap(tmp_path, monkeypatch):
    path = save(tmp_path / "a.png", PHOTO)
    monkeypatch.setattr(images, "MAX_FILE_BYTES", path.stat().st_size - 1)
    assert "MiB" in reason(path)
    monkeypatch.setattr(images, "MAX_FILE_BYTES", path.stat().st_size)
    assert read_image(path, 3).shape == PHOTO.shape


def test_running_out_of_memory_is_not_the_files_fault(tmp_path, monkeypatch):
    def fail(*args, **kwargs):
        raise MemoryError

    path = save(tmp_path / "a.png", PHOTO)
    monkeypatch.setattr(Image, "open", fail)
    with pytest.raises(MemoryError):
        read_image(path, 3)


def test_pillow_is_quiet_inside_its_context(tmp_path):
    path = save(tmp_path / "a.jpg", PHOTO, exif=b"Exif\0\0II*\0\x08\0\0\0\xff\xff")
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        with images.pillow_warnings():
            read_image(path, 3)
        assert caught == []
        read_image(path, 3)
        assert len(caught) > 0


def test_reading_changes_no_file(tmp_path):
    path = save(tmp_path / "a.jpg", PHOTO, exif=exif(6))
    before = path.read_bytes(), path.stat().st_mtime_ns
    read_image(path, 3)
    assert (path.read_bytes(), path.stat().st_mtime_ns) == before
    assert os.listdir(tmp_path) == ["a.jpg"]


@pytest.mark.parametrize("channels", [1, 3, 4])
def test_write_then_read(tmp_path, channels):
    array = RNG.integers(0, 256, (12, 17, channels), dtype=np.uint8)
    write_image(tmp_path / "a.png", array)
    assert np.array_equal(read_image(tmp_path / "a.png", channels), array)
    umask = os.umask(0)
    os.umask(umask)
    assert (tmp_path / "a.png").stat().st_mode & 0o777 == 0o666 & ~umask


def test_write_keeps_the_old_file_on_failure(tmp_path, monkeypatch):
    write_image(tmp_path / "a.png", PHOTO)
    before = (tmp_path / "a.png").read_bytes()

    def full(self, file, **options):
        file.write(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Image.Image, "save", full)
    with pytest.raises(UserError, match=r"a\.png: No space left"):
        write_image(tmp_path / "a.png", PHOTO)
    assert (tmp_path / "a.png").read_bytes() == before
    assert os.listdir(tmp_path) == ["a.png"]


def test_write_refuses_unknown_suffixes_and_missing_folders(tmp_path):
    with pytest.raises(UserError, match=r"\.png or \.jpg"):
        write_image(tmp_path / "a.xyz", PHOTO)
    with pytest.raises(UserError, match="No such file"):
        write_image(tmp_path / "no" / "a.png", PHOTO)


@pytest.mark.parametrize("pixel_range", PIXEL_RANGES)
def test_pixel_range_round_trip(pixel_range):
    x = torch.arange(256, dtype=torch.uint8).repeat(3).reshape(2, 16, 8, 3)
    for dtype in (torch.float32, torch.float16):
        y = from_uint8(x, dtype, pixel_range)
        assert (y.min(), y.max()) == ((-1, 1) if pixel_range == "tanh" else (0, 255))
        assert y.shape == (2, 3, 16, 8) and y.dtype == dtype
        assert y.is_contiguous(memory_format=torch.channels_last)
        assert torch.equal(to_uint8(y, pixel_range), x)


def test_to_uint8_rounds_and_clamps():
    value = torch.tensor([-2.0, -1.0, 0.6 / 127.5 - 1, 0.4 / 127.5 - 1, 1.0, 9.0, float("nan")])
    got = to_uint8(value.view(1, 1, 1, 7))
    assert got.shape == (1, 1, 7, 1) and got.dtype == torch.uint8
    assert got.flatten().tolist() == [0, 0, 1, 0, 255, 255, 0]
    value = torch.tensor([-2.0, 0.4, 0.6, 254.6, 300.0, float("nan"), float("inf")])
    got = to_uint8(value.view(1, 1, 1, 7), "linear255")
    assert got.flatten().tolist() == [0, 0, 1, 255, 255, 0, 255]
