"""Products of activations with constant weights, and what takes their place: nodes that stand for kernels.

The nodes are of the domain `qcompile.triton`, exist in memory alone, and are written by `operators`.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TypeAlias

import numpy as np
import onnx_ir as ir

from qcompile import graph
from qcompile.initializers import register_initializer

DOMAIN = "qcompile.triton"


@dataclasses.dataclass(frozen=True)
class Product:
    """MatMul(x, w), and the Add of a constant for each output that alone reads it.

    Attributes:
        matmul: the MatMul.
        x: [..., inputs].
        weight: a value of two axes, [inputs, outputs].
        add: the Add, or None.
        bias: constant [outputs], or None.
    """

    matmul: ir.Node
    x: ir.Value
    weight: ir.Value
    add: ir.Node | None
    bias: ir.Value | None

    @property
    def last(self) -> ir.Node:
        """The node whose output the rest of the graph reads."""
        return self.add or self.matmul


def products(model: ir.Model) -> Iterator[Product]:
    """Yield every MatMul of the main graph whose second side nodes make, with its bias; the graph may be changed."""
    for node in list(model.graph):
        if not graph.is_standard(node, "MatMul") or node.graph is None:
            continue
        x, weight = node.inputs
        if x is None or weight is None or x is weight or weight.producer() is None:
            continue
        add = graph.sole_reader(node.outputs[0])
        bias = None
        if add is not None and graph.is_standard(add, "Add") and weight.shape is not None:
            bias = _bias(add, node.outputs[0], weight.shape[-1])
        yield Product(node, x, weight, add if bias is not None else None, bias)


def _bias(add: ir.Node, product: ir.Value, outputs: int | ir.SymbolicDim) -> ir.Value | None:
    """The constant of one number for each output that an Add adds; None where it adds something else."""
    (other,) = [value for value in add.inputs if value is not product] or [None]
    tensor = graph.constant(other)
    fits = tensor is not None and tuple(tensor.shape) == (outputs,) and tensor.dtype == ir.DataType.FLOAT
    return other if fits else None


def replace(model: ir.Model, product: Product, node: ir.Node) -> None:
    """Let a node compute what a product and its bias did."""
    old = list(dict.fromkeys((product.last, product.matmul)))
    ir.convenience.replace_nodes_and_values(model.graph, product.last, old, [node], product.last.outputs, node.outputs)


Stored: TypeAlias = tuple[list[ir.Value | None], Mapping[str, ir.Attr | int]]
"""Operands that stand for a weight, and attributes that say how to read them."""


def fuse(model: ir.Model, name: str, stored: Callable[[ir.Value], Stored | None]) -> None:
    """Let a node of a kernel take the place of each product whose weight can be stored as the kernel reads it.

    Args:
        model: its graph is changed.
        name: of the operator: (x, what stands for the weight, bias).
        stored: asked once for each weight; None where it does not fit.
    """
    stored_once = functools.cache(stored)
    for product in products(model):
        fitting = stored_once(product.weight)
        if fitting is not None:
            operands, attributes = fitting
            replace(model, product, call(name, [product.x, *operands, product.bias], attributes))


def alike(a: ir.Value | None, b: ir.Value | None) -> bool:
    """Whether two values are float32 of the same shape; False where a size has no name before the model runs.

    False for scalars too: they have no channels.
    """
    if a is None or b is None or not a.dtype == b.dtype == ir.DataType.FLOAT or not a.shape:
        return False
    return a.shape == b.shape and graph.dims_are_known(a.shape)


def new_constant(model: ir.Model, names: graph.Names, name: str, array: np.ndarray) -> ir.Value:
    """Add an array to the model as a constant, under a name that is new."""
    return register_initializer(model.graph, ir.tensor(np.ascontiguousarray(array), name=names.new(name)))


def call(
    name: str,
    inputs: Sequence[ir.Value | None],
    attributes: Mapping[str, ir.Attr | int | float | str] | None = None,
    outputs: int = 1,
) -> ir.Node:
    """A new node of the domain."""
    return ir.node(name, inputs, dict(attributes or {}), domain=DOMAIN, num_outputs=outputs)
