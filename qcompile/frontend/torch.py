"""The torch door: a module or an exported program, through torch.export and torch.onnx.export."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import onnx_ir as ir
import torch
import torch.export
import torch.onnx
import torch.utils._pytree as pytree
from torch.fx.experimental import proxy_tensor
from torch.onnx._internal.exporter._errors import ConversionError

from qcompile.errors import ModelError, raise_interrupt
from qcompile.frontend import OPSET, torch_bags, torch_recurrent
from qcompile.frontend.torch_layer_names import name_layers
from qcompile.graph import unique_name
from qcompile.quiet import quiet

_DECOMPOSED_OPSET = 18
"""The opset at which the exporter writes attention and norms as elementary operators."""

_CHECK_INPUTS = "Check that the module runs on example_inputs and that dynamic_shapes names only axes that may change"
_RETURN_TENSORS = "Let the module return tensors only; to a decoder that returns its cache pass use_cache=False"

_Selects = Callable[[torch.Tensor, int], bool]


def export(model: Any, example_inputs: Any, dynamic_shapes: Any) -> ir.Model:
    """Export a torch.nn.Module, in evaluation mode, or a torch.export.ExportedProgram.

    Without dynamic_shapes the first axis of every tensor (the batch) and the second of ids, masks and sequences are
    dynamic where the module allows it, else the first alone, else none.

    Args:
        model: the module, whose modes are restored, or the exported program.
        example_inputs: a mapping of keyword arguments, a tuple of arguments or one tensor; not for a program.
        dynamic_shapes: as torch.export takes it, or None.

    Raises:
        ModelError: example_inputs are missing, or torch cannot export the model.
    """
    if isinstance(model, torch.export.ExportedProgram):
        return _to_onnx(model, (), {}, None)
    subject = type(model).__name__
    if example_inputs is None:
        raise ModelError(subject, "a torch.nn.Module is exported by running it once", "Pass example_inputs")
    args, kwargs = _arguments(example_inputs)
    with _in_evaluation_mode(model):
        if dynamic_shapes is not None:
            return _to_onnx(model, args, kwargs, dynamic_shapes)
        return _to_onnx_with_automatic_shapes(model, args, kwargs)


@contextlib.contextmanager
def _in_evaluation_mode(model: torch.nn.Module) -> Iterator[None]:
    """Switch the module to evaluation; at the end every part of it is in its own mode again, frozen ones in theirs."""
    modes = [(part, part.training) for part in model.modules()]
    model.eval()
    try:
        yield
    finally:
        for part, training in modes:
            part.training = training


def _arguments(example_inputs: Any) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Positional and keyword arguments, with numpy arrays as tensors."""

    def tensor(leaf: Any) -> Any:
        return torch.from_numpy(leaf) if type(leaf).__module__ == "numpy" and hasattr(leaf, "dtype") else leaf

    if isinstance(example_inputs, Mapping):
        return (), {str(name): pytree.tree_map(tensor, value) for name, value in example_inputs.items()}
    args = tuple(example_inputs) if isinstance(example_inputs, (tuple, list)) else (example_inputs,)
    return tuple(pytree.tree_map(tensor, value) for value in args), {}


