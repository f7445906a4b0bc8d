"""The front doors: PyTorch modules, ONNX models, Hugging Face folders and GGUF become one `onnx_ir.Model`."""

from __future__ import annotations

import os
import sys
from collections.abc import MutableMapping
from typing import Any

import onnx_ir as ir

from qcompile.errors import ModelError
from qcompile.frontend.gguf import is_gguf_file, read_gguf
from qcompile.frontend.huggingface import is_folder, read_folder

OPSET = 23
"""The canonical opset: the first with Attention, RMSNormalization and RotaryEmbedding."""

PASSED_OVER = "qcompile.passed_over"
"""Entry of the `meta` of a model that was read: names of weights in its files that no parameter of it takes."""


def open_model(model: Any, *, trust_input: bool = False) -> Any:
    """Return what is in a file of PyTorch, and anything else as it is.

    Raises:
        UnsafeModelError: the file is not trusted.
        ModelError: it holds no model, or what was passed is of torch and no module that can be exported.
    """
    from qcompile.frontend.torch_files import is_torch_file, read_torch_file

    opened = read_torch_file(model, trust=trust_input) if is_torch_file(model) else model
    if "torch" in sys.modules:
        from qcompile.frontend.torch_refusals import refuse

        refuse(opened)
    return opened


def trace(model: Any, *, example_inputs: Any = None, dynamic_shapes: Any = None, trust_input: bool = False) -> ir.Model:
    """Read a model through the door that fits it; the caller's object is never modified.

    Does not bring the model to canonical form: that is the work of `qcompile.passes`.

    Args:
        model: torch.nn.Module, torch.export.ExportedProgram, path of an .onnx file, its bytes, onnx.ModelProto,
            onnx_ir.Model, or path of a Hugging Face folder, a .gguf, .pt, .pth or .pt2 file.
        example_inputs: for a torch.nn.Module: a dict of keyword arguments, a tuple of arguments or one tensor.
        dynamic_shapes: for a torch.nn.Module: as torch.export takes it. None makes the batch and the sequence
            dynamic where the module allows it.
        trust_input: the caller knows where the model comes from: files of PyTorch, which are programs, are read, and
            ONNX is read without limits of memory and time. External data stays inside the folder all the same.

    Raises:
        UnsafeModelError: the model reaches outside its own folder, is built to break its reader, or may run code.
        ModelError: the model cannot be read or exported.
    """
    from qcompile.frontend import onnx as onnx_door

    model = open_model(model, trust_input=trust_input)
    if is_folder(model):
        traced = read_folder(model)
    elif is_gguf_file(model):
        traced = read_gguf(model)
    elif isinstance(model, (str, os.PathLike)):
        traced = onnx_door.read_path(model, trust=trust_input)
    elif isinstance(model, bytes):
        traced = onnx_door.read_bytes(model, trust=trust_input)
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
