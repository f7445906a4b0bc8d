from __future__ import annotations

import pytest

from qcompile.passes.unflatten_softmax import UnflattenSoftmax

TEXT = """
<ir_version: 10, opset_import: ["" : 20]> g (float[B, 2, 4] x) => (float[B, 2, 4] y)
{{ s = Shape(x) f = Flatten<axis = {axis}>(x) p = Softmax<axis = {over}>(f) y = Reshape(p, s) }}
"""


def test_softmax_over_the_last_axis_alone(rewrite) -> None:
    assert rewrite(TEXT.format(axis=2, over=-1), UnflattenSoftmax()).operators == ["Softmax"]


@pytest.mark.parametrize(("axis", "over"), [(1, -1), (2, 0)])
def test_refusals(rewrite, axis: int, over: int) -> None:
    assert not rewrite(TEXT.format(axis=axis, over=over), UnflattenSoftmax()).modified
