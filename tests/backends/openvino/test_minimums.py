"""Minimums of blocks stay float32 where a model runs in bfloat16."""

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
"""In bfloat16 exactly; the sum of each block is 32."""

MINIMUM = np.repeat(np.array([[1 + 2**-9], [-1]], np.float32), 16, axis=1)
"""Of the first block next to 1, which bfloat16 makes of it."""


def lowered(sums_of: str, folder: Path) -> Path:
    """A linear whose integers are 0, and the product of the minimums with the sums of blocks of a value."""
    model = parse(
        f"(float[N,S,{INPUTS}] x) => (float[N,S,16] y) {{"
        " other = Sqrt (x)"
        " w = DequantizeLinear <axis = 0, block_size = 32> (integers, scale)"
        f" product = MatMul (x, w) blocks = Reshape ({sums_of}, shape) sums = ReduceSum <keepdims = 0> (blocks, last)"
        " of_minimum = MatMul (sums, minimum) y = Add (product, of_minimum) }",
        integers=np.zeros((INPUTS, 16), ml_dtypes.int4),
        scale=np.ones((BLOCKS, 16), np.float32),
        shape=np.array([0, 0, BLOCKS, -1]),
        last=np.array([-1]),
        minimum=MINIMUM,
    )
    return folder / BACKEND.lower(model, folder, target=None).model_file


def test_minimums_are_not_rounded_to_bfloat16(tmp_path: Path) -> None:
    session = BACKEND.open_artifact(lowered("x", tmp_path), precision="bf16")
    np.testing.assert_array_equal(session.run({"x": X})["y"], X[..., :1].repeat(16, -1) * 32 * 2**-9)


def test_products_of_other_sums_run_as_the_model_does(tmp_path: Path) -> None:
    if "BF16" not in runtime.core().get_property(DEVICE, "OPTIMIZATION_CAPABILITIES"):
        pytest.skip("this CPU has no bfloat16")
    session = BACKEND.open_artifact(lowered("other", tmp_path), precision="bf16")
    np.testing.assert_array_equal(session.run({"x": X})["y"], np.zeros((1, 1, 16)))
