"""Which images, windows and flips a batch holds, and that seed and step alone decide."""

import numpy as np
import pytest
import torch
from PIL import Image

from fastcyclegan.data import sampler
from fastcyclegan.data.decode import decode_domain
from fastcyclegan.data.image_set import ImageSet
from fastcyclegan.data.images import to_uint8
from fastcyclegan.data.sampler import ImageSampler, epoch_order
from fastcyclegan.data.scan import scan_folder
from fastcyclegan.errors import UserError
from fastcyclegan.kernels.philox import ORDER, SAMPLE_A, SAMPLE_B, philox_ref


def make_set(sizes, seed=0, channels=3):
    rng = np.random.default_rng(seed)
    rows = [h * w for h, w in sizes]
    pixels = torch.from_numpy(rng.integers(0, 256, (sum(rows), channels), dtype=np.uint8))
    size = torch.tensor(sizes)
    offset = torch.tensor(np.cumsum([0, *rows[:-1]]))
    return ImageSet(pixels, offset, size[:, 0], size[:, 1], [str(i) for i in range(len(sizes))])


def make(n_A=5, n_B=3, side=12, **options):
    options = {"crop_size": 8, **options}
    sets = make_set([(side, side)] * n_A), make_set([(side, side)] * n_B, 1)
    return ImageSampler(*sets, **options)


def words(seed, stream, i):
    return [int(w) for w in philox_ref(seed, stream, torch.tensor(i))]


def drawn(pairs, count):
    a, b = zip(*(pairs.indices(step) for step in range(count)), strict=True)
    return torch.cat(a).tolist(), torch.cat(b).tolist()


@pytest.mark.parametrize("batch_size", [1, 3, 4])
def test_windows_and_flips_follow_the_published_formula(batch_size):
    set_A = make_set([(12, 15), (20, 9), (10, 10)])
    set_B = make_set([(11, 9), (9, 30)], 1)
    pairs = ImageSampler(set_A, set_B, batch_size=batch_size, crop_size=8, seed=5)
    flipped = 0
    for step in range(6):
        batch = pairs.batch(step)
        for k in range(batch_size):
            i = step * batch_size + k
            epoch, place = divmod(i, 3)
            order = sorted(range(3), key=lambda n, e=epoch: words(5, ORDER, e * 2**32 + n)[0])
            index = (order[place], words(5, SAMPLE_B, i)[0] * 2 >> 32)
            for d, images in enumerate((set_A, set_B)):
                whole = images.image(index[d]).numpy()
                _, r1, r2, r3 = words(5, (SAMPLE_A, SAMPLE_B)[d], i)
                top, left = r1 * (whole.shape[0] - 7) >> 32, r2 * (whole.shape[1] - 7) >> 32
                want = whole[top : top + 8, left : left + 8]
                want = want[:, ::-1] if r3 < 2**31 else want
                assert np.array_equal(to_uint8(batch[d])[k].numpy(), want)
                flipped += r3 < 2**31
    assert 0 < flipped < 12 * batch_size


def test_equal_to_pillow_from_file_to_batch(tmp_path):
    rng = np.random.default_rng(3)
    for i in range(3):
        image = Image.fromarray(rng.integers(0, 256, (50 + i, 71, 3), dtype=np.uint8))
        image.save(tmp_path / f"{i}.jpg")
    images = decode_domain(scan_folder(tmp_path), load_size=44, crop_size=40)
    pairs = ImageSampler(images, images, crop_size=40, seed=2)
    for step in range(4):
        index = int(pairs.indices(step)[0])
        _, r1, r2, r3 = words(2, SAMPLE_A, step)
        image = Image.open(tmp_path / f"{index}.jpg").convert("RGB").resize((44, 44), Image.BICUBIC)
        x, y = r2 * 5 >> 32, r1 * 5 >> 32
        image = image.crop((x, y, x + 40, y + 40))
        if r3 < 2**31:
            image = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
        want = np.asarray(image).astype(np.float64) / 127.5 - 1
        got = pairs.batch(step)[0][0].permute(1, 2, 0).double().numpy()
        assert np.abs(got - want).max() <= 2.0**-23


@pytest.mark.parametrize("batch_size", [1, 2, 3, 5, 7, 23])
def test_an_epoch_holds_each_image_of_A_once_whatever_the_batch(batch_size):
    a, b = drawn(make(n_A=10, n_B=4, batch_size=batch_size), 60)
    one_a, one_b = drawn(make(n_A=10, n_B=4), 60)
    assert (a[:60], b[:60]) == (one_a, one_b)
    epochs = [one_a[e : e + 10] for e in range(0, 60, 10)]
    assert all(sorted(epoch) == list(range(10)) for epoch in epochs)
    assert len({tuple(epoch) for epoch in epochs}) == 6
    assert set(one_b) == {0, 1, 2, 3}


def test_smaller_A_goes_round():
    pairs = make(n_A=3, n_B=7)
    assert pairs.epoch_length == 7
    a, b = drawn(pairs, 14)
    assert sorted(a[:7]) == [0, 0, 0, 1, 1, 2, 2]
    assert a[:7] == [int(n) % 3 for n in epoch_order(0, 0, 7)]
    assert max(b) < 7 and b[:7] != sorted(b[:7])


def test_serial_takes_both_in_order():
    a, b = drawn(make(n_A=3, n_B=5, serial=True, batch_size=2), 5)
    assert a == [0, 1, 2, 0, 1] * 2
    assert b == [0, 1, 2, 3, 4] * 2


