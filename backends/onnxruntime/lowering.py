"""The rewrites from the portable quantized graph to what ONNX Runtime's CPU kernels run fastest, in their order."""

from __future__ import annotations

import onnx_ir as ir
from onnx_ir.passes import common

from qcompile.backends import FORM, Site
from qcompile.backends.onnxruntime.attention import remove_head_transposes
from qcompile.backends.onnxruntime.attention_masks import legalize_attention_masks
from qcompile.backends.onnxruntime.biases import fit_biases
from qcompile.backends.onnxruntime.blocks import (
    block_weights,
    codebooks_when_loaded,
    dequantize_blocks_when_loaded,
    multiply_in_blocks,
)
from qcompile.backends.onnxruntime.float_convolutions import protect_float_convolutions
from qcompile.backends.onnxruntime.floats import restore_float_weights
from qcompile.backends.onnxruntime.linears import CONTRIB, fuse_integer_linears, fuse_per_token_linears
from qcompile.backends.onnxruntime.norms import keep_residual_additions, residual_additions
from qcompile.backends.onnxruntime.saturation import drop_saturated_clips
from qcompile.backends.onnxruntime.subgraph_inputs import requantize_for_subgraphs
from qcompile.backends.onnxruntime.transposed_floats import keep_transposed_floats
from qcompile.backends.onnxruntime.unread_caches import join_unread_caches
from qcompile.contract import Finding
from qcompile.rotary_caches import expand_caches
from qcompile.unsigned_activations import quantize_activations_to_uint8
from qcompile.unused_nodes import RemoveUnusedNodes

IR_VERSION = 10


def legalize(model: ir.Model) -> ir.Model:
    """Return a copy of the model that ONNX Runtime accepts and computes as it is. Weights are not copied.

    Quantized activations become uint8 here too: ONNX Runtime 1.31 rewrites int8 ones itself, after it has moved
    Q/DQ pairs behind operators of known shapes, and then refuses the mixture of types that it made. Weights in blocks
    become float: it would round what is multiplied by them.
    """
    model = _accepted(model)
    dequantize_blocks_when_loaded(model)
    quantize_activations_to_uint8(model)
    legalize_attention_masks(model)
    fit_biases(model)
    protect_float_convolutions(model)
    requantize_for_subgraphs(model)
    keep_transposed_floats(model)
    return model


def _accepted(model: ir.Model) -> ir.Model:
    model = model.clone()
    expand_caches(model)
    join_unread_caches(model)
    model.ir_version = min(model.ir_version, IR_VERSION)
    return model


def sites(model: ir.Model) -> list[Site]:
    """Return what can be written in several forms, those of one kind together."""
    return [*residual_additions(model), *block_weights(model)]


def lower(model: ir.Model) -> tuple[ir.Model, tuple[Finding, ...]]:
    """Return a copy of the portable quantized model in the form that ONNX Runtime runs fastest, and what stayed float.

    Names of inputs and outputs stay. Needs the operators of the domain com.microsoft, which every build of ONNX
    Runtime has. Activations become uint8: where the CPU has no product of two signed types, ONNX Runtime computes
    int8 x int8 without vector instructions, 845 us where uint8 x int8 takes 56 (128 x 384 x 384, AVX512-VNNI, one
    thread).
    """
    model = _accepted(model)
    common.ShapeInferencePass(check_type=False, strict_mode=False)(model)
    quantize_activations_to_uint8(model)
    fuse_integer_linears(model)
    fuse_per_token_linears(model)
    multiply_in_blocks(model)
    RemoveUnusedNodes()(model)
    findings = codebooks_when_loaded(model)
    common.InlinePass()(model)
    model.functions.clear()
    drop_saturated_clips(model)
    findings += dequantize_blocks_when_loaded(model) + restore_float_weights(model)
    remove_head_transposes(model)
    legalize_attention_masks(model)
    keep_residual_additions(model)
    fit_biases(model)
    protect_float_convolutions(model)
    requantize_for_subgraphs(model)
    keep_transposed_floats(model)
    RemoveUnusedNodes()(model)
    for node in model.graph:
        node.metadata_props.pop(FORM, None)
    model.graph.opset_imports.setdefault(CONTRIB, 1)
    common.RemoveUnusedOpsetsPass()(model)
    return model, findings
