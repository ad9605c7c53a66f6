"""What the contract does not ask of this op: other paddings, over 2^31 elements."""

import pytest
import torch

from fastcyclegan.kernels.reflection_pad import (
    PADDINGS,
    _reflection_pad_bwd,
    pad_ref,
    reflection_pad,
)


@pytest.mark.parametrize("padding", PADDINGS)
def test_paddings_of_the_reference(padding):
    x = torch.arange(4.0).reshape(1, 1, 2, 2)
    row = {"reflect": [3, 2, 3, 2], "replicate": [0, 0, 1, 1], "zero": [0, 0, 0, 0]}[padding]
    assert pad_ref(x, 1, padding)[0, 0, 0].tolist() == row


def test_an_unknown_padding_is_refused():
    with pytest.raises(ValueError, match="padding='circular'"):
        pad_ref(torch.zeros(1, 1, 2, 2), 1, "circular")


@pytest.mark.cuda
def test_more_than_2_to_the_31_elements():
    x = torch.randn((9, 1000, 1000, 256), device="cuda", dtype=torch.bfloat16).permute(0, 3, 1, 2)
    y = reflection_pad(x, 1)
    assert x.numel() > 2**31
    assert torch.equal(y[-1:], reflection_pad(x[-1:], 1))
    dx = _reflection_pad_bwd(y, 1)
    assert torch.equal(dx[-1:], _reflection_pad_bwd(y[-1:], 1))
