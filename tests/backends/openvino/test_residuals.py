from __future__ import annotations

import numpy as np
import pytest

pytest.importorskip("openvino")

from qcompile.backends.openvino.residuals import split_norm_branches
from tests.backends.openvino.graphs import converted, kernels, operators, run
from tests.backends.portable import Case, activation, parse, weight

NORM = "n = LayerNormalization <axis = -1, epsilon = 0.00001> (x, gain, shift)"
LINEAR = """
    q = QuantizeLinear ({source}, s, z)
    d = DequantizeLinear (q, s, z)
    f = DequantizeLinear <axis = 1> (w, ws, wz)
    m = MatMul (d, f)
    a = Add (m, b)
"""


def block(source: str = "n", residual: str = "y = Add (a, n)", extra: str = "") -> Case:
    rng = np.random.default_rng(0)
    model = parse(
        f"(float[N,S,32] x) => (float[N,S,32] y) {{ {NORM}\n{extra}\n{LINEAR.format(source=source)}\n{residual} }}",
        **weight(rng, (32, 32), 1),
        **activation("uint8", sym=False),
        gain=rng.standard_normal(32).astype(np.float32),
        shift=rng.standard_normal(32).astype(np.float32),
        b=rng.standard_normal(32).astype(np.float32),
        c=rng.uniform(0.5, 2, 32).astype(np.float32),
    )
    return Case(model, {"x": rng.standard_normal((2, 5, 32)).astype(np.float32)}, step=np.asarray(0.03 * 1.27))


@pytest.mark.parametrize(
    "case",
    [
        block(),
        block(residual="y = Add (n, a)"),
        block("k", extra="k = Mul (n, c)"),
        block("k", extra="k = Mul (c, n)"),
    ],
)
def test_norm_is_merged_with_each_of_its_readers(case: Case) -> None:
    plain, result = converted(case.model), converted(case.model)
    split_norm_branches(result)
    np.testing.assert_allclose(run(result, case.feed)["y"], run(plain, case.feed)["y"], rtol=0, atol=case.step)
    counts = operators(result)
    # Counted by the plugin: the affine part was a kernel of its own, and the FakeQuantize or its factor another.
    assert kernels(result)["Eltwise"] + kernels(result)["FakeQuantize"] == 2
    assert kernels(plain)["Eltwise"] + kernels(plain)["FakeQuantize"] == 3
    split_norm_branches(result)
    assert operators(result) == counts


@pytest.mark.parametrize(
    "case",
    [
        block(residual="y = Relu (a)"),
        block("x", residual="y = Add (a, n)"),
        block(residual="y = Add (m, n)", extra=""),
        block("k", extra="k = Mul (n, c)\n o = Relu (k)", residual="r = Add (a, n)\n y = Add (r, o)"),
    ],
)
def test_nothing_to_split(case: Case) -> None:
    result = converted(case.model)
    before = operators(result)
    split_norm_branches(result)
    assert operators(result) == before
