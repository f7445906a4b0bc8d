"""Statistics through the real runtime: exactness, padding, rows."""

import dataclasses
import warnings

import numpy as np
import onnx
import onnx_ir as ir
import pytest

from qcompile.calibration import Calibrator
from qcompile.calibration_data import Calibration
from qcompile.calibration_statistics import RunningStatistics
from qcompile.errors import CalibrationError, InputError
from qcompile.graph import linears
from qcompile.passes.observe_channels import ObserveChannels
from tests.sessions import OnnxRuntime, assert_same_statistics

ENCODER = """
    <ir_version: 10, opset_import: ["" : 23]>
    main (int64[batch, sequence] ids, int64[batch, sequence] mask)
        => (float[batch, sequence, 4] y, float[batch, sequence, 50] big)
    <int64[1] one = {1}, float low = {-1e9}, int64[2] flat = {-1, 4}> {
        x = Gather<axis=0>(table, ids)
        row = Unsqueeze(mask, one)
        attend = Cast<to=9>(row)
        keys = Transpose<perm=[0, 2, 1]>(x)
        scores = MatMul(x, keys)
        masked = Where(attend, scores, low)
        weights = Softmax(masked)
        a = MatMul(weights, x)
        f = Reshape(a, flat)
        y = MatMul(a, w)
        big = MatMul(y, head)
        g = MatMul(f, w)
    }
"""


@pytest.fixture
def model():
    rng = np.random.default_rng(0)
    proto = onnx.parser.parse_model(ENCODER)
    for name, shape in {"table": (50, 4), "w": (4, 4), "head": (4, 50)}.items():
        proto.graph.initializer.append(onnx.numpy_helper.from_array(rng.normal(size=shape).astype(np.float32), name))
    return ir.from_proto(onnx.shape_inference.infer_shapes(proto))


def samples(count, lengths=(3, 9, 6), padded_to=None, seed=1, batch=1):
    rng = np.random.default_rng(seed)
    for index in range(count):
        length = lengths[index % len(lengths)]
        ids = rng.integers(1, 50, (batch, length))
        padding = ((0, 0), (0, 0 if padded_to is None else padded_to - length))
        yield {"ids": np.pad(ids, padding), "mask": np.pad(np.ones_like(ids), padding)}


def calibrator(data, **options):
    return Calibrator(data, ObserveChannels, options.pop("open_session", OnnxRuntime()), **options)


def all_rows(model, feeds, name):
    """Every valid row of a value, straight from the float model."""
    clone = model.clone()
    values = {value.name: value for node in clone.graph for value in node.outputs}
    if values[name] not in clone.graph.outputs:
        clone.graph.outputs.append(values[name])
    session = OnnxRuntime()(clone)
    rows = []
    for feed in feeds:
        value = session.run(feed)[name]
        rows.append(value.reshape(-1, value.shape[-1])[feed["mask"].ravel() == 1])
    return np.concatenate(rows)


@pytest.mark.parametrize("padded_to", [None, 12])
def test_statistics_are_those_of_all_valid_rows(model, padded_to):
    feeds = list(samples(7, padded_to=padded_to, batch=2))
    found = calibrator(feeds).collect(model, {"a": -1, "f": -1, "y": -1}, gram=["y"])
    for name in ("a", "f", "y"):
        rows = all_rows(model, feeds, "a" if name == "f" else name)
        statistics = found[name]
        assert statistics.count == len(rows) == sum(feed["mask"].sum() for feed in feeds)
        np.testing.assert_array_equal(statistics.minimum, rows.min(axis=0))
        np.testing.assert_array_equal(statistics.maximum, rows.max(axis=0))
        np.testing.assert_array_equal(statistics.absmax, np.abs(rows).max(axis=0))
        np.testing.assert_allclose(statistics.mean, rows.mean(axis=0), rtol=1e-4, atol=1e-6)
        np.testing.assert_array_equal(statistics.rows, rows)  # fewer than max_rows: all of them
        assert statistics.minimum.dtype == statistics.mean.dtype == statistics.rows.dtype == np.float32
    rows = all_rows(model, feeds, "y").astype(np.float64)
    np.testing.assert_allclose(found["y"].gram, rows.T @ rows / len(rows), rtol=1e-5)
    assert found["a"].gram is None


