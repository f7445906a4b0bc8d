"""The way from the portable quantized graph to the files of OpenVINO, step by step."""

from __future__ import annotations

import errno
from pathlib import Path
from typing import Any

import onnx_ir as ir
from onnx_ir.passes import common

from qcompile.backends.openvino.activations import quantize_at_run_time
from qcompile.backends.openvino.attention import decompose_attention
from qcompile.backends.openvino.compression import compress_weights
from qcompile.backends.openvino.concatenations import quantize_concatenations_to_uint8
from qcompile.backends.openvino.conversion import converted
from qcompile.backends.openvino.decompression import expanded_when_loaded
from qcompile.backends.openvino.minimums import lower_minimums
from qcompile.backends.openvino.per_tensor import scale_outputs_at_run_time
from qcompile.backends.openvino.readback import kept_in_float
from qcompile.backends.openvino.residuals import split_norm_branches
from qcompile.backends.openvino.runtime import openvino
from qcompile.backends.openvino.session import GROUP_SIZE, load
from qcompile.backends.openvino.splits import separate_joined_linears
from qcompile.backends.openvino.vectors import keep_vectors_in_float
from qcompile.backends.openvino.zero_points import fold_zero_points
from qcompile.contract import Finding
from qcompile.unused_nodes import RemoveUnusedNodes

MODEL_FILE = "model.xml"
WEIGHTS_FILE = "model.bin"


def lower(model: ir.Model, folder: Path) -> tuple[Finding, ...]:
    """Write model.xml and model.bin into an existing folder; `model` is not changed.

    The files carry the group size of the activations that are quantized at run time, which plain OpenVINO honours.
    They cannot carry the precision of float operators: OpenVINO reads INFERENCE_PRECISION_HINT only from the call
    that compiles the model (measured, 2026.4).

    Returns what stayed float, and why, as read back from the compiled model.
    """
    model = model.clone()
    for node in model.graph:
        node.name = node.name or node.outputs[0].name  # as `graph.layer_name` calls it, in the report too
    common.NameFixPass()(model)
    separate_joined_linears(model)
    vectors = keep_vectors_in_float(model)
    scale_outputs_at_run_time(model)
    group_size, findings = quantize_at_run_time(model)
    findings += expanded_when_loaded(model)
    fold_zero_points(model)
    quantize_concatenations_to_uint8(model)
    RemoveUnusedNodes()(model)
    with converted(model) as result:
        decompose_attention(result)
        split_norm_branches(result)
        compress_weights(result)
        lower_minimums(result)
        result.validate_nodes_and_infer_types()
        result.set_rt_info(str(group_size), ["runtime_options", GROUP_SIZE])
        save(result, folder / MODEL_FILE)
        session = load(result, f"model {MODEL_FILE}")
    return findings + vectors + kept_in_float(model, session.compiled, group_size)


def save(model: Any, path: Path) -> None:
    """Write a model of OpenVINO to an .xml file and a .bin file of its name.

    Raises:
        OSError: there is no room or no right; OpenVINO raises a RuntimeError and does not say which.
    """
    try:
        openvino().save_model(model, path, compress_to_fp16=False)
    except RuntimeError as error:
        raise OSError(errno.EIO, f"OpenVINO could not write it: {error}", str(path)) from error
