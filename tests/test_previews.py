"""Preview pictures: colours, places, labels, width."""

import os

import numpy as np
import pytest
import torch
from PIL import Image

from fastcyclegan.errors import UserError
from fastcyclegan.runs.previews import MAX_WIDTH, grid, save_preview


def flat(colour, count=1, height=32, width=32):
    values = torch.tensor(colour, dtype=torch.float32) / 127.5 - 1
    return values.view(1, -1, 1, 1).expand(count, -1, height, width)


def picture(path, rows):
    save_preview(path, rows)
    assert os.listdir(path.parent) == [path.name]
    with Image.open(path) as image:
        assert image.mode == "RGB"
        return np.asarray(image)


@pytest.fixture
def path(tmp_path):
    return tmp_path / "step-00000500.png"


def test_rows_and_columns_hold_the_images_in_their_exact_colours(path):
    colours = [[(10, 20, 30), (200, 0, 7)], [(0, 255, 0), (255, 255, 255)]]
    rows = {
        name: torch.cat([flat(colour) for colour in row])
        for name, row in zip(("real_A", "fake_B"), colours, strict=True)
    }
    image = picture(path, rows)
    height, width, _ = image.shape
    assert height == 2 * (32 + 2)
    left = width - 2 * (32 + 2)
    for i in range(2):
        for j in range(2):
            cell = image[34 * i : 34 * i + 32, left + 34 * j : left + 34 * j + 32]
            assert (cell == colours[i][j]).all()
    separator = image[32:34]
    assert (separator == separator[0, 0]).all()


def test_an_image_is_neither_mirrored_nor_turned(path):
    x = torch.rand(1, 3, 24, 40) * 2 - 1
    image = picture(path, {"a": x})
    expected = ((x[0].permute(1, 2, 0) + 1) * 127.5).round().numpy().astype(np.uint8)
    assert (image[:24, -42:-2] == expected).all()


def test_each_row_has_its_own_label_at_its_height(path):
    image = picture(path, {"real_A": flat((0, 0, 0)), "x": flat((0, 0, 0)), "": flat((0, 0, 0))})
    labels = image[:, : image.shape[1] - 34].max(-1)
    ink = [(labels[34 * i : 34 * i + 32] > 128).sum() for i in range(3)]
    assert ink[0] > 2 * ink[1] > 0 and ink[2] == 0
    lines = np.flatnonzero((labels[:34] > 128).any(1))
    assert lines.min() >= 5 and lines.max() <= 27


def test_grey_and_differing_sizes_and_counts_are_placed(path):
    rows = {"a": flat((50,), 3, 16, 16), "b": flat((255, 0, 0), 1, 40, 24), "c": flat((1, 2, 3), 0)}
    image = picture(path, rows)
    left = image.shape[1] - 3 * (32 + 2)
    assert (image[:16, left + 68 : left + 84] == 50).all()
    second = np.flatnonzero((image == (255, 0, 0)).all(-1).any(1))
    assert len(second) == 40


def test_tiny_images_leave_room_for_their_labels(path):
    image = picture(path, {name: flat((9, 9, 9), 2, 4, 4) for name in ("real_A", "fake_B")})
    ink = (image[:, : image.shape[1] - 12].max(-1) > 128).any(1)
    starts = np.flatnonzero(ink[1:] & ~ink[:-1])
    assert len(starts) == 2


@pytest.mark.parametrize(("count", "size"), [(8, 256), (100, 256), (2, 1500), (500, 8)])
def test_the_picture_is_at_most_2048_wide_and_filled(count, size, path):
    image = picture(path, {"real_A": flat((255, 0, 0), count, size, size)})
    assert MAX_WIDTH * 0.9 < image.shape[1] <= MAX_WIDTH
    red = (image == (255, 0, 0)).all(-1)
    assert red.any(0).sum() > MAX_WIDTH * 0.7
    assert red[:, -20:].any()


def test_no_image_and_no_folder_are_refused(tmp_path):
    with pytest.raises(ValueError, match="at least one"):
        save_preview(tmp_path / "p.png", {"a": flat((0, 0, 0), 0)})
    with pytest.raises(UserError, match="none"):
        save_preview(tmp_path / "none" / "p.png", {"a": flat((0, 0, 0))})


def test_rgba_is_shown_without_its_alpha(path):
    image = picture(path, {"a": flat((9, 80, 7, 0))})
    assert (image == (9, 80, 7)).all(-1).sum() == 32 * 32


def test_a_grid_is_filled_row_by_row():
    images = np.arange(5, dtype=np.uint8).reshape(5, 1, 1, 1) + np.full((5, 4, 6, 3), 100, np.uint8)
    picture = grid(images, columns=3)
    assert picture.shape == (2 * 6 - 2, 3 * 8 - 2, 3)
    assert (picture[:4, 8:14] == 101).all() and (picture[6:, :6] == 103).all()
    assert (picture[6:, 16:] == 32).all() and (picture[4:6] == 32).all()
    assert (grid(images[:, :, :, [0, 1, 2, 0]], 3)[4:6] == 0).all()
