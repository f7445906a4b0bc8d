"""What a layer multiplies, in the form of a matrix product: rows of inputs times a weight of [inputs, outputs]."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from qcompile.graph import Convolution
from qcompile.initializers import register_initializer
from qcompile.layers import Layer, accumulated

Array = npt.NDArray[Any]

_MOST_INPUTS = 2048
_THINNING = 4


def with_patches(model: ir.Model, layers: Sequence[Layer]) -> tuple[ir.Model, dict[str, str]]:
    """Return a copy of the model that also computes the patches that convolutions multiply; output -> value name.

    A patch is what one output element reads: [batch, in_channels * kernel, *spatial], channels outermost, the padding
    included; a depthwise convolution with one-hot kernels makes it. Of each spatial axis every fourth place is taken.

    A 1x1 convolution multiplies its input, and has none; nor has ConvTranspose, a kernel of unknown shape, a
    convolution with more than 2,048 inputs per output, whose patches would take more memory than they are worth, or
    one with strides whose auto_pad depends on an input size that is not known.
    """
    chosen = [layer for layer in layers if isinstance(layer, Convolution) and _has_patches(layer)]
    if not chosen:
        return model, {}
    copy = model.clone()
    nodes = {node.outputs[0].name: node for node in copy.graph}
    return copy, {str(layer.output.name): _patches(copy, nodes[layer.node.outputs[0].name]) for layer in chosen}


def multiplies_input(layer: Layer) -> bool:
    """True when the channels of the layer's input are what it multiplies: linears and 1x1 convolutions."""
    return not isinstance(layer, Convolution) or (not layer.transposed and _taps(layer) == 1)


def _has_patches(layer: Convolution) -> bool:
    known = not layer.transposed and _taps(layer) > 1 and _pads(layer.node) is not None
    return known and accumulated(layer) <= _MOST_INPUTS


def _taps(layer: Convolution) -> int:
    shape = layer.weight.shape
    return 0 if shape is None else math.prod(shape.numpy()[2:])


def _pads(convolution: ir.Node) -> list[int] | None:
    """Padding in the order of the attribute `pads`; None where it depends on a size that is not known.

    Written out, because auto_pad would pad for the strides of the patches.
    """
    x, weight = convolution.inputs[0], convolution.inputs[1]
    assert x is not None
    assert weight is not None
    assert weight.shape is not None
    kernel = weight.shape.numpy()[2:]
    attributes, ones = convolution.attributes, (1,) * len(kernel)
    mode = attributes.get_string("auto_pad", "NOTSET")
    if mode not in ("SAME_UPPER", "SAME_LOWER"):
        return list(attributes.get_ints("pads", (0,) * 2 * len(kernel)) if mode == "NOTSET" else (0,) * 2 * len(kernel))
    strides, dilations = attributes.get_ints("strides", ones), attributes.get_ints("dilations", ones)
    totals = []
    for axis, (taps, stride, dilation) in enumerate(zip(kernel, strides, dilations, strict=True)):
        size = 1 if stride == 1 else x.shape[2 + axis] if x.shape is not None else None  # Any size, without a stride.
        if not isinstance(size, int):
            return None
        totals.append(max(0, (-(-size // stride) - 1) * stride + dilation * (taps - 1) + 1 - size))
    smaller, larger = [total // 2 for total in totals], [total - total // 2 for total in totals]
    return [*smaller, *larger] if mode == "SAME_UPPER" else [*larger, *smaller]


def _patches(model: ir.Model, convolution: ir.Node) -> str:
    x, weight = convolution.inputs[0], convolution.inputs[1]
    assert x is not None
    assert weight is not None
    assert weight.shape is not None
    kernel = weight.shape.numpy()[2:]
    taps = math.prod(kernel)
    channels = weight.shape.numpy()[1] * convolution.attributes.get_int("group", 1)
    one_hot = np.tile(np.eye(taps, dtype=np.float32), (channels, 1)).reshape(channels * taps, 1, *kernel)
    name = f"{convolution.outputs[0].name}.patches"
    kernels = register_initializer(model.graph, ir.tensor(one_hot, name=f"{name}.kernels"))
    strides = [_THINNING * step for step in convolution.attributes.get_ints("strides", (1,) * len(kernel))]
    pads = _pads(convolution)
    assert pads is not None
    kept = [attribute for key, attribute in convolution.attributes.items() if key in ("dilations", "kernel_shape")]
    attributes = [
        *kept,
        ir.AttrInt64s("pads", pads),
        ir.AttrInt64s("strides", strides),
        ir.AttrInt64("group", channels),
    ]
    node = ir.Node("", "Conv", [x, kernels], attributes, name=name)
    node.outputs[0].name, node.outputs[0].type = name, ir.TensorType(ir.DataType.FLOAT)
    # Names of their own: values whose positions are named alike are taken to have the same positions.
    node.outputs[0].shape = ir.Shape([f"{name}.batch", channels * taps, *(f"{name}.{i}" for i in range(len(kernel)))])
    model.graph.insert_before(convolution, node)
    return name


def as_matrices(weight: Array, layer: Layer) -> Array:
    """Return the weight as [groups, inputs, outputs]; not for ConvTranspose."""
    if not isinstance(layer, Convolution):
        return weight[None]
    groups = layer.node.attributes.get_int("group", 1)
    parts: Array = weight.reshape(groups, weight.shape[0] // groups, -1).transpose(0, 2, 1)
    return parts


def from_matrices(parts: Array, layer: Layer, shape: Sequence[int]) -> Array:
    """Return matrices [groups, inputs, outputs] in the shape of the layer's weight: the inverse of `as_matrices`."""
    whole = parts.transpose(0, 2, 1) if isinstance(layer, Convolution) else parts
    return np.ascontiguousarray(whole).reshape(tuple(shape))


def grouped_rows(rows: Array, layer: Layer) -> Array:
    """Return rows [rows, groups * inputs] of the statistics as [groups, rows, inputs]."""
    groups = layer.node.attributes.get_int("group", 1) if isinstance(layer, Convolution) else 1
    parts: Array = rows.reshape(len(rows), groups, -1).transpose(1, 0, 2)
    return parts
