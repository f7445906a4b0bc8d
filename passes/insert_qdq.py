"""Quantizes linears and convolutions by Q/DQ pairs around what they read."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import ClassVar, Literal

import numpy as np
import onnx_ir as ir

from qcompile import layers, qdq
from qcompile.calibration import Calibrator
from qcompile.calibration_layers import LayerStatistics, layer_statistics
from qcompile.calibration_losses import output_loss
from qcompile.calibration_ranges import Observer, StaticRanges
from qcompile.contract import Finding, Keeps, Pass, Result
from qcompile.errors import CalibrationError
from qcompile.graph import Convolution, computed_constants, readers
from qcompile.initializers import remove_unused
from qcompile.layer_bias import write_bias
from qcompile.layers import Layer
from qcompile.scheme import ASYMMETRIC_UINT8, PER_CHANNEL_INT8, Scheme
from qcompile.weight_rounding import Rounding, SharedWeights, rounded, scale_axis, why_nearest


@dataclasses.dataclass(frozen=True)
class InsertQdq(Pass):
    """MatMul(x, W) -> MatMul(DQ(Q(x)), DQ(int8 W)), and the same for Conv and ConvTranspose.

    Readers of one value share one pair; readers that stay float read the value itself, except behind a convolution,
    where every reader gets the quantized value so that integers can flow on. Of a linear whose input is computed from
    constants only the weight is quantized: a runtime multiplies it once, when it loads the model. Does not fire on
    layers that are ignored, whose sums overflow int32, whose weight or input holds `broken_numbers`, and on
    convolutions under dynamic activations.

    Attributes:
        activations: static (per tensor, from calibration), or dynamic per tensor or per token.
        weights: int8, per tensor or per output channel.
        observer: how a static range is chosen from the statistics, a name of `solvers.ranges.OBSERVERS`.
        convolution_observer: the same for what convolutions read and write; None: as `observer`.
        min_convolution_sqnr_db: a convolution whose own signal-to-quantization-noise ratio, measured on what it
            multiplies, is lower stays float; None: none does.
        rounding: "nearest", or "gptq": error-compensated on the second moments of what the layer multiplies; to
            nearest where `multiplied.with_patches` has nothing for a convolution, and above
            `weight_rounding.MOST_INPUTS`. Both are the same at run time.
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
        parameters: dict[ir.Value, qdq.Parameters] = {}
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
        left_out = layers.left_out(layers.finding(layer, "kept"), self.ignore, self.operators)
        reason = layers.refusal(layer, self.activations, self.weights) if left_out is None else ""
        return layers.finding(layer, "kept", reason) if reason else left_out

    def _calibrated(self, model: ir.Model, chosen: list[Layer]) -> Iterator[LayerStatistics]:
        if self.calibrator is None:
            if chosen and (not self.activations.dynamic or self.rounding == "gptq"):
                reason = "static activations and gptq need statistics of the activations"
                raise CalibrationError("insert_qdq", reason, "Give calibration data, or use dynamic activations")
            return iter([LayerStatistics(tuple(chosen))])
        written = [] if self.activations.dynamic else layers.flowing_outputs(chosen)
        return layer_statistics(self.calibrator, model, chosen, written, grams=self.rounding == "gptq")

    @property
    def _ranges(self) -> StaticRanges:
        return StaticRanges(self.activations, self.observer, self.convolution_observer)

    def _static_parameters(self, part: LayerStatistics) -> dict[ir.Value, qdq.Parameters]:
        """Scale and zero point of the values that layers read, and of those that flow on in integers."""
        if self.activations.dynamic:
            return {}
        values = [*(layer.x for layer in part.layers), *layers.flowing_outputs(part.layers)]
        found = {value: part.of(value) for value in dict.fromkeys(values)}
        return {
            value: self._ranges.parameters(value, seen)
            for value, seen in found.items()
            if seen is not None and not self._ranges.refusal(value, seen)
        }

    def _quantize_weight(self, layer: Layer, statistics: LayerStatistics, weights: SharedWeights) -> Finding:
        node, axis = layers.node_of(layer), scale_axis(layer, self.weights)
        tensor, multiplied = layer.weight.const_value, statistics.multiplied(layer)
        assert tensor is not None
        weight, seen = tensor.numpy(), statistics.of(layer.x)
        broken = "" if seen is None else self._ranges.layer_refusal(layer, weight, seen)
        if broken:
            return layers.finding(layer, "kept", broken)
        rows, gram = (np.zeros((0, 0), np.float32), None) if multiplied is None else (multiplied.rows, multiplied.gram)
        parts = weights.rounded(layer.weight, axis) or rounded(layer, weight, rows, gram, self.weights, self.rounding)
        corrected = self.bias_correction == "convolutions"
        loss = output_loss(layer, weight, parts, statistics, self._ranges, self.weights, corrected=corrected)
        floor = self.min_convolution_sqnr_db
        if isinstance(layer, Convolution) and floor is not None and loss is not None and loss.sqnr_db < floor:
            reason = f"quantized, its signal-to-noise ratio would be {loss.sqnr_db:.1f} dB, below {floor:g} dB"
            return layers.finding(layer, "kept", reason)
        qdq.replace_input(node, layer.weight, weights.dequantized(layer.weight, parts, axis, node))
        if isinstance(layer, Convolution) and seen is not None:
            shift = np.zeros(1, np.float32) if loss is None else loss.shift
            write_bias(layer, self._ranges.parameters(layer.x, seen)[0], parts[1], shift)
        near = why_nearest(layer, self.rounding)
        return layers.finding(layer, "quantized", near, None if loss is None else loss.sqnr_db)

    def _quantize_activations(
        self, model: ir.Model, chosen: list[Layer], parameters: dict[ir.Value, qdq.Parameters]
    ) -> None:
        quantized: dict[ir.Value, list[ir.Node]] = {}
        fixed = computed_constants(model)
        for layer in (layer for layer in chosen if isinstance(layer, Convolution) or layer.x not in fixed):
            quantized.setdefault(layer.x, []).append(layers.node_of(layer))
        if not self.activations.dynamic:
            flowing = [value for value in layers.flowing_outputs(chosen) if value in parameters]
            quantized |= {value: list(readers(value)) for value in flowing}
        qdq.quantize_for(model, quantized, self.activations, parameters)
