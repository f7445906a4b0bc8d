"""A norm whose result alone is quantized for each token is one kernel with the quantization."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest

pytest.importorskip("triton")

from tests.backends.portable import PER_TOKEN, parse, weight
from tests.backends.triton.rewritten import check_same, kernels

RANDOM = np.random.default_rng(0)
X = RANDOM.normal(size=(2, 3, 32)).astype(np.float32)
NORMS = {
    "RMSNormQuantize": "n = RMSNormalization <axis = -1, epsilon = 0.01> (x, g)",
    "LayerNormQuantize": "n = LayerNormalization <axis = 2, epsilon = 0.01> (x, g, b)",
}


def model(norm: str, outputs: str = "", behind: str = "", shape: tuple[int, ...] = (32,)) -> ir.Model:
    parts = {f"{name}{layer}": array for layer in "12" for name, array in weight(RANDOM, (32, 24), 1).items()}
    extra = {"b": RANDOM.normal(size=shape).astype(np.float32)} if "b)" in norm else {}
    return parse(
        f"""(float[N,S,32] x) => (float[N,S,24] y, float[N,S,24] v{outputs})
        {{
            {norm}
            d = qcompile.QuantizeDequantizePerToken (n)
            f = DequantizeLinear <axis = 1> (w1, ws1, wz1)
            y = MatMul (d, f)
            h = DequantizeLinear <axis = 1> (w2, ws2, wz2)
            v = MatMul (d, h)
            {behind}
        }}""",
        PER_TOKEN,
        g=np.exp(RANDOM.normal(size=shape)).astype(np.float32),
        **extra,
        **parts,
    )


@pytest.mark.parametrize("kernel", NORMS)
def test_both_are_one_kernel_for_all_that_read_it(kernel: str) -> None:
    given = model(NORMS[kernel])
    check_same(given, {"x": X})
    assert kernels(given) == {kernel: 1, "IntegerLinear": 1}


@pytest.mark.parametrize(
    ("norm", "outputs", "behind"),
    [
        (NORMS["RMSNormQuantize"], ", float[N,S,32] r", "r = Relu (n)"),
        (NORMS["RMSNormQuantize"], ", float[N,S,32] n", ""),
        ("n = Relu (x)\n u = Neg (g)", "", ""),
    ],
)
def test_what_else_reads_the_norm_keeps_it(norm: str, outputs: str, behind: str) -> None:
    given = model(norm, outputs, behind)
    check_same(given, {"x": X})
    assert kernels(given) == {"QuantizeTokens": 1, "IntegerLinear": 1}


@pytest.mark.parametrize(("axis", "shape"), [(1, (3, 32)), (-1, ()), (-1, (1,))])
def test_a_norm_of_more_than_channels_stays(axis: int, shape: tuple[int, ...]) -> None:
    given = model(f"n = LayerNormalization <axis = {axis}> (x, g, b)", shape=shape)
    check_same(given, {"x": X})
    assert kernels(given) == {"QuantizeTokens": 1, "IntegerLinear": 1}
