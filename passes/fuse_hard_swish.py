"""FuseHardSwish."""

from __future__ import annotations

import dataclasses
from typing import ClassVar

import onnx_ir as ir
from onnxscript.rewriter.rules.common import fuse_hardswish_rules

from qcompile.contract import Pass, Result
from qcompile.rewriting import apply_rules


@dataclasses.dataclass(frozen=True)
class FuseHardSwish(Pass):
    """x * Clip(x + 3, 0, 6) / 6 -> HardSwish(x), and Clip(x + 3, 0, 6) / 6 -> HardSigmoid(x, 1/6, 1/2).

    Howard et al. 2019, "Searching for MobileNetV3", section 5.2; the patterns are onnxscript's. Needs opset 14. Does
    not fire where a step in between has another reader.
    """

    looks_for: ClassVar[str] = "x * Clip(x + 3, 0, 6) / 6 or Clip(x + 3, 0, 6) / 6"

    def call(self, model: ir.Model) -> Result:
        """Rewrite in place, in graph order: HardSwish may be made of a HardSigmoid that was found before."""
        if model.opset_imports.get("", 0) < 14:
            return Result(model, modified=False)
        return apply_rules(model, list(fuse_hardswish_rules()))
