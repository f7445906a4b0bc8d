"""Statistics of what layers read, multiply and write, collected for so many layers at a time as memory allows."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Collection, Iterator, Mapping, Sequence

import numpy as np
import onnx_ir as ir

from qcompile import calibration_stages, layers
from qcompile.calibration import Calibrator, ChannelStatistics
from qcompile.calibration_stages import Stage
from qcompile.graph import Convolution
from qcompile.layers import Layer
from qcompile.multiplied import multiplies_input, with_patches
from qcompile.weight_rounding import MOST_INPUTS

Part = Sequence[Layer]

_GRAM_BYTES, _WEIGHT_BYTES = 160 * 2**20, 2**30
"""Of second moments that are held at a time, and of float weights that a runtime is given for them."""


@dataclasses.dataclass(frozen=True, eq=False)
class LayerStatistics:
    """Statistics for some layers.

    Attributes:
        layers: the layers.
        values: statistics of values, by name; empty without calibration data.
        patches: statistics of what convolutions multiply, by the name of their output.
        lacks: product of a linear -> the mean of x dT, float32 [inputs, outputs], see `asymmetric_statistics`.
    """

    layers: tuple[Layer, ...]
    values: Mapping[str, ChannelStatistics] = dataclasses.field(default_factory=dict, repr=False)
    patches: Mapping[str, ChannelStatistics] = dataclasses.field(default_factory=dict, repr=False)
    lacks: Mapping[ir.Node, np.ndarray] = dataclasses.field(default_factory=dict, repr=False)

    def of(self, value: ir.Value) -> ChannelStatistics | None:
        """Statistics of a value that one of the layers reads or writes; None where nothing was collected."""
        return self.values.get(str(value.name))

    def multiplied(self, layer: Layer) -> ChannelStatistics | None:
        """Statistics of the rows that the layer multiplies; None where there are none, see `with_patches`."""
        return self.of(layer.x) if multiplies_input(layer) else self.patches.get(str(layer.output.name))


def layer_statistics(
    calibrator: Calibrator,
    model: ir.Model,
    chosen: Sequence[Layer],
    written: Collection[ir.Value],
    *,
    grams: bool,
    for_rows: bool = False,
) -> Iterator[LayerStatistics]:
    """Yield the layers, in order, with their statistics: so many at a time that their second moments fit in 160 MiB.

    The model runs from where the layers before ended, as the caller has made them, not from its inputs.

    Args:
        calibrator: source of the statistics.
        model: the model as it is now; the caller may change the layers that were yielded.
        chosen: the layers.
        written: outputs of convolutions, or of activations behind them, to collect too.
        grams: collect second moments of what linears and 1x1 convolutions of up to MOST_INPUTS multiply.
        for_rows: of other statistics only the rows are of use, see `Calibrator.collect`.
    """
    stage = calibrator.begin(model)
    parts = list(_parts(chosen, grams=grams))
    for index, part in enumerate(parts):
        yield _collect(calibrator, model, part, stage, written=written, grams=grams, for_rows=for_rows)
        done, later = ([layers.node_of(layer) for each in some for layer in each] for some in _halves(parts, index + 1))
        cut = calibration_stages.find_cut(model, done, later) if later else None
        if cut is not None:
            stage = calibrator.advance(model, stage, cut)


def _halves(parts: Sequence[Part], at: int) -> tuple[Sequence[Part], Sequence[Part]]:
    return parts[:at], parts[at:]


def _parts(chosen: Sequence[Layer], *, grams: bool) -> Iterator[Part]:
    part: list[Layer] = []
    seen: set[ir.Value] = set()
    moments = weights = 0
    for layer in chosen:
        part.append(layer)
        if layer.x not in seen:
            seen.add(layer.x)
            moments += 8 * layers.accumulated(layer) ** 2 if grams and has_gram(layer) else 0
        weights += 0 if layer.weight.shape is None else 4 * math.prod(layer.weight.shape.numpy())
        if moments > _GRAM_BYTES or weights > _WEIGHT_BYTES:
            yield part
            part, seen, moments, weights = [], set(), 0, 0
    if part:
        yield part


def has_gram(layer: Layer) -> bool:
    """Return whether second moments of what a layer multiplies are collected: it has no more than MOST_INPUTS."""
    return multiplies_input(layer) and layers.accumulated(layer) <= MOST_INPUTS


def _collect(
    calibrator: Calibrator,
    model: ir.Model,
    part: Part,
    stage: Stage,
    *,
    written: Collection[ir.Value],
    grams: bool,
    for_rows: bool,
) -> LayerStatistics:
    second_moments = {str(layer.x.name) for layer in part if grams and has_gram(layer)}
    ends = {layers.activated_output(layer) for layer in part if isinstance(layer, Convolution)}
    outputs = {str(value.name): 1 for value in written if value in ends}
    read = {str(layer.x.name): layers.input_axis(layer) for layer in part}
    values = calibrator.collect(model, {**read, **outputs}, gram=second_moments, for_rows=for_rows, stage=stage)
    observed, patches = with_patches(model, part)
    found = calibrator.collect(observed, dict.fromkeys(patches.values(), 1), stage=stage)
    return LayerStatistics(tuple(part), values, {layer: found[name] for layer, name in patches.items()})