def _to_onnx_with_automatic_shapes(model: torch.nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> ir.Model:
    """Try batch and sequence, then the batch alone, then the shapes of the example."""
    for selects in (_batch_or_sequence, _batch):
        wide = _without_ones((args, kwargs), selects)
        shapes = pytree.tree_map(lambda leaf, selects=selects: _automatic(leaf, selects), wide)
        with contextlib.suppress(ModelError):
            return _to_onnx(model, wide[0], wide[1], shapes[1] if kwargs else shapes[0])
    return _to_onnx(model, args, kwargs, None)


def _batch(_: torch.Tensor, axis: int) -> bool:
    return axis == 0


def _batch_or_sequence(tensor: torch.Tensor, axis: int) -> bool:
    """The first axis; the second of ids and masks [batch, sequence] and of features [batch, sequence, channels]."""
    is_ids = tensor.ndim == 2 and not tensor.is_floating_point()
    return axis == 0 or (axis == 1 and (is_ids or tensor.ndim == 3))


def _automatic(leaf: Any, selects: _Selects) -> Any:
    if not isinstance(leaf, torch.Tensor):
        return None
    return {axis: torch.export.Dim.AUTO for axis, size in enumerate(leaf.shape) if size != 1 and selects(leaf, axis)}


def _without_ones(arguments: Any, selects: _Selects) -> Any:
    """Repeat the example along the axes to be dynamic where all tensors have size 1 there.

    torch.export takes an axis of size 1 for a constant. Where only some tensors have size 1, they broadcast, and stay.
    """
    tensors = [leaf for leaf in pytree.tree_leaves(arguments) if isinstance(leaf, torch.Tensor)]
    sizes = {axis: {t.shape[axis] for t in tensors if t.ndim > axis and selects(t, axis)} for axis in (0, 1)}

    def repeat(leaf: Any) -> Any:
        if not isinstance(leaf, torch.Tensor):
            return leaf
        repeats = [2 if axis < 2 and selects(leaf, axis) and sizes[axis] == {1} else 1 for axis in range(leaf.ndim)]
        return leaf.repeat(repeats) if 2 in repeats else leaf

    return pytree.tree_map(repeat, arguments)


def _to_onnx(model: Any, args: tuple[Any, ...], kwargs: dict[str, Any], shapes: Any) -> ir.Model:
    try:
        try:
            return _at_opset(OPSET, model, args, kwargs, shapes)
        except ConversionError:
            # torch 2.13 cannot write attention whose key heads broadcast as the Attention of opset 23.
            return _at_opset(_DECOMPOSED_OPSET, model, args, kwargs, shapes)
    except torch.onnx.errors.OnnxExporterError as error:
        raise_interrupt(error)
        reason = reason_of(error)
        mend = _RETURN_TENSORS if "pytree" in reason else _CHECK_INPUTS
        raise ModelError(type(model).__name__, f"torch cannot export it ({reason})", mend) from error


def _at_opset(opset: int, model: Any, args: tuple[Any, ...], kwargs: dict[str, Any], shapes: Any) -> ir.Model:
    with quiet(), torch.no_grad():
        program = torch.onnx.export(
            model,
            args,
            kwargs=kwargs,
            dynamo=True,
            opset_version=opset,
            dynamic_shapes=shapes,
            custom_translation_table={**torch_recurrent.translations(), **torch_bags.translations()},
            verbose=False,
        )
    assert program is not None
    traced: ir.Model = program.model
    if program.exported_program is not None:
        _keep_input_names(traced, program.exported_program.graph_signature.user_inputs)
        _name_outputs(traced, program.exported_program.call_spec.out_spec)
        name_layers(traced, program.exported_program)
    forget_program(traced)
    return traced


def forget_program(traced: ir.Model) -> None:
    """Drop the node of torch's graph that each node was made from: one of them keeps the whole program in memory.

    So does a table of torch.export, which torch empties at the next export only. The weights were graph inputs before
    the exporter replaced them, and the list of inputs (onnx_ir 1.1) remembers these values: 110 MB for a decoder of 30
    layers.
    """
    getattr(proxy_tensor, "_FAKE_TENSOR_ID_TO_PROXY_MAP_FOR_EXPORT", {}).clear()
    traced.graph.meta.clear()
    for graph in (traced.graph, *(function.graph for function in traced.functions.values())):
        replaced = getattr(graph.inputs, "_ref_counter", ())
        for value in (*graph.inputs, *replaced, *graph.initializers.values()):
            value.meta.clear()
        for node in graph.all_nodes():
            node.meta.clear()
            for value in node.outputs:
                value.meta.clear()


def _keep_input_names(traced: ir.Model, given: Sequence[Any]) -> None:
    """Name inputs that the module returns unchanged as the module does; the exporter gives their name to the output."""
    graph = traced.graph
    taken = {value.name for value in graph.inputs}
    for value in graph.inputs:
        name = str(value.name).removesuffix("_orig")
        if name in given and name not in taken:
            for output in graph.outputs:
                if output.name == name:
                    output.name = unique_name(graph, f"{name}_output")
            value.name = name


def _name_outputs(traced: ir.Model, structure: Any) -> None:
    """Name the outputs as the module does where it returns a mapping, e.g. `last_hidden_state`; others keep theirs."""
    outputs = traced.graph.outputs
    if structure is None or structure.num_leaves != len(outputs):
        return
    returned = pytree.tree_unflatten(range(len(outputs)), structure)
    taken = {value.name for value in traced.graph.inputs}
    if isinstance(returned, Mapping):
        for name, index in returned.items():
            if isinstance(index, int) and name not in taken and sum(v is outputs[index] for v in outputs) == 1:
                outputs[index].name = str(name)


def reason_of(error: BaseException) -> str:
    """First line of the deepest cause: torch wraps what happened in pages of advice."""
    while error.__cause__ is not None:
        error = error.__cause__
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return f"{type(error).__name__}: {lines[0].rstrip('.')}" if lines else type(error).__name__
