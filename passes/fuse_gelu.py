"""FuseGelu."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterator
from typing import Any, ClassVar

import onnx_ir as ir
from onnxscript.rewriter import RewriteRule, pattern

from qcompile.contract import Pass, Result
from qcompile.rewriting import apply_rules

# The operands of a pattern are values of onnxscript's pattern language, which has no public types.
_Factor = Callable[[Any, Any], Any]


@dataclasses.dataclass(frozen=True)
class FuseGelu(Pass):
    """x * (1 + erf(x / sqrt(2))) / 2 -> Gelu(x), and its approximation by tanh -> Gelu(x, approximate="tanh").

    Hendrycks and Gimpel, "Gaussian Error Linear Units", section 2. Needs opset 20, and operands in the order of
    computation (`order_operands`). Does not fire where a step in between has another reader, nor for
    x * sigmoid(1.702 * x), which is a different function.
    """

    looks_for: ClassVar[str] = "x * (1 + erf(x / sqrt(2))) / 2 or its approximation by tanh"

    def call(self, model: ir.Model) -> Result:
        """Rewrite in place."""
        if model.opset_imports.get("", 0) < 20:
            return Result(model, modified=False)
        return apply_rules(model, list(_rules()))


def _rules() -> Iterator[RewriteRule]:
    factors: tuple[tuple[str, _Factor], ...] = (
        ("none", _erf_factor),
        ("tanh", _tanh_factor),
        ("tanh", _factored_tanh_factor),
    )
    for approximate, factor in factors:
        for order in (_halve_factor, _halve_product, _halve_x_before, _halve_x_after):
            yield _rule(order, factor, approximate)


def _rule(order: Callable[[Any, Any, _Factor], Any], factor: _Factor, approximate: str) -> RewriteRule:
    def decomposed(op: Any, x: Any) -> Any:
        return order(op, x, factor)

    def fused(op: Any, x: Any) -> Any:
        return op.Gelu(x, approximate=approximate)

    return RewriteRule(decomposed, fused, name="Gelu")


def _halve_factor(op: Any, x: Any, factor: _Factor) -> Any:
    return op.Mul(x, op.Mul(factor(op, x), 0.5))


def _halve_product(op: Any, x: Any, factor: _Factor) -> Any:
    return op.Mul(op.Mul(x, factor(op, x)), 0.5)


def _halve_x_before(op: Any, x: Any, factor: _Factor) -> Any:
    return op.Mul(op.Mul(x, 0.5), factor(op, x))


def _halve_x_after(op: Any, x: Any, factor: _Factor) -> Any:
    return op.Mul(factor(op, x), op.Mul(x, 0.5))


def _erf_factor(op: Any, x: Any) -> Any:
    """1 + erf(x / sqrt(2))."""
    scaled = pattern.OrValue([op.Div(x, math.sqrt(2.0)), op.Mul(x, math.sqrt(0.5))])
    return op.Add(op.Erf(scaled), 1.0)


def _tanh_factor(op: Any, x: Any) -> Any:
    """1 + tanh(sqrt(2 / pi) * (x + 0.044715 * x**3))."""
    cube = pattern.OrValue([op.Pow(x, 3.0), op.Mul(x, op.Mul(x, x))])
    scaled_cube = pattern.OrValue([op.Mul(cube, 0.044715), op.Mul(x, op.Mul(x, op.Mul(x, 0.044715)))])
    inner = op.Mul(op.Add(x, scaled_cube), math.sqrt(2.0 / math.pi))
    return op.Add(op.Tanh(inner), 1.0)


def _factored_tanh_factor(op: Any, x: Any) -> Any:
    """1 + tanh(x * sqrt(2 / pi) * (1 + 0.044715 * x * x))."""
    square = op.Mul(x, op.Mul(x, 0.044715))
    scaled, polynomial = op.Mul(x, math.sqrt(2.0 / math.pi)), op.Add(square, 1.0)
    inner = pattern.OrValue([op.Mul(scaled, polynomial), op.Mul(polynomial, scaled)])
    return op.Add(op.Tanh(inner), 1.0)
