"""Passes and recipes on graphs that nobody thought of; `--hypothesis-profile=nightly` tries two thousand.

The judge is the reference evaluation, which shares no code with the passes and the runtimes; of artifacts it is the
onnx package alone, see tests/independent_judge.py, and `make graphs` tries two thousand of them by
tests/fuzz_artifacts.py.
"""

from __future__ import annotations

import importlib
from collections.abc import Iterator
from pathlib import Path

import hypothesis
import onnx_ir as ir
import pytest
from onnx_ir.passes import common

import qcompile
from qcompile.backends.onnxruntime import BACKEND
from qcompile.canonical import canonical_passes
from qcompile.contract import Pass
from qcompile.errors import NothingMatchedError
from qcompile.graph import all_nodes
from qcompile.reference_evaluator import evaluate
from qcompile.verify import check_exact, check_valid, difference
from tests.fuzz_artifacts import BACKENDS, RECIPES, judged
from tests.random_graphs import Choices, build, choices, feeds

ROOT = Path(__file__).resolve().parents[1]
FEED, *_ = DATA = feeds(4)
LEAST_SQNR_DB = 20.0
"""Eight bits of a bell-shaped value are about 40 dB, and of these graphs a few follow each other."""

every_graph = hypothesis.given(choices())
some = hypothesis.settings(max_examples=hypothesis.settings.default.max_examples // 5, deadline=None)
few = hypothesis.settings(
    max_examples=hypothesis.settings.default.max_examples // 50,
    deadline=None,
    phases=[hypothesis.Phase.explicit, hypothesis.Phase.reuse, hypothesis.Phase.generate],  # a compile takes a second
)


def exact_passes() -> Iterator[Pass]:
    """Every pass that keeps the meaning and needs no calibration data."""
    for path in sorted((ROOT / "passes").glob("[!_]*.py")):
        module = importlib.import_module(f"qcompile.passes.{path.stem}")
        cls = getattr(module, "".join(part.title() for part in path.stem.split("_")))
        if cls.keeps == "exact" and "calibrator" not in cls.__dataclass_fields__ and path.stem != "observe_channels":
            yield cls()


def flat(drawn: Choices) -> ir.Model:
    """The graph as passes expect it: functions inlined, constants as initializers, shapes known."""
    model = build(drawn)
    common.InlinePass()(model)
    common.LiftConstantsToInitializersPass(lift_all_constants=True, size_limit=0)(model)
    common.ShapeInferencePass(strict_mode=False)(model)
    return model


def written(model: ir.Model) -> list[tuple[object, ...]]:
    """What the graph computes, node by node; not names of nodes and known shapes."""
    return [
        (
            node.op_type,
            [value and value.name for value in node.inputs],
            [value.name for value in node.outputs],
            [str(each) for each in node.attributes.values() if each.type != ir.AttributeType.GRAPH],
        )
        for node in all_nodes(model)  # bodies of If as well: an attribute that is one prints addresses
    ]


@some
@every_graph
def test_the_reference_agrees_with_the_runtime(drawn: Choices) -> None:
    model = build(drawn)
    runtime = BACKEND.open_session(model, optimization="disabled").run(FEED)
    check_exact(difference([evaluate(model, FEED)], [runtime]), "no pass")


@some
@every_graph
def test_exact_passes_keep_the_meaning_and_do_nothing_the_second_time(drawn: Choices) -> None:
    original = flat(drawn)
    expected = evaluate(original, FEED)
    for item in exact_passes():
        model = original.clone()
        try:
            modified = item(model).modified
        except NothingMatchedError:  # of weights that came quantized, and these are not
            continue
        if modified:
            check_valid(model, str(item))
            check_exact(difference([expected], [evaluate(model, FEED)]), str(item))
            assert not item(model).modified, item


@some
@every_graph
def test_canonical_form_keeps_the_meaning_and_is_final(drawn: Choices) -> None:
    original = build(drawn)
    model = original.clone()
    for item in canonical_passes():
        item(model)
    check_exact(difference([evaluate(original, FEED)], [evaluate(model, FEED)]), "canonical form")
    nodes = written(model)
    for item in canonical_passes():
        item(model)
    assert written(model) == nodes


@pytest.mark.parametrize("recipe", RECIPES)
@few
@every_graph
def test_recipes_quantize_within_bounds_and_only_once(recipe: str, drawn: Choices) -> None:
    original = build(drawn)
    try:
        model = qcompile.rewrite(original.clone(), recipe, calibration=DATA)
    except NothingMatchedError:
        hypothesis.reject()
    for feed in DATA[:2]:
        assert difference([evaluate(original, feed)], [evaluate(model, feed)]).sqnr_db > LEAST_SQNR_DB
    for item in canonical_passes():  # two passes that quantize one value make two equal pairs
        item(model)
    nodes = written(model)
    assert written(qcompile.rewrite(model, recipe, calibration=DATA)) == nodes


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("recipe", RECIPES)
@few
@every_graph
def test_artifacts_compute_what_the_quantized_graph_means(recipe: str, backend: str, drawn: Choices) -> None:
    try:
        artifact = qcompile.compile(build(drawn), recipe, backend=backend, calibration=DATA)
    except NothingMatchedError:
        hypothesis.reject()
    verdict = judged(artifact)
    hypothesis.assume(verdict.compared)
    assert not verdict.wrong, verdict
