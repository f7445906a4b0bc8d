"""Layers that are faster in float stay float: by times that are planted in the cache, so that no test measures any."""

import json

import numpy as np
import onnx_ir as ir
import pytest

import qcompile
from qcompile import backends, processor, tuning, tuning_candidates
from qcompile.errors import RecipeError
from qcompile.report.text import NOISE, warnings
from qcompile.tuning_cache import TuningCache
from qcompile.work import Work

CONVOLUTIONS = """
    <ir_version: 10, opset_import: ["" : 23]>
    convolutions (float[1, 3, 16, 16] x) => (float[1, 8, 16, 16] y)
    <float[8, 3, 1, 1] first = {FIRST}, float[8, 8, 3, 3] second = {SECOND}>
    {
        [pointwise] a = Conv(x, first)
        b = Tanh(a)
        [square] c = Conv <pads = [1, 1, 1, 1]> (b, second)
        y = Tanh(c)
    }
"""
RECIPE = qcompile.Recipe.from_name("w8a8-static", min_convolution_sqnr_db=None)
RUN, GROUP, WHOLE = "run of", "group", "model"


@pytest.fixture
def model():
    generator = np.random.default_rng(0)
    text = CONVOLUTIONS
    for name, count in (("FIRST", 24), ("SECOND", 576)):
        text = text.replace(name, ", ".join(f"{number:.6f}" for number in generator.normal(0, 0.3, count)))
    return ir.from_onnx_text(text)


def samples():
    generator = np.random.default_rng(1)
    return [{"x": generator.standard_normal((1, 3, 16, 16), dtype=np.float32)} for _ in range(2)]


def compiled(model, folder, **options):
    return qcompile.compile(model.clone(), RECIPE, calibration=samples(), output=folder, **options)


def kept(model, backend="onnxruntime", target=None, tune="measure", verify=True):
    work = Work.of(model.clone(), samples(), None, None, verify, False, None)
    return tuning.choose(work, RECIPE, backends.get(backend), target, tune).kept


def stored(tuning_cache, kind):
    """Files of one kind: the run of the float model, a group, the whole model."""
    return [path for path in tuning_cache.glob("*.json") if kind in json.loads(path.read_text())["of"]]


def plant(tuning_cache, kind, times_of):
    for path in stored(tuning_cache, kind):
        data = json.loads(path.read_text())
        data["ms"] = {form: times_of(data["of"], form) for form in data["ms"]}
        path.write_text(json.dumps(data))


def plant_all(model, tuning_cache, groups, whole, backend="onnxruntime"):
    """Put times of every stage into the cache; those of the next are there once those of the one before are."""
    kept(model, backend)
    plant(tuning_cache, RUN, lambda _of, _form: 5.0)
    kept(model, backend)
    plant(tuning_cache, GROUP, groups)
    kept(model, backend)
    plant(tuning_cache, WHOLE, lambda _of, form: whole.get(form, 3.0))


def float_wins(_of, form):
    return {"integer": 2.0, "float": 1.0, "float alone": 1.0}[form]


def float_wins_in_the_first(of, form):
    return float_wins(of, form) if of["group"]["weight"] == [8, 3, 1, 1] else {"integer": 1.0}.get(form, 1.01)


def integers_win(_of, form):
    return {"integer": 1.0, "float": 2.0, "float alone": 1.5}[form]


@pytest.mark.parametrize("backend", ["onnxruntime", "openvino"])
def test_a_layer_that_is_faster_in_float_stays_float(model, tuning_cache, backend):
    whole = {"integer": 3.0, "float": 2.0, "all float": 2.5}
    plant_all(model, tuning_cache, float_wins_in_the_first, whole, backend)
    reason = f"float is faster here: 1 ms against 2 ms at [1, 3, 16, 16] on {processor.name()}"
    assert kept(model, backend) == {"pointwise": reason}


def test_a_model_that_is_faster_in_float_stays_float_and_names_its_own_times(model, tuning_cache):
    whole = {"integer": 3.0, "float": 3.0, "all float": 2.5}
    plant_all(model, tuning_cache, float_wins_in_the_first, whole)
    assert kept(model)["square"] == f"the model is faster in float here: 2.5 ms against 3 ms on {processor.name()}"


