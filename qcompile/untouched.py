"""Layers that no pass will touch: those that are quantized already, and those of another type than float32."""

from __future__ import annotations

import onnx_ir as ir

from qcompile.contract import Finding
from qcompile.graph import constant, is_standard, layer_name
from qcompile.layers import every_layer, finding
from qcompile.qdq import is_dequantized

QUANTIZED_ALREADY = "it is already quantized"

_MICROSOFT = "com.microsoft"
_INTEGER_PRODUCTS = frozenset(
    {
        ("", "ConvInteger"),
        ("", "MatMulInteger"),
        ("", "QLinearConv"),
        ("", "QLinearMatMul"),
        (_MICROSOFT, "DynamicQuantizeMatMul"),
        (_MICROSOFT, "MatMulBnb4"),
        (_MICROSOFT, "MatMulIntegerToFloat"),
        (_MICROSOFT, "MatMulNBits"),
        (_MICROSOFT, "QAttention"),
        (_MICROSOFT, "QGemm"),
    }
)
"""Operators that multiply what is quantized already: of the standard, and those that ONNX Runtime's tools write."""

_VIEWS = ("Transpose", "Reshape", "Squeeze", "Unsqueeze", "Identity")


def quantized_already(model: ir.Model) -> list[Finding]:
    """One finding for every product of the main graph that reads quantized values, of whatever tool, in graph order.

    A product of which one side alone is quantized is among them: what is half-quantized stays so. Tables of embeddings
    are not: a recipe that finds nothing but them has something to say.
    """
    return [
        Finding(layer_name(node), "kept", QUANTIZED_ALREADY, _operator(node), value=str(node.outputs[0].name))
        for node in model.graph
        if (node.domain, node.op_type) in _INTEGER_PRODUCTS or _reads_dequantized(node)
    ]


def of_other_types(model: ir.Model) -> list[Finding]:
    """One finding for every float layer whose weight is not float32, with its type, in graph order."""
    return [finding(layer, "kept", refused) for layer in every_layer(model) if (refused := type_refusal(layer.weight))]


def type_refusal(weight: ir.Value) -> str:
    """Why a weight is not quantized for its type; empty for float32, and for integers."""
    return f"its weight is {_name(weight)}: only float32 is quantized" if _is_of_another_type(weight) else ""


def other_types(model: ir.Model) -> list[str]:
    """Types of the matrices that are float and not float32, as numpy calls them: "float16", "bfloat16"; sorted."""
    weights = (value for value in model.graph.initializers.values() if value.shape is not None and len(value.shape) > 1)
    return sorted({_name(weight) for weight in weights if _is_of_another_type(weight)})


def _is_of_another_type(weight: ir.Value) -> bool:
    return weight.dtype is not None and weight.dtype.is_floating_point() and weight.dtype != ir.DataType.FLOAT


def _name(weight: ir.Value) -> str:
    return str(weight.dtype.numpy()) if weight.dtype is not None else ""


def _reads_dequantized(node: ir.Node) -> bool:
    if is_standard(node, "Attention"):
        return any(map(is_dequantized, node.inputs[:3]))
    if not is_standard(node, "MatMul", "Gemm", "Conv", "ConvTranspose"):
        return False
    x, weight = node.inputs[:2]
    return is_dequantized(x) or is_dequantized(_without_views(weight))


def _without_views(weight: ir.Value | None) -> ir.Value | None:
    """The value that the weight is a view of: other tools leave a Transpose behind DequantizeLinear."""
    producer = weight.producer() if weight is not None else None
    return _without_views(producer.inputs[0]) if producer is not None and is_standard(producer, *_VIEWS) else weight


def _operator(node: ir.Node) -> str:
    """Operator as the report calls it; of what only other tools write, the operator itself."""
    if not is_standard(node, "MatMul", "Gemm"):
        return node.op_type
    weight = _without_views(node.inputs[1])
    source = weight.producer() if weight is not None else None
    return "Linear" if source is None or constant(source.inputs[0]) is not None else "Attention"
