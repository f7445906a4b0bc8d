"""What the compiled model really computes in integers, read back from OpenVINO."""

from __future__ import annotations

import functools
import itertools
from typing import TYPE_CHECKING

import numpy as np
import onnx_ir as ir

from qcompile import graph
from qcompile.backends.openvino.quantized import quantized_weight
from qcompile.backends.openvino.runtime import core, openvino, opset
from qcompile.backends.openvino.session import DEVICE, GROUP_SIZE
from qcompile.contract import Finding

if TYPE_CHECKING:
    import openvino as ov

KERNELS = ("FullyConnected", "MatMul", "Convolution", "Deconvolution")
BYTE_TYPES = ("i8", "u8")


def integer_kernels(compiled: ov.CompiledModel) -> list[tuple[str, ...]]:
    """Linears and convolutions that OpenVINO computes in 8 bits, each as the names of the nodes that it merged.

    Either both operands enter the kernel in 8 bits, or the weight does and the kernel quantizes the activations
    itself, at run time.
    """
    group_size = int(compiled.get_property(GROUP_SIZE))
    kernels = []
    for node in compiled.get_runtime_model().get_ordered_ops():
        info = node.get_rt_info()
        if info["layerType"].astype(str) not in KERNELS or node.get_input_size() < 2:
            continue
        activation, weight = (node.input(index).get_element_type().to_string() for index in (0, 1))
        if activation in BYTE_TYPES:
            integer = weight in BYTE_TYPES
        else:
            in_features = node.input(1).get_partial_shape()[-1]
            integer = weight == "i8" and quantizes_at_run_time(in_features.get_length(), group_size)
        if integer:
            # "linear", or what the plugin made of it: "linear/DequantizationMultiply".
            names = info["originalLayersNames"].astype(str).split(",")
            kernels.append(tuple(name.split("/Dequantization")[0] for name in names))
    return kernels


def integer_layers(compiled: ov.CompiledModel) -> frozenset[str]:
    """Names of all nodes that are part of an integer linear or convolution: the product, its bias, its activation."""
    return frozenset(itertools.chain.from_iterable(integer_kernels(compiled)))


@functools.cache
def quantizes_at_run_time(in_features: int, group_size: int) -> bool:
    """True when OpenVINO on this CPU quantizes the activations of an 8-bit linear of this width in such groups.

    It cannot be read from a compiled model, so it is tried: a linear of 16 outputs is run with and without, and the
    results differ only when the activations were quantized.
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
        results.append(core().compile_model(model, DEVICE, properties)([feed])[0])
    return not np.allclose(results[0], results[1], rtol=1e-5, atol=1e-5 * float(np.abs(results[1]).max()))


def kept_in_float(model: ir.Model, compiled: ov.CompiledModel, group_size: int) -> tuple[Finding, ...]:
    """Findings for the layers that the portable graph quantizes and the compiled model computes in float."""
    integers = integer_layers(compiled)
    findings = []
    for node in model.graph:
        add = graph.sole_reader(node.outputs[0]) if len(node.outputs) == 1 else None
        if node.name in integers or (add is not None and add.name in integers):
            continue
        if _statically_quantized(node):
            findings.append(Finding(graph.layer_name(node), "kept", "OpenVINO chose no integer kernel for it"))
        elif group_size and quantized_weight(node) is not None:
            reason = f"OpenVINO on this CPU does not quantize its activations in groups of {group_size} at run time"
            findings.append(Finding(graph.layer_name(node), "kept", reason))
    return tuple(findings)


def _statically_quantized(node: ir.Node) -> bool:
    """True for MatMul, Conv and ConvTranspose of two dequantized values, the first quantized in the graph."""
    if not graph.is_standard(node, "MatMul", "Conv", "ConvTranspose"):
        return False
    producers = [value.producer() for value in node.inputs[:2] if value is not None]
    if not all(graph.is_standard(producer, "DequantizeLinear") for producer in producers):
        return False
    quantized = producers[0].inputs[0] if producers[0] is not None else None
    return quantized is not None and graph.is_standard(quantized.producer(), "QuantizeLinear")
