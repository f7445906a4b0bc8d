"""Products of matrices and tensors."""

from __future__ import annotations

import torch
from torch import Tensor

from qcompile.backends.fx.operators.elementwise import computed
from qcompile.backends.fx.table import operator


@operator("MatMul")
def matmul(a: Tensor, b: Tensor) -> Tensor:
    """The product of matrices, batches broadcast."""
    if a.dtype is torch.float16 and a.device.type == "cpu":  # torch rounds partial sums there
        return torch.matmul(a.float(), b.float()).half()
    return computed(torch.matmul, a, b)


@operator("Gemm")
def gemm(
    a: Tensor,
    b: Tensor,
    c: Tensor | None = None,
    *,
    alpha: float = 1.0,
    beta: float = 1.0,
    transA: int = 0,
    transB: int = 0,
    broadcast: int = 1,  # noqa: ARG001 - opsets below 7 say so where torch would do it anyway
) -> Tensor:
    """Alpha * a @ b + beta * c, either of a and b transposed."""
    made = torch.matmul(a.t() if transA else a, b.t() if transB else b)
    made = made if alpha == 1 else (alpha * made).to(made.dtype)
    if c is None:
        return made
    return made + (c if beta == 1 else (beta * c).to(c.dtype))


@operator("Einsum")
def einsum(*operands: Tensor, equation: str) -> Tensor:
    """Products summed over the letters that the result lacks."""
    return torch.einsum(equation.replace(" ", ""), *operands)


@operator("Det")
def determinant(x: Tensor) -> Tensor:
    """The determinant of each matrix."""
    made: Tensor = torch.linalg.det(x)
    return made


def centred(x: Tensor, zero_point: Tensor | None, rows: bool = False) -> Tensor:
    """Integers less their zero point, in float64, in which the products of 8 bits and their sums are exact."""
    made = x.to(torch.float64)
    if zero_point is None:
        return made
    shift = zero_point.to(torch.float64)
    return made - (shift[..., None] if rows and shift.dim() else shift)


@operator("MatMulInteger")
def matmul_integer(
    a: Tensor, b: Tensor, a_zero_point: Tensor | None = None, b_zero_point: Tensor | None = None
) -> Tensor:
    """The product of integers less their zero points, in int32."""
    left = centred(a, a_zero_point, rows=True)
    return torch.matmul(left, centred(b, b_zero_point)).to(torch.int32)
