"""activation(gate) * up, as linears with a gate have it in front of the last (Shazeer 2020, "GLU Variants").

Alone, programs share out all numbers, which are float32 until they are rounded; quantized for each token, a program has
a row, as row_kernel says.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch.library import wrap_triton

from qcompile.backends.triton.kernels.activations import DERIVATIVES, FUNCTIONS
from qcompile.backends.triton.kernels.arithmetic import activated, narrow
from qcompile.backends.triton.kernels.registration import operator
from qcompile.backends.triton.kernels.row_kernel import Rows, quantized
from qcompile.backends.triton.kernels.shapes import expect_card, rows
from qcompile.errors import InputError

BLOCK = 1024


@triton.jit
def _gated(
    gate_ptr, x_ptr, y_ptr, count, gate_row_stride, gate_input_stride, row_stride, input_stride,
    INPUTS: tl.constexpr, ACTIVATION: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    place = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    inside, row, k = place < count, place // INPUTS, place % INPUTS
    gate = tl.load(gate_ptr + row * gate_row_stride + k * gate_input_stride, mask=inside, other=0.0).to(tl.float32)
    up = tl.load(x_ptr + row * row_stride + k * input_stride, mask=inside, other=0.0).to(tl.float32)
    tl.store(y_ptr + place, narrow(activated(gate, ACTIVATION) * up, y_ptr.dtype.element_ty), mask=inside)


@operator("gated")
def gated(gate: torch.Tensor, up: torch.Tensor, activation: str) -> torch.Tensor:
    """Return activation(gate) * up, [..., K] in the dtype of both; differentiable with respect to both.

    Args:
        gate: float16, bfloat16 or float32 [..., K], strided as it is.
        up: of the shape and dtype of gate, strided as it is.
        activation: "gelu", "gelu_tanh", "relu" or "silu".

    Raises:
        InputError: a shape, a dtype or a device does not fit, or there is no such activation.
    """
    y = _empty(gate, up, activation)
    if y.numel():
        expect_card(y)
        left, right, grid = rows(gate), rows(up), (triton.cdiv(y.numel(), BLOCK),)
        wrap_triton(_gated)[grid](
            left, right, y, y.numel(), *left.stride(), *right.stride(),
            INPUTS=y.shape[-1], ACTIVATION=activation, BLOCK=BLOCK,
        )  # fmt: skip
    return y


@gated.register_fake
def _empty(gate: torch.Tensor, up: torch.Tensor, activation: str) -> torch.Tensor:
    y, _ = _rows(gate, up, activation).empty()
    return y


@operator("gated_quantize")
def gated_quantize(gate: torch.Tensor, up: torch.Tensor, activation: str) -> tuple[torch.Tensor, torch.Tensor]:
    """Return what `quantize_tokens` does of `gated`, which is not rounded before: q int8 [..., K], scale [...]."""
    q, scale, _ = quantized(_rows(gate, up, activation))
    return q, scale


@gated_quantize.register_fake
def _(gate: torch.Tensor, up: torch.Tensor, activation: str) -> tuple[torch.Tensor, torch.Tensor]:
    q, scale, _ = _rows(gate, up, activation).empty_quantized()
    return q, scale


def _rows(gate: torch.Tensor, up: torch.Tensor, activation: str) -> Rows:
    if activation not in FUNCTIONS:
        raise InputError("activation", repr(activation), f"Give one of {', '.join(FUNCTIONS)}")
    return Rows(up, gate, activation)


def _keep(ctx: Any, inputs: tuple[Any, ...], output: torch.Tensor) -> None:
    gate, up, ctx.activation = inputs
    ctx.save_for_backward(gate, up)


def _gradient(ctx: Any, dy: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
    gate, up = ctx.saved_tensors
    return DERIVATIVES[ctx.activation](dy * up, gate), dy * FUNCTIONS[ctx.activation](gate), None


gated.register_autograd(_gradient, setup_context=_keep)
