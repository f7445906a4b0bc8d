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
from qcompile.graph import Convolution, constant, readers
from qcompile.initializers import remove_unused
from qcompile.layers import Layer
from qcompile.multiplied import as_matrices, from_matrices, grouped_rows, multiplies_input, with_patches
from qcompile.scheme import ASYMMETRIC_UINT8, PER_CHANNEL_INT8, Scheme
from qcompile.solvers.affine import dequantize, quantize_weight, scale_and_zero_point
from qcompile.solvers.gptq import gptq, grouped_gptq
from qcompile.solvers.ranges import OBSERVERS
from qcompile.solvers.sqnr import as_quantized, sqnr_db

_GRAM_BYTES = 256 * 2**20
_INT32 = np.iinfo(np.int32)

Parts = tuple[np.ndarray, np.ndarray, np.ndarray]
"""Integers, scale and zero point."""

Observer = Literal["minmax", "percentile", "mse", "entropy"]


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
        convolution_observer: the same for what convolutions read and write; None: as `observer`.
        min_convolution_sqnr_db: a convolution whose own signal-to-quantization-noise ratio, measured on what it
            multiplies, is lower stays float; None: none does. Linears have smoothing for that.
        rounding: "nearest", or "gptq": error-compensated on the second moments of what the layer multiplies; to
            nearest where `multiplied.with_patches` has nothing for a convolution. Both are the same at run time.
        ignore: layers that stay float, by name; bound by `compile`.
        operators: which of Linear, Conv and ConvTranspose the backend computes in integers; bound by `compile`.
        calibrator: source of the statistics; bound by `compile`. Without it: dynamic activations, nearest rounding.

    Raises:
        CalibrationError: static activations or gptq and no calibrator.
    """

    activations: Scheme = ASYMMETRIC_UINT8
    weights: Scheme = PER_CHANNEL_INT8
    observer: Observer = "minmax"
    convolution_observer: Observer | None = None
    min_convolution_sqnr_db: float | None = None
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
        weights = _Weights()
        statistics: dict[str, ChannelStatistics] = {}
        quantized: list[Layer] = []
        for part, seen, patches in self._calibrated(model, chosen):
            statistics.update({name: dataclasses.replace(item, gram=None) for name, item in seen.items()})
            done = [self._quantize_weight(layer, seen, patches.get(str(layer.output.name)), weights) for layer in part]
            quantized += [layer for layer, item in zip(part, done, strict=True) if item.action == "quantized"]
            findings += done
        self._quantize_activations(model, quantized, statistics)
        remove_unused(value for layer in quantized for value in (layer.weight, layer.bias) if value is not None)
        return Result(model, modified=bool(quantized), findings=tuple(findings))

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
    ) -> Iterator[tuple[list[Layer], Mapping[str, ChannelStatistics], Mapping[str, ChannelStatistics]]]:
        """Yield layers with statistics of values and of patches by layer, so many that the second moments fit."""
        if self.calibrator is None:
            if chosen and (not self.activations.dynamic or self.rounding == "gptq"):
                reason = "static activations and gptq need statistics of the activations"
                raise CalibrationError("insert_qdq", reason, "Give calibration data, or use dynamic activations")
            yield chosen, {}, {}
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
                yield part, *self._collect(model, part, names)
                part, names, size = [], {}, 0
        yield part, *self._collect(model, part, names)

    def _gram_bytes(self, layer: Layer) -> int:
        return 12 * layers.accumulated(layer) ** 2 if self.rounding == "gptq" and multiplies_input(layer) else 0

    def _collect(
        self, model: ir.Model, part: list[Layer], names: Mapping[str, int]
    ) -> tuple[Mapping[str, ChannelStatistics], Mapping[str, ChannelStatistics]]:
        assert self.calibrator is not None
        gram = {str(layer.x.name) for layer in part if self._gram_bytes(layer)}
        outputs = {} if self.activations.dynamic else {str(value.name): 1 for value in _flowing(part)}
        seen = self.calibrator.collect(model, {**names, **outputs}, gram=gram)
        observed, patches = with_patches(model, part)
        found = self.calibrator.collect(observed, dict.fromkeys(patches.values(), 1))
        return seen, {layer: found[name] for layer, name in patches.items()}

    def _quantize_weight(
        self,
        layer: Layer,
        statistics: Mapping[str, ChannelStatistics],
        patches: ChannelStatistics | None,
        weights: _Weights,
    ) -> Finding:
        node = layers.node_of(layer)
        seen = statistics.get(str(layer.x.name))
        multiplied = seen if multiplies_input(layer) else patches
        axis = layers.output_axis(layer) if self.weights.granularity == "per_channel" else None
        before = layer.weight.const_value
        assert before is not None
        weight = before.numpy()
        parts = weights.rounded(layer.weight, axis) or self._rounded(layer, weight, multiplied)
        written = statistics.get(str(layer.output.name)) if isinstance(layer, Convolution) else None
        measured = None if seen is None else self._sqnr(layer, weight, parts, seen, multiplied, written)
        floor = self.min_convolution_sqnr_db
        if isinstance(layer, Convolution) and floor is not None and measured is not None and measured < floor:
            reason = f"quantized, its signal-to-noise ratio would be {measured:.1f} dB, below {floor:g} dB"
            return Finding(layer.name, "kept", reason, layers.operator(layer))
        qdq.replace_input(node, layer.weight, weights.dequantized(layer.weight, parts, axis, node))
        if isinstance(layer, Convolution) and seen is not None:
            self._quantize_bias(layer, self._parameters(seen, layer.x)[0], parts[1])
        return Finding(layer.name, "quantized", "", layers.operator(layer), measured)

    def _sqnr(
        self,
        layer: Layer,
        weight: np.ndarray,
        parts: tuple[np.ndarray, np.ndarray, np.ndarray],
        seen: ChannelStatistics,
        multiplied: ChannelStatistics | None,
        written: ChannelStatistics | None,
    ) -> float | None:
        """Signal-to-noise ratio in dB of the output on sampled rows, itself quantized where it is `written` so."""
        if multiplied is None or not len(multiplied.rows):
            return None
        axis = layers.output_axis(layer) if self.weights.granularity == "per_channel" else None
        after = as_matrices(dequantize(*parts, axis=axis), layer)
        noisy = grouped_rows(as_quantized(multiplied.rows, self._range(seen, layer.x), self.activations), layer)
        exact = grouped_rows(multiplied.rows, layer) @ as_matrices(weight, layer)
        result = noisy @ after
        if written is not None:
            bias = constant(layer.bias)
            shift = np.zeros(1, np.float32) if bias is None else bias.numpy().reshape(len(exact), 1, -1)
            result = as_quantized(result + shift, self._range(written, layer.output), self.activations) - shift
        return sqnr_db(exact, result)

    def _rounded(
        self, layer: Layer, weight: np.ndarray, multiplied: ChannelStatistics | None
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Return integers, scale and zero point of the weight."""
        axis = layers.output_axis(layer) if self.weights.granularity == "per_channel" else None
        nearest = quantize_weight(weight, self.weights, axis)
        if self.rounding == "nearest" or multiplied is None or not self.weights.sym:
            return nearest
        parts = as_matrices(weight, layer)
        if multiplied.gram is not None:
            integers = gptq(parts[0], multiplied.gram, self.weights)[0][None]
        elif len(multiplied.rows):
            rows = grouped_rows(multiplied.rows, layer)
            scale = np.broadcast_to(nearest[1], (layers.outputs(layer),)).reshape(len(parts), 1, -1)
            integers = grouped_gptq(parts / scale, rows.transpose(0, 2, 1) @ rows / rows.shape[1], self.weights)
        else:
            return nearest
        return from_matrices(integers, layer, weight.shape), *nearest[1:]

    def _quantize_bias(self, layer: Convolution, input_scale: np.ndarray, weight_scale: np.ndarray) -> None:
        """Write the bias as int32 with scale s_x * s_w, or leave it float where that would clip."""
        bias = constant(layer.bias)
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
            # Readers in the body of an If or Loop keep the float value: the pair may come after that node.
            inside = [node for node in nodes if node in order]
            if not inside:
                continue
            new, made = self._pair(model, value, min(inside, key=order.__getitem__), statistics)
            for node in inside:
                if node not in made:
                    qdq.replace_input(node, value, new)

    def _pair(
        self, model: ir.Model, value: ir.Value, before: ir.Node, statistics: Mapping[str, ChannelStatistics]
    ) -> tuple[ir.Value, list[ir.Node]]:
        if not self.activations.dynamic:
            scale, zero_point = self._parameters(statistics[str(value.name)], value)
            return qdq.quantize_dequantize(value, scale, zero_point, before)
        if self.activations.granularity == "per_token":
            return qdq.dynamic_per_token(value, before, model)
        return qdq.dynamic_per_tensor(value, before)

    def _parameters(self, seen: ChannelStatistics, value: ir.Value) -> tuple[np.ndarray, np.ndarray]:
        return scale_and_zero_point(*self._range(seen, value), self.activations)

    def _range(self, seen: ChannelStatistics, value: ir.Value) -> tuple[float, float]:
        observer = self.convolution_observer if layers.of_convolution(value) else None
        return OBSERVERS[observer or self.observer](seen.minimum, seen.maximum, seen.rows, self.activations)


class _Weights:
    """Dequantized weights, one for each float weight: layers with tied weights read what the first of them made."""

    def __init__(self) -> None:
        self._made: dict[tuple[ir.Value, int | None], tuple[Parts, ir.Value]] = {}

    def rounded(self, source: ir.Value, axis: int | None) -> Parts | None:
        """Return integers, scale and zero point of a weight that was quantized before, else None."""
        known = self._made.get((source, axis))
        return None if known is None else known[0]

    def dequantized(self, source: ir.Value, parts: Parts, axis: int | None, node: ir.Node) -> ir.Value:
        """Return the value to read in place of `source` in `node`; layers come in graph order."""
        known = self._made.get((source, axis))
        if known is None:
            known = self._made[source, axis] = parts, qdq.dequantized_constant(source, *parts, axis, node)
        return known[1]


def _flowing(chosen: list[Layer]) -> list[ir.Value]:
    """Outputs of convolutions, behind their activation, that other nodes read and the user does not."""
    outputs = [layers.activated_output(layer) for layer in chosen if isinstance(layer, Convolution)]
    return [value for value in outputs if value.uses() and not value.is_graph_output()]
