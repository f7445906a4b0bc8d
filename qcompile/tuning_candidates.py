"""Measures, or looks up, what quantizing the layers of a model on its way wins: of each group, and of the whole."""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

import onnx_ir as ir

from qcompile import backends, layers
from qcompile.backends import Backend
from qcompile.calibration import Calibrator
from qcompile.calibration_cache import fingerprint
from qcompile.calibration_data import Calibration
from qcompile.capability import integer_operators, quantizers
from qcompile.compile_selection import ignored_layers
from qcompile.contract import Pass
from qcompile.errors import QCompileError
from qcompile.initializers import data_bytes
from qcompile.layers import Layer
from qcompile.passes.insert_qdq import InsertQdq
from qcompile.passes.observe_channels import ObserveChannels
from qcompile.pipeline import apply_pass
from qcompile.recipe import Recipe
from qcompile.restoring import restored
from qcompile.session import Feed, Session
from qcompile.tuning_cache import TuningCache
from qcompile.tuning_forms import feed_of, form_names, forms
from qcompile.tuning_groups import Group, groups_of, run_for_shapes
from qcompile.tuning_sets import Candidate, named_times, promising
from qcompile.tuning_times import INTEGER, Timer
from qcompile.work import Work

WORTH_MS = 0.5
"""A float model that runs in less is left as it is: what tuning wins is less than what calling a runtime costs."""

MOST_BYTES = 2**28
"""Float weights of the largest model that is tuned: candidates for the whole of a larger one would take most memory."""

MOST_GROUPS = 16
"""How many groups are measured: those first that multiply least for each number they write."""

MOST_WEIGHTS = 2**22
"""A layer with more is not measured: reading weights is most of what it does, and those of 8 bits are a quarter."""


@dataclasses.dataclass(frozen=True)
class Measurement:
    """Measures on a model on its way what quantizing its layers wins.

    Attributes:
        work: the float model in canonical form, and samples.
        plan: the recipe; one of its passes quantizes layers.
        timer: of the backend.
        cache: of what was measured before.
    """

    work: Work
    plan: Recipe
    timer: Timer
    cache: TuningCache

    def candidates(self) -> dict[str, Candidate]:
        """Return the sets to try: layers that lose next to quantized ones; that would lose among float ones; and all.

        None where no more than noise could be won, as the layers that were measured tell, or the model is small.
        """
        chosen = quantized_layers(self.work.model, self.plan, self.timer.engine, self.timer.target)
        sample, model = self.work.samples[0], self.work.model
        if not chosen or data_bytes(model) > MOST_BYTES:
            return {}
        try:
            run = run_for_shapes(model, {str(layer.x.name) for layer in chosen}, sample, _one_thread)
        except QCompileError:
            return {}  # The runtime computes the model, not the values that are wanted; verification has its own say.
        times = self._measured({"run of": self._model, "sample": _described(sample)}, {"float"}, lambda: run.times)
        if times is None or times["float"] < WORTH_MS:
            return {}
        grouped = groups_of(chosen, self._quantizer.activations, run.shapes)
        found = {group: each for group in _most_likely(grouped) if (each := self._group(group)) is not None}
        measured = named_times([(layer.name, group) for layer, group in grouped], found)
        return promising(measured, [layer.name for layer in chosen], times["float"])

    def whole(self, candidates: Mapping[str, Candidate]) -> Mapping[str, float]:
        """Return how long the whole model takes with each candidate, and INTEGER: with none; in milliseconds.

        The layers are quantized as fast as that goes: time does not depend on the numbers. Nothing where the backend
        refuses one of these models.
        """
        sample = self.work.samples[0]
        key = {
            "model": self._model,
            "sample": _described(sample),
            "recipe": self.plan.to_data(),
            "float": {name: sorted(candidate.layers) for name, candidate in candidates.items()},
        }

        def models() -> dict[str, ir.Model]:
            quantized = self._quantized()
            sets = {name: frozenset(each.layers) for name, each in candidates.items()}
            floats = {name: restored(quantized, self.work.model, names) for name, names in sets.items()}
            return {INTEGER: quantized, **floats}

        times = self._measured(
            key, {INTEGER, *candidates}, lambda: self.timer.milliseconds(models(), lambda _model: sample)
        )
        return times or {}

    @functools.cached_property
    def _model(self) -> str:
        return fingerprint(self.work.model, weights=False)

    @property
    def _quantizer(self) -> InsertQdq:
        (found,) = quantizers(self.plan)
        return found

    def _group(self, group: Group) -> Mapping[str, float] | None:
        schemes = (self._quantizer.activations, self._quantizer.weights)
        dtype = self.timer.engine.flowing_dtype(schemes[0])
        described = [dataclasses.asdict(scheme) for scheme in schemes]
        key = {"group": dataclasses.asdict(group), "schemes": described, "flowing": dtype}
        names = {INTEGER, *form_names(group)}
        return self._measured(key, names, lambda: self.timer.milliseconds(forms(group, *schemes, dtype), feed_of))

    def _measured(
        self, key: Mapping[str, Any], names: Collection[str], measure: Callable[[], Mapping[str, float]]
    ) -> Mapping[str, float] | None:
        """Return times from the cache, else measured and stored; None where the backend refuses a model."""
        known = self.cache.load(key)
        if known is not None and known.keys() == set(names):
            return known
        try:
            times = measure()
        except QCompileError:
            return None  # Made-up numbers may be too odd for it; the real model is judged as it is.
        self.cache.store(key, times)
        return times

    def _quantized(self) -> ir.Model:
        """Return the model quantized as fast as that goes: ranges are those of one sample.

        Nothing is smoothed, and weights are rounded to nearest.
        """
        reference = backends.get("onnxruntime")
        calibrator = Calibrator(Calibration([self.work.samples[0]]), ObserveChannels, reference.open_session)
        bound = {**_bound(self.work.model, self.plan, self.timer.engine, self.timer.target), "calibrator": calibrator}
        model = self.work.model.clone()
        for step in self.plan.steps:
            built = step.build(**bound)
            if built.keeps == "lossy":
                apply_pass(_quick(built), model)
        return model


