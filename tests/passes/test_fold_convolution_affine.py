from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest

from qcompile.passes.fold_convolution_affine import FoldConvolutionAffine

TEXT = """
<ir_version: 10, opset_import: ["" : {opset}]>
g (float[2, 2, 5, 5] x, bool[1] pick) => (float[2, N, H, W] y{extra})
<float[3, 2, 3, 3] w = {{{numbers}}}, float[2, 3, 3, 3] v = {{{numbers}}},
 float[3] b = {{0.5, -1, 2}}, float[3] g = {{2, -1, 0.5}},
 float[3] m = {{1, 0, -2}},
 float[3] s = {{1, 4, 0.25}}, float k = {{1.5}}, float zero = {{0}},
 float[3, 1, 1] c = {{3, -2, 0.5}}, float[1, 3, 1, 1] d = {{1, 2, 3}},
 float[3] row = {{1, 2, 3}}, float[2, 1, 1, 1] batch = {{1, 2}}, float huge = {{1e20}}> {{ {body} }}
"""
CONV, TRANSPOSE = "t = Conv <pads = [1, 1, 1, 1]> (x, w, b)", "t = ConvTranspose(x, v, b)"


def text(body: str, extra: str = "", opset: int = 23) -> str:
    """The model with random weights."""
    numbers = ", ".join(f"{number:.4f}" for number in np.random.default_rng(0).normal(size=54))
    return TEXT.format(body=body, extra=extra, numbers=numbers, opset=opset)


@pytest.mark.parametrize(
    ("body", "operator"),
    [
        (f"{CONV} y = BatchNormalization(t, g, b, m, s)", "Conv"),
        (f"{TRANSPOSE} y = BatchNormalization <epsilon = 0.1> (t, g, b, m, s)", "ConvTranspose"),
        ("t = Conv(x, w) y = BatchNormalization(t, g, b, m, s)", "Conv"),
        (f"{CONV} u = Mul(t, k) y = Add(u, c)", "Conv"),
        (f"{CONV} u = Mul(c, t) y = Sub(d, u)", "Conv"),
        (f"{TRANSPOSE} u = Div(t, c) y = Sub(u, k)", "ConvTranspose"),
        (f"{CONV} u = BatchNormalization(t, g, b, m, s) o = Mul(u, zero) y = Add(k, o)", "Conv"),
    ],
)
def test_whole_chain_goes_into_weight_and_bias(rewrite, body: str, operator: str) -> None:
    result = rewrite(text(body), FoldConvolutionAffine())
    assert result.operators == [operator]
    assert all(finding.action == "folded" for finding in result.findings)


def test_constants_that_nothing_reads_any_more_go(rewrite) -> None:
    result = rewrite(text(f"{CONV} y = BatchNormalization(t, g, b, m, s)"), FoldConvolutionAffine())
    assert not {"g", "b", "m", "s"} & set(result.model.graph.initializers)


def test_weight_of_two_convolutions_changes_for_one_of_them(rewrite) -> None:
    body = "t = Conv(x, w, b) u = Mul(t, c) r = Conv(x, w, b) y = Concat <axis = 1> (u, r)"
    assert rewrite(text(body), FoldConvolutionAffine()).operators == ["Conv", "Conv", "Concat"]


def test_chain_ends_where_the_user_reads(rewrite) -> None:
    result = rewrite(text(f"{CONV} u = Mul(t, k) y = Add(u, c)", ", float[2, N, H, W] u"), FoldConvolutionAffine())
    assert result.operators == ["Conv", "Add"]


@pytest.mark.parametrize("extra", [", float[3, 2, 3, 3] w", ", float[3] b", ", float k"])
def test_constants_that_the_user_reads_stay(rewrite, extra: str) -> None:
    assert rewrite(text(f"{CONV} y = Mul(t, k)", extra), FoldConvolutionAffine()).operators == ["Conv"]


def test_node_in_a_branch_stays(rewrite) -> None:
    body = f"""{CONV} y = If (pick) <
        then_branch = then () => (float[2, 3, 5, 5] r) {{ r = Mul(t, k) }},
        else_branch = other () => (float[2, 3, 3, 3] o) {{ o = Conv(x, w) }}
    >"""
    assert not rewrite(text(body), FoldConvolutionAffine()).modified


@pytest.mark.parametrize(
    ("layer", "name", "change"),
    [
        ("t = Conv(x, w)", "w", np.abs),
        ("t = Conv(x, w)", "w", lambda array: -np.abs(array)),
        ("t = ConvTranspose(x, v)", "v", np.abs),
        (CONV, "w", np.zeros_like),
    ],
    ids=["weight above", "weight below", "transposed weight", "bias"],
)
def test_chain_ends_where_a_constant_would_not_be_finite(layer: str, name: str, change) -> None:
    model = ir.from_onnx_text(text(f"{layer} u = Mul(t, huge) o = Mul(u, huge) y = Mul(o, k)"))
    constants = model.graph.initializers
    constants[name].const_value = ir.tensor(change(constants[name].const_value.numpy()), name=name)
    assert len(FoldConvolutionAffine()(model).findings) == 1
    assert [node.op_type for node in model.graph][1:] == ["Mul", "Mul"]
    assert all(np.all(np.isfinite(value.const_value.numpy())) for value in constants.values())


def test_training_mode_of_old_opsets_stays() -> None:
    body = f"{CONV} y, p, r, e, f = BatchNormalization(t, g, b, m, s)"
    assert not FoldConvolutionAffine()(ir.from_onnx_text(text(body, opset=13))).modified


@pytest.mark.parametrize(
    "body",
    [
        f"{CONV} y = Mul(t, row)",
        f"{CONV} y = Mul(t, batch)",
        f"{CONV} y = Div(k, t)",
        f"{CONV} y = Div(t, zero)",
        f"{CONV} y = Mul(t, t)",
        f"{CONV} u = Mul(t, k) y = Add(u, t)",
        f"{CONV} y, p, q = BatchNormalization <training_mode = 1> (t, g, b, m, s)",
        "i = ConvTranspose <group = 2> (x, v) o = Mul(i, k) y = Relu(o)",
        "h = Mul(b, k) i = Conv(x, w, h) y = Mul(i, k)",
    ],
    ids=[
        "last axis", "batch axis", "reciprocal", "division by zero", "square", "second reader", "training mode",
        "grouped ConvTranspose", "computed bias",
    ],
)  # fmt: skip
def test_what_is_not_affine_per_channel_stays(body: str) -> None:
    assert not FoldConvolutionAffine()(ir.from_onnx_text(text(body))).modified
