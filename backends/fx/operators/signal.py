"""Fourier transforms and the matrix of mel filters."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from qcompile.backends.fx.host import Host, device_of, single
from qcompile.backends.fx.table import operator
from qcompile.backends.fx.types import torch_type


def _transform(x: Tensor, length: Host | None, axis: int, inverse: int, onesided: int) -> Tensor:
    axis %= x.dim()
    signal = torch.complex(x[..., 0], x[..., 1] if x.shape[-1] == 2 else torch.zeros_like(x[..., 0]))
    if inverse and onesided:
        count = 2 * (x.shape[axis] - 1) if length is None else int(single(length))
        real: Tensor = torch.fft.irfft(signal, count, axis)
        return real[..., None]
    count = x.shape[axis] if length is None else int(single(length))
    made = torch.fft.ifft(signal, count, axis) if inverse else torch.fft.fft(signal, count, axis)
    if onesided:
        made = made.narrow(axis, 0, count // 2 + 1)
    return torch.view_as_real(made)


@operator("DFT", since=20, host=("dft_length", "axis"))
def dft(
    x: Tensor, dft_length: Host | None = None, axis: Host | None = None, *, inverse: int = 0, onesided: int = 0
) -> Tensor:
    """The discrete Fourier transform along an axis; the last axis holds real and imaginary parts."""
    return _transform(x, dft_length, -2 if axis is None else int(single(axis)), inverse, onesided)


@operator("DFT", host=("dft_length",))
def dft_17(x: Tensor, dft_length: Host | None = None, *, axis: int = 1, inverse: int = 0, onesided: int = 0) -> Tensor:
    """DFT of opsets below 20: the axis is an attribute."""
    return _transform(x, dft_length, axis, inverse, onesided)


@operator("STFT", host=("frame_step", "frame_length"))
def stft(
    x: Tensor,
    frame_step: Host,
    window: Tensor | None = None,
    frame_length: Host | None = None,
    *,
    onesided: int = 1,
) -> Tensor:
    """The Fourier transform of windows of a signal [batch, length, 1 or 2]: [batch, frames, frequencies, 2]."""
    if frame_length is not None:
        length = int(single(frame_length))
    else:
        length = x.shape[-2] if window is None else window.shape[0]
    frames = x.unfold(-2, length, int(single(frame_step))).transpose(-1, -2)
    if window is not None:
        frames = frames * window[:, None]
    return _transform(frames, None, -2, 0, onesided)


@operator("MelWeightMatrix", host=("bins", "length", "rate", "lower", "upper"))
def mel_weight_matrix(
    bins: Host, length: Host, rate: Host, lower: Host, upper: Host, *, output_datatype: int = 1, like: object
) -> Tensor:
    """Triangular filters, evenly spaced in mel: [length // 2 + 1, bins]."""
    count, size = int(single(bins)), int(single(length))
    low, high = (2595 * math.log10(1 + single(edge) / 700) for edge in (lower, upper))
    mels = [low + place * (high - low) / (count + 2) for place in range(count + 2)]
    edges: list[Any] = [int((size + 1) * (700 * (10 ** (mel / 2595) - 1)) // single(rate)) for mel in mels]
    steps = torch.arange(size // 2 + 1, dtype=torch.float64, device=device_of(like))
    columns = []
    for left, middle, right in zip(edges, edges[1:], edges[2:], strict=False):
        rising = (steps - left) / (middle - left) if middle > left else (steps == middle).to(torch.float64)
        falling = (right - steps) / (right - middle) if right > middle else torch.zeros_like(steps)
        column = torch.where((steps >= left) & (steps <= middle), rising, torch.zeros_like(steps))
        columns.append(torch.where((steps >= middle) & (steps < right), falling, column))
    return torch.stack(columns, 1).to(torch_type(output_datatype))
