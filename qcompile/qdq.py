"""The words of the quantized graph: how Q/DQ pairs, dequantized weights and per-token quantization are written.

Everything is standard ONNX of opset 21 or later; what has no standard operator is a function of the domain `qcompile`
with a body of standard operators. A model that stays at an older opset, because it cannot be converted, is written in
that one where it has the operators.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import onnx_ir as ir

from qcompile.errors import UnsupportedError
from qcompile.finished_layers import tensor_of
from qcompile.graph import Names, is_standard, layer_name
from qcompile.initializers import register_initializer
from qcompile.scheme import GroupScheme, Scheme
from qcompile.solvers.grouped import Grouped

Parameters = tuple[np.ndarray, np.ndarray]
"""Scale and zero point."""

DOMAIN = "qcompile"
PER_TOKEN = "QuantizeDequantizePerToken"
PER_BLOCK = "QuantizeDequantizePerBlock"
PER_CACHE = "QuantizeDequantizeCache"

_PER_CHANNEL_FROM = 13
"""Lowest opset in which DequantizeLinear has an axis."""

_IN_GROUPS_FROM = 21
"""Lowest opset with integers of 4 bits, and scales for blocks."""

_PER_TOKEN_FROM = 18
"""Lowest opset in which the axes of ReduceMax are an input."""

ROUNDING_CONSTANTS = """
    last = Constant <value = int64[1] {-1}> ()
    zero = Constant <value = float {0.0}> ()
    one = Constant <value = float {1.0}> ()
    largest = Constant <value = float {127.0}> ()
    smallest = Constant <value = float {-127.0}> ()
"""
"""What `rounding` reads, in ONNX's textual form."""


def rounding(value: str, result: str) -> str:
    """Return the lines of a function that make symmetric int8 of what lies along the last axis, and float of that."""
    return f"""
    magnitude = Abs ({value})
    range = ReduceMax <keepdims = 1> (magnitude, last)
    step = Div (range, largest)
    empty = Equal (step, zero)
    scale = Where (empty, one, step)
    scaled = Div ({value}, scale)
    rounded = Round (scaled)
    quantized = Clip (rounded, smallest, largest)
    {result} = Mul (quantized, scale)
"""


_PER_TOKEN_BODY = f"""
<ir_version: 10, opset_import: ["" : 21, "{DOMAIN}" : 1]>
graph (float[n] x) => (float[n] y) {{ y = {DOMAIN}.{PER_TOKEN}(x) }}
<domain: "{DOMAIN}", opset_import: ["" : 21]>
{PER_TOKEN} (x) => (y) {{{ROUNDING_CONSTANTS}{rounding("x", "y")}}}
"""


def per_token_function(opset: int) -> ir.Function:
    """Return the function y = dequantize(quantize(x)) with one symmetric int8 scale per token, max|x| / 127.

    x and y are float [..., tokens, channels]; the scale is that of the last axis, 1 where a token is all zero.
    """
    function = ir.from_onnx_text(_PER_TOKEN_BODY).functions[(DOMAIN, PER_TOKEN, "")]
    function.opset_imports[""] = opset  # the definitions of its operators are the same from 18 on
    return function


def quantized(
    value: ir.Value,
    before: ir.Node,
    model: ir.Model,
    scheme: Scheme,
    parameters: Parameters | None,
) -> tuple[ir.Value, list[ir.Node]]:
    """Write the quantization of an activation in front of a node, in the words of its scheme; return x' and the nodes.

    Args:
        value: float32 activation x.
        before: node of the main graph that reads it, or comes before the nodes that do.
        model: gets the function that a scale per token needs.
        scheme: of the activation. Dynamic per tensor is uint8 and asymmetric: ONNX has no other operator for it.
        parameters: of a static scheme; None for a dynamic one.

    Raises:
        UnsupportedError: the scheme has a scale per token and the model is below opset 18.
    """
    if not scheme.dynamic:
        assert parameters is not None
        return quantize_dequantize(value, *parameters, before)
    if scheme.granularity == "per_token":
        return dynamic_per_token(value, before, model)
    return dynamic_per_tensor(value, before)


