"""ONNX IR -> torch.fx: each node becomes a call of the function that the table has for it, in graph order."""

from __future__ import annotations

import keyword

import onnx_ir as ir
import torch
from onnx_ir.passes import common

import qcompile.backends.fx.host_operators
import qcompile.backends.fx.operators  # noqa: F401 - fills the table
from qcompile.backends.fx.scope import OnDevice, Scope
from qcompile.graph import numbered


def lower(model: ir.Model) -> torch.fx.GraphModule:
    """The module of torch that computes what the model does.

    Its parameters are the inputs of the model in their order, named like them where the name is one of Python's; it
    returns a dict from each output's name to its tensor (a list of tensors for a sequence). `meta` of it has
    the `input_names` and `output_names` in ONNX. Initializers are buffers, so that they move and are saved with the
    module; an input that has a default value in the model is a constant, not an input. What follows from shapes alone
    is computed in Python, with symbolic sizes under torch.export and torch.compile.

    A cache that is an input, and that a TensorScatter alone reads, is written in place. If and Loop run in Python, and
    are torch's cond and while_loop where the module is compiled or exported; Scan and recurrent operators are unrolled.

    Does not change the model. Integers of 16 to 64 bits without sign are computed in int64: exact below 2**63.

    Raises:
        UnsupportedOperator: an operator, one of its attributes or one of its types is none of torch's.
    """
    copy = model.clone()
    common.ShapeInferencePass(strict_mode=False)(copy)
    scope = Scope(copy, copy.graph.opset_imports)
    given = [value for value in copy.graph.inputs if value.name not in copy.graph.initializers]
    taken: set[str] = set()
    for value in given:
        name = next(name for name in numbered(_identifier(str(value.name))) if name not in taken)
        taken.add(name)
        scope.give(value, OnDevice(scope.graph.placeholder(name)))
    scope.nodes(copy.graph)
    scope.graph.output({str(value.name): scope.tensor(value) for value in copy.graph.outputs})
    module = scope.module()
    module.meta["input_names"] = tuple(str(value.name) for value in given)
    module.meta["output_names"] = tuple(str(value.name) for value in copy.graph.outputs)
    return module


def _identifier(name: str) -> str:
    """The name with every character that Python does not take in one replaced by an underscore.

    Words of the language, and `self`, which is the module, get an underscore in front.
    """
    text = "".join(character if character.isalnum() or character == "_" else "_" for character in name)
    return text if text.isidentifier() and not keyword.iskeyword(text) and text != "self" else f"_{text}"