def test_samples_beyond_those_that_give_enough_positions_are_left_out_evenly(model):
    feeds = list(samples(12, lengths=(8,)))
    told = []
    session = Counting()
    whole = calibrator(feeds, max_rows=4, open_session=session).collect(model, {"a": -1})
    assert len(session.ran) == len(feeds)
    session = Counting()
    rows = calibrator(feeds, max_rows=4, open_session=session, progress=lambda *at: told.append(at))
    found = rows.collect(model, {"a": -1}, for_rows=True)["a"]
    assert session.ran == [feeds[index]["ids"].tolist() for index in (0, 3, 6, 9)]  # 8 positions for each of 4 rows
    assert (found.count, len(found.rows)) == (32, 4)
    assert whole["a"].count == 96
    assert told[-1] == (12, 12)
    session = Counting()
    calibrator(feeds, max_rows=4, open_session=session).collect(model, {"y": -1}, gram=["y"], for_rows=True)
    assert len(session.ran) == len(feeds)  # second moments are of all
    session = Counting()
    calibrator(feeds[:3], max_rows=4, open_session=session).collect(model, {"a": -1}, for_rows=True)
    assert len(session.ran) == 3  # fewer than enough


class Counting:
    """The runtime, and the sequences that it ran."""

    def __init__(self):
        self.ran = []

    def __call__(self, model):
        session, run = OnnxRuntime()(model), self.ran

        class Session:
            def run(self, feed):
                run.append(feed["ids"].tolist())
                return session.run(feed)

        return Session()


def test_padding_does_not_change_statistics(model):
    axes = {"a": -1, "f": -1, "y": -1}
    short = calibrator(samples(6)).collect(model, axes)
    padded = calibrator(samples(6, padded_to=11)).collect(model, axes)
    for name in axes:
        assert_same_statistics(padded[name], short[name], rtol=1e-5, atol=1e-6)


def test_padding_does_not_change_statistics_of_a_real_encoder(minilm):
    model, encoder = minilm
    texts = [
        "Calibration is instrumentation.",
        "Statistics stream; memory does not grow.",
        "Short.",
        "Padding is masked out.",
    ]
    ragged = [next(encoder.batches([text], length=len(encoder.tokenizer(text)["input_ids"]))) for text in texts]
    axes = {linear.x.name: -1 for linear in linears(model)}
    assert len(axes) == 24
    short = calibrator(ragged).collect(model, axes)
    padded = calibrator(encoder.batches(texts, length=24, batch=2)).collect(model, axes)
    for name in axes:
        scale = short[name].absmax.max()
        assert_same_statistics(padded[name], short[name], rtol=1e-4, atol=1e-5 * scale)


@pytest.fixture(scope="module")
def minilm():
    pytest.importorskip("transformers")
    import torch

    from qcompile.models import minilm

    encoder = minilm.load()
    program = torch.onnx.export(
        encoder.module,
        kwargs={name: torch.from_numpy(array) for name, array in encoder.example().items()},
        dynamo=True,
        opset_version=23,
        dynamic_shapes=encoder.dynamic_shapes(),
        verbose=False,
    )
    return program.model, encoder


def test_the_mask_may_be_named_and_another_may_be_refused(model):
    feeds = list(samples(3, padded_to=11))
    by_name = calibrator(Calibration(feeds, padding_mask="mask")).collect(model, {"a": -1})
    found = calibrator(feeds).collect(model, {"a": -1})
    assert_same_statistics(by_name["a"], found["a"])
    with pytest.raises(CalibrationError, match="The nearest is 'mask'"):
        calibrator(Calibration(feeds, padding_mask="musk")).collect(model, {"a": -1})
    with pytest.raises(CalibrationError, match="other numbers than 0 and 1"):
        calibrator(Calibration(feeds, padding_mask="ids")).collect(model, {"a": -1})


def test_an_input_that_only_looks_like_a_mask_masks_nothing(model):
    feeds = list(samples(3))
    feeds[0]["mask"] = feeds[0]["mask"] * 2  # counts of segments, as packed sequences have
    feeds[1]["mask"][0, -1] = 0
    found = calibrator(feeds).collect(model, {"a": -1})
    assert found["a"].count == sum(feed["ids"].size for feed in feeds)


