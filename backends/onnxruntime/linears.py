"""Quantized linears as MatMulIntegerToFloat, the 8-bit product of ONNX Runtime's CPU kernels with a float result."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence

import numpy as np
import onnx_ir as ir

from qcompile import graph
from qcompile.backends.onnxruntime import dequantize
from qcompile.initializers import shared_initializer

CONTRIB = "com.microsoft"


@dataclasses.dataclass(frozen=True)
class QuantizedLinear:
    """MatMul of an activation and a dequantized constant weight, with its Add of a bias.

    Attributes:
        matmul: the MatMul node.
        weight: the DequantizeLinear of the weight: [in_features, out_features], 8 bits, scale [] or [out_features].
        add: the Add of the bias that alone reads the product, or None.
        bias: float32 initializer [out_features], or None.
    """

    matmul: ir.Node
    weight: dequantize.Dequantized
    add: ir.Node | None
    bias: ir.Value | None

    @property
    def last(self) -> ir.Node:
        """The node whose output the rest of the graph reads."""
        return self.add or self.matmul


def fuse_integer_linears(model: ir.Model) -> None:
    """MatMul(DequantizeLinear(q, s), DequantizeLinear(w)) + bias  ->  MatMulIntegerToFloat(q, w, s, bias).

    q comes from a static QuantizeLinear or from a DynamicQuantizeLinear, whose scale and zero point are values of the
    graph. Does not apply to a weight that is not a constant matrix of 8 bits with one scale or one per output, to an
    activation that has more than one scale, or to a vector as activation. ONNX Runtime would fuse most of these
    itself, but only when nothing else matched the Add first: BiasGelu takes 136 us where the bias inside of the
    product and Gelu take 83 (128 x 1536, one thread).
    """
    for linear in list(_quantized_linears(model)):
        x = linear.matmul.inputs[0]
        activation = dequantize.of_value(x)
        if activation is None or graph.constant(activation.quantized) is not None or not activation.per_tensor:
            continue
        product = ir.node(
            "MatMulIntegerToFloat",
            [
                activation.quantized,
                linear.weight.quantized,
                activation.scale,
                linear.weight.scale,
                activation.zero_point,
                linear.weight.zero_point,
                linear.bias,
            ],
            domain=CONTRIB,
        )
        _replace(model, linear.matmul, linear.last, [product])


def fuse_per_token_linears(model: ir.Model) -> None:
    """MatMul(QuantizeDequantizePerToken(x), DequantizeLinear(w))  ->  an integer product between two scalings of rows.

    The kernel takes one activation scale. So each row is divided by its own magnitude r = max|x|, is quantized
    in the fixed range [-1, 1], and the product is multiplied by r again:

        r = Max(ReduceMax(x), -ReduceMin(x))
        y = MatMulIntegerToFloat(QuantizeLinear(x * (127 / r), scale=1, zero_point=128), w, 1/127) * r

    The values are those of the function's body but for ties that the rounding of 127 / r decides otherwise. A row of
    zeros divides by 0: whatever integers that gives, r multiplies them by 0 again. One quantization serves all
    readers of x. Does not apply to a weight that fuse_integer_linears
    refuses; its call is inlined as it is.
    """
    rows: dict[ir.Value, tuple[ir.Value, ir.Value]] = {}
    for linear in list(_quantized_linears(model)):
        call = linear.matmul.inputs[0].producer() if linear.matmul.inputs[0] is not None else None
        if call is None or (call.domain, call.op_type) != ("qcompile", "QuantizeDequantizePerToken"):
            continue
        x = call.inputs[0]
        assert x is not None
        if x not in rows:
            rows[x] = _quantize_rows(model, call, x)
        quantized, magnitude = rows[x]
        product = ir.node(
            "MatMulIntegerToFloat",
            [
                quantized,
                linear.weight.quantized,
                _scalar(model, "row_step", np.float32(1 / 127)),
                linear.weight.scale,
                _scalar(model, "row_zero_point", np.uint8(128)),
                linear.weight.zero_point,
            ],
            domain=CONTRIB,
        )
        scaled = ir.node("Mul", [product.outputs[0], magnitude])
        _replace(model, linear.matmul, linear.matmul, [product, scaled])


def _quantize_rows(model: ir.Model, call: ir.Node, x: ir.Value) -> tuple[ir.Value, ir.Value]:
    last_axis = _constant(model, "last_axis", np.array([-1], np.int64))
    largest = ir.node("ReduceMax", [x, last_axis])
    least = ir.node("ReduceMin", [x, last_axis])
    negated = ir.node("Neg", [least.outputs[0]])
    magnitude = ir.node("Max", [largest.outputs[0], negated.outputs[0]])
    inverse = ir.node("Div", [_scalar(model, "largest_step", np.float32(127)), magnitude.outputs[0]])
    scaled = ir.node("Mul", [x, inverse.outputs[0]])
    one, middle = _scalar(model, "unit_scale", np.float32(1)), _scalar(model, "row_zero_point", np.uint8(128))
    quantized = ir.node("QuantizeLinear", [scaled.outputs[0], one, middle])
    model.graph.insert_before(call, [largest, least, negated, magnitude, inverse, scaled, quantized])
    return quantized.outputs[0], magnitude.outputs[0]


def _quantized_linears(model: ir.Model) -> Iterator[QuantizedLinear]:
    for node in model.graph:
        if not graph.is_standard(node, "MatMul"):
            continue
        x, w = node.inputs
        weight = dequantize.of_value(w)
        if weight is None or not _is_weight(weight) or x is None or (x.shape is not None and len(x.shape) < 2):
            continue
        add, bias = _bias(model, node, weight.quantized)
        yield QuantizedLinear(node, weight, add, bias)


def _is_weight(weight: dequantize.Dequantized) -> bool:
    tensor = graph.constant(weight.quantized)
    if tensor is None or len(tensor.shape) != 2 or tensor.dtype not in (ir.DataType.INT8, ir.DataType.UINT8):
        return False
    if graph.constant(weight.scale) is None or weight.scale.dtype != ir.DataType.FLOAT:
        return False
    return weight.per_tensor or (weight.axis in (1, -1) and weight.scale_shape == (tensor.shape[1],))


def _bias(model: ir.Model, matmul: ir.Node, weight: ir.Value) -> tuple[ir.Node | None, ir.Value | None]:
    product = matmul.outputs[0]
    add = graph.sole_reader(product)
    if add is None or not graph.is_standard(add, "Add"):
        return None, None
    (other,) = [value for value in add.inputs if value is not product] or [None]
    bias = dequantize.as_float_constant(model, other)
    assert weight.const_value is not None
    if bias is None or bias.const_value is None or bias.const_value.dtype != ir.DataType.FLOAT:
        return None, None
    return (add, bias) if tuple(bias.const_value.shape) == (weight.const_value.shape[1],) else (None, None)


def _replace(model: ir.Model, matmul: ir.Node, last: ir.Node, nodes: Sequence[ir.Node]) -> None:
    """Put `nodes` in the place of the nodes from `matmul` to `last`; the product keeps the name of the layer."""
    nodes[0].name = matmul.name
    nodes[0].metadata_props.update(matmul.metadata_props)
    old = list(dict.fromkeys((last, matmul)))
    ir.convenience.replace_nodes_and_values(model.graph, last, old, nodes, last.outputs, nodes[-1].outputs)


def _scalar(model: ir.Model, name: str, value: np.generic) -> ir.Value:
    return _constant(model, name, np.asarray(value))


def _constant(model: ir.Model, name: str, array: np.ndarray) -> ir.Value:
    return shared_initializer(model.graph, f"qcompile.{name}", array)
