"""Products with an activation, as linears with a gate have them, as one kernel."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Iterator

import onnx_ir as ir

from qcompile import graph
from qcompile.backends.triton import products
from qcompile.backends.triton.integer_linears import TOKENS

GATED, GATED_QUANTIZE = "Gated", "GatedQuantize"


@dataclasses.dataclass(frozen=True)
class _Activation:
    """activation(gate).

    Attributes:
        name: as kernels have it.
        gate: what it is of.
        nodes: that compute it, the last first.
    """

    name: str
    gate: ir.Value | None
    nodes: tuple[ir.Node, ...]


def fuse_gates(model: ir.Model) -> None:
    """Mul(silu(gate), up)  ->  Gated(gate, up), and QuantizeTokens of it, where that alone reads it  ->  GatedQuantize.

    silu(gate) is Mul(gate, Sigmoid(gate)) or Swish(gate); the same for Gelu and Relu. Does not apply where the
    activation is read elsewhere too, and where gate and up are not float32 of the same shape as far as is known.
    """
    for node in list(model.graph):
        if not graph.is_standard(node, "Mul"):
            continue
        found = next(((each, up) for each, up in _sides(node) if products.alike(each.gate, up)), None)
        if found is None:
            continue
        activation, up = found
        attributes = {"activation": activation.name}
        old, tokens = [node, *activation.nodes], graph.sole_reader(node.outputs[0])
        if tokens is not None and (tokens.domain, tokens.op_type, len(tokens.inputs)) == (products.DOMAIN, TOKENS, 1):
            old = [tokens, *old]
        outputs = old[0].outputs
        call = products.call(
            GATED if old[0] is node else GATED_QUANTIZE, [activation.gate, up], attributes, len(outputs)
        )
        ir.convenience.replace_nodes_and_values(model.graph, old[0], old, [call], outputs, call.outputs)


def _sides(product: ir.Node) -> Iterator[tuple[_Activation, ir.Value | None]]:
    """Each side of a product that is an activation which nothing else reads, and the other side."""
    for value, other in itertools.permutations(product.inputs):
        activation = None if value is None or graph.sole_reader(value) is not product else _activation(value)
        if activation is not None:
            yield activation, other


def _activation(value: ir.Value) -> _Activation | None:
    node = value.producer()
    if node is None:
        return None
    if graph.is_standard(node, "Gelu"):
        tanh = node.attributes.get_string("approximate", "none") == "tanh"
        return _Activation("gelu_tanh" if tanh else "gelu", node.inputs[0], (node,))
    if graph.is_standard(node, "Relu"):
        return _Activation("relu", node.inputs[0], (node,))
    if graph.is_standard(node, "Swish") and node.attributes.get_float("alpha", 1.0) == 1:
        return _Activation("silu", node.inputs[0], (node,))
    if graph.is_standard(node, "Mul"):
        for gate, factor in itertools.permutations(node.inputs):
            sigmoid = None if factor is None or graph.sole_reader(factor) is not node else factor.producer()
            if sigmoid is not None and graph.is_standard(sigmoid, "Sigmoid") and sigmoid.inputs[0] is gate:
                return _Activation("silu", gate, (node, sigmoid))
    return None
