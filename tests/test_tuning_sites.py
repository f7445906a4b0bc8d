"""Forms of lowering: by times that are planted in the cache, so that no test measures any."""

import json

import ml_dtypes
import numpy as np
import onnx_ir as ir
import pytest

import qcompile
from qcompile import backends, processor, tuning, tuning_candidates
from qcompile.backends import FORM, Site
from qcompile.backends.onnxruntime import BACKEND
from qcompile.calibration_cache import fingerprint
from qcompile.tuning_sites import Timed, model_of, read_values, reports
from qcompile.work import Work
from tests.backends.portable import parse

RESIDUALS = """
    <ir_version: 10, opset_import: ["" : 23]>
    residuals (float[B, S, 8] x) => (float[B, S, 8] y)
    <float[8, 8] w = {WEIGHT}, float[8] g = {GAIN}, float[8] b = {BIAS}, float[8] other = {BIAS}>
    {
        [linear] a = MatMul(x, w)
        [first_add] c = Add(a, x)
        [first] d = LayerNormalization(c, g, b)
        [second_add] e = Add(d, a)
        [second] f = LayerNormalization(e, other, g)
        [third_add] h = Add(f, x)
        [third] i = LayerNormalization <epsilon = 0.5> (h, g, b)
        y = Tanh(i)
    }
"""
RECIPE = qcompile.Recipe.from_name("w8a8-static")
SHAPES = ((1, 5, 8), (1, 5, 8))


@pytest.fixture
def model():
    generator = np.random.default_rng(0)
    text = RESIDUALS
    for name, count in (("WEIGHT", 64), ("GAIN", 8), ("BIAS", 8)):
        text = text.replace(f"{{{name}}}", f"{{{', '.join(f'{n:.6f}' for n in generator.normal(1, 0.3, count))}}}")
    return ir.from_onnx_text(text)


def samples():
    return [{"x": np.random.default_rng(1).standard_normal((1, 5, 8), dtype=np.float32)}]


def chosen(model, recipe=RECIPE, backend="onnxruntime", **options):
    work = Work.of(model.clone(), samples(), None, None, options.pop("verify", True), False, None)
    return tuning.choose(work, recipe, backends.get(backend), options.get("target"), options.get("tune", "measure"))


def forms(choice):
    return {each.site.nodes[-1].name: each.form for each in choice.sites}


def plant(model, tuning_cache, times):
    """Put times into the cache: of the run, so that the model is worth tuning, and of every kind of site."""
    for kind, found in (("run of", {"float": 5.0}), ("site", times)):
        chosen(model)
        put(tuning_cache, kind, found)


def put(tuning_cache, kind, times):
    for path in tuning_cache.glob("*.json"):
        data = json.loads(path.read_text())
        if kind in data["of"]:
            path.write_text(json.dumps({**data, "ms": times}))


def operators(folder):
    return [node.op_type for node in ir.load(folder / "model.onnx").graph if node.op_type in ("Add", "Sum")]


def test_sites_that_take_the_same_time_are_one_model_and_others_are_not(model):
    first, second, third = BACKEND.sites(model)
    first.nodes[-1].outputs[0].shape = ir.Shape(["B", "S", 8])
    prints = [fingerprint(model_of(site, SHAPES, "apart"), weights=False) for site in (first, second, third)]
    assert prints[0] == prints[1] != prints[2]
    assert fingerprint(model_of(first, SHAPES, "fused")) != fingerprint(model_of(second, SHAPES, "fused"))  # weights
    larger = fingerprint(model_of(first, ((1, 6, 8), (1, 6, 8)), "apart"), weights=False)
    assert larger not in prints
    assert [value.name for value in read_values(second)] == ["d", "a"]


