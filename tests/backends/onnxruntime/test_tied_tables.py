"""The rows that an embedding gathers and the weight of the head: the same bytes of MatMulNBits."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest

from qcompile.backends.onnxruntime import BACKEND
from qcompile.passes.round_activations import RoundActivations
from qcompile.reference_evaluator import evaluate
from qcompile.scheme import GroupScheme
from tests.backends.onnxruntime.rewrites import optimized
from tests.tied_models import IDS, ROWS, rounded, tied


def lowered(model, folder: Path) -> onnx.ModelProto:
    return onnx.load(folder / BACKEND.lower(model, folder, target=None).model_file)


def large(model: onnx.ModelProto) -> list[tuple[int, ...]]:
    return [tuple(each.dims) for each in model.graph.initializer if np.prod(each.dims) >= 8 * ROWS]


@pytest.mark.parametrize(("bits", "bytes_of_2"), [(8, 2), (4, 1)])
@pytest.mark.parametrize(("most", "block"), [(128, 64), (32, 32)])
def test_one_copy_where_the_product_is_of_integers(
    most: int, block: int, bits: int, bytes_of_2: int, tmp_path: Path
) -> None:
    model = tied(head=GroupScheme(bits, 64))
    RoundActivations(most)(model)
    expected = evaluate(model, {"ids": IDS})["y"]
    written = lowered(model, tmp_path)
    shape = (ROWS, 128 // block, block * bytes_of_2 // 2)
    assert large(written) == [shape]
    products = [node for node in optimized(tmp_path / "model.onnx").graph.node if node.op_type == "MatMulNBits"]
    assert len(products) == 1
    assert large(optimized(tmp_path / "model.onnx")) == [shape]
    found = BACKEND.open_artifact(tmp_path / "model.onnx", threads=1).run({"ids": IDS})["y"]
    np.testing.assert_allclose(found, expected, rtol=0, atol=2e-6 * np.abs(expected).max())


def test_scales_are_shared_where_the_blocks_are_the_same(tmp_path: Path) -> None:
    model = tied()
    RoundActivations()(model)
    floats = [each for each in lowered(model, tmp_path).graph.initializer if each.data_type == 1 and each.dims]
    assert [tuple(each.dims) for each in floats] == [(ROWS, 2)]


def test_a_last_block_that_is_not_filled_has_its_own_copy(tmp_path: Path) -> None:
    model = tied(72)
    RoundActivations()(model)
    expected = evaluate(model, {"ids": IDS})["y"]
    assert sorted(large(lowered(model, tmp_path))) == [(ROWS, 2, 64), (ROWS, 72)]
    found = BACKEND.open_artifact(tmp_path / "model.onnx", threads=1).run({"ids": IDS})["y"]
    np.testing.assert_allclose(found, expected, rtol=0, atol=2e-6 * np.abs(expected).max())


@pytest.mark.parametrize("channels", [128, 72])
def test_with_float_activations_the_file_has_one_copy(channels: int, tmp_path: Path) -> None:
    """What the head multiplies by is computed when the file is loaded: there is no kernel of 8 bits for it."""
    assert large(lowered(tied(channels), tmp_path)) == [(ROWS, channels)]
    weight = rounded(channels)
    expected = np.tanh(weight[IDS]) @ weight.T
    found = BACKEND.open_artifact(tmp_path / "model.onnx", threads=1).run({"ids": IDS})["y"]
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-5 * np.abs(expected).max())
    assert large(optimized(tmp_path / "model.onnx")).count((ROWS, channels)) == 1


def test_in_4_bits_there_is_a_kernel_for_float_activations_too(tmp_path: Path) -> None:
    model = tied(head=GroupScheme(4, 64))
    assert large(lowered(model, tmp_path)) == [(ROWS, 2, 32)]
    weight = rounded(bits=4)
    expected = np.tanh(weight[IDS]) @ weight.T
    found = BACKEND.open_artifact(tmp_path / "model.onnx", threads=1).run({"ids": IDS})["y"]
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-5 * np.abs(expected).max())
    assert large(optimized(tmp_path / "model.onnx")) == [(ROWS, 2, 32)]
