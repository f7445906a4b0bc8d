"""Operators that read tensors between elements: GridSample, RoiAlign, DeformConv; and NonMaxSuppression."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional

from qcompile.backends.fx.host import Host, single
from qcompile.backends.fx.table import operator
from qcompile.errors import UnsupportedOperator


@operator("GridSample")
def grid_sample(
    x: Tensor, grid: Tensor, *, align_corners: int = 0, mode: str = "linear", padding_mode: str = "zeros"
) -> Tensor:
    """Elements at places in -1 to 1, as torch's grid_sample; torch has none for cubic volumes."""
    names = {"linear": "bilinear", "bilinear": "bilinear", "cubic": "bicubic", "bicubic": "bicubic"}
    if x.dim() == 5 and names.get(mode) == "bicubic":
        raise UnsupportedOperator("GridSample", "torch samples volumes linearly or nearest only", "Use another mode")
    return functional.grid_sample(x, grid, names.get(mode, mode), padding_mode, bool(align_corners))


def bilinear(x: Tensor, rows: Tensor, columns: Tensor) -> tuple[Tensor, ...]:
    """The four elements around places of images x [.., height, width], each times its weight; outside is 0.

    Args:
        x: [batch, channels, height, width].
        rows: [batch, n] places, in elements.
        columns: [batch, n].

    Returns:
        Four tensors [batch, channels, n].
    """
    height, width = x.shape[2:]
    top, left = rows.floor(), columns.floor()
    down, right = rows - top, columns - left
    flat = x.flatten(2)
    parts = []
    for row, column, weight in (
        (top, left, (1 - down) * (1 - right)),
        (top, left + 1, (1 - down) * right),
        (top + 1, left, down * (1 - right)),
        (top + 1, left + 1, down * right),
    ):
        inside = (row >= 0) & (row < height) & (column >= 0) & (column < width)
        place = row.clamp(0, height - 1).to(torch.int64) * width + column.clamp(0, width - 1).to(torch.int64)
        values = flat.gather(2, place[:, None].expand(-1, x.shape[1], -1))
        parts.append(values * torch.where(inside, weight, torch.zeros_like(weight))[:, None])
    return tuple(parts)


@operator("RoiAlign", since=16)
def roi_align(
    x: Tensor,
    rois: Tensor,
    batch_indices: Tensor,
    *,
    coordinate_transformation_mode: str = "half_pixel",
    mode: str = "avg",
    output_height: int = 1,
    output_width: int = 1,
    sampling_ratio: int = 0,
    spatial_scale: float = 1.0,
) -> Tensor:
    """The mean, or the largest weighted element, of places in each cell of each region."""
    half = coordinate_transformation_mode == "half_pixel"
    made = []
    for index in range(rois.shape[0]):
        left, top, right, bottom = (rois[index] * spatial_scale - (0.5 if half else 0.0)).unbind()
        width, height = right - left, bottom - top
        if not half:
            width, height = width.clamp(min=1), height.clamp(min=1)
        cell_h, cell_w = height / output_height, width / output_width
        count_h = sampling_ratio or max(math.ceil(float(cell_h)), 1)
        count_w = sampling_ratio or max(math.ceil(float(cell_w)), 1)
        rows = top + cell_h * _inside(output_height, count_h, x)
        columns = left + cell_w * _inside(output_width, count_w, x)
        image = x[batch_indices[index].to(torch.int64)][None]
        grid = [part.reshape(1, -1) for part in torch.meshgrid(rows, columns, indexing="ij")]
        shape = (x.shape[1], output_height, count_h, output_width, count_w)
        parts = [part.reshape(shape) for part in _clamped(image, grid[0], grid[1])]
        if mode == "avg":
            made.append(sum(parts).mean((2, 4)))  # type: ignore[union-attr]
        else:
            made.append(torch.stack(parts).amax((0, 3, 5)))
    return torch.stack(made) if made else x.new_empty(0, x.shape[1], output_height, output_width)


@operator("RoiAlign")
def roi_align_10(
    x: Tensor,
    rois: Tensor,
    batch_indices: Tensor,
    *,
    mode: str = "avg",
    output_height: int = 1,
    output_width: int = 1,
    sampling_ratio: int = 0,
    spatial_scale: float = 1.0,
) -> Tensor:
    """RoiAlign of opsets below 16: without half a pixel."""
    return roi_align(
        x,
        rois,
        batch_indices,
        coordinate_transformation_mode="output_half_pixel",
        mode=mode,
        output_height=output_height,
        output_width=output_width,
        sampling_ratio=sampling_ratio,
        spatial_scale=spatial_scale,
    )


def _inside(cells: int, count: int, like: Tensor) -> Tensor:
    """Places in cells, in cells: `count` in each, evenly."""
    return (torch.arange(cells * count, device=like.device, dtype=like.dtype) + 0.5) / count


