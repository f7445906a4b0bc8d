"""Quantizes linears and convolutions by Q/DQ pairs around what they read."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping
from typing import ClassVar, Literal

import numpy as np
import onnx_ir as ir

from qcompile import layers, qdq
from qcompile.calibration import Calibrator, ChannelStatistics
from qcompile.contract import Finding, Keeps, Pass, Result
from qcompile.errors import CalibrationError
from qcompile.graph import Convolution, Linear, readers
from qcompile.initializers import remove_unused
from qcompile.layers import Layer
from qcompile.scheme import ASYMMETRIC_UINT8, PER_CHANNEL_INT8, Scheme
from qcompile.solvers.affine import dequantize, quantize_weight, scale_and_zero_point
from qcompile.solvers.gptq import gptq
from qcompile.solvers.ranges import OBSERVERS
from qcompile.solvers.sqnr import as_quantized, sqnr_db

_GRAM_BYTES = 256 * 2**20
_INT32 = np.iinfo(np.int32)


@dataclasses.dataclass(frozen=True)
class InsertQdq(Pass):
    """MatMul(x, W) -> MatMul(DQ(Q(x)), DQ(int8 W)), and the same for Conv and ConvTranspose.

    Readers of one value share one pair; readers that stay float read the value itself, except behind a convolution,
    where every reader gets the quantized value so that integers can flow on. Does not fire on layers that are ignored,
    whose sums overflow int32, whose weight is not finite, and on convolutions under dynamic activations.

    Attributes:
        activations: static (per tensor, from calibration), or dynamic per tensor or per token.
        weights: int8, per tensor or per output channel.
        observer: how a static range is chosen from the statistics, a name of `solvers.ranges.OBSERVERS`.
        rounding: "nearest", or "gptq": error-compensated on the second moments of the linear's input; convolutions
            are rounded to nearest. Both are the same at run time.
        ignore: layers that stay float, by name; bound by `compile`.
        operators: which of Linear, Conv and ConvTranspose the backend computes in integers; bound by `compile`.
        calibrator: source of the statistics; bound by `compile`. Without it: dynamic activations, nearest rounding.

    Raises:
        CalibrationError: static activations or gptq and no calibrator.
    """

    activations: Scheme = ASYMMETRIC_UINT8
    weights: Scheme = PER_CHANNEL_INT8
    observer: Literal["minmax", "percentile", "mse", "entropy"] = "minmax"
    rounding: Literal["nearest", "gptq"] = "nearest"
    ignore: frozenset[str] = frozenset()
    operators: frozenset[str] = frozenset({"Linear", "Conv", "ConvTranspose"})
    calibrator: Calibrator | None = dataclasses.field(default=None, repr=False, compare=False)

    keeps: ClassVar[Keeps] = "lossy"
    looks_for: ClassVar[str] = "MatMul, Conv or ConvTranspose with a constant float32 weight"

    def without_calibration(self) -> Pass | None:
        """Round to nearest: gptq needs second moments. Static activations have nothing to fall back to."""
        return dataclasses.replace(self, rounding="nearest") if self.activations.dynamic else self

    def call(self, model: ir.Model) -> Result:
        """Quantize every layer that can be; one finding for each."""
        found = layers.float_layers(model)
        reasons = {layers.node_of(layer): self._refusal(layer) for layer in found}
        chosen = [layer for layer in found if reasons[layers.node_of(layer)] is None]
        findings = [
            dataclasses.replace(finding, operator=layers.operator(layer))
            for layer in found
            if (finding := reasons[layers.node_of(layer)]) is not None
        ]
        weights = _Weights(model)
        statistics: dict[str, ChannelStatistics] = {}
        for part, seen in self._calibrated(model, chosen):
            statistics.update({name: dataclasses.replace(item, gram=None) for name, item in seen.items()})
            findings += [self._quantize_weight(layer, seen.get(str(layer.x.name)), weights) for layer in part]
        self._quantize_activations(model, chosen, statistics)
        remove_unused(value for layer in chosen for value in (layer.weight, layer.bias) if value is not None)
        return Result(model, modified=bool(chosen), findings=tuple(findings))

    def _refusal(self, layer: Layer) -> Finding | None:
        if layer.name in self.ignore:
            return Finding(layer.name, "ignored", "the recipe leaves it out")
        if layers.operator(layer) not in self.operators:
            reason = f"the backend has no integer {layers.operator(layer)} with these schemes"
            return Finding(layer.name, "kept", reason)
        reason = layers.refusal(layer, self.activations, self.weights)
        return Finding(layer.name, "kept", reason) if reason else None

    def _calibrated(
        self, model: ir.Model, chosen: list[Layer]
    ) -> Iterator[tuple[list[Layer], Mapping[str, ChannelStatistics]]]:
        """Yield layers with the statistics of what they read, so many at a time that the second moments fit."""
        if self.calibrator is None:
            if chosen and (not self.activations.dynamic or self.rounding == "gptq"):
                reason = "static activations and gptq need statistics of the activations"
                raise CalibrationError("insert_qdq", reason, "Give calibration data, or use dynamic activations")
            yield chosen, {}
            return
        part: list[Layer] = []
        names: dict[str, int] = {}
        size = 0
        for layer in chosen:
            part.append(layer)
            name = str(layer.x.name)
            if name not in names:
                names[name] = layers.input_axis(layer)
                size += self._gram_bytes(layer)
            if size > _GRAM_BYTES:
                yield part, self._collect(model, part, names)
                part, names, size = [], {}, 0
        yield part, self._collect(model, part, names)

    def _gram_bytes(self, layer: Layer) -> int:
        return 12 * layers.accumulated(layer) ** 2 if self.rounding == "gptq" and isinstance(layer, Linear) else 0

    def _collect(self, model: ir.Model, part: list[Layer], names: Mapping[str, int]) -> Mapping[str, ChannelStatistics]:
        assert self.calibrator is not None
        gram = {str(layer.x.name) for layer in part if self._gram_bytes(layer)}
        outputs = {} if self.activations.dynamic else {str(value.name): 1 for value in _flowing(part)}
        return self.calibrator.collect(model, {**names, **outputs}, gram=gram)

    def _quantize_weight(self, layer: Layer, seen: ChannelStatistics | None, weights: _Weights) -> Finding:
        node = layers.node_of(layer)
        axis = layers.output_axis(layer) if self.weights.granularity == "per_channel" else None
        before = layer.weight.const_value
        assert before is not None
        weight = before.numpy()
        if isinstance(layer, Linear) and seen is not None and seen.gram is not None:
            parts = gptq(weight, seen.gram, self.weights)
        else:
            parts = quantize_weight(weight, self.weights, axis)
        new = weights.dequantized(layer.weight, parts, axis, node)
        qdq.replace_input(node, layer.weight, new)
        measured = None
        if isinstance(layer, Linear) and seen is not None and len(seen.rows):
            rows = as_quantized(seen.rows, self._range(seen), self.activations)
            measured = sqnr_db(seen.rows @ weight, rows @ dequantize(*parts, axis=axis))
        if isinstance(layer, Convolution) and seen is not None:
            self._quantize_bias(layer, self._parameters(seen)[0], parts[1])
        return Finding(layer.name, "quantized", "", layers.operator(layer), measured)

    def _quantize_bias(self, layer: Convolution, input_scale: np.ndarray, weight_scale: np.ndarray) -> None:
        """Write the bias as int32 with scale s_x * s_w, or leave it float where that would clip."""
        bias = layer.bias.const_value if layer.bias is not None else None
        if layer.bias is None or bias is None or (layer.transposed and np.ndim(weight_scale)):
            return
        scale = (input_scale * weight_scale).astype(np.float32)
        with np.errstate(over="ignore", divide="ignore", invalid="ignore"):
            steps = np.rint(bias.numpy().astype(np.float64) / scale.astype(np.float64))
        if not np.all(np.isfinite(steps)) or np.abs(steps).max(initial=0) > _INT32.max:
            return
        zero = np.zeros(scale.shape, np.int32)
        new = qdq.dequantized_constant(layer.bias, steps.astype(np.int32), scale, zero, 0, layer.node)
        qdq.replace_input(layer.node, layer.bias, new)

    def _quantize_activations(
        self, model: ir.Model, chosen: list[Layer], statistics: Mapping[str, ChannelStatistics]
    ) -> None:
        quantized: dict[ir.Value, list[ir.Node]] = {}
        for layer in chosen:
            quantized.setdefault(layer.x, []).append(layers.node_of(layer))
        if not self.activations.dynamic:
            for value in _flowing(chosen):
                quantized[value] = list(readers(value))
        order = {node: index for index, node in enumerate(model.graph)}
        for value, nodes in quantized.items():
            inside = [node for node in nodes if node in order]
            first = min(inside, key=order.__getitem__)
            new, made = self._pair(model, value, first, statistics)
            for node in nodes:
                if node not in made:
                    qdq.replace_input(node, value, new)

    def _pair(
        self, model: ir.Model, value: ir.Value, before: ir.Node, statistics: Mapping[str, ChannelStatistics]
    ) -> tuple[ir.Value, list[ir.Node]]:
        if not self.activations.dynamic:
            scale, zero_point = self._parameters(statistics[str(value.name)])
            return qdq.quantize_dequantize(value, scale, zero_point, before)
        if self.activations.granularity == "per_token":
            return qdq.dynamic_per_token(value, before, model)
        return qdq.dynamic_per_tensor(value, before)

    def _parameters(self, seen: ChannelStatistics) -> tuple[np.ndarray, np.ndarray]:
        return scale_and_zero_point(*self._range(seen), self.activations)

    def _range(self, seen: ChannelStatistics) -> tuple[float, float]:
        return OBSERVERS[self.observer](seen.minimum, seen.maximum, seen.rows, self.activations)


class _Weights:
    """Dequantized weights, one for each float weight and its integers, so that tied weights stay one initializer."""

    def __init__(self, model: ir.Model) -> None:
        self._order = {node: index for index, node in enumerate(model.graph)}
        self._made: dict[ir.Value, tuple[np.ndarray, ir.Value, ir.Node]] = {}

    def dequantized(
        self, source: ir.Value, parts: tuple[np.ndarray, np.ndarray, np.ndarray], axis: int | None, node: ir.Node
    ) -> ir.Value:
        """Return the value to read in place of `source` in `node`."""
        known = self._made.get(source)
        if known is not None and self._order[known[2]] < self._order[node] and np.array_equal(known[0], parts[0]):
            return known[1]
        value = qdq.dequantized_constant(source, *parts, axis, node)
        self._made[source] = (parts[0], value, node)
        return value


def _flowing(chosen: list[Layer]) -> list[ir.Value]:
    """Outputs of convolutions, behind their activation, that other nodes read and the user does not."""
    outputs = [layers.activated_output(layer) for layer in chosen if isinstance(layer, Convolution)]
    return [value for value in outputs if value.uses() and not value.is_graph_output()]
