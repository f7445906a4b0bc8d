"""Broken numbers by compile and rewrite, end to end: the table of README.md, on both backends, under four recipes."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest

import qcompile
from qcompile import backends
from tests.passes.quantizable import parse

RECIPES = ("w8a8-static", "w8a8-dynamic", "smoothquant-o1", "smoothquant-o3")
STATIC = {"w8a8-static", "smoothquant-o3"}
SUBNORMAL, LARGEST = np.float32(1e-41), np.finfo(np.float32).max
NAN, INFINITE = "its weight holds NaN or infinity", "its input holds NaN or infinity"
FLUSHED = 1e-35
"""Runtimes take numbers below the normal ones, about 1e-38, for 0; sums of hundreds of them are below this."""

LINEARS = {
    "sound": "",
    "nan": NAN,
    "minus_infinity": NAN,
    "zeros": "",
    "constant": "",
    "zero_channel": "",
    "subnormal": "its weight holds nothing but numbers that are 0, or too small",
    "subnormal_channel": "",
    "largest": "its weight holds numbers beyond half of the largest float32",
}
"""Name of a linear, whose weight is spoilt that way, and why it stays float."""


def _spoil(weight: np.ndarray, how: str) -> np.ndarray:
    spoilt = weight.copy()
    if how == "zeros":
        spoilt[:] = 0
    elif how == "constant":
        spoilt[:] = 0.3
    elif how == "zero_channel":
        spoilt[:, 1] = 0
    elif how == "subnormal":
        spoilt = weight * SUBNORMAL
    elif how == "subnormal_channel":
        spoilt[:, 1] *= SUBNORMAL
    elif how != "sound":
        spoilt[3, 2] = {"nan": np.nan, "minus_infinity": -np.inf, "largest": LARGEST}[how]
    return spoilt


def broken_model() -> ir.Model:
    """Every defect in a branch of its own, with an input and an output of its own."""
    rng = np.random.default_rng(5)

    def normal(*shape: int) -> np.ndarray:
        return (rng.standard_normal(shape) / 4).astype(np.float32)

    weights = {f"{name}_w": _spoil(normal(32, 16), name) for name in LINEARS}
    texts = [f"{name}_m = MatMul(x_{name}, {name}_w) {name} = Add({name}_m, bias)" for name in LINEARS]
    kernel, table, norm = normal(8, 8, 3, 3), normal(4096, 32), np.ones(32, np.float32)
    kernel[2, 1, 0, 0], table[3, 5], norm[7] = np.inf, np.nan, np.nan
    weights |= {"bias": normal(16), "w": normal(32, 16), "kernel": kernel, "sound_kernel": normal(8, 8, 3, 3)}
    weights |= {"table": table, "norm_w": norm, "nan_bias": np.full(8, np.nan, np.float32)}
    weights |= {"large_bias": np.full(8, 1e9, np.float32), "gemm_w": _spoil(normal(32, 16), "nan").T.copy()}
    texts += [
        "gemm = Gemm<transB = 1, alpha = 0.5>(x_gemm, gemm_w, bias)",
        "c = Conv<pads = [1, 1, 1, 1]>(x_conv, kernel) r = Relu(c) conv = Conv(r, sound_kernel)",
        "conv_bias = Conv(x_conv_bias, sound_kernel, nan_bias)",
        "d = Conv(x_large_bias, sound_kernel, large_bias) h = Relu(d) beyond_int32 = Conv(h, sound_kernel)",
        "e = Gather(table, ids) embedded = MatMul(e, w)",
        "n = LayerNormalization(x_norm, norm_w) normalized = MatMul(n, w)",
        "unseen = MatMul(x_unseen, w)",
    ]
    matrices = ", ".join(f"float[N, 5, 32] x_{name}" for name in (*LINEARS, "norm", "unseen"))
    images = ", ".join(f"float[N, 8, 6, 6] x_{name}" for name in ("conv", "conv_bias", "large_bias"))
    linears = ", ".join(f"float[N, 5, 16] {name}" for name in (*LINEARS, "embedded", "normalized", "unseen"))
    others = "float[N, 16] gemm, float[N, 8, 4, 4] conv, float[N, 8, 4, 4] conv_bias, float[N, 8, 2, 2] beyond_int32"
    given = f"{matrices}, {images}, float[N, 32] x_gemm, int64[N, 5] ids"
    return parse(f"g ({given}) => ({linears}, {others}) {{ {' '.join(texts)} }}", **weights)


def samples(count: int) -> list[dict[str, np.ndarray]]:
    rng = np.random.default_rng(count)
    shapes = {str(value.name): [4, *value.shape[1:]] for value in broken_model().graph.inputs if value.shape}
    made = [
        {name: rng.standard_normal(shape).astype(np.float32) for name, shape in shapes.items()} for _ in range(count)
    ]
    for sample in made:
        sample["ids"] = rng.integers(0, 4096, (4, 5))
        sample["ids"][0, 0] = 3
        sample["x_unseen"][:] = 0
    return made


@pytest.fixture(scope="module")
def expected() -> dict[str, np.ndarray]:
    return backends.get("onnxruntime").open_session(broken_model()).run(samples(3)[0])


def check_near(expected: dict[str, np.ndarray], actual: dict[str, np.ndarray]) -> None:
    """Finite where the float model is, and there at least 28 dB above the noise: two layers of 8 bits give 35."""
    for name, wanted in expected.items():
        finite = np.isfinite(wanted)
        assert np.isfinite(actual[name][finite]).all(), name
        noise = np.sqrt(np.mean((actual[name][finite].astype(np.float64) - wanted[finite]) ** 2)) if finite.any() else 0
        size = np.sqrt(np.mean(wanted[finite].astype(np.float64) ** 2)) if finite.any() else 0
        assert noise <= max(10 ** (-28 / 20) * size, FLUSHED), (name, noise, size)


@pytest.mark.parametrize("backend", ["onnxruntime", "openvino"])
@pytest.mark.parametrize("recipe", RECIPES)
def test_compile_keeps_float_what_no_integers_stand_for_and_says_why(
    recipe: str, backend: str, expected: dict[str, np.ndarray]
) -> None:
    artifact = qcompile.compile(broken_model(), recipe, backend=backend, calibration=samples(3))
    check_near(expected, artifact.run(samples(3)[0]))
    told = {layer.name: layer.reason if layer.action == "kept" else layer.action for layer in artifact.report.layers}
    for name, reason in LINEARS.items():
        assert told[f"{name}_m"].startswith(reason or "quantized"), name
    assert told["gemm_product"].startswith(NAN)
    assert told["embedded"].startswith(INFINITE)
    assert told["normalized"].startswith(INFINITE)
    assert told["e"].startswith("its table holds NaN" if recipe.startswith("w8a8") else "no pass of the recipe stores")
    unseen = "its input is zero in all calibration data" if recipe in STATIC else "quantized"
    assert told["unseen"].startswith(unseen)
    if recipe in STATIC:
        assert told["c"].startswith(NAN)
        assert told["conv"].startswith(INFINITE)
        assert told["conv_bias"].startswith("its bias holds NaN")
        assert told["d"].startswith("quantized")


@pytest.mark.parametrize("recipe", RECIPES)
def test_rewrite_is_near_the_float_model(recipe: str, expected: dict[str, np.ndarray]) -> None:
    portable = qcompile.rewrite(broken_model(), recipe, calibration=samples(3))
    check_near(expected, backends.get("onnxruntime").open_session(portable).run(samples(3)[0]))


def wide_model(inputs: int) -> ir.Model:
    """Beside a small linear one that adds up so many products, all as large as 8 bits make them."""
    text = (
        "g (float[N, K] x, float[N, 8] z) => (float[N, 2] y) { a = MatMul(x, wide) b = MatMul(z, small) y = Add(a, b) }"
    )
    small = np.random.default_rng(0).normal(size=(8, 2)).astype(np.float32)
    return parse(text.replace("K", str(inputs)), wide=np.full((inputs, 2), 0.1, np.float32), small=small)


@pytest.mark.parametrize(
    ("inputs", "recipe", "kept"),
    [
        (66_311, "w8a8-static", False),
        (66_312, "w8a8-static", True),
        (133_144, "w8a8-dynamic", False),
        (133_145, "w8a8-dynamic", True),
    ],
)
def test_sums_that_int32_does_not_hold_stay_float_and_the_largest_that_it_holds_are_right(
    inputs: int, recipe: str, kept: bool
) -> None:
    feed = {"x": np.ones((1, inputs), np.float32), "z": np.ones((1, 8), np.float32)}
    artifact = qcompile.compile(wide_model(inputs), recipe, calibration=[feed] * 2, tune="none")
    told = {layer.name: layer.reason if layer.action == "kept" else layer.action for layer in artifact.report.layers}
    assert told["a"] == (f"{inputs} products of 8-bit values overflow the int32 accumulator" if kept else "quantized")
    assert told["b"] == "quantized"
    exact = backends.get("onnxruntime").open_session(wide_model(inputs)).run(feed)["y"]
    np.testing.assert_allclose(artifact.run(feed)["y"], exact, rtol=0.01)
