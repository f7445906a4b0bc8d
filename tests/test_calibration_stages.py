"""What stands in front of the layers that are quantized is not run again for the statistics of those behind."""

import dataclasses

import numpy as np
import onnx_ir as ir
import pytest
from onnx_ir.passes.common import ShapeInferencePass

from qcompile import calibration_layers, layers
from qcompile.backends import get
from qcompile.calibration import Calibrator
from qcompile.calibration_data import Calibration
from qcompile.calibration_layers import layer_statistics
from qcompile.calibration_stages import behind, find_cut
from qcompile.passes.observe_channels import ObserveChannels

SESSION = get("onnxruntime").open_session
BLOCKS = """<ir_version: 10, opset_import: ["" : 23]>
    main (float[n, 8] x, float[n, 1] mask) => (float[n, 8] y) {
        shown = Sigmoid(mask)
        a = MatMul(x, w0)
        b = Mul(a, shown)
        first = Add(x, b)
        c = MatMul(first, w1)
        d = Relu(c)
        e = Mul(d, shown)
        second = Add(first, e)
        f = MatMul(second, w2)
        y = Add(second, f)
    }
"""
BRANCHED = """<ir_version: 10, opset_import: ["" : 23]>
    main (float[n, 8] x, bool[] turned) => (float[n, 8] y) {
        a = MatMul(x, w0)
        b = If (turned) <
            then_branch = then () => (float[n, 8] g) { g = Neg(a) },
            else_branch = else () => (float[n, 8] h) { h = Identity(x) }
        >
        y = MatMul(b, w1)
    }
"""

AROUND = """<ir_version: 10, opset_import: ["" : 23]>
    main (float[n, 8] x) => (float[n, 8] y) {
        a = MatMul(x, w0)
        skip = Relu(a)
        b = MatMul(skip, w1)
        c = MatMul(b, w2)
        y = Add(skip, c)
    }
"""
TOWERS = """<ir_version: 10, opset_import: ["" : 23]>
    main (float[n, 8] x, float[n, 1] mask) => (float[n, 8] y, float[n, 8] z) {
        y = MatMul(x, w0)
        b = Mul(x, mask)
        c = MatMul(b, w1)
        d = Relu(c)
        z = MatMul(d, w2)
    }
"""


def model_of(text, weights=3):
    generator = np.random.default_rng(0)
    model = ir.from_onnx_text(text)
    readers = [node for node in model.graph if node.op_type == "MatMul"]
    for index, node in zip(range(weights), readers, strict=True):
        tensor = ir.tensor(generator.normal(size=(8, 8)).astype(np.float32), name=f"w{index}")
        value = ir.Value(name=tensor.name, type=ir.TensorType(tensor.dtype), shape=tensor.shape, const_value=tensor)
        model.graph.register_initializer(value)
        node.replace_input_with(1, value)
    ShapeInferencePass(strict_mode=False)(model)
    return model


def feeds(count=6, rows=5):
    generator = np.random.default_rng(1)
    for _ in range(count):
        yield {
            "x": generator.normal(size=(rows, 8)).astype(np.float32),
            "mask": generator.normal(size=(rows, 1)).astype(np.float32),
        }


def products(model):
    return [node for node in model.graph if node.op_type == "MatMul"]


@dataclasses.dataclass
class Opened:
    """Sessions of ONNX Runtime; what each was given, and how often it ran."""

    weights: list = dataclasses.field(default_factory=list)
    runs: list = dataclasses.field(default_factory=list)

    def __call__(self, model):
        session, place, runs = SESSION(model), len(self.runs), self.runs
        self.weights.append(sorted(name for name in model.graph.initializers if name.startswith("w")))
        runs.append(0)

        class Counted:
            def run(self, feed):
                runs[place] += 1
                return session.run(feed)

        return Counted()


def test_the_cut_is_the_residual_stream_alone():
    model = model_of(BLOCKS)
    first, second, third = products(model)
    assert find_cut(model, [first], [second, third]) == ("first",)
    assert find_cut(model, [first, second], [third]) == ("second",)


