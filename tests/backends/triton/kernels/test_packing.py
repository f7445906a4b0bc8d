from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from qcompile.backends.triton.kernels.packing import BITS, pack, plane_of, rows_of_words, unpack, values_in_word
from qcompile.errors import InputError


def _integers(seed: int, bits: int, shape: tuple[int, int], signed: bool) -> torch.Tensor:
    low, high = (-(1 << (bits - 1)), 1 << (bits - 1)) if signed else (0, 1 << bits)
    drawn = np.random.default_rng(seed).integers(low, high, shape)
    return torch.from_numpy(drawn.astype(np.int8 if signed else np.uint8))


@given(st.integers(0, 600), st.integers(0, 5), st.sampled_from(BITS), st.booleans(), st.integers(0, 9))
def test_back_from_words_is_exact(inputs: int, outputs: int, bits: int, signed: bool, seed: int) -> None:
    integers = _integers(seed, bits, (inputs, outputs), signed)
    packed = pack(integers, bits)
    back = unpack(packed.words, bits, packed.plane, inputs)
    assert torch.equal(back.to(torch.int16), integers.to(torch.int16) + (signed << (bits - 1)))
    assert packed.words.is_contiguous()


@pytest.mark.parametrize("bits", BITS)
@pytest.mark.parametrize("inputs", [1, 17, 33, 288, 4544])
def test_values_are_where_the_layout_says(bits: int, inputs: int) -> None:
    integers = _integers(3, bits, (inputs, 3), signed=False)
    packed = pack(integers, bits)
    values, plane = values_in_word(bits), packed.plane
    words = packed.words.numpy().view(np.uint32)
    assert words.shape == (rows_of_words(inputs, bits, plane), 3)
    for k in {0, inputs // 2, inputs - 1}:
        block, place = divmod(k, values * plane)
        j, p = divmod(place, plane)
        found = words[block * plane + p] >> np.uint32(bits * j) & np.uint32((1 << bits) - 1)
        assert found.tolist() == integers[k].tolist()


def test_padding_is_zero_and_the_wide_plane_is_taken_where_it_costs_little() -> None:
    assert not pack(torch.full((1, 1), 3, dtype=torch.uint8), 2).words[1:].any()
    assert [plane_of(inputs, 4) for inputs in (1, 384, 576, 4096, 4544, 14336)] == [16, 16, 16, 32, 32, 32]


@pytest.mark.parametrize(
    ("integers", "bits", "says"),
    [
        (torch.zeros(2, 2, dtype=torch.uint8), 5, "5 bits"),
        (torch.zeros(2, dtype=torch.uint8), 4, "shape \\(2,\\)"),
        (torch.zeros(2, 2), 4, "float32"),
        (torch.full((2, 2), 4, dtype=torch.uint8), 2, "more than 2 bits"),
        (torch.full((2, 2), -5, dtype=torch.int8), 3, "more than 3 bits"),
    ],
)
def test_what_does_not_fit_is_refused(integers: torch.Tensor, bits: int, says: str) -> None:
    with pytest.raises(InputError, match=says):
        pack(integers, bits)


def test_words_of_another_weight_are_refused() -> None:
    with pytest.raises(InputError, match="33 inputs take"):
        unpack(pack(torch.zeros(300, 2, dtype=torch.uint8), 4).words, 4, 16, 33)
