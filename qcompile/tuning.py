"""What is faster so, layers in float and forms of lowering: measured on this processor, at the shapes of a real run."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence

import onnx_ir as ir

from qcompile import processor
from qcompile.backends import Backend, SlowInIntegers
from qcompile.capability import quantizers
from qcompile.errors import RecipeError
from qcompile.layers import Layer, accumulated, input_channels, node_of, operator, outputs
from qcompile.manifest import versions
from qcompile.misspelt import mend
from qcompile.pipeline import Log
from qcompile.recipe import Recipe
from qcompile.recipe_patterns import exactly
from qcompile.scheme import Scheme
from qcompile.tuning_cache import TuningCache, folder
from qcompile.tuning_candidates import Measurement, quantized_layers
from qcompile.tuning_groups import Group, groups_of
from qcompile.tuning_sets import Times, picked, reasons
from qcompile.tuning_sites import Timed, reports, write_down
from qcompile.tuning_times import INTEGER, Timer
from qcompile.work import Work

WAYS = ("measure", "table", "none")

_MEASURED = 'with tune="measure"'


@dataclasses.dataclass(frozen=True)
class Choice:
    """What was decided by times, and the times for the report.

    Attributes:
        kept: layers that stay float because they are faster so: name -> what was measured.
        sites: what the backend can write in several forms, and the form of each.
        times: of layers that were measured: name -> times.
        not_measured: why none was, and what to do to have them measured; empty where they were.
    """

    kept: Mapping[str, str] = dataclasses.field(default_factory=dict)
    sites: Sequence[Timed] = ()
    times: Mapping[str, Times] = dataclasses.field(default_factory=dict)
    not_measured: str = ""

    def applied(self, plan: Recipe) -> Recipe:
        """Return the recipe that leaves these layers out: with it, and without tuning, the same layers stay float."""
        return plan.override(ignore=(*plan.ignore, *map(exactly, self.kept)))

    def explain(self, log: Log) -> None:
        """Let the log say why these layers were left out, not because the user wants it; and what was measured."""
        for findings in log.findings.values():
            for index, finding in enumerate(findings):
                if finding.action == "ignored" and finding.layer in self.kept:
                    findings[index] = dataclasses.replace(finding, action="kept", reason=self.kept[finding.layer])
        log.forms = reports(self.sites)
        log.times = {name: (each.forms[INTEGER], each.float_ms) for name, each in self.times.items()}
        log.not_timed = self.not_measured


def check_way(tune: str) -> None:
    """Raise RecipeError when there is no such way to tune."""
    if tune not in WAYS:
        raise RecipeError(f"tune {tune!r}", "there is no such way", mend(str(tune), WAYS))


def choose(work: Work, plan: Recipe, engine: Backend, target: str | None, tune: str) -> Choice:
    """Return what is faster so: layers of the recipe that stay float, and forms, which the nodes of the model then say.

    No layers for recipes that quantize layers in more than one pass, and measured only where there is something to run:
    not with `verify=False`.

    Args:
        work: the float model in canonical form, and samples.
        plan: the recipe.
        engine: the backend.
        target: processor that is compiled for, or None; for one that this is not the table counts.
        tune: "measure"; "table": by what the backend knows from other processors, which takes no time; "none".
    """
    choice = _choice(work, plan, engine, target, tune)
    write_down(choice.sites)
    return choice


def _choice(work: Work, plan: Recipe, engine: Backend, target: str | None, tune: str) -> Choice:
    absent = engine.untimed()
    if tune == "measure" and not absent and (target is None or processor.runs_target(target)) and work.samples:
        return _measured(work, plan, engine, target)
    sites = [Timed(site) for site in engine.sites(work.model)]
    if tune == "none":
        return Choice(sites=sites, not_measured=f'tune="none"; compile {_MEASURED} to have it measured')
    if tune == "measure" and not work.samples:
        return Choice(
            sites=sites, not_measured=f"verify=False; compile {_MEASURED} and verify=True to have it measured"
        )
    kept = _of_table(work.model, plan, engine, target) if len(quantizers(plan)) == 1 else {}
    if absent:
        return Choice(kept, sites, not_measured=f"{absent}; compile {_MEASURED} where there is one")
    where = "on the processor that it is for" if tune == "measure" else "to have it measured"
    return Choice(kept, sites, not_measured=f"the table of {engine.name} was used; compile {_MEASURED} {where}")


def _measured(work: Work, plan: Recipe, engine: Backend, target: str | None) -> Choice:
    work.progress("tuning", 0.0)
    runtime = f"{engine.name} {versions(engine.name).get(engine.name, '')}"
    cache = TuningCache(folder(), f"{runtime}, {target or 'any target'}, {processor.identity()}")
    measurement = Measurement(work, plan, Timer(engine, target), cache)
    sites, layers = measurement.sites(), measurement.layer_times()
    candidates = measurement.candidates(layers)
    work.progress("tuning", 0.5)
    times = measurement.whole(candidates) if candidates else {}
    work.progress("tuning", 1.0)
    name = picked(candidates, times)
    where = processor.name()
    kept = {} if name == INTEGER else reasons(candidates[name], times[name], times[INTEGER], where)
    why = measurement.not_worth
    return Choice(kept, sites, layers, f"{why}; leave layers out by `ignore` to find out" if why else "")


def _of_table(model: ir.Model, plan: Recipe, engine: Backend, target: str | None) -> dict[str, str]:
    """Return the layers that are slow in integers by the table of the backend: of a name that several have, all are."""
    (quantizer,) = quantizers(plan)
    chosen = quantized_layers(model, plan, engine, target)
    shapes: dict[str, tuple[int, ...]] = {str(layer.x.name): () for layer in chosen}
    slow: dict[str, bool] = {}
    for layer, group in groups_of(chosen, quantizer.activations, shapes):
        listed = any(_is_of(row, layer, group, quantizer.activations) for row in engine.slow_in_integers)
        slow[layer.name] = slow.get(layer.name, True) and listed
    reason = f"float is faster by the table of {engine.name}, which was measured on another processor"
    return {name: reason for name, found in slow.items() if found}


def _is_of(row: SlowInIntegers, layer: Layer, group: Group, activations: Scheme) -> bool:
    """True for a layer that a row of the table is about."""
    groups = node_of(layer).attributes.get_int("group", 1)
    return (
        row.operator == operator(layer)
        and row.activations == activations.granularity
        and group.reads == "float"
        and group.writes in row.writes
        and accumulated(layer) <= row.most_products
        and (row.most_inputs is None or input_channels(layer) // groups <= row.most_inputs)
        and (row.most_outputs is None or outputs(layer) <= row.most_outputs)
    )
