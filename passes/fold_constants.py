"""FoldConstants."""

from __future__ import annotations

import dataclasses
from typing import ClassVar

import onnx_ir as ir
from onnxscript import optimizer

from qcompile.contract import Pass, Result


@dataclasses.dataclass(frozen=True)
class FoldConstants(Pass):
    """An operator of small constants -> its result, as onnxscript's optimizer computes it.

    Does not touch large constants, whose result would be a second copy in memory (`fold_weight_views` does lazily what
    can be done lazily), nor operators that are not deterministic.

    Attributes:
        size_limit: largest number of elements of an input or a result. The default has room for the vectors of norms
            and biases (1 + weight in Gemma), and not for weights of linears.
    """

    size_limit: int = 2**16
    looks_for: ClassVar[str] = "operators whose inputs are small constants"

    def call(self, model: ir.Model) -> Result:
        """Fold in place."""
        folded = optimizer.fold_constants(
            model,
            onnx_shape_inference=False,
            input_size_limit=self.size_limit,
            output_size_limit=self.size_limit,
        )
        return Result(model, modified=bool(folded.modified))
