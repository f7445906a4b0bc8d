"""The ONNX door: a path, bytes, a ModelProto or an onnx_ir.Model."""

from __future__ import annotations

import contextlib
import os
import stat
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import onnx
import onnx_ir as ir
import onnx_ir.passes.common as common_passes
from google.protobuf.message import DecodeError

from qcompile.errors import ModelError, first_line
from qcompile.frontend import external_data
from qcompile.graph import bodies
from qcompile.untrusted.limits import first_read
from qcompile.untrusted.structure import Calls, Depths, check_dense, check_expansion, check_nesting, check_structure

_INITIALIZERS_ASIDE = 4
"""First version of the format in which initializers need not be inputs."""

_SPARED_ABOVE = 1000
"""Bytes of an initializer above which onnx_ir hides its data from onnx's own functions."""

_COMPLETE = (
    "Write it into the model, with a name for each size that varies, such as: model = onnx_ir.load(path); "
    "value = model.graph.{kind}s[{index}]; value.type = onnx_ir.TensorType(onnx_ir.DataType.FLOAT); "
    'value.shape = onnx_ir.Shape(["batch", 8]); and compile that'
)

_NAME_SHOWN = 64
"""Bytes of a name that an error shows."""

_EXPORT_AGAIN = "Export or download the model again"
_PASS_A_FILE = "Pass the path of an .onnx file"

_NO_WAITING = getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0)
"""Opening a pipe without anyone at its other end would wait for ever."""

_BROKEN = (ValueError, TypeError, RuntimeError, onnx.checker.ValidationError)


def is_proto(model: Any) -> bool:
    """Whether the object is an onnx.ModelProto."""
    return isinstance(model, onnx.ModelProto)


def read_path(path: str | os.PathLike[str], *, trust: bool = False) -> ir.Model:
    """Read an .onnx file; its external data is resolved inside its own folder and mapped into memory, not copied.

    Args:
        path: a plain file.
        trust: read it without limits of memory and time.

    Raises:
        UnsafeModelError: the external data lies outside the folder, or the file is built to break its reader.
        ModelError: the file is missing, truncated, or not an ONNX model.
    """
    file, subject = Path(path), str(path)
    try:
        with open(os.open(file, os.O_RDONLY | _NO_WAITING), "rb", buffering=0) as stream:
            status = os.fstat(stream.fileno())
            if not stat.S_ISREG(status.st_mode):
                raise ModelError(subject, "is not a plain file", _PASS_A_FILE)
            if not trust:
                first_read(stream, status.st_size, subject)
                stream.seek(0)
            content = stream.read()
    except (OSError, ValueError) as error:  # a path may hold a null
        reason = f"cannot be read ({getattr(error, 'strerror', None) or error})"
        raise ModelError(subject, reason, _PASS_A_FILE) from error
    return _read(_parse(content, subject), subject, file.absolute().parent)


def read_bytes(content: bytes, *, trust: bool = False) -> ir.Model:
    """Read a serialized ModelProto that holds all of its data.

    Args:
        content: the bytes.
        trust: as for `read_path`.

    Raises:
        UnsafeModelError: as `read_path`, or the model keeps data in files: without a path there is no folder.
        ModelError: the bytes are not an ONNX model.
    """
    if not trust:
        first_read(content, len(content), "the bytes")
    return _read(_parse(content, "the bytes"), "the bytes", None)


def read_proto(model: onnx.ModelProto) -> ir.Model:
    """Read a ModelProto that holds all of its data; the caller's object stays as it is.

    Raises:
        UnsafeModelError, ModelError: as `read_bytes`.
    """
    return _read(model, model.graph.name or "the ModelProto", None)


def copy_model(model: ir.Model) -> ir.Model:
    """Copy an onnx_ir.Model; tensors, which are immutable, are shared with the caller's object.

    Raises:
        UnsafeModelError: an external tensor lies outside the folder that it names, or names none; or subgraphs and
            functions break the limits of `untrusted.structure`.
        ModelError: the model is not valid ONNX.
    """
    subject = model.graph.name or "the onnx_ir.Model"
    with _valid(subject):
        _check_size(model, subject)
        external_data.check_model(model)
        copy = model.clone()
        _hold(copy)
        _shorten_standard_domain(copy)
        _complete_outputs(copy, subject)
        _check(copy)
    return copy


def _check_size(model: ir.Model, subject: str) -> None:
    calls, depths = _calls(model.graph)
    bodies = {name: _calls(body) for name, body in model.functions.items()}
    check_expansion(calls, {name: body[0] for name, body in bodies.items()}, subject)
    check_nesting(depths, {name: body[1] for name, body in bodies.items()}, subject)


def _calls(body: ir.Graph | ir.Function) -> tuple[Calls, Depths]:
    """How often and how deep each operator or function is called; without recursion, which depth could break."""
    found: Calls = Counter()
    depths: Depths = {}
    waiting: list[tuple[ir.Graph | ir.Function, int]] = [(body, 0)]
    while waiting:
        nodes, depth = waiting.pop()
        for node in nodes:
            name = node.op_identifier()
            found[name] += 1
            depths[name] = max(depth, depths.get(name, 0))
            waiting += [(body, depth + 1) for body in bodies(node)]
    return found, depths


def _parse(content: bytes, subject: str) -> onnx.ModelProto:
    model = onnx.ModelProto()
    try:
        model.ParseFromString(content)
    except DecodeError as error:
        raise ModelError(subject, "is not an ONNX model, or is truncated", _EXPORT_AGAIN) from error
    return model