def test_a_site_alone_computes_what_it_computes_in_the_model(model):
    (site, *_), graph = BACKEND.sites(model), model.graph
    alone = model_of(site, SHAPES, "fused")
    assert [node.op_type for node in alone.graph] == ["Add", "LayerNormalization"]
    assert [value.shape for value in alone.graph.inputs] == [ir.Shape(shape) for shape in SHAPES]
    assert alone.graph[0].metadata_props[FORM] == "fused"
    assert FORM not in graph[1].metadata_props
    assert (graph[1].name, graph[1].outputs[0].name) == ("first_add", "c")
    assert {value.const_value.name for value in graph.initializers.values()} == {"w", "g", "b", "other"}


def test_values_that_others_read_are_outputs_of_a_site_alone(model):
    (site, *_), graph = BACKEND.sites(model), model.graph
    graph.outputs.append(site.nodes[0].outputs[0])
    assert len(model_of(site, SHAPES, "apart").graph.outputs) == 2


@pytest.mark.parametrize(
    ("ms", "form"),
    [
        ({}, "first"),
        ({"first": 1.0, "second": 0.97, "third": 1.5}, "first"),
        ({"first": 1.0, "second": 0.9, "third": 0.8}, "third"),
        ({"first": 1.0, "second": 2.0, "third": 3.0}, "first"),
        ({"first": 0.008, "second": 0.004, "third": 0.005}, "first"),
    ],
    ids=["nothing measured", "by noise", "the fastest", "none", "by less than timers tell"],
)
def test_another_form_is_taken_where_it_is_faster_by_more_than_noise(ms, form):
    site = Site("kind", (ir.node("Relu", []),), ("first", "second", "third"))
    assert Timed(site, (), ms).form == form


def test_the_report_has_one_entry_for_sites_that_are_alike(model):
    first, second, third = BACKEND.sites(model)
    ms = {"apart": 2.0, "fused": 1.0}
    (entry, other) = reports([Timed(first, SHAPES, ms), Timed(second, SHAPES, ms), Timed(third)])
    assert (entry.where, entry.form, entry.shapes, entry.ms) == (("first", "second"), "fused", SHAPES, ms)
    assert (other.where, other.form, other.ms) == (("third",), "apart", {})


def test_the_form_that_is_faster_here_is_chosen_for_every_site(model, tuning_cache):
    plant(model, tuning_cache, {"apart": 2.0, "fused": 1.0})
    assert forms(chosen(model)) == dict.fromkeys(("first", "second", "third"), "fused")
    plant(model, tuning_cache, {"apart": 1.0, "fused": 2.0})
    assert forms(chosen(model)) == dict.fromkeys(("first", "second", "third"), "apart")


def test_a_kind_of_site_is_measured_once_for_its_shapes(model, tuning_cache):
    plant(model, tuning_cache, {"apart": 2.0, "fused": 1.0})
    measured = [
        data["of"] for path in tuning_cache.glob("*.json") if "site" in (data := json.loads(path.read_text()))["of"]
    ]
    assert [of["reads"] for of in measured] == [[[1, 5, 8], [1, 5, 8]]] * 2  # the third norm has another epsilon


def test_of_many_kinds_the_first_are_measured(model, tuning_cache, monkeypatch):
    monkeypatch.setattr(tuning_candidates, "MOST_SITES", 1)
    plant(model, tuning_cache, {"apart": 2.0, "fused": 1.0})
    assert forms(chosen(model)) == {"first": "fused", "second": "fused", "third": "apart"}


def test_sites_of_large_constants_are_not_measured(model, tuning_cache, monkeypatch):
    monkeypatch.setattr(tuning_candidates, "MOST_WEIGHTS", 7)
    plant(model, tuning_cache, {"apart": 2.0, "fused": 1.0})
    assert {each.ms == {} for each in chosen(model).sites} == {True}


@pytest.mark.parametrize("options", [{"tune": "none"}, {"tune": "table"}, {"verify": False}, {"backend": "openvino"}])
def test_where_nothing_is_measured_the_first_form_is_written(model, tuning_cache, options):
    plant(model, tuning_cache, {"apart": 2.0, "fused": 1.0})
    assert set(forms(chosen(model, **options)).values()) <= {"apart"}


