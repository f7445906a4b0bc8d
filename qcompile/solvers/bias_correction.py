"""Correction of the bias for what quantization shifts the outputs of a layer by on average."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]


def output_shift(exact: Array, quantized: Array) -> Array:
    """Return the mean shift of each output, to be taken off the bias; 0 where that would not carry over to new data.

    The shift of one half of the rows is tried on the other: an output whose squared error there does not become
    smaller is left alone. With fewer than two rows all are. The shift that is returned is that of all rows.

    Nagel et al., "Data-Free Quantization Through Weight Equalization and Bias Correction" (2019), section 4.2.

    Args:
        exact: outputs of the float layer, float32 [..., rows, outputs].
        quantized: outputs of the quantized layer on the same rows.

    Returns:
        float32 [..., outputs].
    """
    error = np.subtract(quantized, exact, dtype=np.float64)
    half = error.shape[-2] // 2
    if half == 0:
        return np.zeros((*error.shape[:-2], error.shape[-1]), np.float32)
    known, unseen = error[..., :half, :], error[..., half:, :]
    left = np.square(unseen - known.mean(axis=-2, keepdims=True)).sum(axis=-2)
    better = left < np.square(unseen).sum(axis=-2)
    return np.where(better, error.mean(axis=-2), 0).astype(np.float32)
