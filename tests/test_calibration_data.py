"""Every form of calibration data that is accepted, and every fault that is refused."""

import tracemalloc

import numpy as np
import onnx_ir as ir
import pytest
import torch

import qcompile
from qcompile.calibration_data import Calibration
from qcompile.errors import CalibrationError

IDS = np.arange(12, dtype=np.int64).reshape(3, 1, 4)  # three samples [1, 4]
SCALES = np.linspace(0, 1, 3, dtype=np.float32).reshape(3, 1, 1)
FEEDS = [{"ids": ids, "scale": scale} for ids, scale in zip(IDS, SCALES, strict=True)]


def inputs(**shapes):
    """Inputs of a model: name=(dtype, *dims)."""
    return [ir.val(name, dtype, list(dims)) for name, (dtype, *dims) in shapes.items()]


TWO = inputs(ids=(ir.DataType.INT64, "batch", "sequence"), scale=(ir.DataType.FLOAT, "batch", 1))
ONE = TWO[:1]


def assert_feeds(data, expected=FEEDS, model_inputs=TWO):
    found = list(Calibration.of(data).read(model_inputs))
    assert len(found) == len(expected)
    for one, other in zip(found, expected, strict=True):
        assert list(one) == list(other)
        for name in other:
            np.testing.assert_array_equal(one[name], other[name])
            assert one[name].dtype == other[name].dtype


class Reader:
    """A CalibrationDataReader of ONNX Runtime, which are duck-typed."""

    def __init__(self, feeds):
        self.feeds = feeds
        self.rewind()

    def get_next(self):
        return next(self.left, None)

    def rewind(self):
        self.left = iter(self.feeds)


class MapDataset(torch.utils.data.Dataset):
    def __len__(self):
        return len(FEEDS)

    def __getitem__(self, index):
        return {name: torch.from_numpy(array[0]) for name, array in FEEDS[index].items()}


