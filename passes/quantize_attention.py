"""Quantizes query, key and value of attention."""

from __future__ import annotations

import dataclasses
from typing import ClassVar

import onnx_ir as ir

from qcompile import qdq
from qcompile.calibration import Calibrator
from qcompile.calibration_ranges import Observer, StaticRanges
from qcompile.contract import Finding, Keeps, Pass, Result
from qcompile.errors import CalibrationError
from qcompile.graph import constant, is_standard, layer_name
from qcompile.layers import left_out
from qcompile.scheme import ASYMMETRIC_UINT8, Scheme


@dataclasses.dataclass(frozen=True)
class QuantizeAttention(Pass):
    """Attention(q, k, v) -> Attention(DQ(Q(q)), DQ(Q(k)), DQ(Q(v))), and the same for a MatMul of two activations.

    SmoothQuant (Xiao et al. 2023), figure 6, quantizes the operands of both batched products of attention. Here the
    probabilities live inside the Attention operator and stay float: only q times k can run in integers, the product
    with v runs in float on a rounded v. Of a MatMul of two activations, both operands are 8-bit integers. The last
    operand of a product is quantized per tensor even where the others are quantized per token: its tokens are what the
    product sums over. Does not fire where the backend has no integer attention, on what is ignored, and where
    calibration saw `broken_numbers` in an operand.

    Attributes:
        activations: static per tensor, or dynamic per tensor or per token.
        observer: how a static range is chosen, a name of `solvers.ranges.OBSERVERS`.
        ignore: layers that stay float, by name; bound by `compile`.
        operators: what the backend computes in integers; bound by `compile`.
        calibrator: source of the statistics of static activations; bound by `compile`.

    Raises:
        CalibrationError: static activations and no calibrator.
    """

    activations: Scheme = ASYMMETRIC_UINT8
    observer: Observer = "minmax"
    ignore: frozenset[str] = frozenset()
    operators: frozenset[str] = frozenset({"Attention"})
    calibrator: Calibrator | None = dataclasses.field(default=None, repr=False, compare=False)

    keeps: ClassVar[Keeps] = "lossy"
    looks_for: ClassVar[str] = "Attention, or MatMul of two activations"

    @property
    def may_match_nothing(self) -> bool:
        """Not every model has attention."""
        return True

    def call(self, model: ir.Model) -> Result:
        """Quantize every product that can be; one finding for each."""
        found = [node for node in model.graph if _float_operands(node)]
        told = {node: _finding(node) for node in found}
        refusals = {node: left_out(asked, self.ignore, self.operators) for node, asked in told.items()}
        chosen = [node for node in found if refusals[node] is None]
        parameters, broken = self._parameters(model, chosen)
        for node in chosen:
            reasons = [f"{value.name} {broken[value]}" for value in _float_operands(node) if value in broken]
            if reasons:
                refusals[node] = dataclasses.replace(told[node], action="kept", reason=reasons[0])
        chosen = [node for node in chosen if refusals[node] is None]
        last = dataclasses.replace(self.activations, granularity="per_tensor")
        made: dict[tuple[ir.Value, Scheme], ir.Value] = {}
        for node in chosen:
            operands = _float_operands(node)
            for value in operands:
                scheme = last if value is operands[-1] else self.activations
                if (value, scheme) not in made:
                    made[value, scheme] = qdq.quantized(value, node, model, scheme, parameters.get(value))[0]
                qdq.replace_input(node, value, made[value, scheme])
        findings = [refusals[node] or told[node] for node in found]
        return Result(model, modified=bool(chosen), findings=tuple(findings))

    def _parameters(
        self, model: ir.Model, chosen: list[ir.Node]
    ) -> tuple[dict[ir.Value, qdq.Parameters], dict[ir.Value, str]]:
        """Scale and zero point of each operand under static activations, or the reason why it has none."""
        if self.activations.dynamic or not chosen:
            return {}, {}
        if self.calibrator is None:
            reason = "static activations need statistics"
            raise CalibrationError("quantize_attention", reason, "Give calibration data, or use dynamic activations")
        operands = dict.fromkeys(value for node in chosen for value in _float_operands(node))
        found = self.calibrator.collect(model, {str(value.name): -1 for value in operands})
        ranges = StaticRanges(self.activations, self.observer)
        seen = {value: found[str(value.name)] for value in operands}
        broken = {value: reason for value in operands if (reason := ranges.refusal(value, seen[value]))}
        return {value: ranges.parameters(value, seen[value]) for value in operands if value not in broken}, broken


def _finding(node: ir.Node) -> Finding:
    return Finding(layer_name(node), "quantized", operator="Attention", value=str(node.outputs[0].name))


def _float_operands(node: ir.Node) -> tuple[ir.Value, ...]:
    """Query, key and value, or the two factors, where all of them are float32 activations; else nothing."""
    if not is_standard(node, "Attention", "MatMul"):
        return ()
    operands = tuple(value for value in node.inputs[:3] if value is not None)
    fits = all(
        value.dtype == ir.DataType.FLOAT and constant(value) is None and not qdq.is_dequantized(value)
        for value in operands
    )
    return operands if fits and len(operands) == (3 if node.op_type == "Attention" else 2) else ()
