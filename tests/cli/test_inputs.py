"""What the command line takes, as what the library takes."""

import numpy as np
import pytest

from qcompile.cli import inputs
from qcompile.errors import CalibrationError, InputError, ModelError, RecipeError
from qcompile.manifest import Port
from qcompile.recipe import Recipe
from tests.cli.commands import run


def test_a_made_up_feed_fits_the_inputs_and_is_always_the_same():
    ports = [
        Port("ids", "int64", ("batch", "sequence")),
        Port("image", "float32", ("batch", 3, "height", None)),
        Port("flag", "bool", ()),
    ]
    feed = inputs.made_up_feed(ports, {"batch": 4, "height": 16})
    assert {name: (str(array.dtype), array.shape) for name, array in feed.items()} == {
        "ids": ("int64", (4, 128)),
        "image": ("float32", (4, 3, 16, 128)),
        "flag": ("bool", ()),
    }
    assert feed["ids"].min() == feed["ids"].max() == 1
    assert feed["image"].std() == pytest.approx(1, abs=0.05)
    again = inputs.made_up_feed(ports, {"batch": 4, "height": 16})
    np.testing.assert_array_equal(feed["image"], again["image"])


def test_a_size_that_is_a_sum_is_that_of_its_parts():
    ports = [
        Port("ids", "int64", ("batch", "sequence")),
        Port("mask", "int64", ("batch", "past + sequence")),
        Port("cache", "float32", ("batch", 2, "past", 4)),
    ]
    feed = inputs.made_up_feed(ports, {"sequence": 3})
    assert {name: array.shape for name, array in feed.items()} == {
        "ids": (1, 3),
        "mask": (1, 131),
        "cache": (1, 2, 128, 4),
    }
    assert inputs.made_up_feed(ports, {"past + sequence": 9})["mask"].shape == (1, 9)


IDS = Port("ids", "int64", ("batch", "sequence", None, 3))


@pytest.mark.parametrize("text", ["sequence", "sequence=", "sequence=0", "sequence=-1", "sequence=x", "==", "=3"])
def test_a_dimension_that_is_none_is_refused(text):
    with pytest.raises(RecipeError, match="--dim"):
        inputs.dimensions([text], [IDS])


def test_a_dimension_is_one_of_the_inputs():
    assert inputs.dimensions(["batch=2", "sequence=5"], [IDS, Port("x", "float32", None)]) == {
        "batch": 2,
        "sequence": 5,
    }
    with pytest.raises(RecipeError, match=r"they are batch, sequence\. The nearest is 'batch'"):
        inputs.dimensions(["bach=2"], [IDS])
    with pytest.raises(RecipeError, match="all sizes are fixed"):
        inputs.dimensions(["batch=2"], [Port("x", "float32", (1, None))])


def test_settings_are_read_as_yaml():
    settings = ["alpha=0.5", "weights={granularity: per_tensor}", " observer = percentile"]
    expected = {"alpha": 0.5, "weights": {"granularity": "per_tensor"}, "observer": "percentile"}
    assert inputs.recipe("w8a8-static", settings) == Recipe.from_name("w8a8-static", **expected)


@pytest.mark.parametrize(
    "text", ["alpha", "=3", "alpha=[", "alfa=3", "alpha=" + "[" * 5000, "weights={bits: 7, bits: 8}"]
)
def test_a_setting_that_is_none_is_refused(text):
    with pytest.raises(RecipeError):
        inputs.recipe("w8a8-static", [text])


def test_a_folder_of_samples_is_read_in_order_and_more_than_once(tmp_path):
    for name, length in (("b", 2), ("a", 1), ("c", 3)):
        np.savez(tmp_path / f"{name}.npz", ids=np.zeros((1, length), np.int64))
    (tmp_path / "notes.txt").write_text("not a sample")
    samples = inputs.calibration(tmp_path, None, None).data
    for _ in range(2):
        assert [sample["ids"].shape[1] for sample in samples] == [1, 2, 3]


def test_calibration_data_that_is_none_is_refused(tmp_path):
    assert inputs.calibration(None, None, None) is None
    with pytest.raises(CalibrationError, match="no such file"):
        inputs.calibration(tmp_path / "missing.npz", None, None)
    with pytest.raises(CalibrationError, match=r"no \.npz file"):
        inputs.calibration(tmp_path, None, None)
    (tmp_path / "bad.npz").write_text("text")
    with pytest.raises(CalibrationError, match=r"bad\.npz"):
        list(inputs.calibration(tmp_path, None, None).data)
    np.savez(tmp_path / "bad.npz", ids=np.array([{}], dtype=object))
    with pytest.raises(CalibrationError, match=r"bad\.npz"):
        list(inputs.calibration(tmp_path, None, None).data)


def test_a_folder_is_a_model_where_it_has_a_configuration(tmp_path):
    with pytest.raises(ModelError, match=r"without config\.json"):
        inputs.model_file(tmp_path)
    (tmp_path / "config.json").write_text("{}")
    assert inputs.model_file(tmp_path) == tmp_path
    with pytest.raises(ModelError, match="no such file"):
        inputs.model_file(tmp_path / "model.onnx")


@pytest.mark.parametrize("size", [2**28 + 1, 9999999999999, 10**30])
def test_a_feed_that_is_too_large_to_be_made_is_refused(size):
    with pytest.raises(InputError, match=rf"made-up feed: .* x \[1, {size}\]\. .*--dim"):
        inputs.made_up_feed([Port("x", "float32", ("batch", "n"))], {"n": size})


def test_a_time_that_never_ends_is_refused(artifact):
    result = run("bench", artifact, "--seconds", "inf")
    assert result.exit_code == 2
    assert "--seconds inf: it is no length of time" in result.stderr
