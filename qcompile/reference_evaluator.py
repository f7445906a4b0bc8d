"""What a quantized model means, computed by nothing that compiles or runs it: onnx's reference operators in numpy."""

from __future__ import annotations

import itertools
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
from onnx.reference import ReferenceEvaluator

from qcompile.reference_operators import ChannelsPerScale, operators, whole_token

MOST_PRODUCTS = 10**11
"""Most products of one evaluation: some seconds. It is for one small sample."""


class OutOfReachError(Exception):
    """The reference cannot say what a model computes; the message says why."""


def evaluate(
    model: ir.Model,
    feed: Mapping[str, np.ndarray],
    observed: Mapping[str, np.ndarray] | None = None,
    *,
    channels_per_scale: ChannelsPerScale = whole_token,
    nudge: float = 0.0,
) -> dict[str, np.ndarray]:
    """Evaluate a portable model, and go on from observed values in the place of its own.

    Q/DQ pairs are computed as they are written. Products are summed in float64, in which those of integers are exact.
    Memory: every value is given up after its last reader.

    Args:
        model: any ONNX model of operators that onnx's reference implementation has; it is not changed.
        feed: input name -> array.
        observed: value name -> what a runtime computed for it. Its readers get that array.
        channels_per_scale: how the tokens of QuantizeDequantizePerToken are quantized.
        nudge: see `operators`.

    Returns:
        Output name, and name of each observed value -> what the reference computes from the inputs and from the
        observed values upstream of it.

    Raises:
        OutOfReachError: it would take more than MOST_PRODUCTS.
    """
    observed = observed or {}
    skeleton, initializers = _without_initializers(model)
    evaluator = ReferenceEvaluator(ir.to_proto(skeleton), new_ops=operators(channels_per_scale, nudge))
    wanted = {str(value.name) for value in model.graph.outputs}
    results: dict[str, Any] = {"": None, **initializers, **evaluator.rt_inits_, **feed}
    computed = {name: results[name] for name in wanted & set(results)}
    reads = [_names_read(node.onnx_node) for node in evaluator.rt_nodes_]
    readers = Counter(itertools.chain.from_iterable(reads))
    products = 0
    with np.errstate(all="ignore"):  # what overflows in the model overflows here
        for node, names in zip(evaluator.rt_nodes_, reads, strict=True):
            products += _products(node.op_type, [results[name] for name in node.input])
            if products > MOST_PRODUCTS:
                raise OutOfReachError(f"the reference takes more than {MOST_PRODUCTS:.0e} products")
            context = {"context": results} if node.need_context() else {}
            values = node.run(*(results[name] for name in node.input), **context)
            for name, value in zip(node.output, values, strict=False):
                if name in wanted or name in observed:
                    computed[name] = value
                if name:  # one without a name is not read; the empty name stands for inputs that are left out
                    results[name] = observed.get(name, value)
            readers.subtract(names)
            for name in {*names, *node.output}:
                if name and readers[name] == 0:
                    results.pop(name, None)  # a body reads values of its own, too
    return computed


def _names_read(node: onnx.NodeProto) -> list[str]:
    """Return the names of what a node reads, with those that its bodies read: some are of the graph around them."""
    bodies = [attribute.g for attribute in node.attribute if attribute.type == onnx.AttributeProto.GRAPH]
    inner = [name for body in bodies for each in body.node for name in _names_read(each)]
    return [*node.input, *inner, *(output.name for body in bodies for output in body.output)]


def _products(operator: str, inputs: Sequence[Any]) -> int:
    """Return about how many products an operator adds up."""
    shapes: list[tuple[int, ...]] = [np.shape(array) for array in inputs]
    if operator == "MatMul" and len(shapes[1]) > 1:
        return math.prod(shapes[0]) * shapes[1][-1]
    if operator in ("Conv", "ConvTranspose"):
        return math.prod(shapes[0]) * math.prod(shapes[1][2:]) * shapes[1][0 if operator == "Conv" else 1]
    if operator in ("GRU", "LSTM", "RNN"):
        return math.prod(shapes[0][:2]) * (math.prod(shapes[1]) + math.prod(shapes[2]))
    if operator == "Attention":
        return math.prod(shapes[0]) * (shapes[1][-2] + shapes[2][-2])
    return 0


def _without_initializers(model: ir.Model) -> tuple[ir.Model, dict[str, np.ndarray]]:
    """Return a copy of the graph without the data of its weights, and the arrays: they are not copied to protobuf."""
    skeleton = model.clone()
    arrays = {}
    for name, value in list(skeleton.graph.initializers.items()):
        if value.const_value is not None:
            array = value.const_value.numpy()
            arrays[name] = (
                np.char.decode(array, "utf-8", "replace").astype(object) if array.dtype.kind == "S" else array
            )
            value.const_value = None
        del skeleton.graph.initializers[name]
    return skeleton, arrays
