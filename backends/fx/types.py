"""Types of ONNX as types of torch, and arrays as tensors.

Types that torch cannot compute with are carried in the next one that holds every value of them: 4 and 2 bits in int8
and uint8, float4 in float32. What is written to such a type is rounded to it, so the carrier holds its values alone.
There are no texts in torch.
"""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import torch

from qcompile.errors import UnsupportedOperator

_TORCH = {
    ir.DataType.FLOAT: torch.float32,
    ir.DataType.DOUBLE: torch.float64,
    ir.DataType.FLOAT16: torch.float16,
    ir.DataType.BFLOAT16: torch.bfloat16,
    ir.DataType.FLOAT8E4M3FN: torch.float8_e4m3fn,
    ir.DataType.FLOAT8E4M3FNUZ: torch.float8_e4m3fnuz,
    ir.DataType.FLOAT8E5M2: torch.float8_e5m2,
    ir.DataType.FLOAT8E5M2FNUZ: torch.float8_e5m2fnuz,
    ir.DataType.FLOAT8E8M0: torch.float8_e8m0fnu,
    ir.DataType.FLOAT4E2M1: torch.float32,
    ir.DataType.INT2: torch.int8,
    ir.DataType.INT4: torch.int8,
    ir.DataType.INT8: torch.int8,
    ir.DataType.INT16: torch.int16,
    ir.DataType.INT32: torch.int32,
    ir.DataType.INT64: torch.int64,
    ir.DataType.UINT2: torch.uint8,
    ir.DataType.UINT4: torch.uint8,
    ir.DataType.UINT8: torch.uint8,
    ir.DataType.UINT16: torch.uint16,
    ir.DataType.UINT32: torch.uint32,
    ir.DataType.UINT64: torch.uint64,
    ir.DataType.BOOL: torch.bool,
    ir.DataType.COMPLEX64: torch.complex64,
    ir.DataType.COMPLEX128: torch.complex128,
}

BITS = {ir.DataType.INT2: 2, ir.DataType.UINT2: 2, ir.DataType.INT4: 4, ir.DataType.UINT4: 4}
"""Types of less than a byte that are integers -> how many bits."""

NARROW_FLOATS = (
    torch.float8_e4m3fn,
    torch.float8_e4m3fnuz,
    torch.float8_e5m2,
    torch.float8_e5m2fnuz,
    torch.float8_e8m0fnu,
)
"""Types of 8 bits that torch stores and converts, and does not compute with."""

WIDE_UNSIGNED = (torch.uint16, torch.uint32, torch.uint64)
"""Types that torch stores and does not compute with; int64 is used, which is exact below 2**63."""


def torch_type(dtype: ir.DataType | int | None, subject: str = "a tensor") -> torch.dtype:
    """The type of torch that a type of ONNX is carried in; raises UnsupportedOperator for texts and unknown ones."""
    if dtype is None or ir.DataType(dtype) not in _TORCH:
        name = "an unknown type" if dtype is None else ir.DataType(dtype).name
        raise UnsupportedOperator(subject, f"torch has no tensors of {name}", "Compile it for ONNX Runtime")
    return _TORCH[ir.DataType(dtype)]


def tensor_of(array: np.ndarray, subject: str = "a tensor") -> torch.Tensor:
    """The tensor of an array, in the carrier of its type. Memory is shared where the type needs no carrier."""
    array = np.asarray(array)
    if array.dtype.kind in "OSU":
        raise UnsupportedOperator(subject, "torch has no tensors of STRING", "Compile it for ONNX Runtime")
    dtype = ir.DataType.from_numpy(array.dtype)
    carrier = torch_type(dtype, subject)
    if dtype in BITS or dtype == ir.DataType.FLOAT4E2M1:
        array = array.astype(np.float32 if carrier is torch.float32 else str(carrier).removeprefix("torch."))
    if not array.flags.writeable or not array.flags.c_contiguous:
        array = np.array(array, order="C")
    if carrier in NARROW_FLOATS:
        return torch.from_numpy(array.view(np.uint8)).view(carrier)
    if carrier is torch.bfloat16:
        return torch.from_numpy(array.view(np.int16)).view(carrier)
    return torch.from_numpy(array)


def array_of(tensor: torch.Tensor, dtype: ir.DataType | None) -> np.ndarray:
    """The array of a tensor, in a type of ONNX: of its carrier, where it has one; None: the tensor's own."""
    tensor = tensor.detach().cpu().resolve_conj().contiguous()
    if tensor.dtype in NARROW_FLOATS or tensor.dtype is torch.bfloat16:
        own = next(known for known, carrier in _TORCH.items() if carrier is tensor.dtype)
        bits = tensor.view(torch.int16 if tensor.dtype is torch.bfloat16 else torch.uint8)
        array = bits.numpy().view(own.numpy())
    else:
        array = tensor.numpy()
    if dtype in BITS or dtype == ir.DataType.FLOAT4E2M1:
        assert dtype is not None
        return array.astype(dtype.numpy())
    return array


def narrowed(values: torch.Tensor, dtype: ir.DataType) -> torch.Tensor:
    """Round float32 values to float4 (to nearest, ties to even, saturating; NaN to 0), in float32."""
    assert dtype == ir.DataType.FLOAT4E2M1
    sizes = values.abs().clamp(max=6.0)
    step = torch.where(sizes < 2, 0.5, torch.where(sizes < 4, 1.0, 2.0))
    rounded = torch.copysign((sizes / step).round() * step, values)
    return torch.where(values.isnan(), torch.zeros_like(values), rounded)


def wrapped(values: torch.Tensor, dtype: ir.DataType) -> torch.Tensor:
    """The lowest bits of integers, as the type of less than a byte reads them."""
    bits = BITS[dtype]
    low = values.to(torch.int64) & ((1 << bits) - 1)
    if dtype in (ir.DataType.INT2, ir.DataType.INT4):
        low = low - ((low >> (bits - 1)) << bits)
    return low.to(torch_type(dtype))