class TestForms:
    def test_list_of_dicts(self):
        assert_feeds(FEEDS)

    def test_generator(self):
        assert_feeds(feed for feed in FEEDS)

    def test_callable_that_returns_an_iterator(self):
        assert_feeds(lambda: iter(FEEDS))

    def test_tuples_and_lists_in_the_order_of_the_inputs(self):
        assert_feeds([(feed["ids"], feed["scale"]) for feed in FEEDS])
        assert_feeds([[feed["ids"], feed["scale"]] for feed in FEEDS])

    def test_order_of_a_dict_does_not_matter(self):
        assert_feeds([{"scale": feed["scale"], "ids": feed["ids"]} for feed in FEEDS])

    def test_arrays_for_a_model_of_one_input(self):
        assert_feeds([feed["ids"] for feed in FEEDS], [{"ids": ids} for ids in IDS], ONE)

    def test_tensors(self):
        assert_feeds([{name: torch.from_numpy(array) for name, array in feed.items()} for feed in FEEDS])
        assert_feeds([torch.from_numpy(feed["ids"]) for feed in FEEDS], [{"ids": ids} for ids in IDS], ONE)

    def test_tensors_that_need_gradients_or_are_bfloat16(self):
        feed = {"ids": torch.from_numpy(IDS[0]), "scale": torch.ones(1, 1, requires_grad=True)}
        assert_feeds([feed], [{"ids": IDS[0], "scale": np.ones((1, 1), np.float32)}])
        feed["scale"] = torch.ones(1, 1, dtype=torch.bfloat16)
        assert_feeds([feed], [{"ids": IDS[0], "scale": np.ones((1, 1), np.float32)}])

    def test_nested_lists_of_numbers(self):
        assert_feeds([{"ids": [[0, 1, 2, 3]], "scale": [[0.0]]}], FEEDS[:1])

    def test_data_loader(self):
        assert_feeds(torch.utils.data.DataLoader(MapDataset(), batch_size=1))
        pairs = torch.utils.data.TensorDataset(torch.from_numpy(IDS[:, 0]), torch.from_numpy(SCALES[:, 0]))
        assert_feeds(torch.utils.data.DataLoader(pairs, batch_size=1))

    def test_batch_encoding(self):
        tokenization = pytest.importorskip("transformers.tokenization_utils_base")
        assert_feeds([tokenization.BatchEncoding(feed) for feed in FEEDS])
        assert_feeds([tokenization.BatchEncoding(feed, tensor_type="pt") for feed in FEEDS])
        assert_feeds(tokenization.BatchEncoding({"ids": IDS[:, 0], "scale": SCALES[:, 0]}))

    def test_calibration_data_reader(self):
        assert_feeds(Reader(FEEDS))

    def test_calibration_data_reader_of_onnxruntime_that_was_read_before(self):
        from onnxruntime.quantization import CalibrationDataReader

        class OnnxRuntimeReader(Reader, CalibrationDataReader):
            pass

        reader = OnnxRuntimeReader(FEEDS)
        assert_feeds(reader)
        assert_feeds(reader)

    def test_npz(self, tmp_path):
        np.savez(tmp_path / "rank.npz", ids=IDS[:, 0], scale=SCALES[:, 0])
        np.savez_compressed(tmp_path / "axis.npz", ids=IDS, scale=SCALES)
        assert_feeds(tmp_path / "rank.npz")
        assert_feeds(str(tmp_path / "axis.npz"))

    def test_npz_is_read_a_sample_at_a_time(self, tmp_path):
        path = tmp_path / "long.npz"
        np.savez_compressed(path, ids=np.zeros((100_000, 100), np.int64))  # 80 MB
        tracemalloc.start()
        first = next(Calibration(path).read(ONE))
        assert first["ids"].shape == (1, 100)
        _, peak = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        assert peak < 10 * 2**20

    def test_dict_of_stacked_arrays(self):
        assert_feeds({"ids": IDS[:, 0], "scale": SCALES[:, 0]})
        assert_feeds({"ids": IDS, "scale": torch.from_numpy(SCALES)})

    def test_stacked_array_for_a_model_of_one_input(self):
        assert_feeds(IDS, [{"ids": ids} for ids in IDS], ONE)
        assert_feeds(torch.from_numpy(IDS[:, 0]), [{"ids": ids} for ids in IDS], ONE)

    def test_stacked_samples_of_a_fixed_batch(self):
        fixed = inputs(x=(ir.DataType.FLOAT, 2, 3))
        x = np.arange(18, dtype=np.float32).reshape(6, 3)
        assert_feeds({"x": x}, [{"x": x[:2]}, {"x": x[2:4]}, {"x": x[4:]}], fixed)

    def test_ragged_lengths(self):
        ragged = [{"ids": np.ones((1, length), np.int64)} for length in (3, 9, 1)]
        assert_feeds(ragged, ragged, ONE)

    def test_an_input_of_unknown_shape_takes_any(self):
        value = ir.Value(name="x", type=ir.TensorType(ir.DataType.FLOAT))
        feeds = [{"x": np.ones((2, 3), np.float32)}, {"x": np.ones((4,), np.float32)}]
        assert_feeds(feeds, feeds, [value])


@pytest.mark.parametrize(
    ("given", "dtype"),
    [
        (np.ones((1, 2), np.int32), ir.DataType.INT64),
        (np.ones((1, 2), np.int64), ir.DataType.INT32),
        (np.ones((1, 2), bool), ir.DataType.INT64),
        (np.ones((1, 2), np.int64), ir.DataType.BOOL),
        (np.ones((1, 2), np.float64), ir.DataType.FLOAT),
        (np.ones((1, 2), np.float16), ir.DataType.FLOAT),
        (np.ones((1, 2), np.float32), ir.DataType.FLOAT16),
        (np.ones((1, 2), np.float32), ir.DataType.BFLOAT16),
        (np.ones((1, 2), np.uint8), ir.DataType.FLOAT),
        (np.ones((1, 2), np.int64), ir.DataType.FLOAT),
    ],
)
def test_dtypes_that_lose_nothing_are_cast(given, dtype):
    (feed,) = Calibration([{"x": given}]).read(inputs(x=(dtype, "batch", 2)))
    assert feed["x"].dtype == dtype.numpy()
    np.testing.assert_array_equal(feed["x"].astype(np.float32), np.ones((1, 2), np.float32))


