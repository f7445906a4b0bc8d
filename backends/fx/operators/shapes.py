"""Operators that change the shape of a tensor, or make one of a shape."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor
from torch.fx.experimental.symbolic_shapes import guard_or_false

from qcompile.backends.fx.host import Host, Numbers, device_of, ints, single
from qcompile.backends.fx.table import operator
from qcompile.backends.fx.types import torch_type
from qcompile.errors import InputError


@operator("Reshape", host=("shape",))
def reshape(x: Tensor, shape: Numbers, *, allowzero: int = 0) -> Tensor:
    """Another shape; 0 keeps a size (with allowzero it is one), -1 is what is left."""
    sizes = ints(shape)
    if not allowzero:
        sizes = [x.shape[axis] if size == 0 else size for axis, size in enumerate(sizes)]
    return x.reshape(sizes)


@operator("Flatten")
def flatten(x: Tensor, *, axis: int = 1) -> Tensor:
    """Two axes: what is before an axis and the rest."""
    axis = axis + x.dim() if axis < 0 else axis
    return x.reshape(math.prod(x.shape[:axis]), math.prod(x.shape[axis:]))


@operator("Unsqueeze", host=("axes",))
def unsqueeze(x: Tensor, axes: Numbers) -> Tensor:
    """New axes of size 1."""
    chosen = ints(axes)
    rank = x.dim() + len(chosen)
    for axis in sorted(axis % rank for axis in chosen):
        x = x.unsqueeze(axis)
    return x


@operator("Squeeze", host=("axes",))
def squeeze(x: Tensor, axes: Numbers | None = None) -> Tensor:
    """Without these axes, or all of size 1.

    Raises:
        InputError: one of these axes has another size.
    """
    if axes is None:
        return x.squeeze()
    for axis in ints(axes):
        if guard_or_false(x.shape[axis] != 1):
            raise InputError("Squeeze", f"axis {axis} has size {x.shape[axis]}", "Give inputs that have 1 there")
    return x.squeeze(tuple(ints(axes)))


@operator("Transpose")
def transpose(x: Tensor, *, perm: Sequence[int] | None = None) -> Tensor:
    """Axes in another order; turned around where none is given."""
    return x.permute(tuple(range(x.dim())[::-1]) if perm is None else tuple(perm))


@operator("Concat")
def concat(*parts: Tensor, axis: int = 1) -> Tensor:
    """Tensors one behind the other."""
    return torch.cat(parts, axis)


@operator("Split", host=("split",))
def split(
    x: Tensor, split: Numbers | None = None, *, axis: int = 0, num_outputs: int | None = None, outputs: int
) -> tuple[Tensor, ...]:
    """Parts of an axis, of these sizes; else all of one size but a smaller last."""
    if split is not None:
        return torch.split(x, ints(split), axis)
    width = -(-x.shape[axis] // (num_outputs or outputs))
    return torch.split(x, width, axis)


@operator("Expand", host=("shape",))
def expand(x: Tensor, shape: Numbers) -> Tensor:
    """Broadcast to a shape, in both directions."""
    sizes = ints(shape)
    sizes = [1] * (x.dim() - len(sizes)) + sizes
    own = [1] * (len(sizes) - x.dim()) + list(x.shape)
    return x.expand([theirs if ours == 1 else ours for ours, theirs in zip(own, sizes, strict=True)])


@operator("Tile", host=("repeats",))
def tile(x: Tensor, repeats: Numbers) -> Tensor:
    """Copies one behind the other along each axis."""
    return x.repeat(ints(repeats))


@operator("ConstantOfShape", host=("shape",))
def constant_of_shape(shape: Numbers, *, value: Host | None = None, like: object) -> Tensor:
    """One number everywhere."""
    filling = value or Host((0.0,), (1,), torch.float32)
    return torch.full(ints(shape), filling.values[0], dtype=filling.dtype, device=device_of(like))


@operator("Range", host=("start", "limit", "delta"))
def range_(start: Host, limit: Host, delta: Host, *, like: object) -> Tensor:
    """From a number up to another, in steps."""
    first, last, step = single(start), single(limit), single(delta)
    if not start.dtype.is_floating_point:
        if guard_or_false((last - first) * step <= 0):
            first = last
        return torch.arange(first, last, step, dtype=start.dtype, device=device_of(like))
    # Of exactly so many elements, which rounding cannot change.
    count = max(math.ceil((last - first) / step), 0)
    return (torch.arange(count, device=device_of(like)) * step + first).to(start.dtype)


@operator("EyeLike")
def eye_like(x: Tensor, *, dtype: int | None = None, k: int = 0) -> Tensor:
    """1 on a diagonal, else 0, in the shape of x."""
    kind = x.dtype if dtype is None else torch_type(dtype)
    rows, columns = (torch.arange(size, device=x.device) for size in x.shape)
    return (columns[None, :] == rows[:, None] + k).to(kind)


@operator("Trilu", host=("k",))
def trilu(x: Tensor, k: Host | None = None, *, upper: int = 1) -> Tensor:
    """What is above a diagonal, or below it; 0 elsewhere."""
    diagonal = 0 if k is None else int(single(k))
    return torch.triu(x, diagonal) if upper else torch.tril(x, diagonal)


@operator("DepthToSpace")
def depth_to_space(x: Tensor, *, blocksize: int, mode: str = "DCR") -> Tensor:
    """Channels become blocks of pixels."""
    batch, channels, height, width = x.shape
    rest = channels // blocksize**2
    if mode == "DCR":
        parts = x.reshape(batch, blocksize, blocksize, rest, height, width).permute(0, 3, 4, 1, 5, 2)
    else:
        parts = x.reshape(batch, rest, blocksize, blocksize, height, width).permute(0, 1, 4, 2, 5, 3)
    return parts.reshape(batch, rest, height * blocksize, width * blocksize)


@operator("SpaceToDepth")
def space_to_depth(x: Tensor, *, blocksize: int, mode: str = "DCR") -> Tensor:
    """Blocks of pixels become channels."""
    batch, channels, height, width = x.shape
    parts = x.reshape(batch, channels, height // blocksize, blocksize, width // blocksize, blocksize)
    order = (0, 3, 5, 1, 2, 4) if mode == "DCR" else (0, 1, 3, 5, 2, 4)
    return parts.permute(order).reshape(batch, channels * blocksize**2, height // blocksize, width // blocksize)
