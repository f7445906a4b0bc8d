"""The front doors: PyTorch modules, exported programs and ONNX models become one `onnx_ir.Model`."""

from __future__ import annotations

import os
import sys
from collections.abc import MutableMapping
from typing import Any

import onnx_ir as ir

from qcompile.errors import ModelError

OPSET = 23
"""The canonical opset: the first with Attention, RMSNormalization and RotaryEmbedding."""


def trace(model: Any, *, example_inputs: Any = None, dynamic_shapes: Any = None) -> ir.Model:
    """Read a model through the door that fits it; the caller's object is never modified.

    Does not bring the model to canonical form: that is the work of `qcompile.passes`.

    Args:
        model: torch.nn.Module, torch.export.ExportedProgram, path of an .onnx file, its bytes, onnx.ModelProto or
            onnx_ir.Model.
        example_inputs: for a torch.nn.Module: a dict of keyword arguments, a tuple of arguments or one tensor.
        dynamic_shapes: for a torch.nn.Module: as torch.export takes it. None makes the batch and the sequence
            dynamic where the module allows it.

    Raises:
        UnsafeModelError: the model reaches outside its own folder.
        ModelError: the model cannot be read or exported.
    """
    from qcompile.frontend import onnx as onnx_door

    if isinstance(model, (str, os.PathLike)):
        traced = onnx_door.read_path(model)
    elif isinstance(model, bytes):
        traced = onnx_door.read_bytes(model)
    elif isinstance(model, ir.Model):
        traced = onnx_door.copy_model(model)
    elif onnx_door.is_proto(model):
        traced = onnx_door.read_proto(model)
    elif _is_torch(model):
        from qcompile.frontend.torch import export

        traced = export(model, example_inputs, dynamic_shapes)
    else:
        raise ModelError(
            type(model).__name__,
            "is not a model that qcompile can read",
            "Pass a torch.nn.Module, a torch.export.ExportedProgram, an .onnx path, its bytes, an onnx.ModelProto or "
            "an onnx_ir.Model",
        )
    _forget_stack_traces(traced)
    return traced


def _is_torch(model: Any) -> bool:
    """Whether the object is a module or an exported program, without importing torch for anyone who has not."""
    if "torch" not in sys.modules:
        return False
    import torch

    return isinstance(model, (torch.nn.Module, torch.export.ExportedProgram))


def _forget_stack_traces(model: ir.Model) -> None:
    """Drop the stack traces of torch's exporter: they hold the paths of the machine that exported the model."""

    def forget(metadata: MutableMapping[str, str]) -> None:
        metadata.pop("pkg.torch.onnx.stack_trace", None)

    for graph in model.graphs():
        forget(graph.metadata_props)
        for node in graph:
            forget(node.metadata_props)
            for value in node.outputs:
                forget(value.metadata_props)
    for function in model.functions.values():
        for node in function.all_nodes():
            forget(node.metadata_props)
