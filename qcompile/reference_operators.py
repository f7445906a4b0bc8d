"""Operators of the reference evaluation that onnx's own are too coarse, or wrong, for.

Independent of everything that compiles: of qcompile, only other parts of the reference are imported.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from onnx.reference.op_run import OpRun
from onnx.reference.ops.op_dequantize_linear import _CommonDequantizeLinear as _DequantizeLinear

from qcompile.reference_convolutions import Conv, ConvTranspose
from qcompile.reference_pooling import AveragePool, MaxPool
from qcompile.reference_recurrent import GRU, LSTM, RNN
from qcompile.reference_resampling import GatherElements, Pad, Resize
from qcompile.reference_suppression import NonMaxSuppression

_COLUMNS = 4096
"""Columns of a weight that are multiplied at a time."""

_ROWS = 64
"""Rows of a weight that are dequantized at a time."""

ChannelsPerScale = Callable[[int], int]
"""Width of a token -> how many of its consecutive channels share a scale at run time; 0: they are not quantized."""


def whole_token(channels: int) -> int:
    """Return the number of channels itself: one scale for each token, as recipes say it."""
    return channels


def operators(channels_per_scale: ChannelsPerScale, nudge: float = 0.0) -> list[type[OpRun]]:
    """Return the operators that take the place of onnx's, with this way of quantizing tokens.

    Args:
        channels_per_scale: see `ChannelsPerScale`.
        nudge: part of itself by which a number is moved before it is rounded, to see what answers to ties change.
    """

    class QuantizeDequantizePerToken(OpRun):
        """Symmetric int8 in -127..127, one scale for each group of channels of a token."""

        op_domain = "qcompile"

        def _run(self, x: np.ndarray) -> tuple[np.ndarray]:
            return (quantize_dequantize_tokens(x, channels_per_scale(x.shape[-1]), nudge),)

    class QuantizeDequantizePerBlock(OpRun):
        """The same, where the graph says how many channels share a scale; a runtime may take smaller groups."""

        op_domain = "qcompile"

        def _run(self, x: np.ndarray, block_size: int | None = None) -> tuple[np.ndarray]:
            size = channels_per_scale(x.shape[-1])
            return (quantize_dequantize_tokens(x, min(size, block_size or size), nudge),)

    return [*_OPERATORS, QuantizeDequantizePerToken, QuantizeDequantizePerBlock]


def quantize_dequantize_tokens(x: np.ndarray, channels: int, nudge: float = 0.0) -> np.ndarray:
    """Return float32 [..., width] as int8, by one scale max|x| / 127 for each group of channels; 0: as it is.

    Channels behind the last whole group are a smaller one. `nudge` is that of `operators`.
    """
    if channels == 0 or x.size == 0:
        return x
    starts = np.arange(0, x.shape[-1], channels)
    sizes = np.diff(starts, append=x.shape[-1])
    scale = np.repeat(np.maximum.reduceat(np.abs(x), starts, axis=-1) / np.float32(127), sizes, axis=-1)
    scale[scale == 0] = 1
    return np.asarray(np.clip(np.rint(x / scale * np.float32(1 + nudge)), -127, 127) * scale, x.dtype)


class BatchNormalization(OpRun):
    """(x - mean) / sqrt(variance + epsilon) * scale + bias; onnx's own of opsets 9 to 13 takes statistics of x."""

    def _run(
        self,
        x: np.ndarray,
        scale: np.ndarray,
        bias: np.ndarray,
        mean: np.ndarray,
        variance: np.ndarray,
        epsilon: float | None = None,
        **_: Any,
    ) -> tuple[np.ndarray]:
        by_channel = (-1, *(1,) * (x.ndim - 2))
        factor = scale / np.sqrt(variance + np.asarray(1e-5 if epsilon is None else epsilon, variance.dtype))
        return (
            np.asarray((x - mean.reshape(by_channel)) * factor.reshape(by_channel) + bias.reshape(by_channel), x.dtype),
        )


