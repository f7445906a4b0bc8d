from __future__ import annotations

import numpy as np
import pytest

from qcompile.backends.onnxruntime.norms import keep_residual_additions
from tests.backends.onnxruntime.rewrites import check, refuses
from tests.backends.portable import parse

TEXT = """(float[N,8] x, float[N,8] r) => (float[N,8] y)
{
    h = Add (x, r)
    y = LayerNormalization <axis = -1> (h, g, b)
}"""
WEIGHTS = {"g": np.linspace(0.5, 2, 8, dtype=np.float32), "b": np.linspace(-1, 1, 8, dtype=np.float32)}
FEED = {name: np.random.default_rng(0).standard_normal((3, 8)).astype(np.float32) for name in "xr"}


def test_addition_survives_the_optimizations_of_the_runtime() -> None:
    check(parse(TEXT, **WEIGHTS), FEED, {"Sum": 1, "LayerNormalization": 1}, keep_residual_additions)


@pytest.mark.parametrize(
    "text",
    [
        TEXT.replace("y = LayerNormalization <axis = -1> (h, g, b)", "y = Mul (h, g)"),
        TEXT.replace("h = Add", "h = Mul"),
        TEXT.replace("float[", "double["),
    ],
    ids=["no norm", "no addition", "float64"],
)
def test_refuses(text: str) -> None:
    weights = {name: array.astype(np.float64) if "double" in text else array for name, array in WEIGHTS.items()}
    refuses(parse(text, **weights), keep_residual_additions)
