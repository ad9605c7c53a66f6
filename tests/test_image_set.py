"""Image sets from arrays: the same pixels, sizes and batches as from files."""

import numpy as np
import pytest
import torch
from PIL import Image

from fastcyclegan.data.decode import decode_domain
from fastcyclegan.data.image_set import ImageSet
from fastcyclegan.data.sampler import ImageSampler
from fastcyclegan.data.scan import scan_folder


def arrays(*sizes, channels=3):
    random = np.random.default_rng(0)
    return [random.integers(0, 256, (*size, channels), dtype=np.uint8) for size in sizes]


def test_arrays_are_the_files_that_they_would_be_saved_to(tmp_path):
    images = arrays((20, 24), (17, 33), (40, 16))
    for number, image in enumerate(images):
        Image.fromarray(image).save(tmp_path / f"{number}.png")
    files = decode_domain(scan_folder(tmp_path), preprocess="crop", crop_size=16)
    ours = ImageSet.of(images)
    assert all(np.array_equal(ours.image(i), image) for i, image in enumerate(images))
    assert ours.names == ["0", "1", "2"] and len(ours) == 3 and ours.channels == 3
    batches = [
        ImageSampler(images, images, batch_size=4, crop_size=16).batch(3)
        for images in (files, ours)
    ]
    assert all(map(torch.equal, *batches))


def test_one_tensor_of_many_images_is_copied():
    many = torch.from_numpy(np.stack(arrays((8, 9), (8, 9), channels=1)))
    images = ImageSet.of(many)
    before = many.clone()
    many.zero_()
    assert torch.equal(images.image(1), before[1]) and images.channels == 1


@pytest.mark.filterwarnings("error")
def test_views_and_pillow_images_are_taken_as_they_look():
    [image] = arrays((8, 9))
    fixed = image.copy()
    fixed.flags.writeable = False
    views = [image[:, ::-1], image[..., ::-1], image[1:, ::2], fixed, Image.fromarray(image)]
    images = ImageSet.of(views)
    assert all(np.array_equal(images.image(i), view) for i, view in enumerate(views))


@pytest.mark.parametrize(
    ("images", "told"),
    [
        ([], "there is no image"),
        ([np.zeros((4, 4, 3))], "image 0 is torch.float64"),
        ([np.zeros((4, 4), np.uint8)], r"image 0 is torch.uint8 \(4, 4\)"),
        ([np.zeros((4, 4, 2), np.uint8)], "with the same C of 1, 3 or 4"),
        ([np.zeros((0, 4, 3), np.uint8)], "image 0"),
        ([*arrays((4, 4)), *arrays((4, 4), channels=1)], "image 1 is"),
    ],
)
def test_what_is_no_set_of_images_is_refused(images, told):
    with pytest.raises(ValueError, match=told):
        ImageSet.of(images)


def test_numbers_are_those_of_the_training():
    sampler = ImageSampler(ImageSet.of(arrays((8, 8))), batch_size=3, crop_size=8)
    assert sampler.numbers(2).tolist() == [6, 7, 8] and sampler.numbers(0).dtype == torch.int64
