"""What the compiled model really computes in integers, read back from OpenVINO."""

from __future__ import annotations

import dataclasses
import functools
import itertools
from typing import TYPE_CHECKING

import numpy as np
import onnx_ir as ir

from qcompile import block_weights, graph
from qcompile.backends.openvino.quantized import quantized_weight
from qcompile.backends.openvino.runtime import core, openvino, opset, runtime_errors
from qcompile.backends.openvino.session import DEVICE, GROUP_SIZE
from qcompile.contract import Finding

if TYPE_CHECKING:
    import openvino as ov

KERNELS = ("FullyConnected", "MatMul", "Convolution", "Deconvolution")
LAYOUTS = ("Transpose", "Reshape", "Reorder", "Convert")
BYTE_TYPES = ("i8", "u8")
COMPRESSED_TYPES = ("i8", "u8", "i4", "u4", "u2")
NO_KERNEL = "OpenVINO chose no integer kernel for it"
VALUES_IN_FLOAT = "only query times key runs in integers: OpenVINO multiplies the probabilities with the value in float"


@dataclasses.dataclass(frozen=True)
class Kernel:
    """A linear or a convolution in the compiled model.

    Attributes:
        names: of the nodes that OpenVINO merged to it, and of the constants that it reads as weight. OpenVINO names
            what it computes last after the output of the model.
        integer: computed in 8 bits: either both operands enter it in 8 bits, or the weight does and the kernel
            quantizes the activations itself, at run time.
    """

    names: tuple[str, ...]
    integer: bool


def kernels(compiled: ov.CompiledModel) -> list[Kernel]:
    """Read the linears and convolutions of the compiled model, in its order.

    Subgraphs are not among them: a product of two activations that OpenVINO compiled with its neighbours.
    """
    group_size = int(compiled.get_property(GROUP_SIZE))
    found = []
    for node in compiled.get_runtime_model().get_ordered_ops():
        if _layer_type(node) not in KERNELS or node.get_input_size() < 2:
            continue
        activation, weight = (node.input(index).get_element_type().to_string() for index in (0, 1))
        if activation in BYTE_TYPES:
            integer = weight in BYTE_TYPES
        else:
            in_features = node.input(1).get_partial_shape()[-1]
            known = weight in COMPRESSED_TYPES and in_features.is_static
            integer = known and quantizes_at_run_time(in_features.get_length(), group_size)
        found.append(Kernel((*_merged(node), *_constants(node.input_value(1))), integer))
    return found


def _float_quantizers(compiled: ov.CompiledModel) -> frozenset[str]:
    """Names of the quantizers whose result OpenVINO stores in float: nothing that reads it computes in integers."""
    nodes = compiled.get_runtime_model().get_ordered_ops()
    rounding = [node for node in nodes if _layer_type(node) == "FakeQuantize"]
    stored = [node for node in rounding if node.output(0).get_element_type().to_string() not in BYTE_TYPES]
    return frozenset(name for node in stored for name in _merged(node))


def _layer_type(node: ov.Node) -> str:
    return str(node.get_rt_info()["layerType"].astype(str))


def _merged(node: ov.Node) -> tuple[str, ...]:
    """Names of the nodes that became one: "linear", or what the plugin made of it: "linear/DequantizationMultiply"."""
    names = node.get_rt_info()["originalLayersNames"].astype(str).split(",")
    return tuple(name.split("/Dequantization")[0] for name in names)


def _constants(output: ov.Output) -> tuple[str, ...]:
    """Name of the constant behind operators that only lay it out anew; nothing for an activation."""
    node = output.get_node()
    while _layer_type(node) in LAYOUTS:
        node = node.input_value(0).get_node()
    return (node.get_friendly_name(),) if _layer_type(node) == "Const" else ()


def integer_kernels(compiled: ov.CompiledModel) -> list[tuple[str, ...]]:
    """Linears and convolutions that OpenVINO computes in 8 bits, each as the names of the nodes that it merged."""
    return [kernel.names for kernel in kernels(compiled) if kernel.integer]


def integer_layers(compiled: ov.CompiledModel) -> frozenset[str]:
    """Names of all nodes that are part of an integer linear or convolution: the product, its bias, its activation."""
    return frozenset(itertools.chain.from_iterable(integer_kernels(compiled)))


