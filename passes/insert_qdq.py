"""Quantizes linears and convolutions by Q/DQ pairs around what they read."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from typing import ClassVar, Literal

import numpy as np
import onnx_ir as ir

from qcompile import layers, qdq
from qcompile.calibration import Calibrator, ChannelStatistics
from qcompile.calibration_layers import LayerStatistics, layer_statistics
from qcompile.contract import Finding, Keeps, Pass, Result
from qcompile.errors import CalibrationError
from qcompile.graph import Convolution, constant, readers, unique_name
from qcompile.initializers import register_initializer, remove_unused
from qcompile.layers import Layer
from qcompile.saturation import told_apart
from qcompile.scheme import ASYMMETRIC_UINT8, PER_CHANNEL_INT8, Scheme
from qcompile.solvers.affine import scale_and_zero_point
from qcompile.solvers.bias_correction import output_shift
from qcompile.solvers.ranges import OBSERVERS
from qcompile.solvers.sqnr import as_quantized, decibels, powers, sqnr_db
from qcompile.weight_rounding import Products, Rounding, SharedWeights, integer_bias, products, rounded, scale_axis

Parameters = dict[ir.Value, tuple[np.ndarray, np.ndarray]]
"""Scale and zero point of each value that is quantized by them."""

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
            multiplies, is lower stays float; None: none does.
        rounding: "nearest", or "gptq": error-compensated on the second moments of what the layer multiplies; to
            nearest where `multiplied.with_patches` has nothing for a convolution. Both are the same at run time.
        bias_correction: "none", or "convolutions": what quantization adds to their outputs on average is taken off the
            bias, where that helps on rows it was not measured on. Free at run time. Not for linears: on MiniLM it made
            the embeddings worse, with GPTQ (error .0013 to .0015) as without.
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
    rounding: Rounding = "nearest"
    bias_correction: Literal["none", "convolutions"] = "none"
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
        findings = [finding for finding in reasons.values() if finding is not None]
        weights = SharedWeights()
        parameters: Parameters = {}
        quantized: list[Layer] = []
        for part in self._calibrated(model, chosen):
            # The statistics themselves, with hundreds of rows of every value, go with the part.
            parameters.update(self._static_parameters(part))
            done = [self._quantize_weight(layer, part, weights) for layer in part.layers]
            quantized += [layer for layer, item in zip(part.layers, done, strict=True) if item.action == "quantized"]
            findings += done
            del part
        self._quantize_activations(model, quantized, parameters)
        remove_unused(value for layer in quantized for value in (layer.weight, layer.bias) if value is not None)
        return Result(model, modified=bool(quantized), findings=tuple(findings))

    def _refusal(self, layer: Layer) -> Finding | None:
        operator = layers.operator(layer)
        left_out = layers.left_out(layer.name, operator, self.ignore, self.operators)
        reason = layers.refusal(layer, self.activations, self.weights) if left_out is None else ""
        return Finding(layer.name, "kept", reason, operator) if reason else left_out

    def _calibrated(self, model: ir.Model, chosen: list[Layer]) -> Iterator[LayerStatistics]:
        if self.calibrator is None:
            if chosen and (not self.activations.dynamic or self.rounding == "gptq"):
                reason = "static activations and gptq need statistics of the activations"
                raise CalibrationError("insert_qdq", reason, "Give calibration data, or use dynamic activations")
            return iter([LayerStatistics(tuple(chosen))])
        written = [] if self.activations.dynamic else _flowing(chosen)
        return layer_statistics(self.calibrator, model, chosen, written, grams=self.rounding == "gptq")

    def _quantize_weight(self, layer: Layer, statistics: LayerStatistics, weights: SharedWeights) -> Finding:
        node = layers.node_of(layer)
        seen, multiplied = statistics.of(layer.x), statistics.multiplied(layer)
        axis = scale_axis(layer, self.weights)
        before = layer.weight.const_value
        assert before is not None
        weight = before.numpy()
        rows, gram = (np.zeros((0, 0), np.float32), None) if multiplied is None else (multiplied.rows, multiplied.gram)
        parts = weights.rounded(layer.weight, axis) or rounded(layer, weight, rows, gram, self.weights, self.rounding)
        shift, measured = np.zeros(1, np.float32), None
        if seen is not None and len(rows):
            noisy = as_quantized(rows, self._range(seen, layer.x), self.activations)
            found = products(layer, weight, parts, rows, noisy, self.weights)
            shift = self._shift(layer, found)
            measured = self._sqnr(layer, found, shift, statistics)
        floor = self.min_convolution_sqnr_db
        if isinstance(layer, Convolution) and floor is not None and measured is not None and measured < floor:
            reason = f"quantized, its signal-to-noise ratio would be {measured:.1f} dB, below {floor:g} dB"
            return Finding(layer.name, "kept", reason, layers.operator(layer))
        qdq.replace_input(node, layer.weight, weights.dequantized(layer.weight, parts, axis, node))
        if isinstance(layer, Convolution) and seen is not None:
            self._quantize_bias(layer, self._parameters(seen, layer.x)[0], parts[1], shift)
        return Finding(layer.name, "quantized", "", layers.operator(layer), measured)

    def _shift(self, layer: Layer, found: Products) -> np.ndarray:
        """What quantization adds to the outputs on average, [groups, outputs of a group] or [1]."""
        if self.bias_correction == "none" or not isinstance(layer, Convolution) or not _has_constant_bias(layer):
            return np.zeros(1, np.float32)
        return output_shift(found.exact, found.quantized)

    def _sqnr(self, layer: Layer, found: Products, shift: np.ndarray, statistics: LayerStatistics) -> float:
        """Signal-to-noise ratio in dB of the output on sampled rows, itself quantized where it is written so."""
        result = found.quantized - np.atleast_2d(shift)[:, None, :]
        written = statistics.of(layer.output) if isinstance(layer, Convolution) else None
        if written is None or not _has_constant_bias(layer):
            return sqnr_db(found.exact, result)
        bias = constant(layer.bias)
        offset = np.zeros(1, np.float32) if bias is None else bias.numpy().reshape(len(found.exact), 1, -1)
        bounds = told_apart(layer.output)
        exact = np.clip(found.exact + offset, *bounds)
        flowing = as_quantized(result + offset, self._range(written, layer.output), self.activations)
        return decibels(powers(found.exact, found.exact)[0], powers(exact, np.clip(flowing, *bounds))[1])

    def _quantize_bias(
        self, layer: Convolution, input_scale: np.ndarray, weight_scale: np.ndarray, shift: np.ndarray
    ) -> None:
        """Write the bias without what quantization adds, as int32 where it does not clip."""
        if not _has_constant_bias(layer) or (layer.bias is None and not shift.any()):
            return
        source = constant(layer.bias)
        bias = -shift.reshape(-1) if source is None else source.numpy() - shift.reshape(-1)
        parts = integer_bias(layer, bias, input_scale, weight_scale)
        like = layer.bias if layer.bias is not None else layer.weight
        if parts is not None:
            new = qdq.dequantized_constant(like, *parts, 0, layer.node)
        elif shift.any():
            graph = layer.node.graph
            assert isinstance(graph, ir.Graph)
            name = unique_name(graph, f"{like.name}.corrected")
            new = register_initializer(layer.node, ir.tensor(bias.astype(np.float32), name=name))
        else:
            return
        layer.node.resize_inputs(3)
        layer.node.replace_input_with(2, new)

    def _static_parameters(self, part: LayerStatistics) -> Parameters:
        """Scale and zero point of the values that layers read, and of those that flow on in integers."""
        if self.activations.dynamic:
            return {}
        values = [*(layer.x for layer in part.layers), *_flowing(part.layers)]
        found = {value: part.of(value) for value in dict.fromkeys(values)}
        return {value: self._parameters(seen, value) for value, seen in found.items() if seen is not None}

    def _quantize_activations(self, model: ir.Model, chosen: list[Layer], parameters: Parameters) -> None:
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
            new, made = self._pair(model, value, min(inside, key=order.__getitem__), parameters)
            for node in inside:
                if node not in made:
                    qdq.replace_input(node, value, new)

    def _pair(
        self, model: ir.Model, value: ir.Value, before: ir.Node, parameters: Parameters
    ) -> tuple[ir.Value, list[ir.Node]]:
        if not self.activations.dynamic:
            return qdq.quantize_dequantize(value, *parameters[value], before)
        if self.activations.granularity == "per_token":
            return qdq.dynamic_per_token(value, before, model)
        return qdq.dynamic_per_tensor(value, before)

    def _parameters(self, seen: ChannelStatistics, value: ir.Value) -> tuple[np.ndarray, np.ndarray]:
        return scale_and_zero_point(*self._range(seen, value), self.activations)

    def _range(self, seen: ChannelStatistics, value: ir.Value) -> tuple[float, float]:
        observer = self.convolution_observer if layers.of_convolution(value) else None
        bounds = told_apart(value)
        minimum, maximum, rows = (np.clip(array, *bounds) for array in (seen.minimum, seen.maximum, seen.rows))
        return OBSERVERS[observer or self.observer](minimum, maximum, rows, self.activations)


def _has_constant_bias(layer: Layer) -> bool:
    return layer.bias is None or constant(layer.bias) is not None


def _flowing(chosen: Sequence[Layer]) -> list[ir.Value]:
    """Outputs of convolutions, behind their activation, that other nodes read and the user does not."""
    outputs = [layers.activated_output(layer) for layer in chosen if isinstance(layer, Convolution)]
    return [value for value in outputs if value.uses() and not value.is_graph_output()]
