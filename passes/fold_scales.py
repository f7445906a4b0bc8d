"""Moves the per-channel Mul in front of linears and convolutions into the constants before it."""

from __future__ import annotations

import dataclasses
from typing import ClassVar

import numpy as np
import onnx_ir as ir

from qcompile import channel_markers, channel_scales, graph
from qcompile.channel_markers import Marker
from qcompile.channel_scales import Placement, Refusal
from qcompile.contract import Finding, Keeps, Pass, Result


@dataclasses.dataclass(frozen=True)
class FoldScales(Pass):
    """norm(x, w) * c -> MatMul  becomes  norm(x, w * c) -> MatMul, through everything that keeps channels apart.

    Fires on every Mul by a positive constant vector over the channels whose only readers are linears, or only
    convolutions, no matter who wrote it. Does not fire where `channel_scales.solve` finds no place for the vector, or
    where channels that must share a factor (of query heads with one key-value head) have different ones: the Mul stays.
    """

    keeps: ClassVar[Keeps] = "exact"
    looks_for: ClassVar[str] = "a Mul by a constant vector whose only readers are linears or convolutions"

    @property
    def may_match_nothing(self) -> bool:
        """Smoothing may have found that no scale pays."""
        return True

    def call(self, model: ir.Model) -> Result:
        """Fold what can be folded, in graph order; one finding per Mul, named after the first layer behind it."""
        findings = tuple(_fold(marker) for marker in channel_markers.find(model))
        return Result(model, modified=any(f.action == "folded" for f in findings), findings=findings)


def _fold(marker: Marker) -> Finding:
    layer = marker.layers[0].name
    if not np.all(np.isfinite(marker.factors) & (marker.factors > 0)):
        return Finding(layer, "explicit", "its factors are not all positive and finite")
    answer = channel_scales.solve(marker.x, marker.axis)
    if isinstance(answer, Refusal):
        return Finding(layer, "explicit", answer.reason)
    shared = np.zeros(answer.group_count)
    shared[answer.groups] = marker.factors
    if not np.allclose(shared[answer.groups], marker.factors, rtol=1e-6, atol=0):
        return Finding(layer, "explicit", "channels that must share a factor have different ones")
    channel_scales.multiply(_without(answer, marker.node), shared)
    channel_markers.remove(marker)
    return Finding(layer, "folded", f"into {_names(answer)}, for {', '.join(part.name for part in marker.layers)}")


def _without(placement: Placement, node: ir.Node) -> Placement:
    """Leave out what would make up for the scale in the marker itself, which goes."""
    return dataclasses.replace(placement, rescales=tuple(r for r in placement.rescales if r.node is not node))


def _names(placement: Placement) -> str:
    return ", ".join(dict.fromkeys(f"{node.op_type} {graph.layer_name(node)}" for node in placement.absorbers))
