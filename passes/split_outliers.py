"""Multiplies the few input channels with very large activations in float, so that 8 bits are fine for all others."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import ClassVar, Literal

import numpy as np
import onnx_ir as ir

from qcompile import layers, outlier_columns
from qcompile.calibration import Calibrator, ChannelStatistics
from qcompile.contract import Finding, Keeps, Pass, Result
from qcompile.errors import CalibrationError, RecipeError
from qcompile.graph import Linear, computed_constants, constant_array
from qcompile.scheme import PER_CHANNEL_INT8, Scheme
from qcompile.solvers import broken_numbers, outliers

PER_TOKEN = Scheme("int8", "per_token", dynamic=True)


@dataclasses.dataclass(frozen=True)
class SplitOutliers(Pass):
    """MatMul(x, W) -> MatMul(x * mask, W) + MatMul(Gather(x, O), W[O]): LLM.int8() (Dettmers et al. 2022), section 3.2

    O are the input channels whose magnitude exceeds a threshold. mask sets them to zero, so that the scale of a token
    is that of the other channels when a later pass quantizes the first product; rows O of its weight are zero, and it
    keeps its shape. The second product stays float. Where the paper looks for outliers in every batch, here O is fixed,
    from calibration: shapes stay static, and a channel that exceeds the threshold later for the first time is quantized
    with the others, as without this pass. All linears that read one value share O.

    Does not fire where no channel exceeds the threshold, or more than `max_share` of them, which then are no outliers;
    on what is computed from constants, a vector, or NaN; on layers that are ignored or cannot be quantized; and on
    linears that are split.

    Attributes:
        threshold: magnitude beyond which a channel is an outlier, 6.0 as in the paper; or "auto": the channels that
            pay, see `solvers.outliers.search`.
        max_share: largest part of the channels of a value that is multiplied in float, 0 to 1.
        activations: how the inputs of the layers will be quantized.
        weights: how their weights will be quantized.
        ignore: layers that stay float, by name; bound by `compile`.
        operators: "Linear" where the backend computes it in integers; bound by `compile`.
        calibrator: source of the statistics; bound by `compile`.

    Raises:
        CalibrationError: there is no calibrator.
        RecipeError: threshold or max_share is out of range.
    """

    threshold: float | Literal["auto"] = 6.0
    max_share: float = 1 / 16
    activations: Scheme = PER_TOKEN
    weights: Scheme = PER_CHANNEL_INT8
    ignore: frozenset[str] = frozenset()
    operators: frozenset[str] = frozenset({"Linear"})
    calibrator: Calibrator | None = dataclasses.field(default=None, repr=False, compare=False)

    keeps: ClassVar[Keeps] = "exact"
    looks_for: ClassVar[str] = "MatMul with a constant float32 weight"

    def __post_init__(self) -> None:
        if self.threshold != "auto" and not (math.isfinite(self.threshold) and self.threshold > 0):
            reason = "it is no positive number"
            raise RecipeError(f"threshold {self.threshold!r}", reason, 'Use such a number, 6.0 in the paper, or "auto"')
        if not 0 <= self.max_share <= 1:
            raise RecipeError(f"max_share {self.max_share!r}", "it is not a number from 0 to 1", "Use such a number")

    @property
    def may_match_nothing(self) -> bool:
        """With threshold "auto" the data decides; and all layers may be ignored, as those that are faster in float."""
        return self.threshold == "auto" or bool(self.ignore)

    def without_calibration(self) -> Pass | None:
        """Leave the pass out: nobody knows the outliers."""
        return None

    def call(self, model: ir.Model) -> Result:
        """Split linears; one finding for each value that some read, and one more where none has outliers."""
        if self.calibrator is None:
            raise CalibrationError("SplitOutliers", "it needs statistics of activations", "Give calibration data")
        fixed = computed_constants(model)
        readings: dict[ir.Value, list[Linear]] = {}
        for linear in layers.float_linears(model):
            if linear.x not in fixed and not outlier_columns.is_inliers(linear.x) and self._quantizes(linear):
                readings.setdefault(linear.x, []).append(linear)
        statistics = self.calibrator.collect(model, {str(x.name): -1 for x in readings})
        findings = [self._split(found, statistics) for found in readings.values()]
        modified = any(finding.action == "converted" for finding in findings)
        if readings and not modified:
            reason = "it found outliers in no layer: the linears are quantized as they are without it"
            findings.append(Finding("split_outliers", "kept", reason))
        return Result(model, modified=modified, findings=tuple(findings))

    def _quantizes(self, linear: Linear) -> bool:
        left = layers.left_out(layers.finding(linear, "kept"), self.ignore, self.operators)
        return left is None and not layers.refusal(linear, self.activations, self.weights)

    def _split(self, found: Sequence[Linear], statistics: Mapping[str, ChannelStatistics]) -> Finding:
        """Split the linears that read one value, if it has outliers; the finding is named after the first."""
        name, seen = found[0].name, statistics[str(found[0].x.name)]
        broken = broken_numbers.of_activation(seen.mean, seen.absmax)
        if broken:
            return Finding(name, "kept", f"not split: its input {broken}")
        most = math.floor(self.max_share * seen.absmax.size)
        if self.threshold == "auto":
            chosen = self._search(found, seen, most)
            channels = chosen.channels
            effect = f"relative error of the output {chosen.error_without:.2e} without, {chosen.error:.2e} with a split"
        else:
            channels = outliers.beyond(seen.absmax, self.threshold)
            effect = f"the largest magnitude is {seen.absmax.max(initial=0):.3g}"
        share = f"{channels.size} of {seen.absmax.size} input channels"
        if channels.size > most:
            reason = f"not split: {share} exceed {self.threshold:g}, more than the part {self.max_share:g} of them"
            return Finding(name, "kept", reason)
        if not channels.size:
            return Finding(name, "kept", f"not split: {effect}")
        outlier_columns.split(found, channels)
        return Finding(name, "converted", f"{share} are multiplied in float: {effect}")

    def _search(self, found: Sequence[Linear], seen: ChannelStatistics, most: int) -> outliers.Split:
        weights = [np.asarray(constant_array(linear.weight), np.float32) for linear in found]
        problem = outliers.Problem(seen.rows, seen.minimum, seen.maximum, weights, self.activations, self.weights, most)
        return outliers.search(problem)
