"""The matrix form of a convolution computes what the convolution computes."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest

from qcompile.backends import get
from qcompile.layers import Layer, float_layers
from qcompile.multiplied import as_matrices, from_matrices, grouped_rows, multiplies_input, with_patches
from tests.passes.test_insert_qdq import parse


def run_with_patches(model: ir.Model, layer: Layer, x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """What the convolution multiplies, [batch, inputs of a patch, *spatial], and its output."""
    observed, names = with_patches(model, [layer])
    (name,) = names.values()
    observed.graph.outputs.append(next(v for node in observed.graph for v in node.outputs if v.name == name))
    outputs = get("onnxruntime").open_session(observed).run({"x": x.astype(np.float32)})
    return outputs[name], outputs["y"]


@pytest.mark.parametrize("group", [1, 2, 4])
def test_patches_times_weight_are_the_output(group: int) -> None:
    generator = np.random.default_rng(group)
    kernel = generator.normal(size=(8, 4 // group, 3, 3)).astype(np.float32)
    body = f"y = Conv <group = {group}, pads = [1, 1, 1, 1]> (x, k)"
    model = parse(f"g (float[n, 4, 9, 9] x) => (float[n, 8, 9, 9] y) {{ {body} }}", k=kernel)
    (layer,) = float_layers(model)
    patches, output = run_with_patches(model, layer, generator.normal(size=(2, 4, 9, 9)))
    rows = np.moveaxis(patches, 1, -1).reshape(-1, patches.shape[1])
    product = grouped_rows(rows, layer) @ as_matrices(kernel, layer)
    expected = np.moveaxis(output[:, :, ::4, ::4], 1, -1).reshape(len(rows), 8)
    np.testing.assert_allclose(product.transpose(1, 0, 2).reshape(len(rows), 8), expected, atol=1e-4)
    np.testing.assert_array_equal(from_matrices(as_matrices(kernel, layer), layer, kernel.shape), kernel)


def patches_and_output(attributes: str, sides: tuple[int, ...] = (9, 10)) -> tuple[np.ndarray, np.ndarray]:
    """Products of the patches with the weight, [batch, outputs, *spatial], and the output of a 3x3 convolution."""
    generator = np.random.default_rng(0)
    kernel = generator.normal(size=(5, 2, 3, 3)).astype(np.float32)
    shape = f"[n, 2, {sides[0]}, {sides[1]}]"
    model = parse(f"g (float{shape} x) => (float[?, ?, ?, ?] y) {{ y = Conv <{attributes}> (x, k) }}", k=kernel)
    (layer,) = float_layers(model)
    patches, output = run_with_patches(model, layer, generator.normal(size=(2, 2, *sides)))
    (matrix,) = as_matrices(kernel, layer)
    return np.einsum("nc...,co->no...", patches, matrix), output


@pytest.mark.parametrize("mode", ["SAME_UPPER", "SAME_LOWER", "VALID"])
@pytest.mark.parametrize("strides", ["", ", strides = [2, 1]", ", strides = [2, 2]", ", strides = [3, 4]"])
def test_patches_are_padded_as_the_convolution_is(mode: str, strides: str) -> None:
    product, output = patches_and_output(f'auto_pad = "{mode}"{strides}', (16, 25))
    np.testing.assert_allclose(product, output[:, :, ::4, ::4], atol=1e-4)


@pytest.mark.parametrize("strides", [(1, 1), (2, 1)])
def test_every_fourth_place_has_a_patch(strides: tuple[int, int]) -> None:
    product, output = patches_and_output(f"pads = [1, 0, 2, 1], strides = [{strides[0]}, {strides[1]}]", (34, 21))
    assert output.shape[2:] == ((35 - 1) // strides[0] + 1, 20)
    assert product.shape[2:] == ((35 - 1) // strides[0] // 4 + 1, 5)
    np.testing.assert_allclose(product, output[:, :, ::4, ::4], atol=1e-4)


@pytest.mark.parametrize(("stride", "count"), [(1, 1), (2, 0)])
def test_padding_that_depends_on_an_unknown_size_leaves_no_patches(stride: int, count: int) -> None:
    body = f'y = Conv <auto_pad = "SAME_UPPER", strides = [{stride}, {stride}]> (x, k)'
    kernel = np.ones((5, 2, 3, 3), np.float32)
    model = parse(f"g (float[n, 2, h, w] x) => (float[n, 5, ?, ?] y) {{ {body} }}", k=kernel)
    assert len(with_patches(model, float_layers(model))[1]) == count


def test_a_pointwise_convolution_multiplies_its_input() -> None:
    kernel = np.ones((8, 4, 1, 1), np.float32)
    model = parse("g (float[n, 4, 9, 9] x) => (float[n, 8, 9, 9] y) { y = Conv (x, k) }", k=kernel)
    (layer,) = float_layers(model)
    assert multiplies_input(layer)
    assert with_patches(model, [layer]) == (model, {})
    assert isinstance(model, ir.Model)