def test_a_sample_of_nothing_but_padding_is_refused(model):
    feeds = list(samples(3))
    feeds[1]["mask"] = feeds[1]["mask"] * 0
    with pytest.raises(CalibrationError, match=r"sample 1.*every position as padding") as caught:
        calibrator(feeds).collect(model, {"a": -1})
    assert caught.value.subject == "input mask, calibration sample 1"


def test_rows_are_bounded_even_and_the_same_each_time(model):
    feeds = list(samples(200, lengths=(16,)))
    found = calibrator(feeds, max_rows=64).collect(model, {"y": -1})["y"]
    assert 32 <= len(found.rows) <= 64
    everything = all_rows(model, feeds, "y")
    places = [int(np.flatnonzero((everything == row).all(axis=1))[0]) for row in found.rows]
    thirds = np.histogram(places, 3, (0, len(everything)))[0]
    assert thirds.min() >= len(found.rows) / 3 * 0.6
    again = calibrator(iter(feeds), max_rows=64).collect(model, {"y": -1})["y"]
    np.testing.assert_array_equal(found.rows, again.rows)


def test_rows_of_a_large_model_are_fewer(model):
    found = calibrator(samples(50), row_bytes=10 * 4 * 8).collect(model, {"a": -1, "y": -1})
    assert len(found["a"].rows) <= 10


def test_the_model_is_not_changed_and_what_only_its_outputs_need_is_not_computed(model):
    before = ir.to_proto(model).SerializeToString()
    runtime = OnnxRuntime()
    calibrator(samples(2), open_session=runtime).collect(model, {"a": -1})
    assert ir.to_proto(model).SerializeToString() == before
    assert "big" not in {value.name for node in runtime.opened[0].graph for value in node.outputs}
    assert "head" not in runtime.opened[0].graph.initializers


def test_a_generator_serves_several_collections(model):
    generator = calibrator(samples(4))
    first = generator.collect(model, {"y": -1})
    assert_same_statistics(generator.collect(model, {"y": -1})["y"], first["y"])
    assert generator.collect(model, {}) == {}


def test_progress_is_told(model):
    told = []
    calibrator(samples(3), progress=lambda done, total: told.append((done, total))).collect(model, {"y": -1})
    assert told == [(1, 3), (2, 3), (3, 3)]


def test_fewer_samples_may_be_asked_for(model):
    assert calibrator(Calibration(samples(9), num_calibration_samples=4)).samples(model).count == 4
    for count in (0, -1):
        with pytest.raises(CalibrationError, match="1 or more"):
            Calibration(samples(9), num_calibration_samples=count)


def test_a_failing_run_names_the_sample(model):
    class Refusing(OnnxRuntime):
        def run(self, feed):
            if self.runs == 2:
                raise InputError("input ids", "50 is no index", "Give ids below 50")
            return super().run(feed)

    with pytest.raises(CalibrationError, match="50 is no index") as caught:
        calibrator(samples(5), open_session=Refusing()).collect(model, {"y": -1})
    assert caught.value.subject == "calibration sample 2"
    assert caught.value.mend == "Give ids below 50"


def test_configurations_compare_by_value():
    feeds = [{"ids": 1}]
    assert calibrator(feeds, open_session=OnnxRuntime) == calibrator(feeds, open_session=OnnxRuntime)
    assert calibrator(feeds, open_session=OnnxRuntime) != calibrator(feeds, open_session=OnnxRuntime, max_rows=3)


def test_fields_of_a_calibrator_are_frozen():
    with pytest.raises(dataclasses.FrozenInstanceError):
        calibrator([]).max_rows = 3


def test_what_no_position_reached_has_no_mean_and_warns_of_nothing():
    running = RunningStatistics()
    running.add(np.full(3, np.inf), np.full(3, -np.inf), np.zeros(3), np.zeros((3, 3)))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        seen = running.finish(np.zeros((0, 3), np.float32), 0)
    assert np.isnan(seen.mean).all()
    assert np.isnan(seen.gram).all()
