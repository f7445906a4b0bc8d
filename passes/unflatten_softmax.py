"""UnflattenSoftmax."""

from __future__ import annotations

import dataclasses
from typing import Any, ClassVar

import onnx_ir as ir
from onnxscript.rewriter import MatchContext, RewriteRule

from qcompile.contract import Pass, Result
from qcompile.rewriting import apply_rules


@dataclasses.dataclass(frozen=True)
class UnflattenSoftmax(Pass):
    """Reshape(Softmax(Flatten(x, axis=-1)), Shape(x)) -> Softmax(x, axis=-1).

    Before opset 13 a softmax worked on two axes; onnx's converter writes that out. Over the last axis alone it makes no
    difference. Does not fire where more than the last axis was normalized together.
    """

    looks_for: ClassVar[str] = "Softmax of x flattened to two axes and back"

    def call(self, model: ir.Model) -> Result:
        """Rewrite in place."""
        return apply_rules(model, [RewriteRule(_flattened, _direct, _is_last_axis, name="Softmax")])


def _flattened(op: Any, x: Any) -> Any:
    flat = op.Flatten(x, _allow_other_attributes=True, _outputs=["flat"])
    weights = op.Softmax(flat, _allow_other_attributes=True, _outputs=["weights"])
    return op.Reshape(weights, op.Shape(x), _allow_other_attributes=True)


def _is_last_axis(_: MatchContext, x: ir.Value, flat: ir.Value, weights: ir.Value) -> bool:
    flatten, softmax = flat.producer(), weights.producer()
    if flatten is None or softmax is None or x.shape is None:
        return False
    last = len(x.shape) - 1
    return flatten.attributes.get_int("axis", 1) in (-1, last) and softmax.attributes.get_int("axis", -1) in (-1, 1)


def _direct(op: Any, x: ir.Value, **_: Any) -> Any:
    return op.Softmax(x, axis=-1)
