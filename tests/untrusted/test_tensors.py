"""A tensor holds what its header claims, in every type and position; nothing is allocated to find out."""

from __future__ import annotations

import math
import tracemalloc

import numpy as np
import onnx
import onnx.helper as oh
import pytest

from qcompile.errors import ModelError
from qcompile.frontend import trace
from qcompile.untrusted.tensors import check_data, stored_bytes
from tests.frontend.tensor_places import PLACES

TYPES = sorted({*onnx.TensorProto.DataType.keys()} - {"UNDEFINED", "STRING"})


def tensor_of(kind: str, dims: list[int], **fields: object) -> onnx.TensorProto:
    return onnx.TensorProto(name="t", data_type=onnx.TensorProto.DataType.Value(kind), dims=dims, **fields)


@pytest.mark.parametrize("kind", TYPES)
@pytest.mark.parametrize("raw", [True, False])
def test_what_onnx_writes_is_accepted(kind: str, raw: bool) -> None:
    number = onnx.TensorProto.DataType.Value(kind)
    values = np.ones((3, 5), oh.tensor_dtype_to_np_dtype(number))
    if raw:
        tensor = onnx.numpy_helper.from_array(values, "t")
        assert tensor.HasField("raw_data")
    else:
        tensor = oh.make_tensor("t", number, values.shape, values.flatten())
    check_data(tensor)
    field = next(name for name in ("raw_data", *_DATA) if len(getattr(tensor, name)))
    setattr(tensor, field, getattr(tensor, field)[:-1]) if raw else getattr(tensor, field).pop()
    with pytest.raises(ModelError, match="and it holds"):
        check_data(tensor)


_DATA = ("float_data", "int32_data", "int64_data", "double_data", "uint64_data", "string_data")


def test_texts_are_counted() -> None:
    check_data(oh.make_tensor("t", onnx.TensorProto.STRING, [2], [b"a", b"b"]))
    with pytest.raises(ModelError, match="3 entries of string_data, and it holds 1"):
        check_data(tensor_of("STRING", [3], string_data=[b"a"]))


@pytest.mark.parametrize(
    ("dims", "reason"),
    [
        ([-1, 4], "negative"),
        ([2**40, 2**40], "overflows"),
        ([0, 2**40, 2**40], "overflows"),
        ([2**62], "overflows"),
        ([10**15], "ask for 4000000000000000 bytes, and it holds 16"),
        ([3], "ask for 12 bytes, and it holds 16"),
    ],
)
def test_dims_that_lie_are_refused(dims: list[int], reason: str) -> None:
    with pytest.raises(ModelError, match=reason):
        check_data(tensor_of("FLOAT", dims, raw_data=bytes(16)))


def test_no_elements_need_no_data() -> None:
    check_data(tensor_of("FLOAT", [0, 7]))
    assert stored_bytes(tensor_of("INT4", [3])) == math.ceil(3 / 2)


@pytest.mark.parametrize("number", [0, 99, -1])
def test_types_that_there_are_not_are_refused(number: int) -> None:
    with pytest.raises(ModelError, match=f"its type {number} is not known"):
        check_data(onnx.TensorProto(name="t", data_type=number, dims=[1], raw_data=b"1"))


@pytest.mark.parametrize("place", PLACES)
def test_a_claim_allocates_nothing_wherever_it_stands(place) -> None:
    model = place(onnx.TensorProto(name="w", data_type=onnx.TensorProto.FLOAT, dims=[10**8, 10**7], raw_data=bytes(16)))
    tracemalloc.start()
    for given in (model, model.SerializeToString()):
        with pytest.raises(ModelError, match=r"w: its dims .* ask for"):
            trace(given)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 2**24
