"""What linears lack: the difference to float of what they write, behind layers that are quantized already."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest

from qcompile.backends import get
from qcompile.calibration import Calibrator
from qcompile.calibration_targets import asymmetric_statistics
from qcompile.graph import linears
from qcompile.passes.observe_channels import ObserveChannels
from tests.passes.quantizable import parse, run

# The second linear goes into the residual stream; the third, as no sum of one shape, stands for itself.
TEXT = """g (float[n, 8] x) => (float[n, 8] y) {
    a = MatMul(x, w) h = Add(x, a) r = Relu(h) b = MatMul(r, v) s = Add(h, b) c = MatMul(s, u) y = Mul(c, c)
}"""
RNG = np.random.default_rng(0)
W, V, U = (RNG.normal(size=(8, 8)).astype(np.float32) for _ in range(3))
X = RNG.normal(size=(5000, 8)).astype(np.float32)


def data(feeds: list[dict[str, np.ndarray]]) -> Calibrator:
    return Calibrator(feeds, ObserveChannels, get("onnxruntime").open_session)


def rounded(weight: np.ndarray) -> np.ndarray:
    return np.round(weight * 2) / 2


def replace(model: ir.Model, name: str) -> None:
    value = model.graph.initializers[name]
    value.const_value = ir.tensor(rounded(value.const_value.numpy()), name=name)


def masked_attention(second: str) -> ir.Model:
    """Two linears, of which the second makes q of h, and an attention that leaves padding out."""
    return parse(
        f"""g (float[b, s, 8] x, int64[b, s] mask) => (float[b, s, 8] y) {{
            a = MatMul(x, w) h = Relu(a) {second} t = Transpose <perm = [0, 2, 1]> (q) scores = MatMul(q, t)
            float_mask = Cast <to = 1> (mask) off = Sub (one, float_mask) far = Mul (off, low)
            wide = Unsqueeze (far, axes) masked = Add (scores, wide) p = Softmax <axis = -1> (masked) y = MatMul (p, h)
        }}""",
        w=W,
        v=V,
        one=np.float32(1),
        low=np.float32(-10000),
        axes=np.array([1]),
    )


def test_a_linear_lacks_what_stands_in_front_of_it_took_away() -> None:
    model = parse(TEXT, w=W, v=V, u=U)
    exact = model.clone()
    # Two samples: thousands of rows are multiplied at a time.
    calibrator = data([{"x": X[:4500]}, {"x": X[4500:]}])
    found = {}
    for part in asymmetric_statistics(calibrator, model, exact, linears(model)):
        (linear,) = part.layers
        found[linear.weight.name] = part.lacks[linear.matmul], part.of(linear.x).gram
        replace(model, str(linear.weight.name))
    h, was = X + X @ rounded(W), X + X @ W
    r, wanted = np.maximum(h, 0), was + np.maximum(was, 0) @ V
    s = h + r @ rounded(V)
    expected = {
        "w": (X, np.zeros_like(X)),
        "v": (r, wanted - (h + r @ V)),
        "u": (s, wanted @ U - s @ U),
    }
    for name, (read, lacks) in expected.items():
        np.testing.assert_allclose(found[name][0], read.T @ lacks / len(X), atol=1e-4, err_msg=name)
        np.testing.assert_allclose(found[name][1], read.T @ read / len(X), atol=1e-4, err_msg=name)
    np.testing.assert_allclose(run(exact, X[:9]), np.square(wanted @ U)[:9], rtol=1e-3)  # the copy stays float


@pytest.mark.parametrize("rows", ["n", "1", "m"])
def test_a_sum_of_other_shapes_is_not_what_a_linear_makes_up_for(rows: str) -> None:
    """Of x + a @ w, where a has one row for all rows of x, or nobody knows how many, the product stands for itself."""
    model = parse(
        f"g (float[n, 8] x, float[{rows}, 8] a) => (float[n, 8] y)"
        "{ r = MatMul(a, w) p = MatMul(r, v) y = Add(x, p) }",
        w=W,
        v=V,
    )
    exact = model.clone()
    a = X[:20] if rows == "n" else X[:1]
    calibrator = data([{"x": X[:20], "a": a}])
    parts = asymmetric_statistics(calibrator, model, exact, linears(model))
    next(parts)
    replace(model, "w")
    (found,) = next(parts).lacks.values()
    r = a @ rounded(W)
    np.testing.assert_allclose(found, r.T @ ((a @ W - r) @ V) / len(a), atol=1e-4)


def test_linears_of_one_value_come_together() -> None:
    model = parse(
        "g (float[n, 8] x) => (float[n, 8] y) { a = MatMul(x, w) b = MatMul(x, v) c = Mul(a, b) y = MatMul(c, u) }",
        w=W,
        v=V,
        u=U,
    )
    parts = list(asymmetric_statistics(data([{"x": X}]), model, model.clone(), linears(model)))
    assert [[linear.weight.name for linear in part.layers] for part in parts] == [["w", "v"], ["u"]]
    for part in parts:
        assert set(part.lacks) == {linear.matmul for linear in part.layers}


@pytest.mark.parametrize("padded", [True, False])
def test_padding_counts_for_nothing(padded: bool) -> None:
    """Rows behind the mask would say that everything is lacking."""
    model = masked_attention("q = MatMul(h, v)")
    exact = model.clone()
    x = X[:24].reshape(2, 12, 8).copy()
    mask = np.ones((2, 12), np.int64)
    if padded:
        mask[:, 9:] = 0
        x[:, 9:] = 1000
    rows = x[mask == 1]
    parts = asymmetric_statistics(data([{"x": x, "mask": mask}]), model, exact, linears(model))
    next(parts)
    replace(model, "w")
    second = next(parts)
    h = np.maximum(rows @ rounded(W), 0)
    expected = h.T @ ((np.maximum(rows @ W, 0) - h) @ V) / len(rows)
    (found,) = second.lacks.values()
    np.testing.assert_allclose(found, expected, atol=1e-4)


def test_padding_of_other_layouts_leaves_nothing_to_make_up_for() -> None:
    """Of x [sequence, batch, ..] the second moments leave padding out; what is lacking is not said."""
    turn = "Transpose <perm = [1, 0, 2]>"
    model = masked_attention(f"n = {turn} (h) m = MatMul(n, v) q = {turn} (m)")
    mask = np.ones((2, 12), np.int64)
    mask[:, 9:] = 0
    parts = list(
        asymmetric_statistics(
            data([{"x": X[:24].reshape(2, 12, 8), "mask": mask}]), model, model.clone(), linears(model)
        )
    )
    assert [len(part.lacks) for part in parts] == [1, 0]


def test_one_of_several_linears_into_one_sum_makes_up_for_all_and_tied_weights_for_nothing() -> None:
    model = parse("g (float[n, 8] x) => (float[n, 8] y) { a = MatMul(x, w) b = MatMul(x, v) y = Add(a, b) }", w=W, v=V)
    (part,) = asymmetric_statistics(data([{"x": X}]), model, model.clone(), linears(model))
    assert list(part.lacks) == [linears(model)[0].matmul]
    tied = parse("g (float[n, 8] x) => (float[n, 8] y) { a = MatMul(x, w) r = Relu(a) y = MatMul(r, w) }", w=W)
    parts = list(asymmetric_statistics(data([{"x": X}]), tied, tied.clone(), linears(tied)))
    assert [len(part.lacks) for part in parts] == [0, 0]


def test_rows_that_data_choose_leave_nothing_to_make_up_for() -> None:
    """The rounded model sends other rows on than float does; none at all may be sent."""
    model = parse(
        """g (float[n, 8] x) => (float[k, 8] y) {
            a = MatMul(x, w) first = Gather <axis = 1> (a, zero) on = Greater (first, most) at = NonZero (on)
            places = Squeeze (at, zeros) r = Gather (a, places) y = MatMul (r, v)
        }""",
        w=W,
        v=V,
        zero=np.array(0),
        zeros=np.array([0]),
        most=np.float32(0),
    )
    exact = model.clone()
    parts = asymmetric_statistics(
        data([{"x": X[:200]}, {"x": np.zeros((3, 8), np.float32)}]), model, exact, linears(model)
    )
    next(parts)
    replace(model, "w")
    assert next(parts).lacks == {}
