"""Stores the weights of linears in groups of few bits; what they read stays float."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import ClassVar

import numpy as np
import onnx_ir as ir

from qcompile import layers, qdq, weight_only
from qcompile.calibration import Calibrator
from qcompile.calibration_layers import LayerStatistics, layer_statistics
from qcompile.contract import Finding, Keeps, Pass, Result
from qcompile.errors import RecipeError
from qcompile.graph import Linear
from qcompile.initializers import remove_unused
from qcompile.scheme import GroupScheme
from qcompile.solvers.grouped import Evidence, Grouped
from qcompile.solvers.rtn import rtn
from qcompile.weight_only import Solver

HEAD = GroupScheme(8, 64)


@dataclasses.dataclass(frozen=True)
class QuantizeWeights(Pass):
    """MatMul(x, W) -> MatMul(x, DequantizeLinear(integers of few bits, a scale for each group of inputs)).

    Weights are dequantized by the kernel, or when the model is loaded: what is gained is the time to read them. Does
    not fire on layers that are ignored, and on weights that are empty or hold `broken_numbers`.

    Attributes:
        bits: of each integer, 1 to 8.
        group_size: inputs that share a scale, of each output; the last group may be smaller. -1: all of them.
        sym: symmetric, with scales that may be negative; or with zero points.
        solver: how the integers and scales are found.
        n_grid: how many parts of the range of a group are tried as its scale; 0: it is that of the whole range.
        head: scheme of a linear that scores a vocabulary, see `weight_only.writes_vocabulary`; None: as the others.
        ignore: layers that stay float, by name; bound by `compile`.
        operators: "Linear" where the backend has such weights; bound by `compile`.
        calibrator: source of the statistics; bound by `compile`.

    Raises:
        RecipeError: bits or group_size is out of range.
    """

    bits: int = 4
    group_size: int = 64
    sym: bool = True
    solver: Solver = "rtn"
    n_grid: int = 0
    head: GroupScheme | None = HEAD
    ignore: frozenset[str] = frozenset()
    operators: frozenset[str] = frozenset({"Linear"})
    calibrator: Calibrator | None = dataclasses.field(default=None, repr=False, compare=False)

    keeps: ClassVar[Keeps] = "lossy"
    looks_for: ClassVar[str] = "MatMul with a constant float32 weight"

    def __post_init__(self) -> None:
        try:
            _ = self.scheme
        except ValueError as error:
            raise RecipeError("quantize_weights", str(error), "Give 1 to 8 bits, and a positive group_size") from error

    @property
    def scheme(self) -> GroupScheme:
        """How the weights are stored, but for that of a vocabulary."""
        return GroupScheme(self.bits, self.group_size, self.sym)

    def call(self, model: ir.Model) -> Result:
        """Quantize every linear that can be; one finding for each."""
        found = layers.float_linears(model)
        reasons = {linear.matmul: self._refusal(linear) for linear in found}
        chosen = [linear for linear in found if reasons[linear.matmul] is None]
        heads = {linear.matmul for linear in chosen if weight_only.writes_vocabulary(linear, model)}
        findings = [finding for finding in reasons.values() if finding is not None]
        done: dict[ir.Value, tuple[ir.Value, Finding]] = {}
        for part in self._calibrated(model, chosen):
            for linear in part.layers:
                assert isinstance(linear, Linear)
                scheme = self.head if self.head is not None and linear.matmul in heads else self.scheme
                findings.append(self._quantize(linear, scheme, part, done))
            del part  # with hundreds of rows of every value
        remove_unused(done)
        return Result(model, modified=bool(done), findings=tuple(findings))

    def _refusal(self, linear: Linear) -> Finding | None:
        left_out = layers.left_out(layers.finding(linear, "kept"), self.ignore, self.operators)
        reason = weight_only.refusal(linear) if left_out is None else ""
        return layers.finding(linear, "kept", reason) if reason else left_out

    def _calibrated(self, model: ir.Model, chosen: list[Linear]) -> Iterator[LayerStatistics]:
        if self.calibrator is None:
            return iter([LayerStatistics(tuple(chosen))])
        return layer_statistics(self.calibrator, model, chosen, [], grams=False)

    def _quantize(
        self, linear: Linear, scheme: GroupScheme, seen: LayerStatistics, done: dict[ir.Value, tuple[ir.Value, Finding]]
    ) -> Finding:
        """Quantize one linear; those with tied weights read what the first of them made."""
        if linear.weight not in done:
            tensor, multiplied = linear.weight.const_value, seen.of(linear.x)
            assert tensor is not None
            weight = tensor.numpy()
            found = self._solve(weight, scheme, Evidence(None if multiplied is None else multiplied.gram))
            rows = np.zeros((0, len(weight)), np.float32) if multiplied is None else multiplied.rows
            sqnr = weight_only.output_sqnr(weight, found, scheme.group_size, rows)
            value = qdq.dequantized_groups(linear.weight, found, scheme, linear.matmul)
            done[linear.weight] = value, layers.finding(linear, "quantized", found.remark, sqnr)
        value, finding = done[linear.weight]
        qdq.replace_input(linear.matmul, linear.weight, value)
        return dataclasses.replace(layers.finding(linear, "quantized", finding.reason), sqnr_db=finding.sqnr_db)

    def _solve(self, weight: np.ndarray, scheme: GroupScheme, seen: Evidence) -> Grouped:
        return rtn(weight, scheme, seen, n_grid=self.n_grid)
