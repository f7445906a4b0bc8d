"""The ONNX door: a path, bytes, a ModelProto or an onnx_ir.Model."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import onnx
import onnx_ir as ir
import onnx_ir.passes.common as common_passes
from google.protobuf.message import DecodeError

from qcompile.errors import ModelError
from qcompile.frontend import external_data

_INITIALIZERS_ASIDE = 4
"""First version of the format in which initializers need not be inputs."""

_SPARED_ABOVE = 1000
"""Bytes of an initializer above which onnx_ir hides its data from onnx's own functions."""

_COMPLETE = (
    "Write it into the model, with a name for each size that varies, such as: model = onnx_ir.load(path); "
    "value = model.graph.{kind}s[{index}]; value.type = onnx_ir.TensorType(onnx_ir.DataType.FLOAT); "
    'value.shape = onnx_ir.Shape(["batch", 8]); and compile that'
)

_EXPORT_AGAIN = "Export or download the model again"


def is_proto(model: Any) -> bool:
    """Whether the object is an onnx.ModelProto."""
    return isinstance(model, onnx.ModelProto)


def read_path(path: str | os.PathLike[str]) -> ir.Model:
    """Read an .onnx file; its external data is resolved inside its own folder and mapped into memory, not copied.

    Raises:
        UnsafeModelError: the external data lies outside the folder.
        ModelError: the file is missing, truncated, or not an ONNX model.
    """
    file = Path(path)
    try:
        content = file.read_bytes()
    except OSError as error:
        raise ModelError(str(path), f"cannot be read ({error.strerror})", "Pass the path of an .onnx file") from error
    return _read(_parse(content, str(path)), str(path), file.absolute().parent)


def read_bytes(content: bytes) -> ir.Model:
    """Read a serialized ModelProto that holds all of its data.

    Raises:
        UnsafeModelError: the model keeps data in files: without a path there is no folder to look in.
        ModelError: the bytes are not an ONNX model.
    """
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
        UnsafeModelError: an external tensor lies outside the folder that it names, or names none.
        ModelError: the model is not valid ONNX.
    """
    external_data.check_model(model)
    copy = model.clone()
    _hold(copy)
    _shorten_standard_domain(copy)
    subject = model.graph.name or "the onnx_ir.Model"
    _complete_outputs(copy, subject)
    _check(copy, subject)
    return copy


def _parse(content: bytes, subject: str) -> onnx.ModelProto:
    model = onnx.ModelProto()
    try:
        model.ParseFromString(content)
    except DecodeError as error:
        raise ModelError(subject, "is not an ONNX model, or is truncated", _EXPORT_AGAIN) from error
    return model


def _read(proto: onnx.ModelProto, subject: str, folder: Path | None) -> ir.Model:
    if not proto.HasField("graph") or not proto.graph.output:
        raise ModelError(subject, "has no graph with outputs", _EXPORT_AGAIN)
    external_data.check_proto(proto, folder)
    try:
        model = ir.from_proto(proto)
    except (ValueError, TypeError, ir.serde.SerdeError) as error:
        raise ModelError(subject, f"is not valid ONNX ({_first_line(error)})", _EXPORT_AGAIN) from error
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
    _check(model, subject)
    return model


def _shorten_standard_domain(model: ir.Model) -> None:
    """Import the standard operators as "", the other name of "ai.onnx", which onnx_ir does not take for the same."""
    for imports in (model.opset_imports, *(function.opset_imports for function in model.functions.values())):
        if "ai.onnx" in imports:
            imports[""] = imports.pop("ai.onnx")


def _forget_negative_sizes(model: ir.Model) -> None:
    """Make sizes of -1 unknown ones: some exporters write them for axes that may change."""
    for graph in model.graphs():
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


def _hold(model: ir.Model) -> None:
    """Turn external tensors into ones in memory, all but the large initializers of the main graph.

    onnx's checker and shape inference see a model without files. onnx_ir spares them the initializers of more than
    1,000 bytes in the main graph; the others have to come along. The arrays stay mapped from their files.
    """
    for graph in model.graphs():
        for value in graph.initializers.values():
            tensor = value.const_value
            if isinstance(tensor, ir.ExternalTensor) and (graph is not model.graph or tensor.nbytes <= _SPARED_ABOVE):
                value.const_value = _in_memory(tensor)
    for nodes in (model.graph.all_nodes(), *(function.all_nodes() for function in model.functions.values())):
        for node in nodes:
            for name, attribute in list(node.attributes.items()):
                if attribute.type == ir.AttributeType.TENSOR and isinstance(attribute.value, ir.ExternalTensor):
                    node.attributes[name] = ir.AttrTensor(name, _in_memory(attribute.value))


def _in_memory(tensor: ir.ExternalTensor) -> ir.TensorProtocol:
    return ir.Tensor(tensor.numpy(), dtype=tensor.dtype, name=tensor.name)


def _check(model: ir.Model, subject: str) -> None:
    """Check the structure against the ONNX standard; operators of other domains are the runtime's to judge."""
    try:
        common_passes.CheckerPass()(model)
    except onnx.checker.ValidationError as error:
        raise ModelError(subject, f"is not valid ONNX ({_first_line(error)})", _EXPORT_AGAIN) from error


def _first_line(error: BaseException) -> str:
    return next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__).rstrip(".")
