from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest

pytest.importorskip("openvino")

from qcompile.backends.openvino.transposed_weights import separate_transposed_weights
from tests.backends.openvino.graphs import run_as_it_is, run_lowered
from tests.backends.portable import parse, reference

BOTH = "v = Transpose <perm = [1, 0]> (w) a = MatMul (x, v) b = MatMul (x, w)"
ALONE = "v = Transpose <perm = [1, 0]> (w) a = MatMul (x, v) b = MatMul (x, v)"


def model_of(text: str, inputs: str = "float[n,8] x, float[8,8] w") -> ir.Model:
    weight = np.random.default_rng(0).normal(size=(8, 8)).astype(np.float32)
    return parse(f"({inputs}) => (float[n,8] a, float[n,8] b) {{ {text} }}", w=weight)


def feed() -> dict[str, np.ndarray]:
    return {"x": np.random.default_rng(1).normal(size=(3, 8)).astype(np.float32)}


@pytest.mark.parametrize("inputs", ["float[n,8] x", "float[n,8] x, float[8,8] w"])
def test_each_product_has_its_weight(inputs: str, tmp_path: Path) -> None:
    model = model_of(BOTH, inputs)
    found = run_lowered(model, feed(), tmp_path)
    for name, array in reference(model, feed()).items():
        np.testing.assert_allclose(found[name], array, rtol=1e-5, atol=1e-5, err_msg=name)


def test_the_second_weight_is_the_first_transposed_and_made_once() -> None:
    model = model_of(BOTH)
    for _ in range(2):
        separate_transposed_weights(model)
        assert [node.op_type for node in model.graph] == ["MatMul", "MatMul"]
        assert list(model.graph.initializers) == ["w", "w.transposed"]
    first, second = (model.graph.initializers[name].const_value for name in ("w", "w.transposed"))
    assert first is not None
    assert second is not None
    np.testing.assert_array_equal(second.numpy(), first.numpy().T)


def test_a_weight_that_is_read_one_way_is_left() -> None:
    model = model_of(ALONE)
    separate_transposed_weights(model)
    assert [node.op_type for node in model.graph] == ["Transpose", "MatMul", "MatMul"]


def test_otherwise_the_runtime_mistakes_one_for_the_other(tmp_path: Path) -> None:
    """When this fails, OpenVINO is mended, and the rewrite is not needed for its new version."""
    model = model_of(BOTH)
    found = run_as_it_is(model, feed(), tmp_path)
    expected = reference(model, feed())
    assert max(np.abs(found[name] - expected[name]).max() for name in "ab") > 0.1