def test_layers_that_are_faster_in_integers_are_quantized(model, tuning_cache):
    plant_all(model, tuning_cache, integers_win, {"all float": 1.0})  # which nobody looks at
    assert stored(tuning_cache, GROUP)
    assert kept(model) == {}


def test_the_whole_model_has_the_last_word(model, tuning_cache):
    plant_all(model, tuning_cache, float_wins_in_the_first, {"integer": 3.0, "float": 2.9, "all float": 3.5})
    assert stored(tuning_cache, WHOLE)
    assert kept(model) == {}


def test_a_small_model_is_not_tuned(model, tuning_cache):
    plant_all(model, tuning_cache, float_wins, {"integer": 3.0, "float": 2.0})
    assert len(kept(model)) == 2
    plant(tuning_cache, RUN, lambda _of, _form: 0.4)
    assert kept(model) == {}


def test_without_tuning_no_time_is_looked_at(model, tuning_cache):
    plant_all(model, tuning_cache, float_wins, {"integer": 3.0, "float": 2.0})
    assert kept(model, tune="none") == {}


def test_the_report_says_why_and_a_warm_cache_or_the_recipe_of_the_manifest_give_the_same_bytes(
    model, tuning_cache, tmp_path
):
    whole = {"integer": 3.0, "float": 2.0, "all float": 2.5}
    plant_all(model, tuning_cache, float_wins_in_the_first, whole)
    first, second = compiled(model, tmp_path / "first"), compiled(model, tmp_path / "second")
    third = compiled(model, tmp_path / "third", tune="none", ignore=first.recipe.ignore)
    layers = {layer.name: (layer.action, layer.reason.partition(":")[0]) for layer in first.report.layers}
    assert layers == {"pointwise": ("kept", "float is faster here"), "square": ("quantized", "")}
    assert first.recipe.ignore == ("pointwise",)
    assert first.model_path.read_bytes() == second.model_path.read_bytes() == third.model_path.read_bytes()


SLOWER = {"float_ms": 1.0, "quantized_ms": 1.03}  # not what was measured: a test must not depend on that


def test_an_artifact_that_is_slower_than_float_names_its_slow_layers(model, tuning_cache, tmp_path):
    """Together they are as fast in integers as in float, so they are quantized."""
    plant_all(model, tuning_cache, float_wins_in_the_first, {"integer": 3.0, "float": 2.9, "all float": 3.0})
    report = compiled(model, tmp_path / "out").report
    report.latency = SLOWER
    assert [layer.action for layer in report.layers] == ["quantized"] * 2
    assert [line.partition("; ")[2] for line in warnings(report) if "slower" in line] == [
        "slower quantized are: pointwise 2 ms against 1 in float"
    ]


@pytest.mark.parametrize(
    ("tune", "why"),
    [
        ("none", 'tune="none"; compile with tune="measure" to have it measured'),
        ("table", 'the table of openvino was used; compile with tune="measure" to have it measured'),
        ("measure", "the model runs in less than inf ms; leave layers out by `ignore` to find out"),
    ],
)
def test_an_artifact_that_is_slower_than_float_says_why_no_layer_was_timed(model, tmp_path, tune, why):
    report = compiled(model, tmp_path / "out", tune=tune, backend="openvino").report
    report.latency = SLOWER
    assert [line.partition("; ")[2] for line in warnings(report) if "slower" in line] == [
        f"its layers were not timed: {why}"
    ]


def test_depthwise_convolutions_that_are_slower_in_integers_are_called_so(tmp_path):
    """On the processor of the table they take 1.3 times as long; wherever they are not slower, nothing is said."""
    weights = [f"float[16, 1, 3, 3] w{index} = {{{', '.join(['0.1', '-0.2', '0.3'] * 48)}}}" for index in range(4)]
    layers = [
        f"[depthwise{index}] a{index} = Conv <group = 16, pads = [1, 1, 1, 1]> (b{index}, w{index}) "
        f"b{index + 1} = Abs(a{index})"
        for index in range(4)
    ]
    shape = "float[1, 16, 64, 64]"
    text = f"chain ({shape} b0) => ({shape} b4) <{', '.join(weights)}> {{ {' '.join(layers)} }}"
    chain = ir.from_onnx_text(f'<ir_version: 10, opset_import: ["" : 23]> {text}')
    data = [{"b0": np.random.default_rng(0).standard_normal((1, 16, 64, 64), dtype=np.float32)}]
    report = qcompile.compile(chain, RECIPE, calibration=data, output=tmp_path / "out", tune="none").report
    assert len(report.quantized_layers()) == 4
    slower = report.latency["quantized_ms"] > (1 + NOISE) * report.latency["float_ms"]
    assert [line.partition("; ")[2] for line in warnings(report) if "slower" in line] == (
        ['its layers were not timed: tune="none"; compile with tune="measure" to have it measured'] if slower else []
    )