def _read(proto: onnx.ModelProto, subject: str, folder: Path | None) -> ir.Model:
    with _valid(subject):
        if not proto.HasField("graph") or not proto.graph.output:
            raise ModelError(subject, "has no graph with outputs", _EXPORT_AGAIN)
        check_structure(proto, subject)
        external_data.check_proto(proto, folder)
        check_dense(proto, subject)
        model = ir.from_proto(proto)
        if folder is not None:
            _set_folder(model, folder)
        _hold(model)
        _shorten_standard_domain(model)
        _forget_negative_sizes(model)
        if model.ir_version < _INITIALIZERS_ASIDE:
            # The format listed every initializer among the inputs; a later one means that the user may replace it.
            common_passes.RemoveInitializersFromInputsPass()(model)
            model.ir_version = _INITIALIZERS_ASIDE
        _complete_outputs(model, subject)
        _check(model)
    return model


@contextlib.contextmanager
def _valid(subject: str) -> Iterator[None]:
    """Turn what onnx and onnx_ir raise on broken models, names that are not text among it, into a ModelError."""
    try:
        yield
    except _BROKEN as error:
        raise ModelError(subject, f"is not valid ONNX ({_root_cause(error)})", _EXPORT_AGAIN) from error


def _root_cause(error: BaseException) -> str:
    """Say what was found: onnx_ir wraps it in one error for each of its functions that it was called by."""
    while error.__cause__ is not None:
        error = error.__cause__
    if isinstance(error, UnicodeDecodeError):
        return f"the name {error.object[:_NAME_SHOWN]!r} is not UTF-8"
    return first_line(error)


def _shorten_standard_domain(model: ir.Model) -> None:
    """Import the standard operators as "", the other name of "ai.onnx", which onnx_ir does not take for the same."""
    for imports in (model.opset_imports, *(function.opset_imports for function in model.functions.values())):
        if "ai.onnx" in imports:
            imports[""] = imports.pop("ai.onnx")


def _forget_negative_sizes(model: ir.Model) -> None:
    """Make sizes of -1 unknown ones: some exporters write them for axes that may change."""
    for graph in external_data.all_graphs(model):
        computed = (value for node in graph for value in node.outputs)
        for value in (*graph.inputs, *graph.outputs, *computed):
            shape = value.shape
            if shape is not None and any(isinstance(dim, int) and dim < 0 for dim in shape):
                value.shape = ir.Shape([None if isinstance(dim, int) and dim < 0 else dim for dim in shape])


def _complete_outputs(model: ir.Model, subject: str) -> None:
    """Infer the types and shapes that outputs lack: runtimes do without, the standard asks for them.

    Raises:
        ModelError: an input lacks its type or shape, or they cannot be inferred for an output.
    """
    graph = model.graph
    if not all(map(_is_complete, graph.outputs)):
        common_passes.ShapeInferencePass(check_type=False, strict_mode=False)(model)
    for kind, values in (("input", graph.inputs), ("output", graph.outputs)):
        for index, value in enumerate(values):
            if not _is_complete(value):
                lack = "type" if value.type is None else "shape"
                reason = f"is not valid ONNX ({kind} {value.name!r} has no {lack}, though runtimes may do without)"
                raise ModelError(subject, reason, _COMPLETE.format(kind=kind, index=index))


def _is_complete(value: ir.Value) -> bool:
    """Whether the value has a type, and a shape if it is a tensor."""
    return value.type is not None and (value.shape is not None or not isinstance(value.type, ir.TensorType))


def _set_folder(model: ir.Model, folder: Path) -> None:
    """Tell every external tensor the folder that it was checked in, those in the bodies of functions included."""
    for graph in (model.graph, *(function.graph for function in model.functions.values())):
        ir.external_data.set_base_dir(graph, folder)
    for function in model.functions.values():
        for attribute in function.attributes.values():
            if attribute.type == ir.AttributeType.TENSOR and isinstance(attribute.value, ir.ExternalTensor):
                attribute.value.base_dir = folder


def _hold(model: ir.Model) -> None:
    """Turn external tensors into ones in memory, all but the large initializers of the main graph.

    onnx's checker and shape inference see a model without files. onnx_ir spares them the initializers of more than
    1,000 bytes in the main graph; the others have to come along. The arrays stay mapped from their files.
    """
    for graph in external_data.all_graphs(model):
        for value in graph.initializers.values():
            tensor = value.const_value
            if isinstance(tensor, ir.ExternalTensor) and (graph is not model.graph or tensor.nbytes <= _SPARED_ABOVE):
                value.const_value = _in_memory(tensor)
    nodes = (node for graph in external_data.all_graphs(model) for node in graph)
    owners: list[ir.Node | ir.Function] = [*nodes, *model.functions.values()]
    for owner in owners:
        for name, attribute in list(owner.attributes.items()):
            if attribute.type == ir.AttributeType.TENSOR and isinstance(attribute.value, ir.ExternalTensor):
                owner.attributes[name] = ir.AttrTensor(name, _in_memory(attribute.value))


def _in_memory(tensor: ir.ExternalTensor) -> ir.TensorProtocol:
    return ir.Tensor(tensor.numpy(), dtype=tensor.dtype, name=tensor.name)


def _check(model: ir.Model) -> None:
    """Check the structure against the ONNX standard; operators of other domains are the runtime's to judge."""
    common_passes.CheckerPass()(model)