def sample(**changes):
    return {**FEEDS[0], **changes}


@pytest.mark.parametrize(
    ("bad", "name", "reason"),
    [
        (sample(scale=np.array([[np.nan]], np.float32)), "scale", "NaN or infinity"),
        (sample(scale=np.array([[-np.inf]], np.float32)), "scale", "NaN or infinity"),
        (sample(scale=np.array([[1e300]])), "scale", "NaN or infinity"),
        ({"idz": IDS[0], "scale": SCALES[0]}, "idz", "no such input.*ids, scale.*Did you mean ids"),
        (sample(label=IDS[0]), "label", "no such input.* Leave it out, in the data"),
        ({"X": IDS[0], "scale": SCALES[0]}, "X", "no such input.*Did you mean ids. Otherwise leave it out"),
        ({"ids": IDS[0]}, "scale", "missing"),
        (sample(ids=IDS[0, 0]), "ids", r"shape \[4\].*\[batch, sequence\].*Add the batch dim"),
        (sample(ids=IDS[:, None]), "ids", "Give it the rank"),
        (sample(scale=np.ones((1, 2), np.float32)), "scale", r"size 2 on axis 1, where the input has \[batch, 1\]"),
        (sample(scale=np.ones((2, 1), np.float32)), "scale", "size 2 on axis 0, where batch is 1 in dim 0 of ids"),
        (sample(ids=np.zeros((1, 0), np.int64)), "ids", "empty"),
        (sample(ids=np.ones((1, 4), np.float32)), "ids", "dtype float32 where the input has int64"),
        (sample(ids=np.array([["a", "b"]])), "ids", "dtype <U1"),
        (sample(ids=np.array([[2**63]], np.uint64)), "ids", "holds numbers that int64 does not"),
        (sample(scale=np.array([[2**24 + 1]])), "scale", "holds numbers that float32 does not"),
        (sample(ids=[[1, 2], [3]]), "ids", "no array"),
        (sample(ids=None), "ids", "no array of numbers"),
    ],
)
def test_a_bad_sample_is_refused_with_its_input_and_index(bad, name, reason):
    with pytest.raises(CalibrationError, match=reason) as caught:
        list(Calibration([FEEDS[0], bad]).read(TWO))
    assert caught.value.subject == f"input {name}, calibration sample 1"


@pytest.mark.parametrize(
    ("sample", "model_inputs", "reason", "mend"),
    [
        ((IDS[0], SCALES[0], 7), TWO, "it has 3 arrays, the model 2 inputs: ids, scale", "lambda sample: sample[:2]"),
        ([IDS[0], np.array([7])], ONE, "it has 2 arrays, the model 1 input: ids", "lambda sample: sample[0]"),
        (IDS[0], TWO, "it has 1 array, the model 2 inputs: ids, scale", "one array for each input in this order"),
    ],
)
def test_a_sample_of_the_wrong_length_is_refused_with_the_mend(sample, model_inputs, reason, mend):
    with pytest.raises(CalibrationError) as caught:
        list(Calibration([sample]).read(model_inputs))
    assert caught.value.subject == "calibration sample 0"
    assert caught.value.reason == reason
    assert mend in caught.value.mend


