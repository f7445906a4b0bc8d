"""A norm of the sum with a residual is one kernel with the sum, quantized or not."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest

pytest.importorskip("triton")

from qcompile.backends.triton.lowering import fused
from tests.backends.portable import PER_TOKEN, parse, weight
from tests.backends.triton.rewritten import expect, quantized_linear

RANDOM = np.random.default_rng(0)
FEED = {name: RANDOM.normal(size=(2, 3, 32)).astype(np.float32) for name in ("x", "r")}
RMS = "n = RMSNormalization <axis = -1, epsilon = 0.01> (s, g)"
LAYER = "n = LayerNormalization <axis = 2, epsilon = 0.01> (s, g, b)"
QUANTIZED = quantized_linear("n")
OTHER = "\n t = Neg (s)"
"""What else reads the sum."""


def model(
    norm: str,
    behind: str = "y = Abs (n)",
    *,
    total: str = "s = Add (x, r)",
    inputs: str = "float[N,S,32] x, float[N,S,32] r",
    outputs: str = "",
    shape: tuple[int, ...] = (32,),
) -> ir.Model:
    outputs += ", float[N,S,32] t" if OTHER in behind else ""
    given = {"g": np.exp(RANDOM.normal(size=shape)), "b": RANDOM.normal(size=shape), "c": RANDOM.normal(size=32)}
    read = {name: array.astype(np.float32) for name, array in given.items() if f", {name}" in norm + total}
    parts = weight(RANDOM, (32, 24), 1) if "DequantizeLinear" in behind else {}
    size = 24 if parts else 32
    text = f"({inputs}) => (float[N,S,{size}] y{outputs}) {{ {total} {norm} {behind} }}"
    return parse(text, PER_TOKEN if parts else "", **read, **parts)


@pytest.mark.parametrize("other", ["", OTHER])
@pytest.mark.parametrize(("norm", "kernel"), [(RMS, "AddRMSNorm"), (LAYER, "AddLayerNorm")])
def test_sum_and_norm_are_one_kernel(norm: str, kernel: str, other: str) -> None:
    given = model(norm, "y = Abs (n)" + other)
    expect(given, FEED, kernel, "Abs", *["Neg"] * bool(other))
    node = next(iter(fused(given).graph))
    assert [value.name for value in node.outputs] == ["n", "s"]
    assert node.attributes.get_float("epsilon", 0) == pytest.approx(0.01)


@pytest.mark.parametrize("other", ["", OTHER])
@pytest.mark.parametrize(("norm", "kernel"), [(RMS, "RMSNormQuantize"), (LAYER, "LayerNormQuantize")])
def test_and_so_is_what_is_quantized_behind_it(norm: str, kernel: str, other: str) -> None:
    given = model(norm, QUANTIZED + other)
    expect(given, FEED, kernel, "IntegerLinear", *["Neg"] * bool(other))
    assert len(next(iter(fused(given).graph)).outputs) == 3


def test_the_sum_may_be_an_output_and_of_one_value() -> None:
    expect(model(RMS, outputs=", float[N,S,32] s"), FEED, "AddRMSNorm", "Abs")
    expect(model(RMS, total="s = Add (x, x)", inputs="float[N,S,32] x"), FEED, "AddRMSNorm", "Abs")


def test_another_norm_reads_the_sum() -> None:
    second = "m = LayerNormalization <epsilon = 0.1> (s, g) a = Abs (n) y = Add (a, m)"
    expect(model(RMS, second), FEED, "AddRMSNorm", "LayerNormalization", "Abs", "Add")


def test_what_reads_the_sum_in_front_of_the_norm_still_does() -> None:
    given = model(f"t = Neg (s) {RMS}", "y = Mul (n, t)")
    expect(given, FEED, "AddRMSNorm", "Neg", "Mul")


@pytest.mark.parametrize(
    ("total", "inputs"),
    [
        ("s = Add (x, c)", "float[N,S,32] x"),
        ("s = Add (x, r)", "float[N,S,32] x, float[N,P,32] r"),
        ("s = Add (x, r)", "float[N,S,32] x, float[N,?,32] r"),
        ("s = Add (x, r)", "float[N,?,32] x, float[N,?,32] r"),
        ("s = Sub (x, r)", "float[N,S,32] x, float[N,S,32] r"),
    ],
)
def test_sums_of_what_is_not_known_to_be_alike_stay(total: str, inputs: str) -> None:
    expect(model(RMS, total=total, inputs=inputs), FEED, total[4:7], "RMSNormalization", "Abs")


def test_sums_of_other_types_stay() -> None:
    wide = "v = Cast <to = 11> (x) u = Cast <to = 11> (r) s = Add (v, u)"
    norm = "o = RMSNormalization <stash_type = 11> (s, g) n = Cast <to = 1> (o)"
    expect(model(norm, total=wide), FEED, "Cast", "Cast", "Add", "RMSNormalization", "Cast", "Abs")


@pytest.mark.parametrize(("axis", "shape"), [(1, (3, 32)), (-1, ())])
def test_a_norm_of_more_than_channels_stays(axis: int, shape: tuple[int, ...]) -> None:
    norm = f"n = LayerNormalization <axis = {axis}> (s, g, b)"
    expect(model(norm, shape=shape), FEED, "Add", "LayerNormalization", "Abs")