def quantized_layers(model: ir.Model, plan: Recipe, engine: Backend, target: str | None) -> list[Layer]:
    """Return the layers that the one pass of a recipe that quantizes layers does quantize, by their schemes."""
    (quantizer,) = quantizers(plan)
    bound = _bound(model, plan, engine, target)
    return [
        layer
        for layer in layers.float_layers(model)
        if layers.left_out(layers.finding(layer, "kept"), bound["ignore"], bound["operators"]) is None
        and not layers.refusal(layer, quantizer.activations, quantizer.weights)
    ]


def _bound(model: ir.Model, plan: Recipe, engine: Backend, target: str | None) -> dict[str, Any]:
    """Return what the passes of a recipe get: the layers that it ignores, and what the backend is able to do."""
    return {"ignore": ignored_layers(model, plan), "operators": integer_operators(plan, engine, target)}


def _one_thread(model: ir.Model) -> Session:
    return backends.get("onnxruntime").open_session(model, threads=1, few_runs=True)


def _described(sample: Feed) -> dict[str, list[Any]]:
    return {name: [str(array.dtype), list(array.shape)] for name, array in sample.items()}


def _quick(built: Pass) -> Pass:
    """Return a pass that writes as fast an artifact in less time."""
    if not isinstance(built, InsertQdq):
        return built
    return dataclasses.replace(
        built,
        observer="minmax",
        convolution_observer=None,
        min_convolution_sqnr_db=None,
        rounding="nearest",
        bias_correction="none",
        calibrator=None if built.activations.dynamic else built.calibrator,
    )


def _most_likely(grouped: Sequence[tuple[Layer, Group]]) -> list[Group]:
    """Return the groups that are measured: MOST_GROUPS of those that multiply least for each number they write."""
    small = ((layer, group) for layer, group in grouped if math.prod(group.weight) <= MOST_WEIGHTS)
    products = {group: layers.accumulated(layer) for layer, group in small}
    return sorted(products, key=lambda group: (products[group], repr(group)))[:MOST_GROUPS]