def test_there_is_no_cut_behind_nothing():
    model = model_of(BLOCKS)
    first, second, third = products(model)
    assert find_cut(model, [third], [first, second]) is None  # out of order: what is done stands behind
    assert find_cut(model, [], [first]) is None


@pytest.mark.parametrize("unknown", ["type", "shape"])
def test_a_value_without_a_type_or_a_rank_is_not_cut(unknown):
    model = model_of(BLOCKS)
    first, second, _ = products(model)
    value = next(value for node in model.graph for value in node.outputs if value.name == "first")
    setattr(value, unknown, None)
    assert find_cut(model, [first], [second]) is None


def test_what_a_branch_reads_crosses_the_cut():
    model = model_of(BRANCHED, weights=2)
    first, last = products(model)
    assert find_cut(model, [first], [last]) == ("b",)
    choice = next(node for node in model.graph if node.op_type == "If")
    assert find_cut(model, [first], [choice, last]) == ("a",)
    x = np.random.default_rng(2).normal(size=(3, 8)).astype(np.float32)
    piece = behind(model, ["a"], ["y"])
    turned = {"x": x, "turned": np.array(True)}
    a = x @ model.graph.initializers["w0"].const_value.numpy()
    whole, rest = SESSION(model).run(turned)["y"], SESSION(piece).run({**turned, "a": a})["y"]
    np.testing.assert_allclose(rest, whole, rtol=1e-5, atol=1e-5)
    assert [value.name for value in model.graph.inputs] == ["x", "turned"]  # the model itself is not changed


@pytest.mark.parametrize("grams", [True, False])
def test_statistics_are_those_of_the_whole_model_as_the_layers_before_have_made_it(grams, monkeypatch):
    def collected():
        model, opened = model_of(BLOCKS), Opened()
        calibrator = Calibrator(list(feeds()), ObserveChannels, opened)
        found = []
        parts = layer_statistics(calibrator, model, layers.float_linears(model), [], grams=grams, for_rows=not grams)
        for part in parts:
            (layer,) = part.layers
            seen = part.of(layer.x)
            found.append((seen.rows, seen.gram if grams else seen.mean))
            weight = layer.weight.const_value.numpy()
            layer.weight.const_value = ir.tensor(np.round(weight), name=layer.weight.name)  # as a solver would
        return found, opened

    monkeypatch.setattr(calibration_layers, "_GRAM_BYTES", -1)
    staged, opened = collected()
    monkeypatch.setattr(calibration_layers.calibration_stages, "find_cut", lambda *_: None)
    whole, reopened = collected()
    for one, other in zip(staged, whole, strict=True):
        for actual, expected in zip(one, other, strict=True):
            np.testing.assert_allclose(actual, expected, rtol=1e-5, atol=1e-6)
    assert opened.weights == [[], ["w0"], [], ["w1"], []]  # each is run once, as it became
    assert reopened.weights == [[], ["w0"], ["w0", "w1"]]


