"""Rounds the cache of a decoder to 8 bits."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import ClassVar

import numpy as np
import onnx_ir as ir

from qcompile.cache_rounding import PASTS, cache_inputs, cache_scale, round_cache
from qcompile.calibration import Calibrator
from qcompile.contract import Finding, Keeps, Pass, Result
from qcompile.errors import CalibrationError
from qcompile.graph import Names, layer_name
from qcompile.initializers import new_initializer, register_initializer
from qcompile.layers import left_out
from qcompile.solvers import broken_numbers


@dataclasses.dataclass(frozen=True)
class QuantizeCaches(Pass):
    """Attention(q, k, v, past), present -> Attention(q, k, v, rounded past), rounded present: a cache of 8 bits.

    One symmetric int8 scale for each channel of each head, from the largest magnitude that calibration saw: channels of
    keys have ranges of their own, the same for all tokens (Liu et al. 2024, "KIVI", section 3.2). What is rounded is
    what attention remembers: new tokens read each other as they are. A runtime that keeps the cache then holds
    integers, a quarter of the bytes that each new token reads. Does not fire where the past is no input or the present
    no output, where the sizes of heads are not known, where calibration saw `broken_numbers`, on what is ignored, and
    where the backend holds no cache in 8 bits; nor on any cache beside such a one: runtimes have one type for all.

    Attributes:
        headroom: how many times as large as those of the calibration the numbers may be.
        ignore: layers whose cache stays float, by name; bound by `compile`.
        operators: "Cache" where the backend holds one in 8 bits; bound by `compile`.
        calibrator: source of the statistics; bound by `compile`.

    Raises:
        CalibrationError: no calibrator.
    """

    headroom: float = 1.25
    ignore: frozenset[str] = frozenset()
    operators: frozenset[str] = frozenset({"Cache"})
    calibrator: Calibrator | None = dataclasses.field(default=None, repr=False, compare=False)

    keeps: ClassVar[Keeps] = "lossy"
    looks_for: ClassVar[str] = "Attention whose past is an input and whose present is an output"

    @property
    def may_match_nothing(self) -> bool:
        """Not every model has a cache."""
        return True

    def without_calibration(self) -> None:
        """Return nothing: without statistics the cache stays float."""

    def call(self, model: ir.Model) -> Result:
        """Round the cache of every attention, or of none; one finding for each."""
        found = [node for node in model.graph if any(value.dtype == ir.DataType.FLOAT for value in cache_inputs(node))]
        reasons = {node: reason for node in found if (reason := self._refusal(node))}
        magnitudes: dict[ir.Node, list[np.ndarray]] = {}
        if found and not reasons:
            magnitudes, reasons = self._magnitudes(model, found)
        if reasons:
            first, reason = next(iter(reasons.items()))
            others = f"that of {layer_name(first)} does, and runtimes have one type for all: {reason}"
            return Result(
                model, modified=False, findings=tuple(_kept(node, reasons.get(node, others)) for node in found)
            )
        for node, both in magnitudes.items():
            keys, values = (
                new_initializer(model.graph, f"{past.name}.scale", cache_scale(largest, self.headroom))
                for past, largest in zip(cache_inputs(node), both, strict=True)
            )
            round_cache(model, node, (keys, values))
        told = (Finding(layer_name(node), "converted", "its cache is rounded to 8 bits") for node in found)
        return Result(model, modified=bool(found), findings=tuple(told))

    def _refusal(self, node: ir.Node) -> str:
        """Why the cache of an attention stays float, before anyone looks at its numbers."""
        refused = left_out(Finding(layer_name(node), "converted", operator="Cache"), self.ignore, self.operators)
        if refused is not None:
            return "the recipe leaves it out" if refused.action == "ignored" else "the artifact can hold none in 8 bits"
        known = all(_sizes(node, place) is not None for place in PASTS)
        return "" if known else "sizes of its heads are not known"

    def _magnitudes(
        self, model: ir.Model, nodes: Sequence[ir.Node]
    ) -> tuple[dict[ir.Node, list[np.ndarray]], dict[ir.Node, str]]:
        """Return the largest magnitudes of keys and values, each [heads, size], and where there are none, why."""
        if self.calibrator is None:
            reason = "the scales of a cache need statistics"
            raise CalibrationError("quantize_caches", reason, "Give calibration data, or leave the pass out")
        observed = model.clone()
        rows = _side_by_side(observed, nodes)
        seen = self.calibrator.collect(observed, dict.fromkeys(rows.values(), -1))
        found: dict[ir.Node, list[np.ndarray]] = {}
        broken: dict[ir.Node, str] = {}
        for node in nodes:
            both = [seen[rows[str(value.name)]] for value in node.inputs[1:3] if value is not None]
            reasons = [broken_numbers.of_activation(each.mean, each.absmax) for each in both]
            if any(reasons):
                broken[node] = f"what it remembers {next(filter(None, reasons))}"
            found[node] = [
                each.absmax.reshape(_sizes(node, place) or ()) for each, place in zip(both, PASTS, strict=True)
            ]
        return found, broken


def _kept(node: ir.Node, reason: str) -> Finding:
    return Finding(layer_name(node), "kept", f"its cache stays float: {reason}")


def _sizes(node: ir.Node, place: int) -> tuple[int, int] | None:
    """Heads, and channels of each, of keys or values; None where they, or the rank of new ones, are not known."""
    past, new = node.inputs[place], node.inputs[place - 3]
    if past is None or past.shape is None or new is None or new.shape is None or len(past.shape) != 4:
        return None
    heads, size = past.shape[1], past.shape[3]
    return (heads, size) if isinstance(heads, int) and isinstance(size, int) else None


def _side_by_side(model: ir.Model, nodes: Sequence[ir.Node]) -> dict[str, str]:
    """Write [batch, heads, sequence, size] -> [batch, sequence, heads * size] for keys and values; return the names."""
    pairs = [(node.inputs[place - 3], math.prod(_sizes(node, place) or ())) for node in nodes for place in PASTS]
    features: Mapping[str, int] = {str(value.name): size for value, size in pairs if value is not None}
    known = {str(value.name): value for node in model.graph for value in (*node.inputs, *node.outputs) if value}
    names, found = Names(model.graph), {name: name for name in features}
    last = register_initializer(model.graph, ir.tensor(np.array([0, 0, -1]), name=names.new("qcompile.side_by_side")))
    for name in found:
        value = known[name]
        if value.shape is None or len(value.shape) != 4:
            continue
        tape = ir.tape.Tape()
        rows = tape.op("Reshape", [tape.op("Transpose", [value], {"perm": [0, 2, 1, 3]}), last])
        for node in tape.nodes:
            node.name = node.outputs[0].name = names.new(f"{name}.{node.op_type.lower()}")
        rows.type = value.type
        rows.shape = ir.Shape([value.shape[0], value.shape[2], features[name]])
        model.graph.extend(tape.nodes)
        found[name] = str(rows.name)
    return found