@pytest.mark.parametrize("alpha", ["auto", 0.5])
def test_where_every_layer_is_faster_in_float_nothing_is_left_to_smooth_and_that_is_no_error(
    model, tuning_cache, monkeypatch, tmp_path, alpha
):
    smoothed = qcompile.Recipe.from_name("smoothquant-o3", alpha=alpha)
    monkeypatch.setattr(f"{__name__}.RECIPE", smoothed)
    plant_all(model, tuning_cache, float_wins, {"integer": 3.0, "float": 2.0, "all float": 2.0})
    artifact = compiled(model, tmp_path / "out")
    assert {layer.name: layer.action for layer in artifact.report.layers} == {"pointwise": "kept", "square": "kept"}


def test_a_disk_that_is_full_leaves_nothing_in_the_cache(tmp_path, monkeypatch):
    def full(*_arguments, **_options):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.replace", full)
    TuningCache(tmp_path, "here").store({"group": 1}, {"integer": 1.0})
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("content", ["", "{", "[]", '{"ms": {"float": -1}}', '{"ms": {"other": 1.0}}', "\0\xff"])
def test_a_damaged_cache_is_measured_again(model, tuning_cache, content):
    kept(model)
    (path,) = stored(tuning_cache, RUN)
    path.write_text(content)
    kept(model)
    assert json.loads(path.read_text())["ms"]["float"] > 0


def test_a_cache_that_cannot_be_written_fails_nothing(model, tmp_path, monkeypatch):
    (tmp_path / "file").write_text("in the way")
    monkeypatch.setenv("QCOMPILE_CACHE", str(tmp_path / "file"))
    assert kept(model) == {}


def test_for_a_processor_that_this_is_not_the_table_counts(model, tuning_cache, monkeypatch):
    monkeypatch.setattr(processor, "runs_target", lambda _target: False)
    reason = "float is faster by the table of onnxruntime, which was measured on another processor"
    assert kept(model, target="avx512-vnni") == {"pointwise": reason}
    assert kept(model, tune="table") == {"pointwise": reason}
    assert kept(model, "openvino", tune="table") == {}
    assert not tuning_cache.exists()


def test_for_a_processor_like_this_one_it_is_measured(model, tuning_cache, monkeypatch):
    monkeypatch.setattr(processor, "runs_target", lambda _target: True)
    assert kept(model, target="avx512-vnni") == {}
    assert stored(tuning_cache, RUN)


def test_nothing_is_measured_without_something_to_run(model, tuning_cache):
    assert kept(model, verify=False) == {}
    assert not tuning_cache.exists()


def test_another_way_to_tune_is_refused_by_name_before_any_work():
    with pytest.raises(RecipeError, match=r"tune 'measured': .*'measure'"):
        qcompile.compile("missing.onnx", "w8a8-dynamic", tune="measured")


def test_layers_of_many_weights_are_not_measured(model, tuning_cache, monkeypatch):
    monkeypatch.setattr(tuning_candidates, "MOST_WEIGHTS", 100)
    plant_all(model, tuning_cache, float_wins, {"integer": 3.0, "float": 2.0, "all float": 2.0})
    (path,) = stored(tuning_cache, GROUP)
    assert json.loads(path.read_text())["of"]["group"]["weight"] == [8, 3, 1, 1]


def test_a_large_model_is_not_tuned(model, tuning_cache, monkeypatch):
    plant_all(model, tuning_cache, float_wins, {"integer": 3.0, "float": 2.0, "all float": 2.0})
    assert kept(model)
    monkeypatch.setattr(tuning_candidates, "MOST_BYTES", 1)
    assert not kept(model)