def quantize_for(
    model: ir.Model,
    read: Mapping[ir.Value, Sequence[ir.Node]],
    scheme: Scheme,
    parameters: Mapping[ir.Value, Parameters],
) -> None:
    """Let nodes read activations as they are quantized: each activation once, for all of its nodes.

    Nodes in the body of an If or Loop keep the float value: the quantization may come after the node with the body.

    Args:
        model: the model.
        read: the activations, and of each the nodes that are to read it quantized.
        scheme: of the activations.
        parameters: of each activation under a static scheme.
    """
    order = {node: index for index, node in enumerate(model.graph)}
    for value, nodes in read.items():
        inside = [node for node in nodes if node in order]
        if not inside:
            continue
        first = min(inside, key=order.__getitem__)
        new, made = quantized(value, first, model, scheme, parameters.get(value))
        for node in inside:
            if node not in made:
                replace_input(node, value, new)


def quantize_dequantize(
    value: ir.Value, scale: np.ndarray, zero_point: np.ndarray, before: ir.Node
) -> tuple[ir.Value, list[ir.Node]]:
    """Write x -> QuantizeLinear -> DequantizeLinear with a scalar scale in front of a node; return x' and the nodes."""
    graph, name = _graph(before), str(value.name)
    names = Names(graph)
    parameters = [
        _initializer(graph, names.new(f"{name}.scale"), np.asarray(scale, np.float32)),
        _initializer(graph, names.new(f"{name}.zero_point"), np.asarray(zero_point)),
    ]
    quantize = ir.node("QuantizeLinear", [value, *parameters], name=names.new(f"{name}.quantize"))
    dequantize = ir.node("DequantizeLinear", [quantize.outputs[0], *parameters], name=names.new(f"{name}.dequantize"))
    dtype = ir.DataType.from_numpy(np.asarray(zero_point).dtype)
    _describe(names, quantize.outputs[0], f"{name}.quantized", value.shape, dtype)
    _describe(names, dequantize.outputs[0], f"{name}.dequantized", value.shape, ir.DataType.FLOAT)
    graph.insert_before(before, [quantize, dequantize])
    return dequantize.outputs[0], [quantize, dequantize]


def dynamic_per_tensor(value: ir.Value, before: ir.Node) -> tuple[ir.Value, list[ir.Node]]:
    """Write x -> DynamicQuantizeLinear -> DequantizeLinear (uint8, asymmetric) in front of a node."""
    graph, name = _graph(before), str(value.name)
    names = Names(graph)
    quantize = ir.node("DynamicQuantizeLinear", [value], num_outputs=3, name=names.new(f"{name}.quantize"))
    dequantize = ir.node("DequantizeLinear", list(quantize.outputs), name=names.new(f"{name}.dequantize"))
    quantized, scale, zero_point = quantize.outputs
    _describe(names, quantized, f"{name}.quantized", value.shape, ir.DataType.UINT8)
    _describe(names, scale, f"{name}.scale", (), ir.DataType.FLOAT)
    _describe(names, zero_point, f"{name}.zero_point", (), ir.DataType.UINT8)
    _describe(names, dequantize.outputs[0], f"{name}.dequantized", value.shape, ir.DataType.FLOAT)
    graph.insert_before(before, [quantize, dequantize])
    return dequantize.outputs[0], [quantize, dequantize]


def dynamic_per_token(value: ir.Value, before: ir.Node, model: ir.Model) -> tuple[ir.Value, list[ir.Node]]:
    """Write x -> qcompile.QuantizeDequantizePerToken in front of a node, and its function into the model.

    Raises:
        UnsupportedError: the model is below opset 18.
    """
    graph, name = _graph(before), str(value.name)
    _check_opset(before, _PER_TOKEN_FROM, "a scale per token")
    names = Names(graph)
    if (DOMAIN, PER_TOKEN, "") not in model.functions:
        function = per_token_function(model.opset_imports[""])
        model.functions[function.identifier()] = function
        model.opset_imports[DOMAIN] = 1
    node = ir.node(PER_TOKEN, [value], domain=DOMAIN, name=names.new(f"{name}.quantize_dequantize"))
    _describe(names, node.outputs[0], f"{name}.dequantized", value.shape, ir.DataType.FLOAT)
    graph.insert_before(before, [node])
    return node.outputs[0], [node]


