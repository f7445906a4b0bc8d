"""The process in which a model is read for the first time: see `qcompile.untrusted.limits`.

Reads the model from standard input; prints nothing when it could be read, else the error as JSON. Exits with 1, as
Python does, when it fails before it reads, and with `READING_FAILED` when an exception that nobody foresaw ends it.
"""

from __future__ import annotations

import contextlib
import json
import os
import sys

import onnx
import onnx.checker
import onnx.helper
import onnx.shape_inference
from google.protobuf.message import DecodeError

from qcompile.errors import ModelError, QCompileError
from qcompile.untrusted.limits import READING_FAILED
from qcompile.untrusted.structure import check_structure
from qcompile.untrusted.tensors import stored_bytes, tensors_of_model

_WEIGHT = 1000
"""Bytes of an initializer above which only its shape is given to onnx's functions."""

_EXPORT_AGAIN = "Export or download the model again"

_REFUSALS = (
    onnx.checker.ValidationError,
    onnx.shape_inference.InferenceError,
    RuntimeError,
    TypeError,
    ValueError,
)
"""What onnx raises on models that it does not like."""

_MOST_ZEROS = 2**20
"""Bytes that are put in the place of data in files."""


def main(subject: str, memory: int, seconds: int) -> int:
    """Read the model from standard input under limits, and say what is wrong with it."""
    scarce = _limit(memory, seconds)
    sys.excepthook = _fail
    try:
        read(sys.stdin.buffer.read(), subject)
    except QCompileError as error:
        kind = type(error).__name__
        print(json.dumps({"type": kind, "subject": error.subject, "reason": error.reason, "mend": error.mend}))
    except MemoryError:
        print(json.dumps({"type": "MemoryError", "scarce": scarce}))
    return 0


def _fail(*_error: object) -> None:
    """End with another exit code than Python's 1, which stays for what is not the model's doing: a failed import."""
    os._exit(READING_FAILED)


def read(content: bytes, subject: str) -> None:
    """Parse a model, check its structure and run onnx's checker and shape inference on it.

    What onnx says about it is of no interest here: the reader says it again, and better. That onnx comes back is.

    Raises:
        QCompileError: as `qcompile.untrusted.limits.first_read`.
        MemoryError: there is no more.
    """
    skeleton = _skeleton(content, subject)
    del content  # onnx copies what it gets several times
    with contextlib.suppress(*_REFUSALS):
        onnx.checker.check_model(skeleton, full_check=False)
    with contextlib.suppress(*_REFUSALS):
        onnx.shape_inference.infer_shapes(skeleton, check_type=False, strict_mode=False, data_prop=True)


def _limit(memory: int, seconds: int) -> bool:
    """Take memory and time from this process, and return whether it was left with less memory than that before.

    Stricter limits that the process was started under stay: only the superuser may lift those. Where the system has no
    such limits, the parent's clock is left.
    """
    try:
        import resource
    except ImportError:
        return False
    most = {limit: resource.getrlimit(limit)[1] for limit in (resource.RLIMIT_AS, resource.RLIMIT_CPU)}

    def within(limit: int, wanted: int) -> int:
        return wanted if most[limit] == resource.RLIM_INFINITY else min(wanted, most[limit])

    given = within(resource.RLIMIT_AS, memory)
    with contextlib.suppress(ValueError, OSError):  # macOS knows RLIMIT_AS and refuses to set it
        resource.setrlimit(resource.RLIMIT_AS, (given, given))
    times = (within(resource.RLIMIT_CPU, seconds), within(resource.RLIMIT_CPU, seconds + 1))
    resource.setrlimit(resource.RLIMIT_CPU, times)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    return given < memory


def _skeleton(content: bytes, subject: str) -> bytes:
    """Check the structure of a serialized model, and serialize it again without its large weights."""
    try:
        model = _parse(content, subject)
        check_structure(model, subject)
        _forget_weights(model)
        return bytes(model.SerializeToString())
    except UnicodeDecodeError as error:
        raise ModelError(subject, "a name in it is not text", _EXPORT_AGAIN) from error


def _parse(content: bytes, subject: str) -> onnx.ModelProto:
    model = onnx.ModelProto()
    try:
        model.ParseFromString(content)
    except DecodeError as error:
        reason = "is not an ONNX model, is truncated, or nests too deeply"
        raise ModelError(subject, reason, _EXPORT_AGAIN) from error
    return model


def _forget_weights(model: onnx.ModelProto) -> None:
    """Leave shapes of large initializers, and zeros for what lies in files, as the reader gives them to onnx."""
    for tensor in tensors_of_model(model):
        if tensor.data_location == onnx.TensorProto.EXTERNAL:
            zeros = bytes(min(stored_bytes(tensor), _MOST_ZEROS))
            del tensor.external_data[:]
            tensor.ClearField("data_location")
            tensor.raw_data = zeros
    graph = model.graph
    inputs = {value.name for value in graph.input}
    large = [tensor for tensor in graph.initializer if _is_large(tensor)]
    small = [tensor for tensor in graph.initializer if not _is_large(tensor)]
    for tensor in large:
        if tensor.name not in inputs:
            graph.input.append(onnx.helper.make_tensor_value_info(tensor.name, tensor.data_type, tensor.dims))
    del graph.initializer[:]
    graph.initializer.extend(small)


def _is_large(tensor: onnx.TensorProto) -> bool:
    """Ask the dims where they say it: `ByteSize` serializes the tensor to count."""
    return (stored_bytes(tensor) or tensor.ByteSize()) > _WEIGHT


if __name__ == "__main__":
    sys.exit(main(sys.argv[1], int(sys.argv[2]), int(sys.argv[3])))
