"""The matrix form of a convolution computes what the convolution computes."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest

from qcompile.backends import get
from qcompile.layers import float_layers
from qcompile.multiplied import as_matrices, from_matrices, grouped_rows, multiplies_input, with_patches
from tests.passes.test_insert_qdq import parse


@pytest.mark.parametrize("group", [1, 2, 4])
def test_patches_times_weight_are_the_output(group: int) -> None:
    generator = np.random.default_rng(group)
    kernel = generator.normal(size=(8, 4 // group, 3, 3)).astype(np.float32)
    body = f"y = Conv <group = {group}, pads = [1, 1, 1, 1]> (x, k)"
    model = parse(f"g (float[n, 4, 9, 9] x) => (float[n, 8, 9, 9] y) {{ {body} }}", k=kernel)
    (layer,) = float_layers(model)
    observed, names = with_patches(model, [layer])
    (name,) = names.values()
    observed.graph.outputs.append(next(v for node in observed.graph for v in node.outputs if v.name == name))
    x = generator.normal(size=(2, 4, 9, 9)).astype(np.float32)
    outputs = get("onnxruntime").open_session(observed).run({"x": x})
    rows = np.moveaxis(outputs[name], 1, -1).reshape(-1, outputs[name].shape[1])
    product = grouped_rows(rows, layer) @ as_matrices(kernel, layer)
    expected = np.moveaxis(outputs["y"][:, :, ::4, ::4], 1, -1).reshape(len(rows), 8)
    np.testing.assert_allclose(product.transpose(1, 0, 2).reshape(len(rows), 8), expected, atol=1e-4)
    np.testing.assert_array_equal(from_matrices(as_matrices(kernel, layer), layer, kernel.shape), kernel)


def test_a_pointwise_convolution_multiplies_its_input() -> None:
    kernel = np.ones((8, 4, 1, 1), np.float32)
    model = parse("g (float[n, 4, 9, 9] x) => (float[n, 8, 9, 9] y) { y = Conv (x, k) }", k=kernel)
    (layer,) = float_layers(model)
    assert multiplies_input(layer)
    assert with_patches(model, [layer]) == (model, {})
    assert isinstance(model, ir.Model)
