"""FoldConvolutionAffine."""

from __future__ import annotations

import dataclasses
from typing import ClassVar

import numpy as np
import onnx_ir as ir

from qcompile.channel_affine import Affine, affine_of
from qcompile.contract import Finding, Pass, Result
from qcompile.graph import Convolution, constant, constant_array, convolutions, sole_reader
from qcompile.initializers import derive_initializer, new_initializer, remove_unused


@dataclasses.dataclass(frozen=True)
class FoldConvolutionAffine(Pass):
    """BatchNormalization, Mul, Div, Add or Sub of constants behind Conv or ConvTranspose -> its weight and bias.

    Per channel or with one number for all; a chain of them is folded whole. Between a convolution and its activation
    each would cost a pass over the feature map, and the rounding of what the convolution writes to integers would see
    the ranges before it in place of those after it. onnxscript's rules fold BatchNormalization and pairs of scalars
    only, and none where the convolution has no bias. Does not fire where anything else reads the value in between,
    where the constant has more than one value per channel, in training mode, on types other than float32 and float64,
    on a grouped ConvTranspose, or where the result would not be finite.
    """

    looks_for: ClassVar[str] = "BatchNormalization or an operation with a constant per channel behind a convolution"

    def call(self, model: ir.Model) -> Result:
        """Fold in place, one finding for each node that goes."""
        findings: list[Finding] = []
        for layer in convolutions(model):
            if _is_foldable(layer):
                findings += _fold_chain(layer)
        return Result(model, modified=bool(findings), findings=tuple(findings))


def _is_foldable(layer: Convolution) -> bool:
    grouped = layer.transposed and layer.node.attributes.get_int("group", 1) != 1
    has_constant_bias = layer.bias is None or constant(layer.bias) is not None
    has_channels = layer.weight.shape is not None and len(layer.weight.shape) > 2
    return (
        has_channels
        and not grouped
        and has_constant_bias
        and layer.weight.dtype in (ir.DataType.FLOAT, ir.DataType.DOUBLE)
    )


def _fold_chain(layer: Convolution) -> list[Finding]:
    """Fold every node of the chain behind the convolution in one change of its weight and bias."""
    weight = constant(layer.weight)
    assert weight is not None
    axis = 1 if layer.transposed else 0
    rank, outputs = len(weight.shape), int(weight.shape.numpy()[axis])
    bias = constant_array(layer.bias)
    folded, findings = Affine(np.ones(outputs), np.zeros(outputs) if bias is None else bias.astype(np.float64)), []
    while (reader := sole_reader(layer.output)) is not None:
        affine = affine_of(reader, layer.output, outputs, rank)
        longer = None if affine is None else _chained(folded, affine)
        if longer is None or not _can_be_stored(longer, weight, axis):
            break
        folded = longer
        findings.append(Finding(layer.name, "folded", f"{reader.op_type} {reader.name or ''}".strip()))
        _take_over(layer.output, reader)
    if findings:
        _write(layer, folded, axis)
    return findings


def _chained(first: Affine, second: Affine) -> Affine:
    """One affine map for two, the second applied to what the first gives; not finite where it overflows."""
    with np.errstate(over="ignore", invalid="ignore"):
        return Affine(first.scale * second.scale, first.shift * second.scale + second.shift)


def _can_be_stored(affine: Affine, weight: ir.TensorProtocol, axis: int) -> bool:
    """Whether the weight times the scale, and the shift, are finite in the weight's type."""
    array = weight.numpy()
    others = tuple(index for index in range(array.ndim) if index != axis)
    limit = np.finfo(array.dtype).max
    with np.errstate(over="ignore", invalid="ignore"):
        largest = np.maximum(array.max(axis=others, initial=0), -array.min(axis=others, initial=0))
        products = largest.astype(np.float64) * np.abs(affine.scale)
    return bool(np.all(products <= limit) and np.all(np.abs(affine.shift) <= limit))


def _take_over(value: ir.Value, node: ir.Node) -> None:
    """Let the value stand for what the node made of it, and remove the node."""
    made, graph = node.outputs[0], node.graph
    assert isinstance(graph, ir.Graph)
    is_output = made.is_graph_output()
    ir.convenience.replace_all_uses_with(made, value, replace_graph_outputs=True)
    constants = [operand for operand in node.inputs if operand is not None and constant(operand) is not None]
    graph.remove(node, safe=True)
    remove_unused(constants)
    if is_output:
        value.name, value.shape = made.name, made.shape if made.shape is not None else value.shape


def _write(layer: Convolution, affine: Affine, axis: int) -> None:
    weight, graph = constant(layer.weight), layer.node.graph
    assert weight is not None
    assert isinstance(graph, ir.Graph)
    shape = tuple(int(dim) for dim in weight.shape.numpy())
    factor = affine.scale.reshape([-1 if index == axis else 1 for index in range(len(shape))])

    def scaled(array: np.ndarray) -> np.ndarray:
        return np.asarray(array * factor, array.dtype)

    name = str(layer.output.name)
    new = derive_initializer(layer.weight, f"{name}.weight", shape, scaled)
    layer.node.replace_input_with(1, new)
    bias = new_initializer(graph, f"{name}.bias", affine.shift.astype(weight.dtype.numpy()))
    layer.node.resize_inputs(3)
    layer.node.replace_input_with(2, bias)
    if layer.bias is not None:
        remove_unused([layer.bias])