def test_seed_and_step_alone_decide():
    first, second = make(seed=1, batch_size=2), make(seed=1, batch_size=2)
    forwards = [first.batch(step) for step in range(12)]
    for step in (11, 0, 7, 3, 7):
        for x, y in zip(second.batch(step), forwards[step], strict=True):
            assert torch.equal(x, y)
    third = make(seed=2, batch_size=2)
    assert not all(torch.equal(third.batch(s)[0], forwards[s][0]) for s in range(12))
    torch.manual_seed(0)
    state = torch.get_rng_state()
    first.batch(3)
    assert torch.equal(torch.get_rng_state(), state)


def test_order_is_a_permutation_of_its_own():
    orders = [epoch_order(seed, epoch, 1000) for seed in (0, 1) for epoch in (0, 1, 400)]
    for order in orders:
        assert torch.equal(order.sort().values, torch.arange(1000))
    assert len({tuple(order.tolist()) for order in orders}) == 6


def test_few_orders_are_kept_and_each_is_made_once(monkeypatch):
    made = []

    def count(seed, epoch, length):
        made.append(epoch)
        return epoch_order(seed, epoch, length)

    monkeypatch.setattr(sampler, "epoch_order", count)
    pairs = make(n_A=4, batch_size=3)
    for step in range(8):
        pairs.batch(step)
        assert len(pairs._orders) <= 3
    assert made == sorted(set(made)) == list(range(7))


def test_windows_are_uniform():
    pairs = make(n_A=1, n_B=1, side=10, batch_size=900)
    ramp = torch.arange(100, dtype=torch.uint8).reshape(100, 1)
    pairs._pixels = [ramp, ramp]
    pairs.flip = False
    for real in pairs.batch(0):
        corner = to_uint8(real)[:, 0, 0, 0].long()
        counts = torch.bincount((corner // 10) * 3 + corner % 10, minlength=9)
        assert len(counts) == 9 and counts.min() > 70 and counts.max() < 130


def test_flip_is_half_and_can_be_switched_off():
    ramp = torch.arange(8, dtype=torch.uint8).repeat(8)[:, None]
    for flip, low, high in ((True, 450, 550), (False, 0, 0)):
        pairs = make(n_A=1, n_B=1, side=8, batch_size=1000, flip=flip)
        pairs._pixels = [ramp, ramp]
        real_A, real_B = (to_uint8(x)[:, 0, 0, 0] == 7 for x in pairs.batch(0))
        assert low <= int(real_A.sum()) <= high and low <= int(real_B.sum()) <= high
        assert not flip or bool((real_A != real_B).any())


def test_whole_images():
    same = make(crop_size=None, batch_size=2)
    assert same.sizes == ((12, 12), (12, 12))
    assert same.batch(0)[0].shape == (2, 3, 12, 12)
    mixed = ImageSampler(
        make_set([(8, 12), (16, 4)]), make_set([(20, 8)], 1), crop_size=None, flip=False
    )
    assert mixed.sizes == (None, (20, 8))
    for step in range(4):
        real_A, real_B = mixed.batch(step)
        index = int(mixed.indices(step)[0])
        want = make_set([(8, 12), (16, 4)]).image(index)
        assert torch.equal(to_uint8(real_A)[0], want)
        assert real_B.shape == (1, 3, 20, 8)


def test_domains_may_differ_in_size_when_each_is_uniform():
    pairs = ImageSampler(
        make_set([(8, 12)] * 3), make_set([(16, 4)] * 2, 1), crop_size=None, batch_size=2
    )
    assert pairs.sizes == ((8, 12), (16, 4))
    assert [x.shape[2:] for x in pairs.batch(0)] == [(8, 12), (16, 4)]


@pytest.mark.parametrize(("options", "text"), [
    ({"crop_size": 13}, "domain A has an image with a side of 12 pixels.*--crop_size 13"),
    ({"data_on": "moon"}, "--data_on moon"),
])  # fmt: skip
def test_refusals(options, text):
    with pytest.raises(UserError, match=text):
        make(**options)


def test_mixed_sizes_in_one_batch_are_refused():
    with pytest.raises(UserError, match=r"domain B have different sizes: --batch_size 2"):
        ImageSampler(make_set([(8, 8)]), make_set([(8, 8), (8, 12)]), batch_size=2, crop_size=None)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_layout_dtype_and_channels(dtype):
    grey = make_set([(12, 12)] * 2, channels=1)
    pairs = ImageSampler(grey, make_set([(12, 12)]), crop_size=8, batch_size=2, dtype=dtype)
    real_A, real_B = pairs.batch(0)
    assert real_A.shape == (2, 1, 8, 8) and real_B.shape == (2, 3, 8, 8)
    for real in (real_A, real_B):
        assert real.dtype == dtype and real.device.type == "cpu"
        assert real.is_contiguous(memory_format=torch.channels_last)
    assert pairs.sizes == ((8, 8), (8, 8))


@pytest.mark.cuda
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("data_on", ["auto", "device", "host"])
def test_same_numbers_on_cuda_and_no_sync(data_on, dtype):
    on_cpu = make(batch_size=3, dtype=dtype)
    pairs = make(batch_size=3, device="cuda", data_on=data_on, dtype=dtype)
    assert pairs.data_device.type == ("cpu" if data_on == "host" else "cuda")
    torch.cuda.set_sync_debug_mode("error")
    try:
        batches = [pairs.batch(step) for step in range(6)]
    finally:
        torch.cuda.set_sync_debug_mode("default")
    for step, batch in enumerate(batches):
        for x, y in zip(batch, on_cpu.batch(step), strict=True):
            assert x.is_cuda and x.is_contiguous(memory_format=torch.channels_last)
            assert torch.equal(x.cpu(), y)


@pytest.mark.cuda
def test_auto_keeps_what_does_not_fit_on_the_host(monkeypatch):
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (100, 1000))
    assert make(device="cuda").data_device.type == "cpu"
