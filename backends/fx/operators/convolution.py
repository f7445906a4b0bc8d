"""Convolutions of any number of dimensions, and what folds and unfolds windows."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from qcompile.backends.fx.host import Numbers, ints
from qcompile.backends.fx.operators.elementwise import in_front
from qcompile.backends.fx.operators.linear import centred
from qcompile.backends.fx.table import operator

_CONVOLUTIONS = {1: functional.conv1d, 2: functional.conv2d, 3: functional.conv3d}
_TRANSPOSED = {1: functional.conv_transpose1d, 2: functional.conv_transpose2d, 3: functional.conv_transpose3d}


def window_pads(
    sizes: Sequence[int],
    kernel: Sequence[int],
    strides: Sequence[int],
    dilations: Sequence[int],
    pads: Sequence[int] | None,
    auto_pad: str,
) -> list[tuple[int, int]]:
    """Elements that are added before and behind each spatial axis; SAME_*: so that size / stride windows fit."""
    rank = len(sizes)
    if auto_pad in ("NOTSET", ""):
        given = pads or [0] * (2 * rank)
        return [(given[axis], given[axis + rank]) for axis in range(rank)]
    if auto_pad == "VALID":
        return [(0, 0)] * rank
    found = []
    for size, width, stride, dilation in zip(sizes, kernel, strides, dilations, strict=True):
        total = max((-(-size // stride) - 1) * stride + dilation * (width - 1) + 1 - size, 0)
        less = total // 2
        found.append((less, total - less) if auto_pad == "SAME_UPPER" else (total - less, less))
    return found


def flat(pads: Sequence[tuple[int, int]]) -> list[int]:
    """Pads as torch wants them: the last axis first."""
    return [amount for pair in reversed(pads) for amount in pair]


@operator("Conv")
def conv(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    *,
    auto_pad: str = "NOTSET",
    dilations: Sequence[int] | None = None,
    group: int = 1,
    kernel_shape: Sequence[int] | None = None,  # noqa: ARG001 - the weight says it
    pads: Sequence[int] | None = None,
    strides: Sequence[int] | None = None,
) -> Tensor:
    """The convolution (without turning the kernel around)."""
    rank = x.dim() - 2
    steps, spread = list(strides or [1] * rank), list(dilations or [1] * rank)
    added = window_pads(x.shape[2:], weight.shape[2:], steps, spread, pads, auto_pad)
    if all(before == behind for before, behind in added):
        padding = [before for before, _ in added]
    else:
        x, padding = functional.pad(x, flat(added)), [0] * rank
    return _CONVOLUTIONS[rank](x, weight, bias, steps, padding, spread, group)


@operator("ConvTranspose")
def conv_transpose(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    *,
    auto_pad: str = "NOTSET",
    dilations: Sequence[int] | None = None,
    group: int = 1,
    kernel_shape: Sequence[int] | None = None,  # noqa: ARG001 - the weight says it
    output_padding: Sequence[int] | None = None,
    output_shape: Sequence[int] | None = None,
    pads: Sequence[int] | None = None,
    strides: Sequence[int] | None = None,
) -> Tensor:
    """The gradient of a convolution: each element spreads the kernel."""
    rank = x.dim() - 2
    steps, spread = list(strides or [1] * rank), list(dilations or [1] * rank)
    extra = list(output_padding or [0] * rank)
    whole = _TRANSPOSED[rank](x, weight, bias, steps, 0, 0, group, spread)
    reach = [
        step * (size - 1) + more + dilation * (width - 1) + 1
        for step, size, more, dilation, width in zip(steps, x.shape[2:], extra, spread, weight.shape[2:], strict=True)
    ]
    if output_shape is not None or auto_pad.startswith("SAME"):
        wanted = [size * step for size, step in zip(x.shape[2:], steps, strict=True)]
        wanted = list(output_shape)[-rank:] if output_shape is not None else wanted
        cut = []
        for have, want in zip(reach, wanted, strict=True):
            total = max(have - want, 0)
            cut.append(
                (total - total // 2, total // 2) if auto_pad != "SAME_UPPER" else (total // 2, total - total // 2)
            )
            if have < want:
                cut[-1] = (0, have - want)
    else:
        cut = window_pads(x.shape[2:], weight.shape[2:], steps, spread, pads, auto_pad)
    ends = [have - size for have, size in zip(reach, whole.shape[2:], strict=True)]
    kept = [(-before, more - behind) for (before, behind), more in zip(cut, ends, strict=True)]
    if bias is None or all(behind <= 0 for _, behind in kept):
        return functional.pad(whole, flat(kept))
    # Where nothing is spread to, there is the bias alone.
    shift = in_front(bias, rank)
    return functional.pad(whole - shift, flat(kept)) + shift


@operator("ConvInteger", settings_of=conv)
def conv_integer(
    x: Tensor,
    weight: Tensor,
    x_zero_point: Tensor | None = None,
    w_zero_point: Tensor | None = None,
    **settings: Any,
) -> Tensor:
    """The convolution of integers less their zero points, in int32."""
    rows = w_zero_point
    if rows is not None and rows.dim():
        rows = in_front(rows, weight.dim() - 1)
    return conv(centred(x, x_zero_point), centred(weight, rows), **settings).round().to(torch.int32)


@operator("Col2Im", host=("image_shape", "block_shape"))
def col2im(
    x: Tensor,
    image_shape: Numbers,
    block_shape: Numbers,
    *,
    dilations: Sequence[int] | None = None,
    pads: Sequence[int] | None = None,
    strides: Sequence[int] | None = None,
) -> Tensor:
    """Columns of windows added up to an image of any number of dimensions."""
    image, block = ints(image_shape), ints(block_shape)
    rank = len(image)
    added = window_pads(image, block, [1] * rank, [1] * rank, pads, "NOTSET")
    steps, spread = list(strides or [1] * rank), list(dilations or [1] * rank)
    padded = [size + before + behind for size, (before, behind) in zip(image, added, strict=True)]
    counts = [
        (size - dilation * (width - 1) - 1) // step + 1
        for size, dilation, width, step in zip(padded, spread, block, steps, strict=True)
    ]
    index = torch.zeros([1] * (2 * rank), dtype=torch.int64, device=x.device)
    for axis in range(rank):
        inside = torch.arange(block[axis], device=x.device) * spread[axis]
        start = torch.arange(counts[axis], device=x.device) * steps[axis]
        place = in_front(inside, 2 * rank - 1 - axis) + in_front(start, rank - 1 - axis)
        index = index * padded[axis] + place
    batch, channels = x.shape[0], x.shape[1] // math.prod(block)
    columns = x.reshape(batch, channels, -1)
    whole = columns.new_zeros(batch, channels, math.prod(padded)).index_add(2, index.reshape(-1), columns)
    cut = [(-before, -behind) for before, behind in added]
    return functional.pad(whole.reshape(batch, channels, *padded), flat(cut))
