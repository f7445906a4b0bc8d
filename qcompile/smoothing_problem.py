"""What quantization does to the layers that share one channel scale, as the problem that the solver takes."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from qcompile import channel_groups
from qcompile.calibration import ChannelStatistics
from qcompile.channel_groups import Claims, Group
from qcompile.channel_scales import Placement
from qcompile.scheme import Scheme
from qcompile.solvers import smoothing
from qcompile.solvers.smoothing_convolutions import Convolutions, Reading


def smoothing_problem(
    group: Group, statistics: Mapping[str, ChannelStatistics], claims: Claims, activations: Scheme, weights: Scheme
) -> smoothing.Problem:
    """Return the linears or convolutions of a group with samples of what they read.

    Args:
        group: layers that share a scale.
        statistics: of every value that they read, by its name.
        claims: scales that are decided, which the weights hold already.
        activations: how the values will be quantized.
        weights: how the weights will be quantized.
    """
    readings = []
    for x, found in group.readings:
        seen = statistics[str(x.name)]
        kernels = [channel_groups.kernel(layer, claims.weight(layer)) for layer in found]
        readings.append(Reading(seen.rows, seen.minimum, seen.maximum, seen.count, kernels))
    ties = group.answer.groups if isinstance(group.answer, Placement) else np.arange(readings[0].minimum.size)
    if not group.linears:
        return Convolutions(readings, activations, weights, ties)
    (one,) = readings
    matrices = [kernel[0, :, :, 0] for kernel in one.kernels]
    return smoothing.Linears(one.rows, one.minimum, one.maximum, matrices, activations, weights, ties, one.count)
