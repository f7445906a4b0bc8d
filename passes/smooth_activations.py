"""Moves the range of activation channels into the weights of the linears that read them."""

from __future__ import annotations

import dataclasses
from typing import ClassVar, Literal

import numpy as np
import onnx_ir as ir

from qcompile import channel_markers, channel_scales, graph
from qcompile.calibration import Calibrator, ChannelStatistics
from qcompile.channel_scales import Placement, Refusal
from qcompile.contract import Finding, Keeps, Pass, Result
from qcompile.errors import CalibrationError, RecipeError
from qcompile.scheme import Scheme
from qcompile.solvers import smoothing

STATIC = Scheme("uint8", sym=False)
PER_CHANNEL = Scheme("int8", "per_channel")

Factors = dict[tuple[ir.Node, int], np.ndarray | np.float32]


@dataclasses.dataclass(frozen=True)
class SmoothActivations(Pass):
    """x -> MatMul(W)  becomes  Mul(x, 1/s) -> MatMul(s * W): SmoothQuant (Xiao et al. 2023), section 4.

    All linears that read one value share one s. Where the Mul can be folded into what is in front (`FoldScales` does
    it), channels that the graph ties together, as those of query heads with one key-value head, get one factor. Where
    it cannot, the Mul is written only if it removes `min_gain` of the error, because it costs time; other readers of x
    keep reading x. A value that already comes from such a Mul is left alone.

    Attributes:
        alpha: how much of the range goes into the weights, by equation 4 of the paper for every linear that folds; or
            "auto": the scale with the smallest output error on sampled rows, which may be none.
        activations: how the inputs of the linears will be quantized.
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
    looks_for: ClassVar[str] = "linears: MatMul with a constant second input"

    def __post_init__(self) -> None:
        if self.alpha != "auto" and not (isinstance(self.alpha, int | float) and 0 <= self.alpha <= 1):
            raise RecipeError(f"alpha {self.alpha!r}", "it is not a number from 0 to 1", 'Use such a number or "auto"')
        if not 0 <= self.min_gain <= 1:
            raise RecipeError(f"min_gain {self.min_gain!r}", "it is not a number from 0 to 1", "Use such a number")

    @property
    def may_match_nothing(self) -> bool:
        """With alpha "auto" the data decides; a model without linears has nothing to smooth."""
        return self.alpha == "auto"

    def without_calibration(self) -> Pass | None:
        """Leave the pass out: there is nothing to smooth by."""
        return None

    def call(self, model: ir.Model) -> Result:
        """Write the scales; from the last linears to the first, because a folded scale changes earlier weights."""
        if self.calibrator is None:
            raise CalibrationError("SmoothActivations", "it needs statistics of activations", "Give calibration data")
        quantized = [linear for linear in graph.linears(model) if linear.name not in self.ignore]
        groups = channel_markers.by_input(quantized)
        changed: Factors = {}
        for marker in channel_markers.find(model):
            groups.pop(marker.node.outputs[0], None)
            _remember(channel_scales.solve(marker.x, marker.axis), marker.factors, changed)
        statistics = self.calibrator.collect(model, {str(x.name): -1 for x in groups})
        findings = [
            self._smooth(x, linears, statistics[str(x.name)], changed) for x, linears in reversed(groups.items())
        ]
        modified = any(finding.action == "converted" for finding in findings)
        return Result(model, modified=modified, findings=tuple(reversed(findings)))

    def _smooth(
        self, x: ir.Value, linears: list[graph.Linear], statistics: ChannelStatistics, changed: Factors
    ) -> Finding:
        """Decide on one value; `changed` collects what folding will do to the weights in front."""
        answer = channel_scales.solve(x, -1)
        folds = isinstance(answer, Placement)
        problem = smoothing.Linears(
            rows=statistics.rows,
            minimum=statistics.minimum,
            maximum=statistics.maximum,
            weights=[_weight(linear, changed) for linear in linears],
            activations=self.activations,
            weight_scheme=self.weights,
            count=statistics.count,
            groups=answer.groups if isinstance(answer, Placement) else np.arange(statistics.minimum.size),
        )
        found = smoothing.search(problem) if self.alpha == "auto" else smoothing.by_alpha(problem, self.alpha)
        effect = f"relative error of the output {found.error_without:.2e} without, {found.error:.2e} with a scale"
        if np.all(found.scale == 1) or (found.gain < self.min_gain and not folds):
            return Finding(linears[0].name, "kept", f"not smoothed: {effect}")
        channel_markers.insert(x, 1 / found.scale, linears)
        for linear in linears:
            channel_scales.multiply_constant(linear.matmul, 1, found.scale[:, None])
        _remember(answer, 1 / found.scale, changed)
        return Finding(linears[0].name, "converted", f"smoothed: {effect}")


def _weight(linear: graph.Linear, changed: Factors) -> np.ndarray:
    """Weight of a linear as it will be once the scales behind it are folded."""
    weight = graph.constant_array(linear.weight)
    assert weight is not None
    return np.asarray(weight, np.float32) * changed.get((linear.matmul, 1), np.float32(1))


def _remember(answer: Placement | Refusal, factors: np.ndarray, changed: Factors) -> None:
    """Note what folding these factors will multiply."""
    if isinstance(answer, Refusal):
        return
    shared = np.ones(answer.group_count + 1)
    shared[answer.groups] = factors
    for rescale in answer.rescales:
        if rescale.side == "output":
            factor = (shared[rescale.ids] ** rescale.power).astype(np.float32)
            key = rescale.node, rescale.index
            changed[key] = changed.get(key, np.float32(1)) * factor
