"""Models that cast floats to positions, as relative attention does, are compared: from the runtime's own floats."""

from __future__ import annotations

import numpy as np
import pytest

import qcompile
from tests.backends.portable import parse

WIDTH, LENGTH = 32, 24

BUCKETS = (
    "n = Shape<start = 1, end = 2>(x) v = Squeeze(n) i = Range(no, v, one) r = Unsqueeze(i, a1) c = Unsqueeze(i, a0) "
    "d = Sub(r, c) p = Abs(d) f = Cast<to = 1>(p) g = Div(f, four) l = Log(g) m = Mul(l, slope) b = Cast<to = 7>(m) "
    "e = Add(b, four_) u = Min(e, last) near = Less(p, four_) k = Where(near, p, u) t = Gather(table, k) "
    "h = MatMul(x, w) s = Add(h, t) y = MatMul(s, z)"
)
"""The buckets of distances of T5: by number up to 4, by logarithm beyond; of each a bias."""


@pytest.mark.parametrize("backend", ["onnxruntime", "openvino"])
@pytest.mark.parametrize("recipe", ["w8a8-static", "w8a8-dynamic"])
def test_buckets_of_distances_are_compared(recipe: str, backend: str) -> None:
    random = np.random.default_rng(0)
    model = parse(
        f"(float[n, s, {WIDTH}] x) => (float[n, s, s] y) {{ {BUCKETS} }}",
        no=np.int64(0),
        one=np.int64(1),
        a0=np.array([0]),
        a1=np.array([1]),
        four=np.float32(4),
        four_=np.int64(4),
        last=np.int64(7),
        slope=np.float32(3 / np.log(6)),
        table=random.normal(size=(8)).astype(np.float32),
        w=random.normal(size=(WIDTH, LENGTH)).astype(np.float32),
        z=random.normal(size=(LENGTH, LENGTH)).astype(np.float32),
    )
    data = [{"x": random.normal(size=(1, LENGTH, WIDTH)).astype(np.float32)} for _ in range(2)]
    report = qcompile.compile(model, recipe, backend=backend, calibration=data, tune="none").report
    assert report.not_compared == ""
    for agreement in report.agreements:
        assert "m" in agreement.values
        assert agreement.max_steps <= 1
        assert agreement.left_out == ()
