"""GPTQ: rounds a weight column by column so that later columns make up for the error of earlier ones."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt

from qcompile.scheme import Scheme
from qcompile.solvers.affine import quantize_weight, weight_scale

Array = npt.NDArray[Any]

Grid = tuple[Array, Array | None, tuple[int, int]]
"""Scale and zero point of some rows, float32 of the shape of the rows, None for zero points of 0; and their bounds."""

_BLOCK = 128
_COLUMNS = 2048
"""Outputs that are rounded at a time: each is rounded by itself, and the weight of all of them may be large."""
SMALLEST_DAMP, _DAMP_LIMIT = 1e-6, 1.0
_SMALLEST_NORMAL = float(np.finfo(np.float32).tiny)
"""Mean squares below it, as behind a saturated softmax, are noise."""


def gptq(weight: Array, gram: Array, scheme: Scheme, damp_percent: float = 0.01) -> tuple[Array, Array, Array]:
    """Return (quantized, scale, zero_point) of a linear's weight that keeps x @ W on the calibration data.

    Does not apply where the scale is asymmetric, or the second moments cannot be factored even with damping: those are
    rounded to nearest. The scale is that of `quantize_weight`; only the rounding differs. Input channels are taken
    in falling order of their energy (desc_act), which costs nothing for scales per tensor or per output channel.

    Args:
        weight: float [in_features, out_features].
        gram: mean of x xT, float [in_features, in_features].
        scheme: int8, per_tensor or per_channel (one scale per output feature).
        damp_percent: share of the mean energy that is added to the diagonal; raised tenfold until it factors.

    Frantar et al., "GPTQ: Accurate Post-Training Quantization" (2023), algorithm 1.
    """
    axis = 1 if scheme.granularity == "per_channel" else None
    order = np.argsort(-np.diagonal(gram), kind="stable")
    triangle = factored(gram[np.ix_(order, order)], damp_percent)
    if triangle is None or not scheme.sym or not np.all(np.isfinite(weight)):
        return quantize_weight(weight, scheme, axis)
    scale, zero_point = weight_scale(weight, scheme, axis)
    quantized, triangle = np.empty(weight.shape, scheme.dtype), triangle.astype(np.float32)
    scales = np.broadcast_to(scale, weight.shape[1])
    for start in range(0, weight.shape[1], _COLUMNS):
        columns = slice(start, start + _COLUMNS)
        part = weight[order, columns].astype(np.float32)
        quantized[order, columns] = rounded_rows(part, triangle, _one_grid(scales[columns], scheme))
    return quantized, scale, zero_point


def _one_grid(scale: Array, scheme: Scheme) -> Callable[[slice, Array], Grid]:
    return lambda _, moved: (np.broadcast_to(scale, moved.shape), None, scheme.range)


def factored(gram: Array, damp_percent: float) -> Array | None:
    """Return the upper triangular U with a diagonal of ones and U D U^T the damped matrix, D diagonal; or None.

    Args:
        gram: mean of x xT, float [in_features, in_features].
        damp_percent: share of the mean energy that is added to the diagonal; raised until it factors, at most to 1.
    """
    energy = float(np.mean(np.diagonal(gram)))
    if not np.isfinite(energy) or energy <= _SMALLEST_NORMAL:
        return None
    damp = damp_percent
    while damp <= _DAMP_LIMIT:
        damped = gram.astype(np.float64)
        np.fill_diagonal(damped, np.diagonal(damped) + damp * energy)
        try:
            return _upper_factor(damped)
        except np.linalg.LinAlgError:
            damp = max(10 * damp, SMALLEST_DAMP)
    return None


def _upper_factor(moments: Array) -> Array:
    """Factor matrices [..., n, n]: reversing the order of the channels turns their lower factor into an upper one."""
    upper = np.linalg.cholesky(moments[..., ::-1, ::-1])[..., ::-1, ::-1]
    return np.ascontiguousarray(upper / np.diagonal(upper, axis1=-2, axis2=-1)[..., None, :])


def rounded_rows(weight: Array, triangle: Array, grid: Callable[[slice, Array], Grid], block: int = _BLOCK) -> Array:
    """Round a weight, float32 [in_features, out_features], row by row; return its integers as float32.

    A row moves by the errors of those before it, weighted by its column of the triangle: Babai's nearest plane, which
    is GPTQ's rounding (Chen et al., "The Geometry of LLM Quantization", 2025) without the inverse of the moments.

    Args:
        weight: becomes the errors that are left.
        triangle: float32 [in_features, in_features], see `factored`.
        grid: from a slice of the rows, and these as they were moved by all before them, to their grid.
        block: how many rows the slices have.
    """
    rounded = np.empty(weight.shape, np.float32)
    for start in range(0, len(weight), block):
        rows = slice(start, min(start + block, len(weight)))
        moved = weight[rows] + triangle[:start, rows].T @ weight[:start]
        scale, zero, bounds = grid(rows, moved)
        for index, row in enumerate(range(rows.start, rows.stop)):
            target = moved[index] + triangle[start:row, row] @ weight[start:row]
            offset = 0 if zero is None else zero[index]
            target /= scale[index]
            np.rint(target, out=target)
            target += offset
            np.clip(target, *bounds, out=target)
            rounded[row] = target
            target -= offset
            weight[row] -= target * scale[index]
    return rounded


def grouped_gptq(weight: Array, gram: Array, scheme: Scheme, damp_percent: float = 0.01) -> Array:
    """Return the integers of many small weights at once, e.g. the kernels of a depthwise convolution.

    Each is rounded as in `gptq`, in the order of its inputs, at a scale per output; one whose second moments cannot
    be factored is rounded to nearest. Does not apply to asymmetric schemes or scales per tensor: give steps.

    Args:
        weight: float [groups, inputs, outputs] in steps of its scale.
        gram: mean of x xT of each group, float [groups, inputs, inputs].
        scheme: symmetric int8.
        damp_percent: share of the mean energy of a group that is added to its diagonal.

    Returns:
        int8 [groups, inputs, outputs].
    """
    energy = np.trace(gram, axis1=1, axis2=2).astype(np.float64) / gram.shape[1]
    usable = np.isfinite(energy) & (energy > _SMALLEST_NORMAL)
    moments = np.where(usable[:, None, None], gram, 0).astype(np.float64)
    damp = np.where(usable, damp_percent * energy, 1.0)
    triangle = _upper_factor(moments + damp[:, None, None] * np.eye(gram.shape[1]))
    smallest, largest = scheme.range
    errors = weight.astype(np.float64)
    rounded = np.empty_like(errors)
    for row in range(errors.shape[1]):
        target = errors[:, row] + np.einsum("gi,gio->go", triangle[:, :row, row], errors[:, :row])
        rounded[:, row] = np.clip(np.rint(target), smallest, largest)
        errors[:, row] -= rounded[:, row]
    return rounded.astype(scheme.dtype)
