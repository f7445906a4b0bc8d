"""Statistics kept between runs are found again, and never where anything has changed or is damaged."""

import numpy as np
import onnx
import onnx_ir as ir
import pytest

from qcompile.calibration import Calibrator
from qcompile.calibration_data import Calibration
from qcompile.errors import CalibrationError
from qcompile.passes.observe_channels import ObserveChannels
from tests.sessions import OnnxRuntime, assert_same_statistics

LINEAR = """
    <ir_version: 10, opset_import: ["" : 23]>
    main (float[batch, sequence, 3] x, int64[batch, sequence] mask) => (float[batch, sequence, 3] y)
    <float[3, 3] w = {1, 2, 3, 4, 5, 6, 7, 8, 9}> { a = Relu(x) y = MatMul(a, w) }
"""


@pytest.fixture
def model():
    return ir.from_proto(onnx.parser.parse_model(LINEAR))


def samples(count, seed=1):
    rng = np.random.default_rng(seed)
    mask = np.array([[1, 1, 1, 0]])
    return [{"x": rng.normal(size=(1, 4, 3)).astype(np.float32), "mask": mask} for _ in range(count)]


@pytest.fixture
def collect(tmp_path):
    def collect(model, feeds, axes=None, gram=(), cache=tmp_path / "cache", padding_mask=None, **options):
        runtime = OnnxRuntime()
        data = Calibration(feeds, cache=cache, padding_mask=padding_mask)
        calibrator = Calibrator(data, options.pop("instrument", ObserveChannels), runtime, **options)
        found = calibrator.collect(model, axes or {"y": -1}, gram=gram)
        return found, runtime.runs

    return collect


def test_the_second_time_nothing_is_run(model, collect):
    first, runs = collect(model, samples(3), gram=["y"])
    assert runs == 3
    second, runs = collect(model.clone(), samples(3), gram=["y"])
    assert runs == 0
    assert_same_statistics(second["y"], first["y"])
    np.testing.assert_array_equal(second["y"].gram, first["y"].gram)
    assert isinstance(second["y"].count, int)


def test_whatever_changes_is_run_again(model, collect):
    def runs(*arguments, **options):
        return collect(*arguments, **options)[1]

    runs(model, samples(3))
    assert runs(model, samples(3)) == 0
    assert runs(model, samples(3, seed=2)) == 3
    assert runs(model, samples(3), {"a": -1}) == 3
    assert runs(model, samples(3), gram=["y"]) == 3
    assert runs(model, samples(3), max_rows=5) == 3
    assert runs(model, samples(3), seed=1) == 3
    assert runs(model, samples(3), padding_mask="mask") == 3
    assert runs(model, samples(3), instrument=lambda axes, **told: ObserveChannels(axes, **{**told, "rows": 7})) == 3
    weight = model.graph.initializers["w"]
    weight.const_value = ir.tensor(np.nextafter(weight.const_value.numpy(), np.float32(1)), name="w")
    assert runs(model, samples(3)) == 3
    model.graph.node(0).op_type = "Abs"
    assert runs(model, samples(3)) == 3


def test_what_is_behind_the_observed_values_does_not_count(model, collect):
    first, _ = collect(model, samples(3), {"a": -1})
    weight = model.graph.initializers["w"]
    weight.const_value = ir.tensor(weight.const_value.numpy() * 2, name="w")
    second, runs = collect(model, samples(3), {"a": -1})
    assert runs == 0
    assert_same_statistics(second["a"], first["a"])


def test_a_folder_may_be_given_as_text(model, collect, tmp_path):
    collect(model, samples(3), cache=str(tmp_path / "deep" / "er"))
    assert collect(model, samples(3), cache=tmp_path / "deep" / "er")[1] == 0


@pytest.mark.parametrize("damage", [b"", b"PK\x03\x04 not an archive", None])
def test_a_damaged_entry_is_computed_again(model, collect, tmp_path, damage):
    first, _ = collect(model, samples(3))
    (entry,) = (tmp_path / "cache").iterdir()
    mean = first["y"].mean.tobytes()
    flipped = entry.read_bytes().replace(mean, mean[:-1] + bytes([mean[-1] ^ 1]))
    entry.write_bytes(flipped if damage is None else damage)
    second, runs = collect(model, samples(3))
    assert runs == 3
    assert_same_statistics(second["y"], first["y"])
    assert collect(model, samples(3))[1] == 0


def test_a_folder_that_cannot_be_written_is_refused(model, collect, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(CalibrationError, match="Name a folder that can be written"):
        collect(model, samples(3), cache=tmp_path / "file")
