"""Stores the weights of linears as indices into the 16 levels of NF4; what they read stays float."""

from __future__ import annotations

import dataclasses
from typing import ClassVar

import numpy as np
import onnx_ir as ir

from qcompile import layers, qdq, weight_only
from qcompile.block_codebooks import write_codebook
from qcompile.calibration import Calibrator
from qcompile.contract import Keeps, Pass, Result
from qcompile.errors import RecipeError
from qcompile.graph import Linear
from qcompile.initializers import remove_unused
from qcompile.layers import Layer
from qcompile.scheme import GroupScheme
from qcompile.solvers.grouped import Grouped
from qcompile.solvers.nf4 import Codebook, double_quantized, nf4
from qcompile.solvers.rtn import rtn

Done = dict[ir.Value, tuple[ir.Value, float | None]]
"""Float weight -> what is read in its place, and the signal-to-noise ratio of the outputs."""


@dataclasses.dataclass(frozen=True)
class QuantizeCodebooks(Pass):
    """MatMul(x, W) -> MatMul(x, DequantizeCodebook(indices of 4 bits, the 16 levels of NF4, a scale for each group)).

    Works without data. Does not fire on layers that are ignored, and on weights that are empty or hold what
    `broken_numbers` refuses.

    Attributes:
        group_size: inputs that share a scale, of each output; the last group may be smaller. -1: all of them.
        double_quantization: scales are in 8 bits, less their mean, in blocks of 256; see `double_quantized`.
        bias_correction: as in `QuantizeWeights`.
        head: scheme of a linear that scores a vocabulary, see `weight_only.writes_vocabulary`, which is rounded to
            nearest; None: as the others.
        ignore: layers that stay float, by name; bound by `compile`.
        operators: "Linear" where the backend has such weights; bound by `compile`.
        calibrator: source of the rows on which each layer is measured, and its bias corrected; bound by `compile`.

    Raises:
        RecipeError: group_size is out of range.
    """

    group_size: int = 64
    double_quantization: bool = False
    bias_correction: weight_only.BiasCorrection = "linears"
    head: GroupScheme | None = weight_only.HEAD
    ignore: frozenset[str] = frozenset()
    operators: frozenset[str] = frozenset({"Linear"})
    calibrator: Calibrator | None = dataclasses.field(default=None, repr=False, compare=False)

    keeps: ClassVar[Keeps] = "lossy"
    looks_for: ClassVar[str] = "MatMul with a constant float32 weight"

    def __post_init__(self) -> None:
        try:
            _ = self.scheme
        except ValueError as error:
            raise RecipeError("quantize_codebooks", str(error), "Give a positive group_size") from error

    @property
    def scheme(self) -> GroupScheme:
        """How the weights are grouped, but for that of a vocabulary."""
        return GroupScheme(4, self.group_size)

    def call(self, model: ir.Model) -> Result:
        """Quantize every linear that can be; one finding for each."""
        chosen = weight_only.select(model, self.ignore, self.operators, self.head)
        findings = list(chosen.findings)
        done: Done = {}
        for part in weight_only.calibrated(self.calibrator, model, chosen.linears):
            for linear in part.layers:
                assert isinstance(linear, Linear)
                statistics = part.of(linear.x)
                rows = np.zeros((0, layers.input_channels(linear)), np.float32) if not statistics else statistics.rows
                if linear.weight not in done:
                    head = self.head if linear.matmul in chosen.heads else None
                    done[linear.weight] = self._quantize(model, linear, head, rows)
                value, sqnr = done[linear.weight]
                qdq.replace_input(linear.matmul, linear.weight, value)
                findings.append(layers.finding(linear, "quantized", sqnr_db=sqnr))
            del part  # with hundreds of rows of every value
        chosen.mark_tables({weight: value for weight, (value, _) in done.items()})
        remove_unused(done)
        return Result(model, modified=bool(done), findings=tuple(findings))

    def _quantize(
        self, model: ir.Model, linear: Layer, head: GroupScheme | None, rows: np.ndarray
    ) -> tuple[ir.Value, float | None]:
        """Write the weight of a linear in its new form; return it, and what its rounding costs on the rows."""
        assert isinstance(linear, Linear)
        assert linear.weight.const_value is not None
        weight = linear.weight.const_value.numpy()
        size = (head or self.scheme).size(len(weight))
        found: Grouped | Codebook
        if head is not None:
            found = rtn(weight, head)
            value = qdq.dequantized_groups(linear.weight, found, head, linear.matmul)
        else:
            found, scales = nf4(weight, size), None
            if self.double_quantization:
                scales = double_quantized(np.ascontiguousarray(found.scale.T))
                found = dataclasses.replace(found, scale=scales.values().reshape(found.scale.T.shape).T)
            value = write_codebook(model, linear.weight, found, size, linear.matmul, scales)
        if self.bias_correction == "linears":
            weight_only.correct_outputs(linear, weight, found, size, rows)
        return value, weight_only.output_sqnr(weight, found, size, rows)