@pytest.mark.parametrize("order", [(0, 1, 2), (0, 2, 1)])
@pytest.mark.parametrize("text", [BLOCKS, AROUND, TOWERS])
def test_a_cut_may_share_values_with_the_one_before_be_the_same_or_have_none(text, order, monkeypatch):
    def rows():
        model = model_of(text)
        names = {value.name for value in model.graph.inputs}
        data = [{name: array for name, array in feed.items() if name in names} for feed in feeds()]
        chosen = [layers.float_linears(model)[index] for index in order]
        parts = layer_statistics(Calibrator(data, ObserveChannels, SESSION), model, chosen, [], grams=True)
        return [part.of(layer.x).rows for part in parts for layer in part.layers]

    whole = rows()
    monkeypatch.setattr(calibration_layers, "_GRAM_BYTES", -1)
    for actual, expected in zip(rows(), whole, strict=True):
        np.testing.assert_allclose(actual, expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("sequence", ["s", 7])
def test_a_dim_that_a_file_states_wrongly_is_none_of_an_input(sequence, monkeypatch):
    """As where the batch of the inputs alone was made dynamic; and padding counts as little as without a cut."""
    text = BLOCKS.replace("float[n, 8]", f"float[n, {sequence}, 8]")
    text = text.replace("float[n, 1] mask", f"int64[n, {sequence}] padding, float[n, {sequence}, 1] mask")
    rng = np.random.default_rng(4)
    data = [
        {
            "x": rng.normal(size=(2, 7, 8)),
            "mask": rng.normal(size=(2, 7, 1)),
            "padding": np.arange(14).reshape(2, 7) < 10,
        }
        for _ in range(3)
    ]
    data = [
        {name: array.astype(np.int64 if name == "padding" else np.float32) for name, array in feed.items()}
        for feed in data
    ]

    def seen(batch):
        model = model_of(text)
        for node in model.graph:
            for value in node.outputs:
                value.shape = ir.Shape([batch, *value.shape[1:]])
        calibrator = Calibrator(Calibration(data, padding_mask="padding"), ObserveChannels, SESSION)
        parts = layer_statistics(calibrator, model, layers.float_linears(model), [], grams=True)
        return [(each.gram, each.count) for part in parts for each in map(part.of, (layer.x for layer in part.layers))]

    whole = seen("n")
    assert {count for _, count in whole} == {30}
    monkeypatch.setattr(calibration_layers, "_GRAM_BYTES", -1)
    for (gram, count), (expected, wanted) in zip(seen(1), whole, strict=True):
        assert count == wanted
        np.testing.assert_allclose(gram, expected, rtol=1e-4, atol=1e-5)


def test_weights_above_a_size_are_run_in_parts(monkeypatch):
    monkeypatch.setattr(calibration_layers, "_WEIGHT_BYTES", 2 * 4 * 8 * 8 - 1)
    model = model_of(BLOCKS)
    calibrator = Calibrator(list(feeds()), ObserveChannels, SESSION)
    parts = list(layer_statistics(calibrator, model, layers.float_linears(model), [], grams=False))
    assert [len(part.layers) for part in parts] == [2, 1]


def test_samples_that_were_left_out_are_not_run_to_the_next_cut(monkeypatch):
    monkeypatch.setattr(calibration_layers, "_GRAM_BYTES", -1)
    model, opened = model_of(BLOCKS), Opened()
    calibrator = Calibrator(list(feeds(12, rows=8)), ObserveChannels, opened, max_rows=4)
    list(layer_statistics(calibrator, model, layers.float_linears(model), [], grams=False, for_rows=True))
    assert opened.runs == [4, 4, 4, 4, 4]


def test_kept_statistics_are_told_apart_by_what_stands_in_front(tmp_path, monkeypatch):
    monkeypatch.setattr(calibration_layers, "_GRAM_BYTES", -1)

    def last_mean(factor):
        model = model_of(BLOCKS)
        data = Calibration(list(feeds()), cache=tmp_path)
        calibrator = Calibrator(data, ObserveChannels, SESSION)
        for part in layer_statistics(calibrator, model, layers.float_linears(model), [], grams=False):
            (layer,) = part.layers
            mean = part.of(layer.x).mean
            if layer.weight.name == "w0":
                tensor = layer.weight.const_value.numpy() * np.float32(factor)
                layer.weight.const_value = ir.tensor(tensor, name="w0")
        return mean

    first, other, again = last_mean(1), last_mean(3), last_mean(1)
    assert not np.allclose(first, other)
    np.testing.assert_array_equal(first, again)


@pytest.mark.parametrize("for_rows", [True, False])
def test_kept_statistics_serve_at_every_cut(for_rows, tmp_path, monkeypatch):
    monkeypatch.setattr(calibration_layers, "_GRAM_BYTES", -1)

    def collected():
        model, opened = model_of(BLOCKS), Opened()
        calibrator = Calibrator(
            Calibration(list(feeds(12, rows=8)), cache=tmp_path), ObserveChannels, opened, max_rows=4
        )
        chosen = layers.float_linears(model)
        parts = layer_statistics(calibrator, model, chosen, [], grams=False, for_rows=for_rows)
        return [part.of(layer.x).rows for part in parts for layer in part.layers], opened.runs

    first, runs = collected()
    again, fewer = collected()
    np.testing.assert_array_equal(again, first)
    assert fewer == runs[1::2]  # to the cuts alone
