from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest
from onnx_ir.passes import common

from qcompile.backends.openvino.activations import quantize_at_run_time
from tests.backends.portable import PER_TOKEN, dynamic_per_tensor, dynamic_per_token, linear_case, parse

DYNAMIC = {"QuantizeDequantizePerToken", "DynamicQuantizeLinear"}


def linears_of_widths(*widths: int, zero: int = 0) -> ir.Model:
    """One linear with dynamic activations for each number of input channels."""
    values: dict[str, np.ndarray] = {}
    lines, inputs, outputs = [], [], []
    for index, width in enumerate(widths):
        values[f"w{index}"] = np.ones((width, 8), np.int8)
        values[f"s{index}"] = np.full(8, 0.1, np.float32)
        values[f"z{index}"] = np.full(8, zero, np.int8)
        inputs.append(f"float[N,{width}] x{index}")
        outputs.append(f"float[N,8] y{index}")
        lines.append(f"d{index} = qcompile.QuantizeDequantizePerToken (x{index})")
        lines.append(f"f{index} = DequantizeLinear <axis = 1> (w{index}, s{index}, z{index})")
        lines.append(f"y{index} = MatMul (d{index}, f{index})")
    body = "\n".join(lines)
    return parse(f"({', '.join(inputs)}) => ({', '.join(outputs)}) {{ {body} }}", PER_TOKEN, **values)


@pytest.mark.parametrize("make", [dynamic_per_tensor, dynamic_per_token])
def test_quantizer_of_a_shared_value_goes(make: object) -> None:
    model = make().model  # type: ignore[operator]
    assert quantize_at_run_time(model) == (32, ())
    common.RemoveUnusedNodesPass()(model)
    assert not DYNAMIC & {node.op_type for node in model.graph}
    assert [node.inputs[0].name for node in model.graph if node.op_type == "MatMul"] == ["x", "x", "x"]
    assert quantize_at_run_time(model) == (0, ())


@pytest.mark.parametrize(
    ("widths", "group_size"),
    [
        ((384,), 128),
        ((64, 128), 64),
        ((96, 64), 32),
        ((48, 128), 16),
        ((20, 128), 128),
        ((120, 64), 64),
        ((120,), 16),
        ((200, 72), 64),
    ],
)
def test_largest_group_that_fits_every_linear(widths: tuple[int, ...], group_size: int) -> None:
    assert quantize_at_run_time(linears_of_widths(*widths)) == (group_size, ())


def test_width_that_no_group_fits_stays_float() -> None:
    size, (finding,) = quantize_at_run_time(linears_of_widths(12))
    assert size == 0
    assert finding.action == "kept"
    assert "12 input channels" in finding.reason


def test_asymmetric_weight_stays_float() -> None:
    size, (finding,) = quantize_at_run_time(linears_of_widths(64, zero=2))
    assert size == 0
    assert "asymmetric" in finding.reason


def test_static_activations_are_not_touched() -> None:
    model = linear_case().model
    before = ir.to_proto(model).SerializeToString(deterministic=True)
    assert quantize_at_run_time(model) == (0, ())
    assert ir.to_proto(model).SerializeToString(deterministic=True) == before


def test_quantizer_with_another_reader_stays_for_it() -> None:
    model = linears_of_widths(64)
    value = next(node for node in model.graph if node.op_type == "QuantizeDequantizePerToken").outputs[0]
    relu = ir.node("Relu", [value], name="relu")
    relu.outputs[0].name = "other"
    model.graph.append(relu)
    model.graph.outputs.append(relu.outputs[0])
    assert quantize_at_run_time(model)[0] == 64
    common.RemoveUnusedNodesPass()(model)
    assert relu.inputs[0].producer().op_type == "QuantizeDequantizePerToken"
    assert next(node for node in model.graph if node.op_type == "MatMul").inputs[0].name == "x0"