def dequantized_constant(
    source: ir.Value,
    quantized: np.ndarray,
    scale: np.ndarray,
    zero_point: np.ndarray,
    axis: int | None,
    before: ir.Node,
) -> ir.Value:
    """Write integer initializer -> DequantizeLinear in place of a float one; a scale [channels] is along axis.

    Raises:
        UnsupportedError: the scale is along an axis and the model is below opset 13.
    """
    graph, name = _graph(before), str(source.name)
    names = Names(graph)
    if axis is not None and np.ndim(scale) == 1:
        _check_opset(before, _PER_CHANNEL_FROM, "a scale per channel")
    inputs = [
        _initializer(graph, names.new(f"{name}.quantized"), quantized),
        _initializer(graph, names.new(f"{name}.scale"), np.asarray(scale, np.float32)),
        _initializer(graph, names.new(f"{name}.zero_point"), np.asarray(zero_point)),
    ]
    attributes = {"axis": axis} if axis is not None and np.ndim(scale) == 1 else {}
    node = ir.node("DequantizeLinear", inputs, attributes, name=names.new(f"{name}.dequantize"))
    _describe(names, node.outputs[0], f"{name}.dequantized", source.shape, ir.DataType.FLOAT)
    graph.insert_before(before, [node])
    return node.outputs[0]


def dequantized_groups(
    source: ir.Value, found: Grouped, scheme: GroupScheme, before: ir.Node, file: Path | None = None
) -> ir.Value:
    """Write integers -> DequantizeLinear in place of a float weight [inputs, outputs], with a scale for each group.

    Integers of up to 4 bits are stored in 4. The zero point is written out where the scheme is symmetric as well:
    runtimes do not agree on what its absence means. The initializers are lazy where a file of `FinishedLayers` has
    what was found.

    Raises:
        UnsupportedError: the model is below opset 21.
    """
    graph, name = _graph(before), str(source.name)
    _check_opset(before, _IN_GROUPS_FROM, "a scale for each group of inputs")
    names, dtype = Names(graph), stored_type(scheme)
    whole = scheme.group_size == -1
    scale = found.scale[0] if whole else found.scale
    zero = np.zeros_like(found.scale, np.int8) if found.zero_point is None else found.zero_point
    inputs = []
    for called, part, array, kind in (
        ("quantized", "integers", found.integers, dtype),
        ("scale", "scale", scale, ir.DataType.FLOAT),
        ("zero_point", "zero_point", zero[0] if whole else zero, dtype),
    ):
        unique = names.new(f"{name}.{called}")
        if file is None:
            inputs.append(_initializer(graph, unique, array.astype(kind.numpy(), copy=False)))
        else:
            inputs.append(register_initializer(graph, tensor_of(file, part, array, kind, unique)))
    attributes = {"axis": 1} if whole else {"axis": 0, "block_size": scheme.group_size}
    node = ir.node("DequantizeLinear", inputs, attributes, name=names.new(f"{name}.dequantize"))
    _describe(names, node.outputs[0], f"{name}.dequantized", source.shape, ir.DataType.FLOAT)
    graph.insert_before(before, [node])
    return node.outputs[0]


def stored_type(scheme: GroupScheme) -> ir.DataType:
    """Return the type of the integers of a weight in groups: no type is narrower than 4 bits."""
    if scheme.bits <= 4:
        return ir.DataType.INT4 if scheme.sym else ir.DataType.UINT4
    return ir.DataType.INT8 if scheme.sym else ir.DataType.UINT8


def is_dequantized(value: ir.Value | None) -> bool:
    """Return True when the value comes out of quantization."""
    node = value.producer() if value is not None else None
    return is_standard(node, "DequantizeLinear") or (
        node is not None and node.domain == DOMAIN and node.op_type in (PER_TOKEN, PER_BLOCK)
    )


def replace_input(node: ir.Node, old: ir.Value, new: ir.Value) -> None:
    """Let the node read another value wherever it reads the old one."""
    for index, value in enumerate(node.inputs):
        if value is old:
            node.replace_input_with(index, new)


def _initializer(graph: ir.Graph, name: str, array: np.ndarray) -> ir.Value:
    return register_initializer(graph, ir.tensor(np.asarray(array, order="C"), name=name))


def _graph(node: ir.Node) -> ir.Graph:
    assert isinstance(node.graph, ir.Graph)
    return node.graph


def _check_opset(node: ir.Node, lowest: int, what: str) -> None:
    opset = _graph(node).opset_imports[""]
    if opset < lowest:
        reason = f"{what} needs opset {lowest} or later, and the model could not be converted from opset {opset}"
        mend = f"Export the model again with opset {lowest} or later, or use a recipe with one scale per tensor"
        raise UnsupportedError(f"layer {layer_name(node)}", reason, mend)


def _describe(
    names: Names, value: ir.Value, name: str, shape: ir.ShapeProtocol | Sequence[int] | None, dtype: ir.DataType
) -> None:
    value.name, value.type = names.new(name), ir.TensorType(dtype)
    value.shape = None if shape is None else ir.Shape(tuple(shape))  # type: ignore[arg-type]