class MatMul(OpRun):
    """Products in float64: those of 8-bit integers are exact, of any length."""

    def _run(self, a: np.ndarray, b: np.ndarray) -> tuple[np.ndarray]:
        if a.dtype.kind != "f":
            return (np.matmul(a, b),)
        if b.ndim != 2:
            return (np.asarray(np.matmul(a.astype(np.float64), b.astype(np.float64)), a.dtype),)
        # A weight may be a large part of the model: no copy of all of it.
        exact, blocks = a.astype(np.float64), range(0, max(b.shape[1], 1), _COLUMNS)
        products = [np.matmul(exact, b[:, start : start + _COLUMNS].astype(np.float64)) for start in blocks]
        return (np.concatenate([part.astype(a.dtype) for part in products], axis=-1),)


class QuantizeLinear(OpRun):
    """Integers of 8 bits; onnx's own rounds to int32 first, where a number far out of range turns its sign."""

    def _run(
        self,
        x: np.ndarray,
        scale: np.ndarray,
        zero_point: np.ndarray | None = None,
        axis: int = 1,
        output_dtype: int | None = None,
        **_: Any,
    ) -> tuple[np.ndarray]:
        from onnx.helper import tensor_dtype_to_np_dtype

        point = np.zeros((), tensor_dtype_to_np_dtype(output_dtype) if output_dtype else np.uint8)
        point = point if zero_point is None else zero_point
        limits = np.iinfo(point.dtype)
        shape = [1] * x.ndim
        if scale.size > 1:
            shape[axis] = scale.size
        steps = np.asarray(x / scale.reshape(shape if scale.size > 1 else ()))
        np.rint(steps, out=steps)
        steps += point.astype(steps.dtype).reshape(shape if point.size > 1 else ())
        np.clip(steps, limits.min, limits.max, out=steps)
        steps[np.isnan(steps)] = 0
        return (steps.astype(point.dtype),)


class DequantizeLinear(_DequantizeLinear):
    """As onnx's own, some rows of a matrix of 8 bits at a time: it makes four copies in float of what it is given."""

    def _run(
        self,
        x: np.ndarray,
        x_scale: np.ndarray,
        x_zero_point: np.ndarray | None = None,
        axis: int = 1,
        block_size: int = 0,
        output_dtype: int | None = None,
    ) -> tuple[np.ndarray]:
        def of(part: np.ndarray) -> np.ndarray:
            (result,) = super(DequantizeLinear, self)._run(
                part, x_scale, x_zero_point, axis=axis, block_size=block_size, output_dtype=output_dtype
            )
            return np.asarray(result)

        by_column = x_scale.ndim == 0 or (x_scale.ndim == 1 and axis in (1, -1))
        if x.ndim != 2 or not len(x) or not by_column or x.itemsize != 1:
            return (of(x),)
        result = np.empty(x.shape, x_scale.dtype)
        for start in range(0, len(x), _ROWS):
            result[start : start + _ROWS] = of(x[start : start + _ROWS])
        return (result,)


class GlobalMaxPool(OpRun):
    """Maximum over all axes but the first two, which stay as axes of size 1; onnx's own drops all but two of them."""

    def _run(self, x: np.ndarray) -> tuple[np.ndarray]:
        return (x.max(axis=tuple(range(2, x.ndim)), keepdims=True),)


class LRN(OpRun):
    """x / (bias + alpha / size * sum of squares of `size` channels around)^beta; onnx's own loses a channel."""

    def _run(
        self,
        x: np.ndarray,
        alpha: float | None = None,
        beta: float | None = None,
        bias: float | None = None,
        size: int | None = None,
    ) -> tuple[np.ndarray]:
        count, channels = size or 1, x.shape[1]
        squares = np.pad(x.astype(np.float64) ** 2, [(0, 0), ((count - 1) // 2, count // 2), *[(0, 0)] * (x.ndim - 2)])
        total = sum(squares[:, first : first + channels] for first in range(count))
        scale = (1.0 if bias is None else bias) + (1e-4 if alpha is None else alpha) / count * total
        return (np.asarray(x / scale ** (0.75 if beta is None else beta), x.dtype),)


_OPERATORS: tuple[type[OpRun], ...] = (
    AveragePool,
    BatchNormalization,
    Conv,
    ConvTranspose,
    DequantizeLinear,
    GRU,
    GatherElements,
    GlobalMaxPool,
    LRN,
    LSTM,
    MatMul,
    MaxPool,
    NonMaxSuppression,
    Pad,
    QuantizeLinear,
    RNN,
    Resize,
)
