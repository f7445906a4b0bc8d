from __future__ import annotations

import tempfile
from pathlib import Path

import numpy as np
import onnx_ir as ir
import onnxruntime
import pytest

from qcompile.backends.onnxruntime import BACKEND, MODEL_FILE
from qcompile.errors import InputError, ModelError
from tests.backends.portable import dynamic_per_token, linear_case, parse, reference

HEADER = '<ir_version: 10, opset_import: ["" : 21]>'


@pytest.mark.parametrize("optimization", ["disabled", "basic", "extended", "all"])
def test_results_do_not_depend_on_the_optimizations_of_the_runtime(tmp_path: Path, optimization: str) -> None:
    case = dynamic_per_token()
    BACKEND.lower(case.model, tmp_path, target=None)
    session = BACKEND.open_artifact(tmp_path / MODEL_FILE, threads=1, optimization=optimization)  # type: ignore[arg-type]
    for name, expected in reference(case.model, case.feed).items():
        excess = np.abs(session.run(case.feed)[name] - expected) - case.step - 1e-5 * np.abs(expected).max()
        assert excess.max() <= 0


def test_options_reach_the_runtime() -> None:
    session = BACKEND.open_session(linear_case().model, threads=1, optimization="basic")
    options = session.inference.get_session_options()
    assert options.intra_op_num_threads == 1
    assert options.graph_optimization_level == onnxruntime.GraphOptimizationLevel.ORT_ENABLE_BASIC


def test_refused_model_names_the_runtime_and_the_reason() -> None:
    model = parse("(float[N] x) => (float[N] y) { y = Neg (x) }")
    next(iter(model.graph)).op_type = "NoSuchOperator"
    with pytest.raises(ModelError) as caught:
        BACKEND.open_session(model)
    assert "NoSuchOperator" in caught.value.reason
    assert onnxruntime.__version__ in caught.value.reason


def test_file_that_does_not_exist(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"gone\.onnx"):
        BACKEND.open_artifact(tmp_path / "gone.onnx")


def test_values_that_a_kernel_refuses_are_an_input_error() -> None:
    model = parse("(float[N,4] x, float[M,4] r) => (float[K,4] y) { y = Add (x, r) }")
    feed = {"x": np.zeros((2, 4), np.float32), "r": np.zeros((3, 4), np.float32)}
    with pytest.raises(InputError) as caught:
        BACKEND.open_session(model, threads=1).run(feed)
    assert "x [2, 4], r [3, 4]" in caught.value.subject


def test_unknown_input_names_the_nearest() -> None:
    model = parse("(float[N] attention_mask, float[N] ids) => (float[N] y) { y = Add (attention_mask, ids) }")
    with pytest.raises(InputError) as caught:
        BACKEND.open_session(model, threads=1).run({"atention_maks": np.zeros(1, np.float32)})
    assert "Did you mean 'attention_mask'?" in caught.value.mend


def test_what_is_not_an_array() -> None:
    model = parse("(float[N] x) => (float[N] y) { y = Neg (x) }")
    with pytest.raises(InputError, match="it is a list"):
        BACKEND.open_session(model, threads=1).run({"x": [1.0]})  # type: ignore[dict-item]


def test_weights_in_memory_are_read_where_they_are() -> None:
    table = np.arange(2048, dtype=np.float32).reshape(512, 4)
    text = "(int64[N] ids) => (float[N,4] y) { y = Gather <axis = 0> (w, ids) }"
    model = ir.from_onnx_text(f"{HEADER} g {text}", initializers=[ir.tensor(table, name="w")])
    session = BACKEND.open_session(model, threads=1)
    table[3] = 7
    assert session.run({"ids": np.array([3, 4])})["y"].tolist() == [[7] * 4, [16, 17, 18, 19]]


def test_weights_that_are_computed_or_laid_out_otherwise_are_loaded() -> None:
    table = np.arange(2048, dtype=np.float32).reshape(4, 512)
    lazy = ir.LazyTensor(lambda: ir.tensor(table.T.copy()), ir.DataType.FLOAT, ir.Shape([512, 4]), name="v")
    text = "(int64[N] ids) => (float[N,4] y) { a = Gather (w, ids) b = Gather (v, ids) y = Add (a, b) }"
    model = ir.from_onnx_text(f"{HEADER} g {text}", initializers=[ir.Tensor(table.T, name="w"), lazy])
    found = BACKEND.open_session(model, threads=1).run({"ids": np.array([3, 4])})["y"]
    np.testing.assert_array_equal(found, 2 * table.T[[3, 4]])


def test_texts() -> None:
    session = BACKEND.open_session(parse("(string[N] x) => (string[N] y) { y = Identity (x) }"), threads=1)
    for texts in (np.array(["a", "b"]), np.array(["a", "b"], object)):
        assert session.run({"x": texts})["y"].tolist() == ["a", "b"]
    with pytest.raises(InputError, match="its type is float64, not object"):
        session.run({"x": np.zeros(2)})


def test_a_model_that_is_refused_is_called_by_its_name_and_not_by_a_file_that_nobody_knows():
    text = '<ir_version: 10, opset_import: ["" : 23]> encoder (float16[n] x) => (float[n] y) { [lift] y = Relu(x) }'
    with pytest.raises(ModelError) as caught:
        BACKEND.open_session(ir.from_onnx_text(text))
    assert caught.value.subject == "model encoder"
    assert "node (lift)" in caught.value.reason
    assert tempfile.gettempdir() not in str(caught.value)
