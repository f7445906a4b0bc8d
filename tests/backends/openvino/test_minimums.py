"""Minimums of blocks stay float32 where a model runs in bfloat16, and the sums they are multiplied by are over rows."""

from __future__ import annotations

from pathlib import Path

import ml_dtypes
import numpy as np
import pytest

pytest.importorskip("openvino")

from qcompile.backends.openvino import BACKEND, runtime
from qcompile.backends.openvino.session import DEVICE
from tests.backends.portable import parse

BLOCKS = 2
INPUTS = 32 * BLOCKS
X = np.ones((1, 1, INPUTS), np.float32)
X[..., :8] += 2**-7
"""In bfloat16 exactly; the sums of the blocks are 32 + 1/16, which bfloat16 makes 32, and 32."""

MINIMUM = np.repeat(np.array([[1 + 2**-9], [-1]], np.float32), 16, axis=1)
"""Of the first block next to 1, which bfloat16 makes of it."""


def lowered(sums_of: str, folder: Path, lead: tuple[str, ...] = ("N", "S")) -> Path:
    """A linear whose integers are 0, and the product of the minimums with the sums of blocks of a value."""
    axes = "".join(f"{axis}," for axis in lead)
    model = parse(
        f"(float[{axes}{INPUTS}] x) => (float[{axes}16] y) {{"
        " other = Sqrt (x)"
        " w = DequantizeLinear <axis = 0, block_size = 32> (integers, scale)"
        f" product = MatMul (x, w) blocks = Reshape ({sums_of}, shape) sums = ReduceSum <keepdims = 0> (blocks, last)"
        " of_minimum = MatMul (sums, minimum) y = Add (product, of_minimum) }",
        integers=np.zeros((INPUTS, 16), ml_dtypes.int4),
        scale=np.ones((BLOCKS, 16), np.float32),
        shape=np.array([*(0 for _ in lead), BLOCKS, -1]),
        last=np.array([-1]),
        minimum=MINIMUM,
    )
    return folder / BACKEND.lower(model, folder, target=None).model_file


def test_minimums_are_not_rounded_to_bfloat16(tmp_path: Path) -> None:
    session = BACKEND.open_artifact(lowered("x", tmp_path), precision="bf16")
    in_bfloat16 = np.full(
        (1, 1, 16), 1 / 8
    )  # where the result itself is rounded: 1/16 of each, the sum and the minimum
    np.testing.assert_allclose(session.run({"x": X})["y"], in_bfloat16, rtol=2**-9)


def test_products_of_other_sums_run_as_the_model_does(tmp_path: Path) -> None:
    if "BF16" not in runtime.core().get_property(DEVICE, "OPTIMIZATION_CAPABILITIES"):
        pytest.skip("this CPU has no bfloat16")
    session = BACKEND.open_artifact(lowered("other", tmp_path), precision="bf16")
    np.testing.assert_array_equal(session.run({"x": np.ones_like(X)})["y"], np.zeros((1, 1, 16)))


@pytest.mark.parametrize("lead", [("N",), ("N", "S"), ("N", "M", "S")])
def test_sums_are_over_rows_of_one_block(lead: tuple[str, ...], tmp_path: Path) -> None:
    session = BACKEND.open_artifact(lowered("x", tmp_path, lead))
    shapes = {
        node.input_value(0).get_partial_shape().to_string()
        for node in session.compiled.get_runtime_model().get_ordered_ops()
        if node.get_rt_info()["layerType"].astype(str) == "Reduce"
    }
    assert shapes == {f"[{','.join('?' * len(lead))},32]"}
    x = np.random.default_rng(2).standard_normal((*(5, 1, 3)[: len(lead)], INPUTS)).astype(np.float32)
    expected = x.reshape(*x.shape[:-1], BLOCKS, -1).sum(-1) @ MINIMUM
    np.testing.assert_allclose(session.run({"x": x})["y"], expected, rtol=0, atol=1e-5)


def test_a_vector_is_summed_as_it_stands(tmp_path: Path) -> None:
    session = BACKEND.open_artifact(lowered("x", tmp_path, ()))
    x = np.arange(INPUTS, dtype=np.float32)
    np.testing.assert_allclose(session.run({"x": x})["y"], x.reshape(BLOCKS, -1).sum(-1) @ MINIMUM, rtol=1e-6)
