"""What the operators ask of their arguments; every refusal is an InputError that says what was found."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch

from qcompile.backends.triton.kernels.arithmetic import INTERPRETED
from qcompile.errors import InputError, UnsupportedError

FLOATS = (torch.float16, torch.bfloat16, torch.float32)


def expect(name: str, tensor: torch.Tensor, shape: Sequence[int] | None, dtypes: Sequence[torch.dtype]) -> None:
    """Refuse a tensor of another shape or dtype, or one that is not contiguous; None: any shape, and strided."""
    if tensor.dtype not in dtypes:
        raise InputError(name, f"dtype {tensor.dtype}", f"Give {' or '.join(map(str, dtypes))}")
    if shape is not None and tuple(tensor.shape) != tuple(shape):
        raise InputError(name, f"shape {tuple(tensor.shape)}", f"Give {tuple(shape)}")
    if shape is not None and not tensor.is_contiguous():
        raise InputError(name, f"strides {tensor.stride()}", "Call contiguous() on it, once and not for each product")


def expect_one_device(x: torch.Tensor, *others: torch.Tensor | None) -> None:
    """Refuse tensors of several devices."""
    for other in others:
        if other is not None and other.device != x.device:
            raise InputError("x", f"it is on {x.device}, and a weight on {other.device}", "Move both to one device")


def expect_input(x: torch.Tensor, dtypes: Sequence[torch.dtype] = FLOATS) -> None:
    """Refuse an activation without an axis of inputs, or of another dtype."""
    expect("x", x, None, dtypes)
    if x.ndim == 0:
        raise InputError("x", "it is a scalar", "Give [..., inputs]")


def expect_card(x: torch.Tensor) -> None:
    """Refuse to run a kernel where none runs.

    Raises:
        UnsupportedError: x is not on a CUDA device, and the interpreter is not chosen.
    """
    if not INTERPRETED.value and x.device.type != "cuda":
        mend = "Move it to a CUDA device, or set TRITON_INTERPRET=1 before triton is imported"
        raise UnsupportedError("x", f"it is on {x.device}, where Triton runs no kernels", mend)


def rows(x: torch.Tensor) -> torch.Tensor:
    """Return x as a matrix of its last axis: a view where its strides allow it."""
    return x.reshape(math.prod(x.shape[:-1]), x.shape[-1])


def empty_product(
    x: torch.Tensor,
    outputs: int,
    bias: torch.Tensor | None,
    *weight: torch.Tensor | None,
    dtype: torch.dtype | None = None,
) -> torch.Tensor:
    """Return y [..., N] without its numbers; refuse another bias than of the outputs, and several devices."""
    if bias is not None:
        expect("bias", bias, (outputs,), FLOATS)
    expect_one_device(x, bias, *weight)
    return x.new_empty((*x.shape[:-1], outputs), dtype=dtype)
