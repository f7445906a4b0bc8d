"""A product with an activation is one kernel, with the quantization of each token behind it where there is one."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest

pytest.importorskip("triton")

from qcompile.backends.triton.lowering import fused
from qcompile.backends.triton.products import alike
from tests.backends.portable import PER_TOKEN, parse, weight
from tests.backends.triton.rewritten import expect, quantized_linear

RANDOM = np.random.default_rng(0)
FEED = {name: RANDOM.normal(size=(2, 3, 32)).astype(np.float32) for name in ("g", "u")}
SILU = "h = Sigmoid (g) a = Mul (g, h)"
ACTIVATIONS = {
    SILU: "silu",
    "h = Sigmoid (g) a = Mul (h, g)": "silu",
    "a = Swish (g)": "silu",
    "a = Gelu (g)": "gelu",
    'a = Gelu <approximate = "tanh"> (g)': "gelu_tanh",
    "a = Relu (g)": "relu",
}
PRODUCT = "p = Mul (a, u)"
QUANTIZED = quantized_linear("p")
ALIKE = "float[N,S,32] g, float[N,S,32] u"


def model(
    activation: str,
    product: str = PRODUCT,
    behind: str = "y = Abs (p)",
    *,
    inputs: str = ALIKE,
    outputs: str = "",
    **arrays: np.ndarray,
) -> ir.Model:
    parts = weight(RANDOM, (32, 24), 1) if "DequantizeLinear" in behind else {}
    text = f"({inputs}) => (float[N,S,{24 if parts else 32}] y{outputs}) {{ {activation} {product} {behind} }}"
    made = parse(text.replace("Swish", "qcompile.Swish"), PER_TOKEN if parts else "", **parts, **arrays)
    for node in made.graph:  # of opset 24, which this onnx's checker may not know
        if node.op_type == "Swish":
            node.domain = ""
            made.graph.opset_imports[""] = 24
    return made


@pytest.mark.parametrize("product", [PRODUCT, "p = Mul (u, a)"])
@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_activation_and_product_are_one_kernel(activation: str, product: str) -> None:
    given = model(activation, product)
    expect(given, FEED, "Gated", "Abs")
    node = next(iter(fused(given).graph))
    assert node.attributes.get_string("activation", "") == ACTIVATIONS[activation]
    assert [value.name for value in (*node.inputs, *node.outputs) if value is not None] == ["g", "u", "p"]


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_and_so_is_what_is_quantized_behind_it(activation: str) -> None:
    expect(model(activation, behind=QUANTIZED), FEED, "GatedQuantize", "IntegerLinear")


def test_what_reads_the_product_too_keeps_it() -> None:
    left = ("Gated", "QuantizeTokens", "IntegerLinear")
    expect(model(SILU, behind=f"{QUANTIZED} t = Neg (p)", outputs=", float[N,S,32] t"), FEED, *left, "Neg")
    expect(model(SILU, behind=QUANTIZED, outputs=", float[N,S,32] p"), FEED, *left)


def test_what_is_quantized_without_outliers_is_a_kernel_of_its_own() -> None:
    mask = np.ones(32, np.float32)
    mask[3] = 0
    behind = QUANTIZED.replace("Token (p)", "Token (i)")
    given = model(SILU, behind=f"i = Mul (p, mask) {behind}", mask=mask)
    expect(given, FEED, "Gated", "QuantizeTokens", "IntegerLinear")


def test_the_first_of_two_activations_is_the_gate() -> None:
    expect(model("a = Gelu (g) v = Relu (u)", "p = Mul (a, v)"), FEED, "Relu", "Gated", "Abs")


@pytest.mark.parametrize(
    ("activation", "outputs", "left"),
    [
        (SILU, ", float[N,S,32] a", ("Sigmoid", "Mul", "Mul")),
        (SILU, ", float[N,S,32] h", ("Sigmoid", "Mul", "Mul")),
        (f"{SILU} t = Neg (a)", ", float[N,S,32] t", ("Sigmoid", "Mul", "Neg", "Mul")),
        ("a = Relu (g)", ", float[N,S,32] a", ("Relu", "Mul")),
    ],
)
def test_what_reads_the_activation_too_keeps_it(activation: str, outputs: str, left: tuple[str, ...]) -> None:
    expect(model(activation, outputs=outputs), FEED, *left, "Abs")


@pytest.mark.parametrize(
    ("activation", "left"),
    [
        ("a = Swish <alpha = 1.5> (g)", ("Swish",)),
        ("h = Sigmoid (u) a = Mul (g, h)", ("Sigmoid", "Mul")),
        ("a = Tanh (g)", ("Tanh",)),
    ],
)
def test_other_activations_stay(activation: str, left: tuple[str, ...]) -> None:
    expect(model(activation), FEED, *left, "Mul", "Abs")


@pytest.mark.parametrize(
    "inputs",
    ["float[N,S,32] g, float[N,P,32] u", "float[N,S,32] g, float[N,?,32] u", "float[N,?,32] g, float[N,?,32] u"],
)
def test_what_is_not_known_to_be_alike_stays(inputs: str) -> None:
    expect(model(SILU, inputs=inputs), FEED, "Sigmoid", "Mul", "Mul", "Abs")


def test_other_types_stay() -> None:
    wide = "v = Cast <to = 11> (g) b = Relu (v) u2 = Cast <to = 11> (u)"
    expect(model(wide, "o = Mul (b, u2) p = Cast <to = 1> (o)"), FEED, "Cast", "Relu", "Cast", "Mul", "Cast", "Abs")


def test_scalars_stay() -> None:
    """A kernel has rows of channels."""
    scalar = ir.val("s", ir.DataType.FLOAT, [])
    assert not alike(scalar, scalar)
