"""What users of torch pass for a module that torch cannot export, and why: torch's own words blame the example."""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Mapping
from typing import Any

import torch
import torch.utils._pytree as pytree

from qcompile.errors import ModelError


def refuse(model: Any) -> None:
    """Raise ModelError for what is no module that torch can export; others, and what is not of torch, pass.

    Does not look into an ExportedProgram, nor for scripted parts of a module.
    """
    if inspect.isclass(model) and issubclass(model, torch.nn.Module):
        raise ModelError(
            model.__name__, "is a class, not a module", f"Pass an instance: a module that {model.__name__}(...) returns"
        )
    if isinstance(model, Mapping):
        if model and any(isinstance(value, torch.Tensor) for value in model.values()):
            reason = "holds tensors by name, such as a state_dict: weights without the module that uses them"
            raise ModelError(
                type(model).__name__, reason, "Load it into the module, module.load_state_dict(...), and pass that"
            )
    elif isinstance(model, torch.nn.Module):
        _refuse_module(model, type(model).__name__)


def _refuse_module(model: torch.nn.Module, subject: str) -> None:
    if isinstance(model, torch.jit.ScriptModule):
        mend = "Pass the module that it was scripted or traced from, or export it to an .onnx file and pass that"
        raise ModelError(subject, "is a module of TorchScript, which torch cannot export", mend)
    for name, value in _state(model):
        if isinstance(value, torch.ScriptObject) or (isinstance(value, torch.Tensor) and value.is_quantized):
            reason = f"was quantized by torch ({name} is), in a form that torch cannot export"
            raise ModelError(subject, reason, "Pass the float module: qcompile quantizes it")
        if isinstance(value, torch.Tensor) and value.is_meta:
            reason = f"{name} is on the device meta: it has a shape, and no numbers"
            mend = 'Load the weights: module.to_empty(device="cpu"), then module.load_state_dict(...)'
            raise ModelError(subject, reason, mend)


def _state(model: torch.nn.Module) -> Iterator[tuple[str, Any]]:
    """Parameters, buffers and packed weights, of every part; those that are not stored too."""
    yield from model.named_parameters()
    yield from model.named_buffers()
    for name, value in model.state_dict().items():
        yield from ((name, leaf) for leaf in pytree.tree_leaves(value))
