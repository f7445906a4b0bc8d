from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest

pytest.importorskip("openvino")

from qcompile.backends.openvino.compression import compress_weights
from tests.backends.openvino.graphs import converted, operators, run
from tests.backends.portable import linear_case, parse, reference, weight


def weight_only(*, per_tensor: bool = False, zero: int = 0) -> ir.Model:
    parts = weight(np.random.default_rng(0), (32, 24), 1, per_tensor=per_tensor, zero=zero)
    return parse(
        """(float[N,32] x) => (float[N,24] y)
        {
            f = DequantizeLinear <axis = 1> (w, ws, wz)
            y = MatMul (x, f)
        }""",
        **parts,
    )


@pytest.mark.parametrize("per_tensor", [True, False])
def test_weight_is_stored_transposed_in_8_bits(per_tensor: bool) -> None:
    model = weight_only(per_tensor=per_tensor)
    feed = {"x": np.random.default_rng(1).standard_normal((3, 32)).astype(np.float32)}
    expected = reference(model, feed)["y"]
    result = converted(model)
    compress_weights(result)
    (linear,) = (node for node in result.get_ops() if node.get_type_name() == "MatMul")
    assert linear.get_attributes()["transpose_b"]
    stored, scale = linear.input_value(1).get_node().input_values()
    assert stored.get_node().input_value(0).get_node().get_data().dtype == np.int8
    assert list(scale.get_shape()) == [24, 1]
    np.testing.assert_allclose(run(result, feed)["y"], expected, rtol=0, atol=1e-5 * np.abs(expected).max())
    counts = operators(result)
    compress_weights(result)
    assert operators(result) == counts


@pytest.mark.parametrize("model", [weight_only(zero=3), linear_case().model])
def test_asymmetric_weights_and_static_linears_stay(model: ir.Model) -> None:
    result = converted(model)
    before = operators(result)
    compress_weights(result)
    assert operators(result) == before


def test_a_product_of_constants_is_left_to_openvino_which_refuses_its_compressed_form() -> None:
    random = np.random.default_rng(2)
    table = random.standard_normal((5, 32)).astype(np.float32)
    model = parse(
        """(float[N,32] x) => (float[5,24] y, float[N,24] z)
        {
            f = DequantizeLinear <axis = 1> (w, ws, wz)
            r = Relu (table)
            y = MatMul (r, f)
            z = MatMul (x, f)
        }""",
        table=table,
        **weight(random, (32, 24), 1),
    )
    feed = {"x": random.standard_normal((3, 32)).astype(np.float32)}
    expected = reference(model, feed)
    result = converted(model)
    compress_weights(result)
    products = [node for node in result.get_ordered_ops() if node.get_type_name() == "MatMul"]
    assert sorted(node.get_attributes()["transpose_b"] for node in products) == [False, True]
    for name, array in run(result, feed).items():
        np.testing.assert_allclose(array, expected[name], rtol=0, atol=1e-5 * np.abs(expected[name]).max())
