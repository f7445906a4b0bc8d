"""The inlier and the outlier product of a split linear are one kernel."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest

pytest.importorskip("triton")

from tests.backends.portable import PER_TOKEN, parse, weight
from tests.backends.triton.rewritten import check_same, kernels, operators

RANDOM = np.random.default_rng(0)
X = RANDOM.normal(size=(2, 3, 32)).astype(np.float32) * np.where(np.isin(np.arange(32), (3, 30)), 50, 1)
X = X.astype(np.float32)


def model(*, mask: float = 0, axis: int = -1, behind: str = "", quantize: str = "") -> ir.Model:
    parts = weight(RANDOM, (32, 24), 1)
    parts["w"][[3, 30]] = 0
    masks = np.ones(32, np.float32)
    masks[[3, 30]] = mask
    return parse(
        f"""(float[N,S,32] x) => (float[N,S,24] y)
        {{
            i = Mul (x, mask)
            {quantize or "d = qcompile.QuantizeDequantizePerToken (i)"}
            f = DequantizeLinear <axis = 1> (w, ws, wz)
            m = MatMul (d, f)
            a = Add (m, b)
            o = Gather <axis = {axis}> (x, channels)
            p = MatMul (o, rows)
            {behind or "y = Add (a, p)"}
        }}""",
        PER_TOKEN,
        mask=masks,
        b=RANDOM.normal(size=24).astype(np.float32),
        channels=np.array([3, -2]),
        rows=RANDOM.normal(size=(2, 24)).astype(np.float32),
        **parts,
    )


@pytest.mark.parametrize("axis", [-1, 2])
@pytest.mark.parametrize("behind", ["", "y = Add (p, a)"])
def test_both_products_are_one(axis: int, behind: str) -> None:
    given = model(axis=axis, behind=behind)
    check_same(given, {"x": X})
    assert operators(given) == {"QuantizeTokens": 1, "OutlierLinear": 1}


def test_a_mask_that_scales_stays() -> None:
    given = model(mask=0.5)
    check_same(given, {"x": X})
    assert operators(given) == {"Mul": 1, "QuantizeTokens": 1, "OutlierLinear": 1}


@pytest.mark.parametrize("behind", ["s = Add (a, p)\n y = Add (s, p)", "s = Add (a, p)\n y = Add (s, a)"])
def test_a_product_that_is_read_elsewhere_stays(behind: str) -> None:
    given = model(behind=behind)
    check_same(given, {"x": X})
    assert kernels(given) == {"QuantizeTokens": 1, "IntegerLinear": 1}


def test_integers_with_a_zero_point_stay() -> None:
    given = model(quantize="q, t, z = DynamicQuantizeLinear (i)\n d = DequantizeLinear (q, t, z)")
    check_same(given, {"x": X})
    assert kernels(given) == {"IntegerLinear": 1}


def test_outliers_of_another_value_stay() -> None:
    """One row for all: in the sum it broadcasts, which the kernel's rows do not."""
    given = model()
    gather = next(node for node in given.graph if node.op_type == "Gather")
    other = ir.val("other", ir.DataType.FLOAT, [1, 1, X.shape[-1]])
    given.graph.inputs.append(other)
    gather.replace_input_with(0, other)
    check_same(given, {"x": X, "other": X[:1, :1]})
    assert "OutlierLinear" not in operators(given)
