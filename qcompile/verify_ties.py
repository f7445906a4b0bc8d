"""What other answers to ties change, in numbers that are rounded at run time by a scale of their own."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import onnx_ir as ir

from qcompile.reference_evaluator import evaluate
from qcompile.reference_operators import ChannelsPerScale
from qcompile.session import Feed

TIE = 2.0**-20
"""Part of itself by which a number in steps is moved. Kernels divide by the scale, or multiply by one over it, and take
the largest magnitude of a block as it is or rounded: each is one rounding of float32, 2**-23; there may be three."""

Arrays = Mapping[str, np.ndarray]


def moved_by_ties(portable: ir.Model, sample: Feed, inner: Arrays, channels_per_scale: ChannelsPerScale) -> Arrays:
    """Return how far each value is moved where all that is nearly a tie is rounded up, and where it is rounded down."""
    plain, up, down = (
        evaluate(portable, sample, inner, channels_per_scale=channels_per_scale, nudge=each)
        for each in (0.0, TIE, -TIE)
    )
    floats = (name for name, array in plain.items() if array.dtype.kind == "f")
    return {name: np.abs(up[name] - plain[name]) + np.abs(down[name] - plain[name]) for name in floats}


def towards(expected: np.ndarray, actual: np.ndarray, moved: np.ndarray) -> np.ndarray:
    """Return what a runtime computed, moved towards the reference by what ties explain."""
    moved_back: np.ndarray = np.where(
        actual > expected, np.maximum(actual - moved, expected), np.minimum(actual + moved, expected)
    )
    return moved_back
