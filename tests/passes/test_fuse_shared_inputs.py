"""FuseSharedInputs: linears of one value become one, and nothing changes."""

from __future__ import annotations

import pytest

from qcompile.passes.fuse_shared_inputs import FuseSharedInputs

HEADER = '<ir_version: 10, opset_import: ["" : 23]>'
WEIGHTS = (
    "<float[2, 3] w = {1, 2, 3, 4, 5, 6}, float[2, 2] v = {-1, 2, -3, 4}, float[3] a = {7, 8, 9}, float[2] b = {1, 2}>"
)


def model(body: str, outputs: str = "float[n, 3] p, float[n, 2] q") -> str:
    return f"{HEADER}\ng (float[n, 2] x) => ({outputs}) {WEIGHTS} {{ {body} }}"


WITH_BIAS = "s = MatMul(x, w) s2 = Add(s, a) t = MatMul(x, v) t2 = Add(t, b) p = Relu(s2) q = Relu(t2)"
WITHOUT_BIAS = "s = MatMul(x, w) t = MatMul(x, v) p = Relu(s) q = Relu(t)"


@pytest.mark.parametrize(
    ("body", "operators"),
    [
        (WITH_BIAS, ["MatMul", "Add", "Split", "Relu", "Relu"]),
        (WITHOUT_BIAS, ["MatMul", "Split", "Relu", "Relu"]),
    ],
)
def test_joins(rewrite, body, operators):
    result = rewrite(model(body), FuseSharedInputs())
    assert result.operators == operators
    assert [finding.action for finding in result.findings] == ["fused", "fused"]
    assert {tuple(value.shape) for value in result.model.graph.initializers.values() if len(value.shape) == 2} == {
        (2, 5)
    }


@pytest.mark.parametrize(
    ("body", "outputs"),
    [
        ("s = MatMul(x, w) s2 = Add(s, a) t = MatMul(x, v) p = Relu(s2) q = Relu(t)", "float[n, 3] p, float[n, 2] q"),
        ("p = MatMul(x, w) t = MatMul(x, v) q = Relu(t)", "float[n, 3] p, float[n, 2] q"),
        ("s = MatMul(x, w) t = MatMul(x, w) p = Relu(s) q = Relu(t)", "float[n, 3] p, float[n, 3] q"),
        ("r = Relu(x) s = MatMul(x, w) t = MatMul(r, v) p = Relu(s) q = Relu(t)", "float[n, 3] p, float[n, 2] q"),
    ],
    ids=["only one has a bias", "an output of the graph", "tied weights", "different inputs"],
)
def test_refusals(rewrite, body, outputs):
    assert not rewrite(model(body, outputs), FuseSharedInputs()).modified


def test_joined_width_is_limited(rewrite):
    assert not rewrite(model(WITHOUT_BIAS), FuseSharedInputs(max_out_features=4)).modified


def test_ignored_linears_are_left_alone(rewrite):
    result = rewrite(model(WITHOUT_BIAS), FuseSharedInputs(ignore=frozenset({"s"})))
    assert not result.modified
