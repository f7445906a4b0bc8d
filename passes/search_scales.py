"""Scales the input channels of linears so that their weights lose less when they are stored in few bits."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import ClassVar, Literal

import numpy as np
import onnx_ir as ir

from qcompile import channel_groups, layers, weight_only
from qcompile.calibration import Calibrator, ChannelStatistics
from qcompile.calibration_layers import layer_statistics
from qcompile.channel_groups import Claims, Group
from qcompile.channel_scales import Placement
from qcompile.contract import Finding, Keeps, Pass, Result
from qcompile.errors import CalibrationError, RecipeError
from qcompile.graph import Linear
from qcompile.scheme import GroupScheme
from qcompile.solvers import broken_numbers
from qcompile.solvers.awq import awq


@dataclasses.dataclass(frozen=True)
class SearchScales(Pass):
    """x -> MatMul(W)  becomes  Mul(x, 1/s) -> MatMul(s * W): AWQ (Lin et al. 2023), section 3.2.

    Only where `FoldScales` can fold the Mul into what is in front: weights alone are quantized to save time. All
    linears that read one value share one s. A value that comes from such a Mul already is left alone; so are linears
    that stay float, that score a vocabulary, and those without a scale that makes the error of their output smaller.

    Attributes:
        bits: of the weights, as in `QuantizeWeights`; "auto": 4.
        group_size: the same.
        sym: the same.
        n_grid: how many scales are tried.
        ignore: layers that stay float, by name; bound by `compile`.
        calibrator: source of the statistics; bound by `compile`.

    Raises:
        CalibrationError: there is no calibrator.
        RecipeError: bits, group_size or n_grid is out of range.
    """

    bits: int | Literal["auto"] = 4
    group_size: int = 64
    sym: bool = True
    n_grid: int = 10
    ignore: frozenset[str] = frozenset()
    calibrator: Calibrator | None = dataclasses.field(default=None, repr=False, compare=False)

    keeps: ClassVar[Keeps] = "exact"
    looks_for: ClassVar[str] = "MatMul with a constant float32 weight"

    def __post_init__(self) -> None:
        try:
            _ = self.scheme
        except ValueError as error:
            raise RecipeError("search_scales", str(error), "Give 1 to 8 bits, and a positive group_size") from error
        if self.n_grid < 1:
            raise RecipeError("search_scales.n_grid", f"it is {self.n_grid}, less than 1", "Give 1 or more")

    @property
    def scheme(self) -> GroupScheme:
        """How the weights will be stored."""
        return GroupScheme(4 if self.bits == "auto" else self.bits, self.group_size, self.sym)

    @property
    def may_match_nothing(self) -> bool:
        """The data decides."""
        return True

    def without_calibration(self) -> Pass | None:
        """Leave the pass out: there is nothing to scale by."""
        return None

    def call(self, model: ir.Model) -> Result:
        """Write the scales; from the last linears to the first, because a folded scale changes earlier weights."""
        if self.calibrator is None:
            raise CalibrationError("SearchScales", "it needs statistics of activations", "Give calibration data")
        claims, scaled = channel_groups.claimed(model)
        found = [each for each in layers.float_linears(model) if each.x not in scaled and self._scales(each, model)]
        groups = channel_groups.find(found)
        folded = {x for group in groups if group.folds for x, _ in group.readings}
        readers = [linear for linear in found if linear.x in folded]
        parts = layer_statistics(self.calibrator, model, readers, [], grams=False, for_rows=True)
        statistics = {name: seen for part in parts for name, seen in part.values.items()}
        findings = [self._scale(group, statistics, claims) for group in reversed(groups)]
        modified = any(finding.action == "converted" for finding in findings)
        return Result(model, modified=modified, findings=tuple(reversed(findings)))

    def _scales(self, linear: Linear, model: ir.Model) -> bool:
        kept = linear.name in self.ignore or weight_only.refusal(linear)
        return not kept and layers.input_channels(linear) > 1 and not weight_only.writes_vocabulary(linear, model)

    def _scale(self, group: Group, statistics: Mapping[str, ChannelStatistics], claims: Claims) -> Finding:
        (x, readers), answer = group.readings[0], group.answer
        name = readers[0].name
        if not isinstance(answer, Placement):
            return Finding(name, "kept", f"not scaled: {answer.reason}")
        if len(group.readings) > 1 or claims.overlap(answer):
            return Finding(name, "kept", "not scaled: what it reads is scaled with another value")
        seen = statistics[str(x.name)]
        broken = broken_numbers.of_activation(seen.mean, seen.absmax)
        if broken:
            return Finding(name, "kept", f"not scaled: its input {broken}")
        found = awq(seen.rows, [claims.weight(each) for each in readers], self.scheme, answer.groups, self.n_grid)
        effect = f"relative error of the output {found.error_without:.2e} without, {found.error:.2e} with a scale"
        if np.all(found.scale == 1):
            return Finding(name, "kept", f"not scaled: {effect}")
        channel_groups.scale_first(group, found.scale, claims)
        return Finding(name, "converted", f"scaled: {effect}")
