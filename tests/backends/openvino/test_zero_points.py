from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest

from qcompile import graph
from qcompile.backends.openvino.zero_points import fold_zero_points
from tests.backends.portable import Case, linear_case, reference, static_shared


def zero_points(model: ir.Model) -> list[int]:
    """Zero points of the activations: of QuantizeLinear, then of DequantizeLinear."""
    found = {"QuantizeLinear": [], "DequantizeLinear": []}
    for node in model.graph:
        scale = graph.constant(node.inputs[1]) if node.op_type in found else None
        if scale is not None and scale.size == 1 and graph.constant(node.inputs[0]) is None:
            found[node.op_type].append(int(graph.constant_array(node.inputs[2]).item()))
    return found["QuantizeLinear"] + found["DequantizeLinear"]


def text(model: ir.Model) -> bytes:
    return ir.to_proto(model).SerializeToString(deterministic=True)


@pytest.mark.parametrize(
    ("case", "additions"),
    [
        (linear_case("uint8"), 1),
        (linear_case("int8"), 1),
        (linear_case("uint8", sym=True), 1),
        (linear_case(per_tensor=True), 1),
        (linear_case(weight_zero=3), 1),
        (linear_case(bias=False), 1),
        (linear_case(shape=(7, 32), names="N"), 1),
        (static_shared(), 3),
    ],
)
def test_zero_point_goes_into_the_bias(case: Case, additions: int) -> None:
    expected = reference(case.model, case.feed)
    (quantize, dequantize) = zero_points(case.model)
    assert quantize == dequantize != 0
    fold_zero_points(case.model)
    assert zero_points(case.model) == [quantize, 0]
    assert [node.op_type for node in case.model.graph].count("Add") == additions
    results = reference(case.model, case.feed)
    assert list(results) == list(expected)
    for name, array in expected.items():
        np.testing.assert_allclose(results[name], array, rtol=0, atol=1e-5 * np.abs(array).max())
    once = text(case.model)
    fold_zero_points(case.model)
    assert text(case.model) == once


def test_bias_of_two_linears_stays_for_the_other() -> None:
    case = static_shared()
    biases = case.model.graph.initializers
    for node in case.model.graph:
        if node.op_type == "Add":
            node.replace_input_with(1, biases["b_a"])
    expected = reference(case.model, case.feed)
    fold_zero_points(case.model)
    results = reference(case.model, case.feed)
    for name, array in expected.items():
        np.testing.assert_allclose(results[name], array, rtol=0, atol=1e-5 * np.abs(array).max())


def test_nothing_to_fold() -> None:
    case = linear_case("int8", sym=True)
    before = text(case.model)
    fold_zero_points(case.model)
    assert text(case.model) == before


@pytest.mark.parametrize("refusal", ["another reader", "an output", "a float weight"])
def test_other_readers_of_the_activation_forbid_it(refusal: str) -> None:
    case = linear_case()
    nodes = {node.outputs[0].name: node for node in case.model.graph}
    value = nodes["d"].outputs[0]
    if refusal == "another reader":
        case.model.graph.append(ir.node("Relu", [value], name="relu"))
    elif refusal == "an output":
        case.model.graph.outputs.append(value)
    else:
        weight = ir.val("wf", const_value=ir.tensor(np.ones((32, 24), np.float32), name="wf"))
        case.model.graph.register_initializer(weight)
        case.model.graph.append(ir.node("MatMul", [value, weight], name="float"))
    before = text(case.model)
    fold_zero_points(case.model)
    assert text(case.model) == before
