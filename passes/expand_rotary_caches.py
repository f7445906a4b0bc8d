"""ExpandRotaryCaches."""

from __future__ import annotations

import dataclasses
from typing import ClassVar

import onnx_ir as ir

from qcompile.contract import Finding, Pass, Result
from qcompile.graph import layer_name
from qcompile.rotary_caches import expand_caches


@dataclasses.dataclass(frozen=True)
class ExpandRotaryCaches(Pass):
    """RotaryEmbedding(x, cos, sin) with one cos and sin for the whole batch -> the same with a row for each sample.

    The operator wants [batch, sequence, head_size / 2] where no position_ids are given. torch's exporter and the
    fusion rules leave a batch of 1 to be broadcast, which OpenVINO accepts and ONNX Runtime refuses. Does not fire
    where position_ids index the caches, nor where the batch is known to be 1 or the same already.
    """

    looks_for: ClassVar[str] = "RotaryEmbedding without position_ids whose caches have a batch of 1"

    def call(self, model: ir.Model) -> Result:
        """Insert one Expand per cache and batch; a cache that several nodes share is expanded once."""
        nodes = expand_caches(model)
        findings = tuple(Finding(layer_name(node), "converted", "caches expanded to the batch") for node in nodes)
        return Result(model, modified=bool(nodes), findings=findings)
