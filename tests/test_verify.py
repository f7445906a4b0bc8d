"""Verification: validity, agreement of outputs, made-up inputs."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest

from qcompile.calibration_masks import PaddingMask
from qcompile.errors import ModelError, VerificationError
from qcompile.verify import check_exact, check_valid, difference, synthetic_samples, without_padding

HEADER = '<ir_version: 10, opset_import: ["" : 23]>'


def test_a_valid_model_passes_whatever_the_size_of_its_weights():
    model = ir.from_onnx_text(f"{HEADER} g (float[n, 4] x) => (float[n, 4] y) {{ y = Relu(x) }}")
    check_valid(model, "nothing")


def test_an_invalid_model_names_the_pass():
    model = ir.from_onnx_text(f"{HEADER} g (float[n, 4] x) => (float[n, 4] y) {{ y = Relu(x) }}")
    model.graph[0].op_type = "NoSuchOperator"
    with pytest.raises(VerificationError, match=r"pass my_pass: .*NoSuchOperator"):
        check_valid(model, "my_pass")


def test_difference_is_a_part_of_the_range():
    before = [{"y": np.array([0.0, 10.0])}, {"y": np.array([5.0, 5.0])}]
    after = [{"y": np.array([0.0, 10.0])}, {"y": np.array([5.0, 5.5])}]
    found = difference(before, after)
    assert found.output == "y"
    assert found.relative == pytest.approx(0.05)
    with pytest.raises(VerificationError, match=r"pass p: it changes output y by 0\.05 of its range"):
        check_exact(found, "p")


@pytest.mark.parametrize("after", [np.array([1.0, np.nan]), np.array([1.0, np.inf]), np.array([1.0])])
def test_nan_infinity_and_another_shape_are_infinitely_far(after):
    assert difference([{"y": np.array([1.0, 2.0])}], [{"y": after}]).relative == np.inf


def test_equal_outputs_pass_and_constant_ones_compare_by_magnitude():
    check_exact(difference([{"y": np.full(3, 2.0)}], [{"y": np.full(3, 2.0)}]), "p")
    assert difference([{"y": np.full(3, 2.0)}], [{"y": np.full(3, 2.2)}]).relative == pytest.approx(0.1)
    check_exact(difference([], []), "p")


def test_padding_does_not_count():
    outputs = [{"y": np.arange(12.0).reshape(2, 2, 3), "z": np.zeros(5)}]
    sample = [{"mask": np.array([[1, 0], [1, 1]])}]
    (kept,) = without_padding(outputs, sample, [PaddingMask("mask")])
    assert kept["y"].tolist() == [[0, 1, 2], [6, 7, 8], [9, 10, 11]]
    assert kept["z"].shape == (5,)


def test_made_up_inputs_fit_types_and_shapes():
    text = f"{HEADER} g (float[n, s, 4] x, int64[n, s] ids, bool[7] b) => (float y) {{ y = Identity(x) }}"
    (sample,) = synthetic_samples(ir.from_onnx_text(text))
    assert {name: (array.dtype.name, array.shape) for name, array in sample.items()} == {
        "x": ("float32", (2, 8, 4)),
        "ids": ("int64", (2, 8)),
        "b": ("bool", (7,)),
    }
    assert set(np.unique(sample["ids"])) <= {0, 1}


def test_inputs_without_a_shape_cannot_be_made_up():
    model = ir.from_onnx_text(f"{HEADER} g (float x) => (float y) {{ y = Relu(x) }}")
    model.graph.inputs[0].shape = None
    with pytest.raises(ModelError, match="input x"):
        synthetic_samples(model)
