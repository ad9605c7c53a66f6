"""The checks of the ops' tests catch what they are there for."""

import pytest
import torch

import numerics
from fastcyclegan.kernels.instance_norm import instance_norm_ref
from fastcyclegan.kernels.reflection_pad import pad_ref
from numerics import DTYPES, assert_close, guarded, image, in_layout, limit

SHAPE = (2, 5, 8, 9)


@pytest.fixture(params=DTYPES, ids=str)
def results(request):
    """(result in the dtype, truth in fp64) of a padded norm."""
    x = image(SHAPE, request.param, "cpu")
    return tuple(instance_norm_ref(t, "relu", pad=1) for t in (x, x.double()))


def test_a_right_result_passes(results):
    peer, truth = results
    assert_close(peer.clone(), truth, peer, "y")


def test_one_disturbed_element_is_caught(results):
    peer, truth = results
    wrong = peer.clone()
    place = (1, 2, 3, 4)
    wrong[place] = truth[place] + 3 * limit(truth, peer)
    with pytest.raises(AssertionError):
        assert_close(wrong, truth, peer, "y")


def test_a_dropped_halo_row_is_caught(results):
    peer, truth = results
    wrong = peer.clone()
    wrong[:, :, 0] = 0
    with pytest.raises(AssertionError):
        assert_close(wrong, truth, peer, "y")


def test_swapped_channels_are_caught(results):
    peer, truth = results
    with pytest.raises(AssertionError):
        assert_close(peer[:, [1, 0, 2, 3, 4]], truth, peer, "y")


def test_nan_and_a_wrong_dtype_are_caught(results):
    peer, truth = results
    wrong = peer.clone()
    wrong[0, 0, 0, 0] = float("nan")
    with pytest.raises(AssertionError):
        assert_close(wrong, truth, peer, "y")
    other = torch.float32 if peer.dtype == torch.float64 else torch.float64
    with pytest.raises(AssertionError):
        assert_close(peer.to(other), truth, peer, "y")


def test_guarded_memory_shows_a_read_outside():
    x = guarded(image(SHAPE, torch.float32, "cpu"))
    assert x.is_contiguous(memory_format=torch.channels_last) and x.isfinite().all()
    for offset in (-1, x.numel()):
        place = x.storage_offset() + offset
        assert x.as_strided((1,), (1,), place).isnan().all()


@pytest.mark.parametrize("layout", numerics.LAYOUTS)
def test_layouts_keep_the_values(layout):
    x = image(SHAPE, torch.float32, "cpu")
    y = in_layout(x, layout)
    assert torch.equal(y, x[:1, :1, :1, :1].expand(SHAPE) if layout == "expanded" else x)
    strides = {"nchw": (360, 72, 9, 1), "channels_last": (360, 1, 45, 5), "expanded": (0,) * 4}
    assert layout == "sliced" or y.stride() == strides[layout]
    assert layout != "sliced" or not y.is_contiguous(memory_format=torch.channels_last)


def test_numpy_fold_is_the_transpose_of_numpy_pad():
    x, dy = image(SHAPE, torch.float64, "cpu"), image((2, 5, 14, 15), torch.float64, "cpu", 1)
    padded = torch.from_numpy(numerics.numpy_pad(x.numpy(), 3))
    folded = torch.from_numpy(numerics.numpy_fold(dy.numpy(), 3))
    torch.testing.assert_close((padded * dy).sum(), (x * folded).sum())
    assert torch.equal(padded, pad_ref(x, 3))