@functools.cache
def quantizes_at_run_time(in_features: int, group_size: int) -> bool:
    """True when OpenVINO on this CPU quantizes the activations of an 8-bit linear of this width in such groups.

    It cannot be read from a compiled model, so it is tried: a linear of 16 outputs is run with and without, and the
    results differ only when the activations were quantized. Where oneDNN is told to do without what the CPU has,
    OpenVINO asks it for a kernel that it then lacks: False.
    """
    random = np.random.default_rng(0)
    factory = opset()
    x = factory.parameter([1, in_features], np.float32)
    weight = factory.constant(random.integers(-127, 128, (16, in_features)).astype(np.int8))
    scale = factory.constant(np.full((16, 1), 1 / 127, np.float32))
    product = factory.matmul(x, factory.multiply(factory.convert(weight, "f32"), scale), False, True)
    model = openvino().Model([product], [x])
    feed = random.standard_normal((1, in_features)).astype(np.float32)
    results = []
    for size in (group_size, 0):
        properties = {"INFERENCE_PRECISION_HINT": "f32", GROUP_SIZE: str(size)}
        try:
            results.append(core().compile_model(model, DEVICE, properties)([feed])[0])
        except runtime_errors():
            return False
    return not np.allclose(results[0], results[1], rtol=1e-5, atol=1e-5 * float(np.abs(results[1]).max()))


def kept_in_float(model: ir.Model, compiled: ov.CompiledModel, group_size: int) -> tuple[Finding, ...]:
    """Findings for the layers that the portable graph quantizes and the compiled model computes in float.

    A layer that is found under none of its names may have been merged with its neighbours; nothing is said of it.
    Of attention, the product with the value is float in every case, as the probabilities are not quantized.
    """
    found, float_quantizers = kernels(compiled), _float_quantizers(compiled)
    findings = []
    for node in model.graph:
        if _quantized_attention(node):
            quantizers = [_quantizer(value) for value in node.inputs[:2]]
            if float_quantizers.isdisjoint(each.name for each in quantizers if each is not None):
                findings.append(Finding(graph.layer_name(node), "quantized", VALUES_IN_FLOAT))
            else:
                findings.append(Finding(graph.layer_name(node), "kept", NO_KERNEL))
            continue
        names = _names(node)
        matching = [kernel.integer for kernel in found if not names.isdisjoint(kernel.names)]
        if not matching or any(matching):
            continue
        if _statically_quantized(node):
            findings.append(Finding(graph.layer_name(node), "kept", NO_KERNEL))
        elif group_size and _has_integer_weight(node):
            reason = f"OpenVINO on this CPU does not quantize its activations in groups of {group_size} at run time"
            findings.append(Finding(graph.layer_name(node), "kept", reason))
    return tuple(findings)


def _has_integer_weight(node: ir.Node) -> bool:
    """True for a linear whose weight is stored in integers."""
    if not graph.is_standard(node, "MatMul"):
        return False
    return quantized_weight(node) is not None or block_weights.of_value(node.inputs[1]) is not None


def _names(node: ir.Node) -> frozenset[str]:
    """Under which names the compiled model may hold a layer: its own, those of its bias, and of its weight."""
    nodes = [node]
    add = graph.sole_reader(node.outputs[0]) if len(node.outputs) == 1 else None
    if add is not None and graph.is_standard(add, "Add") and any(graph.constant(value) for value in add.inputs):
        nodes.append(add)
    names = [each.name for each in nodes] + [value.name for each in nodes for value in each.outputs]
    dequantize = node.inputs[1].producer() if len(node.inputs) > 1 and node.inputs[1] is not None else None
    weight = dequantize.inputs[0] if graph.is_standard(dequantize, "DequantizeLinear") and dequantize else None
    if weight is not None and graph.constant(weight) is not None:
        names.append(weight.name)
    return frozenset(name for name in names if name)


def _quantized_attention(node: ir.Node) -> bool:
    """True for Attention whose query and key were quantized by static scales."""
    return graph.is_standard(node, "Attention") and all(map(_quantizer, node.inputs[:2]))


def _statically_quantized(node: ir.Node) -> bool:
    """True for MatMul, Conv and ConvTranspose of two dequantized values, the first quantized in the graph."""
    if not graph.is_standard(node, "MatMul", "Conv", "ConvTranspose") or _quantizer(node.inputs[0]) is None:
        return False
    weight = node.inputs[1]
    return weight is not None and graph.is_standard(weight.producer(), "DequantizeLinear")


def _quantizer(value: ir.Value | None) -> ir.Node | None:
    """The QuantizeLinear of a value that is dequantized from one; None for others."""
    dequantize = value.producer() if value is not None else None
    if dequantize is None or not graph.is_standard(dequantize, "DequantizeLinear"):
        return None
    quantize = dequantize.inputs[0].producer() if dequantize.inputs[0] is not None else None
    return quantize if graph.is_standard(quantize, "QuantizeLinear") else None