class TestTransform:
    """A transform makes samples of what data gives, in every form of data."""

    def test_labels_of_a_data_loader(self):
        pairs = torch.utils.data.TensorDataset(torch.from_numpy(IDS[:, 0]), torch.arange(3))
        loader = torch.utils.data.DataLoader(pairs, batch_size=1)
        chosen = Calibration(loader, transform=lambda sample: sample[0])
        assert_feeds(chosen, [{"ids": ids} for ids in IDS], ONE)

    def test_other_keys_of_a_dict(self):
        labelled = [{**feed, "label": np.array([1])} for feed in FEEDS]
        assert_feeds(Calibration(labelled, transform=lambda sample: {name: sample[name] for name in ("ids", "scale")}))

    def test_pieces_of_stacked_arrays(self, tmp_path):
        np.savez(tmp_path / "other.npz", tokens=IDS[:, 0], factor=SCALES[:, 0])

        def rename(piece):
            return {"ids": piece["tokens"], "scale": piece["factor"]}

        assert_feeds(Calibration(tmp_path / "other.npz", transform=rename))
        assert_feeds(Calibration({"tokens": IDS[:, 0], "factor": SCALES[:, 0]}, transform=rename))

    def test_pieces_of_one_array(self):
        split = Calibration(IDS[:, 0], transform=lambda piece: (piece, piece[:, :1] / 2))
        assert_feeds(split, [{"ids": ids, "scale": (ids[:, :1] / 2).astype(np.float32)} for ids in IDS])

    def test_it_is_called_for_no_more_samples_than_are_read(self):
        seen = []
        data = Calibration(FEEDS, 2, transform=lambda sample: seen.append(sample) or sample)
        assert_feeds(data, FEEDS[:2])
        assert len(seen) == 2


@pytest.mark.parametrize("data", [3, None, object()])
def test_data_of_no_known_form_is_refused(data):
    with pytest.raises(CalibrationError, match="holds no samples"):
        list(Calibration(data).read(TWO))


def test_stacked_arrays_of_different_lengths_are_refused():
    with pytest.raises(CalibrationError, match="2 samples where another input has 3") as caught:
        list(Calibration({"ids": IDS, "scale": SCALES[:2]}).read(TWO))
    assert caught.value.subject == "input scale"
    with pytest.raises(CalibrationError, match="scalar, not stacked"):
        list(Calibration({"ids": IDS, "scale": np.float32(1)}).read(TWO))


def test_a_size_that_is_fixed_and_should_vary_is_refused_with_the_axes_to_name():
    model_inputs = inputs(x=(ir.DataType.FLOAT, "s77", 4, 16), y=(ir.DataType.FLOAT, "batch", "s77"))
    sound = np.zeros((2, 4, 20), np.float32)
    with pytest.raises(CalibrationError, match=r"size 20 on axis 2, where the input has \[\?, 4, 16\]") as raised:
        list(Calibration([{"x": sound, "y": np.zeros((1, 2), np.float32)}]).read(model_inputs))
    axes = "{0: torch.export.Dim.AUTO, 2: torch.export.Dim.AUTO}"
    assert f'dynamic_shapes={{"x": {axes}}}' in raised.value.mend
    with pytest.raises(CalibrationError, match=r"size 3 on axis 1, where the same size is 2 in dim 0 of x") as raised:
        list(Calibration([{"x": sound[..., :16], "y": np.zeros((1, 3), np.float32)}]).read(model_inputs))
    assert raised.value.mend == "Give it size 2 there"


def test_what_the_error_says_makes_lengths_vary():
    lengths = [{"input": np.random.default_rng(0).normal(size=(2, 4, n)).astype(np.float32)} for n in (16, 20)]
    module = torch.nn.Sequential(torch.nn.Conv1d(4, 8, 3))
    with pytest.raises(CalibrationError) as raised:
        qcompile.compile(module, "w8a8-static", calibration=lengths)
    written = raised.value.mend.partition("dynamic_shapes=")[2].partition(", else export")[0]
    shapes = eval(written, {"torch": torch})
    artifact = qcompile.compile(module, "w8a8-static", calibration=lengths, dynamic_shapes=shapes)
    assert artifact.run({"input": np.ones((1, 4, 31), np.float32)})["conv1d"].shape == (1, 8, 29)
