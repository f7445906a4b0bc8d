"""What every rewrite of qcompile promises, and how it says what it did.

A pass is a frozen dataclass on onnx_ir's InPlacePass. It declares what it keeps (`exact` or `lossy`), what it looks
for, and returns a Result whose findings become the lines of the report.
"""

from __future__ import annotations

import dataclasses
from typing import ClassVar, Literal

import onnx_ir as ir

Action = Literal["quantized", "kept", "ignored", "folded", "explicit", "fused", "converted"]
Keeps = Literal["exact", "lossy"]

NO_DATA = "there is no calibration data"
"""In the reason of a pass that does less, or nothing, without."""
GIVE_MORE_DATA = "give more data"
"""In the reason of a layer that was fitted to fewer positions than it has inputs: it fits chance."""


@dataclasses.dataclass(frozen=True)
class Finding:
    """One decision of one pass on one layer.

    Attributes:
        layer: name of the layer as the user knows it (`graph.layer_name`).
        action: what was done with it.
        reason: why; for a refusal, which property of the graph forbids the rewrite.
        operator: of the layer, e.g. "MatMul" or "Conv".
        sqnr_db: for a quantized layer, signal-to-quantization-noise ratio of its output on sampled inputs, that layer
            alone quantized; None where there is no data to measure it on.
        value: of a layer, name of the value that its node computes, which tells it from others of its name.
        shape: of the weight of a layer; () when it has none.
    """

    layer: str
    action: Action
    reason: str = ""
    operator: str = ""
    sqnr_db: float | None = None
    value: str = ""
    shape: tuple[int, ...] = ()


@dataclasses.dataclass
class Result(ir.passes.PassResult):
    """PassResult of onnx_ir with the findings of the pass."""

    findings: tuple[Finding, ...] = ()


class Pass(ir.passes.InPlacePass):
    """Base of the passes in `qcompile.passes`.

    Subclasses are frozen dataclasses: they print as the line of the recipe that made them and compare by value.

    Attributes:
        keeps: "exact" when float semantics are kept, checked to 1e-4 of each output's range; "lossy" otherwise.
        looks_for: the pattern in words, for the error raised when a pass that was asked for matches nothing.
    """

    keeps: ClassVar[Keeps] = "exact"
    looks_for: ClassVar[str] = ""

    @property
    def may_match_nothing(self) -> bool:
        """True when finding nothing is an answer: a pass that follows up on another, or decides by measurement."""
        return False

    def without_calibration(self) -> Pass | None:
        """Return what runs in the place of this pass where there is no calibration data; None: it is left out."""
        return self
