"""Gradients of linears with respect to the activation alone: dx = dy @ W^T; weights, scales and biases get none."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

Weight = Callable[..., Any]
"""All inputs of the operator but the first, then `inputs` and `dtype` by name -> the dequantized weight [K, N]."""


def differentiable(operator: Any, weight: Weight) -> None:
    """Give an operator (x, ...) -> y its gradient.

    Args:
        operator: whose first input is x.
        weight: makes the weight, when the gradient is asked for: it is not kept between the passes.
    """

    def keep(ctx: Any, inputs: tuple[Any, ...], output: torch.Tensor) -> None:
        x, *others = inputs
        tensors = [other if isinstance(other, torch.Tensor) else None for other in others]
        ctx.save_for_backward(*tensors)
        ctx.others = [None if isinstance(other, torch.Tensor) else other for other in others]
        ctx.inputs, ctx.dtype = x.shape[-1], x.dtype

    def backward(ctx: Any, dy: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        pairs = zip(ctx.saved_tensors, ctx.others, strict=True)
        others = [other if tensor is None else tensor for tensor, other in pairs]
        dx = dy @ weight(*others, inputs=ctx.inputs, dtype=ctx.dtype).T
        return (dx, *[None] * len(others))

    operator.register_autograd(backward, setup_context=keep)
