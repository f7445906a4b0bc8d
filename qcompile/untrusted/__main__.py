"""The process in which a model is read for the first time: see `qcompile.untrusted.limits`.

Reads the model from standard input; prints nothing when it could be read, else the error as JSON.
"""

from __future__ import annotations

import contextlib
import json
import sys

import onnx
import onnx.checker
import onnx.helper
import onnx.shape_inference
from google.protobuf.message import DecodeError

from qcompile.errors import ModelError, QCompileError
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
    _limit(memory, seconds)
    try:
        read(sys.stdin.buffer.read(), subject)
    except QCompileError as error:
        kind = type(error).__name__
        print(json.dumps({"type": kind, "subject": error.subject, "reason": error.reason, "mend": error.mend}))
    except MemoryError:
        print(json.dumps({"type": "MemoryError"}))
    return 0


def read(content: bytes, subject: str) -> None:
    """Parse a model, check its structure and run onnx's checker and shape inference on it.

    What onnx says about it is of no interest here: the reader says it again, and better. That onnx comes back is.

    Raises:
        QCompileError: as `qcompile.untrusted.limits.first_read`.
        MemoryError: there is no more.
    """
    try:
        model = _parse(content, subject)
        check_structure(model, subject)
        _forget_weights(model)
        skeleton = model.SerializeToString()
    except UnicodeDecodeError as error:
        raise ModelError(subject, "a name in it is not text", _EXPORT_AGAIN) from error
    with contextlib.suppress(*_REFUSALS):
        onnx.checker.check_model(skeleton, full_check=False)
    with contextlib.suppress(*_REFUSALS):
        onnx.shape_inference.infer_shapes(skeleton, check_type=False, strict_mode=False, data_prop=True)


def _limit(memory: int, seconds: int) -> None:
    """Take memory and time from this process; where the system has no such limits, the parent's clock is left."""
    try:
        import resource
    except ImportError:
        return
    resource.setrlimit(resource.RLIMIT_AS, (memory, memory))
    resource.setrlimit(resource.RLIMIT_CPU, (seconds, seconds + 1))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))


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
    large = [tensor for tensor in graph.initializer if tensor.ByteSize() > _WEIGHT]
    small = [tensor for tensor in graph.initializer if tensor.ByteSize() <= _WEIGHT]
    for tensor in large:
        if tensor.name not in inputs:
            graph.input.append(onnx.helper.make_tensor_value_info(tensor.name, tensor.data_type, tensor.dims))
    del graph.initializer[:]
    graph.initializer.extend(small)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1], int(sys.argv[2]), int(sys.argv[3])))