def test_for_a_processor_that_this_is_not_the_first_form_is_written(model, tuning_cache, monkeypatch):
    plant(model, tuning_cache, {"apart": 2.0, "fused": 1.0})
    monkeypatch.setattr(processor, "runs_target", lambda _target: False)
    assert set(forms(chosen(model, target="avx512-vnni")).values()) == {"apart"}


def test_a_small_model_is_written_in_the_first_form(model, tuning_cache, monkeypatch):
    plant(model, tuning_cache, {"apart": 2.0, "fused": 1.0})
    monkeypatch.setattr(tuning_candidates, "WORTH_MS", 6.0)
    choice = chosen(model)
    assert set(forms(choice).values()) == {"apart"}
    assert choice.not_measured.startswith("the model runs in less than 6 ms; ")


@pytest.mark.parametrize("recipe", ["w8a8-static", "float"])
def test_a_form_goes_through_the_passes_into_the_artifact_and_the_report(model, tuning_cache, tmp_path, recipe):
    plant(model, tuning_cache, {"apart": 2.0, "fused": 1.0})
    data = {"calibration": samples()}
    first = qcompile.compile(model.clone(), recipe, output=tmp_path / "first", **data)
    second = qcompile.compile(model.clone(), recipe, output=tmp_path / "second", **data)
    untuned = qcompile.compile(model.clone(), recipe, output=tmp_path / "none", tune="none", **data)
    assert operators(tmp_path / "first") == ["Add"] * 3
    assert operators(tmp_path / "none") == ["Sum"] * 3
    assert first.model_path.read_bytes() == second.model_path.read_bytes()
    assert {(each.form, tuple(each.ms)) for each in first.report.forms} == {("fused", ("apart", "fused"))}
    assert "fused 1 ms, apart 2 ms" in first.report.summary()
    assert qcompile.load(tmp_path / "first").report.forms == first.report.forms
    assert {(each.form, each.times) for each in untuned.report.forms} == {("apart", "not measured")}


@pytest.mark.parametrize(("faster", "operator"), [("float", "Cast"), ("in blocks", "MatMulNBits")])
def test_a_weight_that_came_in_blocks_is_written_in_the_form_that_is_faster_here(
    tuning_cache, tmp_path, faster, operator
):
    four_bits = parse(
        "(float[B, 64] x) => (float[B, 16] y)"
        " { d = DequantizeLinear <axis = 0, block_size = 32> (w, s) y = MatMul (x, d) }",
        w=np.random.default_rng(0).integers(-8, 8, (64, 16)).astype(ml_dtypes.int4),
        s=np.full((2, 16), 0.5, np.float32),
    )
    x = {"x": np.random.default_rng(1).standard_normal((9, 64), dtype=np.float32)}
    arguments = {"recipe": "w8a8-static", "calibration": [x], "output": tmp_path / "out"}
    for kind, times in (
        ("run of", {"float": 5.0}),
        ("site", dict.fromkeys(("in blocks", "float"), 2.0) | {faster: 1.0}),
    ):
        qcompile.compile(four_bits.clone(), **arguments)
        put(tuning_cache, kind, times)
    artifact = qcompile.compile(four_bits.clone(), **arguments)
    assert operator in {node.op_type for node in ir.load(artifact.model_path).graph}
    assert [(each.form, each.shapes) for each in artifact.report.forms] == [(faster, ((9, 64),))]


def test_what_a_file_says_of_forms_is_not_believed(model, tmp_path):
    for node in model.graph:
        node.metadata_props[FORM] = "fused"
    qcompile.compile(model, RECIPE, calibration=samples(), output=tmp_path / "none", tune="none")
    assert operators(tmp_path / "none") == ["Sum"] * 3
