"""Moves the range of activation channels into the weights of the layers that read them."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping
from typing import ClassVar, Literal

import numpy as np
import onnx_ir as ir

from qcompile import channel_groups, layers
from qcompile.calibration import Calibrator, ChannelStatistics
from qcompile.channel_groups import Claims, Group
from qcompile.channel_scales import Placement
from qcompile.contract import Finding, Keeps, Pass, Result
from qcompile.errors import CalibrationError, RecipeError
from qcompile.graph import Convolution, constant_array
from qcompile.scheme import Scheme
from qcompile.smoothing_problem import smoothing_problem
from qcompile.solvers import broken_numbers, smoothing

STATIC = Scheme("uint8", sym=False)
PER_CHANNEL = Scheme("int8", "per_channel")

# The summands of a residual stream are quantized one by one, which the error of what reads the sums does not show: by
# scales that removed 30 to 40% of it the output of EfficientNet-Lite0 lost 0.2 dB.
_JOINED_GAIN = 0.5


@dataclasses.dataclass(frozen=True)
class SmoothActivations(Pass):
    """x -> MatMul(W)  becomes  Mul(x, 1/s) -> MatMul(s * W): SmoothQuant (Xiao et al. 2023), section 4.

    The same for Conv and ConvTranspose. All layers that read one value share one s, and so do values whose channels the
    graph ties together, as those of a residual stream. Where the Mul can be folded into what is in front (`FoldScales`
    does it), channels that are tied, as those of query heads with one key-value head, get one factor. Where it cannot,
    the Mul is written in front of linears only if it removes `min_gain` of the error, because it costs time, and never
    in front of convolutions, where it would pass over a whole feature map; other readers of x keep reading x. A value
    that already comes from such a Mul is left alone; so are layers that stay float, those with an empty weight or
    `broken_numbers` and convolutions under dynamic activations, and layers of one input channel, which has no other to
    differ from.

    Attributes:
        alpha: how much of the range goes into the weights, by equation 4 of the paper for every layer that folds; or
            "auto": the scale with the smallest output error on sampled rows, which may be none, and is none for a
            residual stream of feature maps unless it removes half of the error.
        activations: how the inputs of the layers will be quantized.
        weights: how their weights will be quantized.
        ignore: layers that stay float, by name; bound by `compile`. They keep reading the value itself.
        min_gain: part of the squared output error that a Mul which cannot be folded has to remove, 0 to 1.
        calibrator: source of the statistics; bound by `compile`.

    Raises:
        CalibrationError: there is no calibrator.
        RecipeError: alpha or min_gain is out of range.
    """

    alpha: float | Literal["auto"] = "auto"
    activations: Scheme = STATIC
    weights: Scheme = PER_CHANNEL
    min_gain: float = 0.25
    ignore: frozenset[str] = frozenset()
    calibrator: Calibrator | None = dataclasses.field(default=None, repr=False, compare=False)

    keeps: ClassVar[Keeps] = "exact"
    looks_for: ClassVar[str] = "MatMul, Conv or ConvTranspose with a constant float32 weight"

    def __post_init__(self) -> None:
        if self.alpha != "auto" and not (isinstance(self.alpha, int | float) and 0 <= self.alpha <= 1):
            raise RecipeError(f"alpha {self.alpha!r}", "it is not a number from 0 to 1", 'Use such a number or "auto"')
        if not 0 <= self.min_gain <= 1:
            raise RecipeError(f"min_gain {self.min_gain!r}", "it is not a number from 0 to 1", "Use such a number")

    @property
    def may_match_nothing(self) -> bool:
        """With alpha "auto" the data decides, and all layers may be ignored: `compile` finds those faster in float."""
        return self.alpha == "auto" or bool(self.ignore)

    def without_calibration(self) -> Pass | None:
        """Leave the pass out: there is nothing to smooth by."""
        return None

    def call(self, model: ir.Model) -> Result:
        """Write the scales; from the last layers to the first, because a folded scale changes earlier weights."""
        if self.calibrator is None:
            raise CalibrationError("SmoothActivations", "it needs statistics of activations", "Give calibration data")
        claims, smoothed = channel_groups.claimed(model)
        found = [layer for layer in layers.float_layers(model) if layer.x not in smoothed and self._smooths(layer)]
        groups = channel_groups.find(found)
        statistics = self._collect(model, [group for group in groups if group.folds or group.linears])
        findings = [finding for group in reversed(groups) for finding in self._smooth(group, statistics, claims)]
        modified = any(finding.action == "converted" for finding in findings)
        return Result(model, modified=modified, findings=tuple(reversed(findings)))

    def _smooths(self, layer: layers.Layer) -> bool:
        kept = layer.name in self.ignore or (isinstance(layer, Convolution) and self.activations.dynamic)
        if kept or layer.weight.shape is None or 0 in layer.weight.shape or layers.input_channels(layer) <= 1:
            return False
        weight = constant_array(layer.weight)
        return weight is not None and not broken_numbers.of_weight(weight)

    def _collect(self, model: ir.Model, groups: Iterable[Group]) -> dict[str, ChannelStatistics]:
        """Statistics by value, along one axis: where a linear reads it too, no scale of a convolution's input folds."""
        assert self.calibrator is not None
        axes = {str(x.name): layers.input_axis(found[0]) for group in groups for x, found in group.readings}
        return self.calibrator.collect(model, axes)

    def _smooth(self, group: Group, statistics: Mapping[str, ChannelStatistics], claims: Claims) -> list[Finding]:
        """Decide on one group; findings of its values, the last first."""
        names = [found[0].name for _, found in reversed(group.readings)]
        answer = group.answer
        seen = [statistics[str(x.name)] for x, _ in group.readings if str(x.name) in statistics]
        broken = [reason for each in seen if (reason := broken_numbers.of_activation(each.mean, each.absmax))]
        if broken:
            return [Finding(name, "kept", f"not smoothed: its input {broken[0]}") for name in names]
        if not group.linears and not isinstance(answer, Placement):
            return [Finding(name, "kept", f"not smoothed: {answer.reason}") for name in names]
        if claims.overlap(answer):
            return [
                Finding(name, "kept", "not smoothed: what it reads is smoothed with another value") for name in names
            ]
        problem = smoothing_problem(group, statistics, claims, self.activations, self.weights)
        found = smoothing.search(problem) if self.alpha == "auto" else smoothing.by_alpha(problem, self.alpha)
        effect = f"relative error of the output {found.error_without:.2e} without, {found.error:.2e} with a scale"
        required = (_JOINED_GAIN if group.joined and not group.linears else 0.0) if self.alpha == "auto" else -np.inf
        if np.all(found.scale == 1) or found.gain < (required if group.folds else self.min_gain):
            return [Finding(name, "kept", f"not smoothed: {effect}") for name in names]
        channel_groups.scale_first(group, found.scale, claims)
        return [Finding(name, "converted", f"smoothed: {effect}") for name in names]
