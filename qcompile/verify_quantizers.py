"""Where a graph quantizes values at run time: what the comparison of an artifact looks at, in steps of these."""

from __future__ import annotations

import dataclasses
from typing import Literal

import numpy as np
import onnx_ir as ir

from qcompile.graph import constant_array, is_standard, readers
from qcompile.qdq import DOMAIN, PER_BLOCK, PER_CACHE, PER_TOKEN
from qcompile.unused_nodes import RemoveUnusedNodes

_FLOOR = 2.0**-20
"""Least step of a scale that is known at run time, in parts of the largest number: below, float32 is as coarse."""

Kind = Literal["static", "per channel", "per tensor", "per token", "per block"]


@dataclasses.dataclass(frozen=True)
class Quantized:
    """A value that a quantizer of the portable graph reads, and where it can be seen.

    Attributes:
        names: of its forms, the best to observe first: integers, what they stand for; of a quantizer whose scale is
            known at run time only, the value itself; of a cache, what it is rounded to.
        kind: of the quantizer.
        scale: of a static quantizer; of a cache, one for each channel of each head, [1, heads, 1, size].
        block_size: channels that share a scale, of one in blocks.
    """

    names: tuple[str, ...]
    kind: Kind
    scale: float | np.ndarray = 1.0
    block_size: int = 0

    def step(self, name: str, expected: np.ndarray) -> np.ndarray:
        """Size of one step in the form of this name, where the reference computed `expected`; broadcasts to it."""
        if self.kind == "static":
            return np.array(1.0 if name == self.names[0] else self.scale)
        if self.kind == "per channel":
            return np.asarray(self.scale)
        finite = np.where(np.isfinite(expected), expected, 0)
        if self.kind == "per tensor":
            size = max(finite.max(initial=0), 0) - min(finite.min(initial=0), 0)
            return np.array(size / 255)
        if self.kind == "per block" and finite.size:
            starts = np.arange(0, finite.shape[-1], self.block_size)
            sizes = np.diff(starts, append=finite.shape[-1])
            size = np.repeat(np.maximum.reduceat(np.abs(finite), starts, axis=-1), sizes, axis=-1) / 127
        else:
            size = np.abs(finite).max(axis=-1, keepdims=True, initial=0) / 127
        return np.asarray(np.maximum(size, _FLOOR * np.abs(finite).max(initial=0)))


def quantized_values(portable: ir.Model) -> tuple[Quantized, ...]:
    """Return the values that the graph quantizes at run time, in its order; not those in bodies of If and Loop."""
    return tuple(found for node in portable.graph if (found := _quantized(node)) is not None)


def without_quantizers(portable: ir.Model) -> ir.Model:
    """Return the graph without what quantizes activations: how far it ends away tells what their rounding adds.

    Weights keep their rounding, which every run shares: where the float model is at hand, it tells a little more.
    """
    model = portable.clone()
    for node in list(model.graph):
        if not quantizes(node):
            continue
        own = node.domain == DOMAIN
        ends = [node] if own else [end for end in readers(node.outputs[0]) if is_standard(end, "DequantizeLinear")]
        for end in ends:
            same = ir.node("Identity", [node.inputs[0]])
            ir.convenience.replace_nodes_and_values(model.graph, end, [end], [same], [end.outputs[0]], same.outputs)
    RemoveUnusedNodes()(model)
    return model


def quantizes(node: ir.Node) -> bool:
    """True for what quantizes a value at run time."""
    own = node.domain == DOMAIN and node.op_type in (PER_TOKEN, PER_BLOCK, PER_CACHE)
    kinds = own or is_standard(node, "QuantizeLinear", "DynamicQuantizeLinear")
    return kinds and constant_array(node.inputs[0]) is None


def _quantized(node: ir.Node) -> Quantized | None:
    """Return what a quantizer of a computed value reads; None for other nodes."""
    x = node.inputs[0] if node.inputs else None
    if x is None or x.producer() is None:
        return None
    if (node.domain, node.op_type) == (DOMAIN, PER_TOKEN):
        return Quantized((str(x.name),), "per token")
    if (node.domain, node.op_type) == (DOMAIN, PER_BLOCK):
        return Quantized((str(x.name),), "per block", block_size=node.attributes.get_int("block_size", 0))
    if (node.domain, node.op_type) == (DOMAIN, PER_CACHE):
        steps = constant_array(node.inputs[1])
        return None if steps is None else Quantized((str(node.outputs[0].name),), "per channel", steps)
    if is_standard(node, "DynamicQuantizeLinear"):
        return Quantized((str(x.name),), "per tensor")
    scale = constant_array(node.inputs[1]) if is_standard(node, "QuantizeLinear") else None
    if scale is None or scale.size != 1:
        return None
    stands_for = [reader.outputs[0] for reader in readers(node.outputs[0]) if is_standard(reader, "DequantizeLinear")]
    return Quantized(tuple(str(value.name) for value in (node.outputs[0], *stands_for)), "static", float(scale.item()))