def _clamped(image: Tensor, rows: Tensor, columns: Tensor) -> tuple[Tensor, ...]:
    """Bilinear parts; places up to one element outside count as on the edge, others as 0."""
    height, width = image.shape[2:]
    outside = (rows < -1) | (rows > height) | (columns < -1) | (columns > width)
    parts = bilinear(image, rows.clamp(0, height - 1), columns.clamp(0, width - 1))
    return tuple(torch.where(outside[:, None], torch.zeros_like(part), part) for part in parts)


@operator("DeformConv")
def deform_conv(
    x: Tensor,
    weight: Tensor,
    offset: Tensor,
    bias: Tensor | None = None,
    mask: Tensor | None = None,
    *,
    dilations: Sequence[int] | None = None,
    group: int = 1,
    kernel_shape: Sequence[int] | None = None,  # noqa: ARG001 - the weight says it
    offset_group: int = 1,
    pads: Sequence[int] | None = None,
    strides: Sequence[int] | None = None,
) -> Tensor:
    """A convolution of two dimensions whose kernel reads each element at a place of its own."""
    if x.dim() != 4:
        raise UnsupportedOperator("DeformConv", f"{x.dim() - 2} dimensions are not supported", "Use two")
    batch, channels = x.shape[:2]
    kernel_h, kernel_w = weight.shape[2:]
    out_h, out_w = offset.shape[2:]
    steps, spread, around = list(strides or [1, 1]), list(dilations or [1, 1]), list(pads or [0] * 4)
    moved = offset.reshape(batch, offset_group, kernel_h, kernel_w, 2, out_h, out_w)
    taps = [torch.arange(count, device=x.device) * gap for count, gap in zip((kernel_h, kernel_w), spread, strict=True)]
    starts = [torch.arange(n, device=x.device) * s - p for n, s, p in zip((out_h, out_w), steps, around, strict=False)]
    rows = moved[:, :, :, :, 0] + taps[0][:, None, None, None] + starts[0][:, None]
    columns = moved[:, :, :, :, 1] + taps[1][:, None, None] + starts[1]
    grouped = x.reshape(batch * offset_group, channels // offset_group, *x.shape[2:])
    flat = (batch * offset_group, -1)
    values = sum(bilinear(grouped, rows.reshape(flat), columns.reshape(flat)))
    assert isinstance(values, Tensor)
    values = values.reshape(batch, offset_group, channels // offset_group, kernel_h, kernel_w, out_h, out_w)
    if mask is not None:
        values = values * mask.reshape(batch, offset_group, 1, kernel_h, kernel_w, out_h, out_w)
    columns_of = values.reshape(batch, group, channels // group * kernel_h * kernel_w, out_h * out_w)
    matrix = weight.reshape(1, group, weight.shape[0] // group, -1)
    made = torch.matmul(matrix, columns_of).reshape(batch, weight.shape[0], out_h, out_w)
    return made if bias is None else made + bias.reshape(-1, 1, 1)


def _overlap(box: Tensor, others: Tensor) -> Tensor:
    """Intersection over union of a box [4] with others [n, 4], corners in order."""
    low, high = torch.maximum(box[:2], others[:, :2]), torch.minimum(box[2:], others[:, 2:])
    shared = (high - low).clamp(min=0).prod(-1)
    areas = [(corners[..., 2:] - corners[..., :2]).prod(-1) for corners in (box, others)]
    union = areas[0] + areas[1] - shared
    return torch.where((shared > 0) & (union > 0), shared / union, torch.zeros_like(shared))


@operator("NonMaxSuppression", host=("most", "iou_threshold", "score_threshold"))
def non_max_suppression(
    boxes: Tensor,
    scores: Tensor,
    most: Host | None = None,
    iou_threshold: Host | None = None,
    score_threshold: Host | None = None,
    *,
    center_point_box: int = 0,
) -> Tensor:
    """[sample, class, box] of boxes that overlap no better one of their class by more than the threshold."""
    if center_point_box:
        boxes = torch.cat([boxes[..., :2] - boxes[..., 2:] / 2, boxes[..., :2] + boxes[..., 2:] / 2], -1)
    corners = torch.cat(
        [torch.minimum(boxes[..., :2], boxes[..., 2:]), torch.maximum(boxes[..., :2], boxes[..., 2:])], -1
    )
    limit = 0 if most is None or not most.values else int(single(most))
    overlap = 0.0 if iou_threshold is None or not iou_threshold.values else float(single(iou_threshold))
    found = []
    for sample in range(scores.shape[0]):
        for kind in range(scores.shape[1]):
            order = torch.sort(scores[sample, kind], descending=True, stable=True).indices
            if score_threshold is not None and score_threshold.values:
                order = order[scores[sample, kind][order] > single(score_threshold)]
            kept = 0
            while order.shape[0] and kept < limit:
                best, order = order[0], order[1:]
                found.append(torch.stack([torch.full_like(best, sample), torch.full_like(best, kind), best]))
                order = order[_overlap(corners[sample, best], corners[sample, order]) <= overlap]
                kept += 1
    return torch.stack(found) if found else scores.new_empty((0, 3), dtype=torch.int64)
