"""The gate in front of every ONNX model: its external data lies inside its own folder, or it is refused.

Runtimes follow what a model says: ONNX Runtime and OpenVINO read through symbolic and hard links, and OpenVINO takes a
location `*/_ORT_MEM_ADDR_/*` for an address in the memory of the process.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterable, Iterator
from pathlib import Path, PurePosixPath, PureWindowsPath

import onnx
import onnx_ir as ir

from qcompile.errors import ModelError, UnsafeModelError
from qcompile.untrusted.tensors import check_data, stored_bytes, tensors_of_model

_MEMORY_ADDRESS = "_ORT_MEM_ADDR_"
_COPY_AGAIN = "Copy the model again: the file is truncated or belongs to another model"
_SELF_CONTAINED = "Save the model with its data in one folder, with plain files and relative locations"


def check_proto(model: onnx.ModelProto, folder: Path | None) -> set[Path]:
    """Check every tensor of the model that keeps its data in a file, and return those files.

    Args:
        model: the model; none of its external data has been read yet.
        folder: folder of the .onnx file, or None for a model that came without a file.

    Raises:
        UnsafeModelError: a location leaves the folder, or is a link or an address.
        ModelError: a file is missing, or shorter than the tensor says.
    """
    files = set()
    for tensor in tensors_of_model(model):
        if tensor.data_location == onnx.TensorProto.EXTERNAL:
            entries = {entry.key: entry.value for entry in tensor.external_data}
            try:
                offset, length = int(entries.get("offset") or 0), int(entries.get("length") or 0)
            except ValueError as error:
                raise ModelError(
                    tensor.name or "a tensor", f"offset or length is not a number ({error})", "Export the model again"
                ) from error
            name, location = tensor.name or "a tensor", entries.get("location", "")
            files.add(check_location(name, location, offset, length, folder, asked=stored_bytes(tensor)))
    return files


def check_model(model: ir.Model) -> None:
    """Check the external tensors of a model in memory against the folder that each of them names, and others' sizes.

    Raises:
        UnsafeModelError, ModelError: as `check_proto`.
    """
    for tensor in _tensors_of_ir(model):
        if isinstance(tensor, ir.ExternalTensor):
            folder = Path(tensor.base_dir) if str(tensor.base_dir) else None
            offset, length = tensor.offset or 0, tensor.length or 0
            check_location(tensor.name, str(tensor.location), offset, length, folder, asked=tensor.nbytes)
        elif isinstance(tensor, ir.TensorProtoTensor):
            check_data(tensor.raw)


def check_location(name: str, location: str, offset: int, length: int, folder: Path | None, *, asked: int) -> Path:
    """Resolve the location of one tensor's data inside the folder of its model, and return the path.

    Args:
        name: name of the tensor, for the error.
        location: relative path as the model gives it.
        offset: first byte of the data.
        length: number of bytes; 0 where the model leaves it out, meaning up to the end of the file.
        folder: folder of the model; None refuses every location.
        asked: bytes that the dims and the type of the tensor ask for.

    Raises:
        UnsafeModelError, ModelError: as `check_proto`.
    """
    if folder is None:
        raise UnsafeModelError(
            name, f"keeps its data in the file {location!r}, but the model has no folder", "Pass the path of the .onnx"
        )
    _check_name(name, location)
    path = folder
    for part in PurePosixPath(location).parts:
        path = path / part
        _check_entry(name, location, path)
    status = path.stat()
    if not stat.S_ISREG(status.st_mode):
        raise UnsafeModelError(name, f"its data {location!r} is not a plain file", _SELF_CONTAINED)
    if status.st_nlink > 1:
        raise UnsafeModelError(name, f"its data {location!r} is a hard link", _SELF_CONTAINED)
    if offset < 0 or length < 0 or offset + length > status.st_size:
        raise ModelError(
            name,
            f"its data, {length} bytes at {offset}, is not within {location!r} of {status.st_size} bytes",
            _COPY_AGAIN,
        )
    held = length or status.st_size - offset
    if asked > held:
        reason = f"its data in {location!r}, {held} bytes at {offset}, is shorter than its dims ask for, {asked} bytes"
        raise ModelError(name, reason, _COPY_AGAIN)
    return path


def _check_name(name: str, location: str) -> None:
    """Refuse what is not a plain relative path on any system."""
    windows = PureWindowsPath(location)
    parts = windows.parts
    if _MEMORY_ADDRESS in location:
        raise UnsafeModelError(name, "its data is an address in the memory of the process", _SELF_CONTAINED)
    if not location or "\0" in location or "\\" in location:
        raise UnsafeModelError(name, f"its data {location!r} is not a relative path", _SELF_CONTAINED)
    if windows.anchor or PurePosixPath(location).is_absolute() or ".." in parts:
        raise UnsafeModelError(name, f"its data {location!r} lies outside the folder of the model", _SELF_CONTAINED)


def _check_entry(name: str, location: str, path: Path) -> None:
    """Refuse a folder or file on the way that is missing or a symbolic link."""
    try:
        status = os.lstat(path)
    except OSError as error:
        raise ModelError(
            name, f"its data {location!r} cannot be read ({error.strerror})", "Copy the model with all of its files"
        ) from error
    if stat.S_ISLNK(status.st_mode):
        raise UnsafeModelError(name, f"its data {location!r} passes a symbolic link", _SELF_CONTAINED)


def all_graphs(model: ir.Model) -> Iterator[ir.Graph]:
    """Yield the main graph, the bodies of functions and all of their subgraphs; `Model.graphs` leaves functions out.

    Graphs that are the default of a function's attribute count as its subgraphs.
    """
    yield from model.graphs()
    for function in model.functions.values():
        yield function.graph
        yield from function.subgraphs()
        for graph in _default_graphs(function):
            yield graph
            yield from graph.subgraphs()


def _default_graphs(function: ir.Function) -> Iterator[ir.Graph]:
    for attribute in function.attributes.values():
        if attribute.type == ir.AttributeType.GRAPH and attribute.value is not None:
            yield attribute.as_graph()
        elif attribute.type == ir.AttributeType.GRAPHS and attribute.value is not None:
            yield from attribute.as_graphs()


def _tensors_of_ir(model: ir.Model) -> Iterator[ir.TensorProtocol]:
    for graph in all_graphs(model):
        yield from (value.const_value for value in graph.initializers.values() if value.const_value is not None)
        for node in graph:
            yield from _tensors_of_attributes(node.attributes.values())
    for function in model.functions.values():
        yield from _tensors_of_attributes(function.attributes.values())


def _tensors_of_attributes(attributes: Iterable[ir.Attr]) -> Iterator[ir.TensorProtocol]:
    """Yield the tensors that attributes hold; the parameters of functions without a default hold none."""
    for attribute in attributes:
        if attribute.is_ref() or attribute.value is None:
            continue
        if attribute.type == ir.AttributeType.TENSOR:
            yield attribute.as_tensor()
        elif attribute.type == ir.AttributeType.TENSORS:
            yield from attribute.as_tensors()
