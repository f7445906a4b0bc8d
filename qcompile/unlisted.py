"""Weights that no pass looks at: of recurrent layers, in branches and loops, of three axes, computed at run time."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator

import onnx_ir as ir

from qcompile.cache_rounding import is_rounding
from qcompile.contract import Finding
from qcompile.graph import bodies, constant, is_standard, layer_name, reads_constants_alone
from qcompile.outlier_columns import is_outliers
from qcompile.untouched import quantized_already, type_refusal

_MULTIPLY = ("Conv", "ConvTranspose", "DeformConv", "Einsum", "GRU", "Gemm", "LSTM", "MatMul", "RNN")
"""Operators of the standard that add up products with a weight; others add, move or compare their constants."""

_QUANTIZABLE = ("Conv", "ConvTranspose", "Gemm", "MatMul")

_COMPUTED = (
    "its weight is computed from others when the model runs: compute it before, as "
    "torch.nn.utils.parametrize.remove_parametrizations does"
)


def unlisted(model: ir.Model, listed: Collection[str]) -> list[Finding]:
    """One finding, with the reason, for every operator with a weight that no pass has said anything about.

    Weights are float constants of two axes or more, or what is computed from constants alone, that an operator of the
    standard multiplies with or looks up, or that an operator of another domain reads, whatever it does with them. In
    graph order, subgraphs included.

    Args:
        model: in canonical form, in front of the passes that quantize.
        listed: `Finding.value` of the layers that passes have spoken of.
    """
    already = {found.value: found for found in quantized_already(model)}
    nodes = list(_nodes(model.graph, ""))
    told = {node.inputs[0] for node, _ in nodes if _is_lookup(node) and _value(node) in listed}
    computed: set[ir.Value] = set()
    findings = []
    for node, around in nodes:
        value = _value(node)
        weight = next(_weights(node, computed), None)
        if _computes_constants(node, computed):
            computed.update(node.outputs)
        elif value in already and value not in listed:
            findings.append(already[value])
        elif weight is not None and value not in listed and not (_is_lookup(node) and weight in told):
            findings.append(_finding(node, weight, around))
    return findings


def _nodes(nodes: Iterable[ir.Node], around: str) -> Iterator[tuple[ir.Node, str]]:
    """Yield each node, and the operator of the main graph that it is inside of, if it is."""
    for node in nodes:
        yield node, around
        for graph in bodies(node):
            yield from _nodes(graph, around or node.op_type)


def _value(node: ir.Node) -> str:
    """Name of the first value that the node computes; a recurrent layer may leave its first output out."""
    return next((str(value.name) for value in node.outputs if value.name), "")


def _weights(node: ir.Node, computed: Collection[ir.Value]) -> Iterator[ir.Value]:
    if is_rounding(node):  # what it reads is a scale
        return
    if is_standard(node, node.op_type) and not (is_standard(node, *_MULTIPLY) or _is_lookup(node)):
        return
    for value in node.inputs[:1] if _is_lookup(node) else node.inputs:
        if value is not None and (constant(value) is not None or value in computed):
            floating = value.dtype is not None and value.dtype.is_floating_point()
            if floating and (value in computed if value.shape is None else len(value.shape) > 1):
                yield value


def _computes_constants(node: ir.Node, computed: Collection[ir.Value]) -> bool:
    """True where a node of the standard reads constants alone; what is dequantized is quantized, and not computed."""
    computes = is_standard(node, node.op_type) and not is_standard(node, "DequantizeLinear")
    return computes and reads_constants_alone(node, computed)


def _is_lookup(node: ir.Node) -> bool:
    return is_standard(node, "Gather")


def _finding(node: ir.Node, weight: ir.Value, around: str) -> Finding:
    operator = "Linear" if is_standard(node, "MatMul", "Gemm") else "Embedding" if _is_lookup(node) else node.op_type
    shape = tuple(dim if isinstance(dim, int) else -1 for dim in weight.shape or ())
    return Finding(layer_name(node), "kept", _reason(node, weight, around), operator, None, _value(node), shape)


def _reason(node: ir.Node, weight: ir.Value, around: str) -> str:
    if around:
        return f"it is inside of {around}: only what is outside is quantized"
    if constant(weight) is None and is_standard(node, *_QUANTIZABLE):
        return _COMPUTED
    if refused := type_refusal(weight):
        return refused
    if is_outliers(node.inputs[0]):
        return "it multiplies the outlier channels of a split linear, which stay float"
    if _is_lookup(node):
        return "no pass of the recipe stores its table in 8 bits"
    if is_standard(node, "MatMul") and weight is node.inputs[0]:
        return "its weight is the first factor: only second ones are quantized"
    if is_standard(node, "MatMul") and len(weight.shape or ()) > 2:
        return f"its weight has {len(weight.shape or ())} axes: only matrices are quantized"
    return f"no pass of the recipe quantizes the weight of {node.op_type}"
