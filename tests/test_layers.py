"""Questions to a layer."""

from __future__ import annotations

import numpy as np
import pytest

from qcompile.layers import accumulated, float_layers, input_channels
from tests.passes.quantizable import parse

PRODUCTS = {
    "convolution": ("Conv<group = 2>(x, w)", (8, 2, 3, 3), 18),
    "transposed convolution": ("ConvTranspose(x, w)", (4, 3, 2, 2), 16),
    "convolution without outputs": ("Conv(x, w)", (0, 4, 3, 3), 36),
    "linear": ("MatMul(x, w)", (9, 5), 9),
    "linear without outputs": ("MatMul(x, w)", (9, 0), 9),
}


@pytest.mark.parametrize(("call", "shape", "count"), PRODUCTS.values(), ids=PRODUCTS)
def test_products_that_are_added_up_for_one_output(call: str, shape: tuple[int, ...], count: int) -> None:
    model = parse(f"g (float[n, 4, 9, 9] x) => (float[n, ?, ?, ?] y) {{ y = {call} }}", w=np.zeros(shape, np.float32))
    (layer,) = float_layers(model)
    assert accumulated(layer) == count


@pytest.mark.parametrize(
    ("call", "shape", "channels"),
    [
        ("Conv<group = 2>(x, w)", (8, 2, 3, 3), 4),
        ("Conv<group = 4>(x, w)", (8, 1, 3, 3), 4),
        ("ConvTranspose<group = 2>(x, w)", (4, 3, 2, 2), 4),
        ("MatMul(x, w)", (9, 5), 9),
    ],
)
def test_input_channels(call: str, shape: tuple[int, ...], channels: int) -> None:
    model = parse(f"g (float[n, 4, 9, 9] x) => (float[n, ?, ?, ?] y) {{ y = {call} }}", w=np.zeros(shape, np.float32))
    (layer,) = float_layers(model)
    assert input_channels(layer) == channels
