"""Verification: validity, agreement of outputs, made-up inputs."""

from __future__ import annotations

import tracemalloc

import numpy as np
import onnx_ir as ir
import pytest

from qcompile.backends import get
from qcompile.calibration_masks import PaddingMask
from qcompile.errors import InputError, ModelError, VerificationError
from qcompile.verify import (
    check_exact,
    check_valid,
    difference,
    outputs_of,
    synthetic_samples,
    usable_masks,
)

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


def test_a_named_dim_has_one_size_in_all_inputs():
    text = f"{HEADER} g (float[b, s, 32] x, float[s, s] m, float[?, ?] z) => (float[b, s, 32] y) {{ y = Identity(x) }}"
    (sample,) = synthetic_samples(ir.from_onnx_text(text))
    assert [sample[name].shape for name in "xmz"] == [(2, 8, 32), (8, 8), (2, 8)]


@pytest.mark.parametrize(("rows", "usable"), [([1, 0], True), ([0, -1e4], False), ([0, 0], False), ([0, 0.5], False)])
def test_a_mask_of_other_numbers_or_without_a_valid_position_leaves_nothing_out(rows, usable):
    masks = [PaddingMask("mask")]
    samples = [{"mask": np.array([[1, 1]], np.float32)}, {"mask": np.array([rows], np.float32)}]
    assert usable_masks(masks, samples) == (tuple(masks) if usable else ())


def test_nothing_compared_is_not_perfect():
    nothing = [{"y": np.zeros((0, 4))}]
    assert np.isnan(difference(nothing, nothing).sqnr_db)
    check_exact(difference(nothing, nothing), "p")


def test_texts_must_be_equal():
    before = [{"word": np.array(["a", "b"], object), "y": np.array([1.0, 2.0])}]
    same, other = ([{**before[0], "word": np.array(["a", word], object)}] for word in "bc")
    assert difference(before, same).relative == 0
    found = difference(before, other)
    assert (found.output, found.relative) == ("word", np.inf)


def test_an_output_that_hardly_varies_may_be_rounded():
    before = np.array([100.0, 100.001])
    rounded, moved = (difference([{"y": before}], [{"y": before + by}]).relative for by in (5e-5, 2e-4))
    assert rounded == 0
    assert moved == pytest.approx(0.2)


def test_another_rank_with_the_same_elements_is_infinitely_far():
    found = difference([{"y": np.ones((1, 4))}], [{"y": np.ones(4)}])
    assert found.relative == np.inf
    assert np.isnan(found.sqnr_db)


def test_large_outputs_are_compared_to_the_end_and_not_copied():
    before, after = np.zeros((2, 2**21), np.float32), np.zeros((2, 2**21), np.float32)
    before[0, 0], after[0, 0], after[1, -1] = 10, 10, 1
    tracemalloc.start()
    found = difference([{"y": before}], [{"y": after}])
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert found.relative == pytest.approx(0.1)
    assert found.sqnr_db == pytest.approx(20)
    assert peak < before.nbytes


def test_outputs_do_not_keep_the_memory_of_the_session():
    text = '<ir_version: 10, opset_import: ["" : 23]> g (float[n] x) => (float[n] y) { y = Relu(x) }'
    model = ir.from_onnx_text(text)
    (outputs,) = outputs_of(model, [{"x": np.ones(8, np.float32)}], get("onnxruntime").open_session)
    assert outputs["y"].flags.owndata


def test_the_sample_that_a_model_fails_on_is_named():
    model = ir.from_onnx_text(f"{HEADER} g (float[n] x, float[m] r) => (float[k] y) {{ y = Add(x, r) }}")
    samples = [{"x": np.ones(2, np.float32), "r": np.ones(size, np.float32)} for size in (2, 1, 3)]
    with pytest.raises(InputError) as caught:
        outputs_of(model, samples, get("onnxruntime").open_session)
    assert caught.value.subject == "sample 2, feed of x [2], r [3]"


def test_an_integer_that_is_one_off_in_a_wide_range_is_a_difference() -> None:
    """Of 50,000 places, one is 2e-5 of the range."""
    before, after = ([{"place": np.array([0, 49_999 - off])}] for off in (0, 1))
    assert difference(before, before).relative == 0
    assert difference(before, after).relative == 1
