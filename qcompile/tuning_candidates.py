"""Measures, or looks up, what quantizing the layers of a model on its way wins: of each group, and of the whole."""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

import onnx_ir as ir

from qcompile import backends, layers
from qcompile.backends import Backend, Site
from qcompile.calibration import Calibrator
from qcompile.calibration_cache import fingerprint
from qcompile.calibration_data import Calibration
from qcompile.capability import integer_operators, quantizers
from qcompile.compile_selection import ignored_layers
from qcompile.contract import Pass
from qcompile.errors import QCompileError
from qcompile.graph import constant
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
from qcompile.tuning_groups import Group, Run, groups_of, run_for_shapes
from qcompile.tuning_sets import Candidate, Times, named_times, promising
from qcompile.tuning_sites import Timed, model_of, read_values
from qcompile.tuning_times import INTEGER, Timer
from qcompile.work import Work

WORTH_MS = 0.5
"""A float model that runs in less is left as it is: what tuning wins is less than what calling a runtime costs."""

MOST_BYTES = 2**28
"""Float weights of the largest model that is tuned: candidates for the whole of a larger one would take most memory."""

MOST_GROUPS = 16
"""How many groups are measured: those first that multiply least for each number they write."""

MOST_SITES = 8
"""How many kinds of sites are measured, the first of the graph: forms of lowering take a twentieth of a second each."""

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

    def layer_times(self) -> dict[str, Times]:
        """Return name of a layer -> how long it takes quantized and in float; of those that are worth measuring."""
        run = self._run
        if isinstance(run, str) or not self._layers:
            return {}
        grouped = groups_of(self._layers, self._quantizer.activations, run.shapes)
        found = {group: each for group in _most_likely(grouped) if (each := self._group(group)) is not None}
        return named_times([(layer.name, group) for layer, group in grouped], found)

    def candidates(self, measured: Mapping[str, Times]) -> dict[str, Candidate]:
        """Return the sets to try: layers that lose next to quantized ones; that would lose among float ones; and all.

        None where no more than noise could be won, as the layers that were measured tell, or the model is small.
        """
        run = self._run
        return (
            {}
            if isinstance(run, str)
            else promising(measured, [layer.name for layer in self._layers], run.times["float"])
        )

    def sites(self) -> list[Timed]:
        """Return what the backend can write in several forms, with the time of each; of MOST_SITES kinds of them."""
        found: dict[str, Mapping[str, float] | None] = {}
        return [self._site(site, found) for site in self._sites]

    @property
    def not_worth(self) -> str:
        """Why nothing is measured of this model; empty where something is."""
        return self._run if isinstance(self._run, str) else ""

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
    def _run(self) -> Run | str:
        """One run of the float model; or why it is not worth one."""
        model, sample = self.work.model, self.work.samples[0]
        if not self._layers and not self._sites:
            return "no layer is quantized by one pass alone, and nothing has several forms"
        if data_bytes(model) > MOST_BYTES:
            return f"the model is larger than {MOST_BYTES / 2**20:.0f} MiB"
        read = [*(layer.x for layer in self._layers), *(value for site in self._sites for value in read_values(site))]
        try:
            run = run_for_shapes(model, {str(value.name) for value in read}, sample, _one_thread)
        except QCompileError:
            # The runtime computes the model, not the values that are wanted; verification has its own say.
            return "the runtime does not give the values inside of the model"
        times = self._measured({"run of": self._model, "sample": _described(sample)}, {"float"}, lambda: run.times)
        if times is None or times["float"] < WORTH_MS:
            return f"the model runs in less than {WORTH_MS:g} ms"
        return dataclasses.replace(run, times=times)

    @functools.cached_property
    def _layers(self) -> list[Layer]:
        if len(quantizers(self.plan)) != 1:
            return []
        return quantized_layers(self.work.model, self.plan, self.timer.engine, self.timer.target)

    @functools.cached_property
    def _sites(self) -> Sequence[Site]:
        return self.timer.engine.sites(self.work.model)

    def _site(self, site: Site, found: dict[str, Mapping[str, float] | None]) -> Timed:
        """Return the times of a site, from those found already where it is like one; of too many kinds, none."""
        names = [str(value.name) for value in read_values(site)]
        if isinstance(self._run, str) or not set(names) <= self._run.shapes.keys() or not _is_small(site):
            return Timed(site)
        shapes = tuple(self._run.shapes[name] for name in names)
        models = {form: model_of(site, shapes, form) for form in site.forms}
        of = fingerprint(models[site.forms[0]], weights=False)
        if of not in found and len(found) < MOST_SITES:
            key = {"site": site.kind, "reads": shapes, "nodes": of}
            found[of] = self._measured(key, site.forms, lambda: self.timer.milliseconds(models, feed_of, site.forms[0]))
        times = found.get(of)
        return Timed(site) if times is None else Timed(site, shapes, {form: times[form] for form in site.forms})

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


def _is_small(site: Site) -> bool:
    """True where no constant of the site has more than MOST_WEIGHTS numbers."""
    tensors = (constant(value) for node in site.nodes for value in node.inputs if value is not None)
    return all(tensor is None or tensor.size <= MOST_WEIGHTS for tensor in tensors)


def _most_likely(grouped: Sequence[tuple[Layer, Group]]) -> list[Group]:
    """Return the groups that are measured: MOST_GROUPS of those that multiply least for each number they write."""
    small = ((layer, group) for layer, group in grouped if math.prod(group.weight) <= MOST_WEIGHTS)
    products = {group: layers.accumulated(layer) for layer, group in small}
    return sorted(products, key=lambda group: (products[group], repr(group)))[:MOST_GROUPS]
