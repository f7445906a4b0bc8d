"""The functions of weights in blocks: their bodies on both runtimes, against numpy and the reference."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest

from qcompile import backends
from qcompile.block_functions import CODEBOOK, SCALE, call, round_in_blocks, rounded_in_blocks
from qcompile.errors import UnsupportedError
from qcompile.reference_evaluator import evaluate
from qcompile.reference_operators import quantize_dequantize_tokens
from tests.backends.portable import parse

RUNTIMES = ("onnxruntime", "openvino")


def rounding(block_size: int) -> ir.Model:
    model = parse("(float[N,S,K] x) => (float[N,S,K] y) { y = Identity(x) }")
    node = model.graph[0]
    node.replace_input_with(0, round_in_blocks(model, model.graph.inputs[0], block_size, node))
    return model


@pytest.mark.parametrize("runtime", RUNTIMES)
@pytest.mark.parametrize("shape", [(2, 3, 64), (1, 2, 33), (1, 1, 1), (0, 3, 20)])
def test_blocks_of_a_token_are_rounded_to_8_bits(runtime: str, shape: tuple[int, ...]) -> None:
    x = np.random.default_rng(0).standard_normal(shape).astype(np.float32)
    x[..., :16] *= 100
    x[:, :1] = 0
    model = rounding(16)
    expected = quantize_dequantize_tokens(x, 16)
    np.testing.assert_array_equal(evaluate(model, {"x": x})["y"], expected)
    np.testing.assert_allclose(backends.get(runtime).open_session(model).run({"x": x})["y"], expected, rtol=1e-6)


def test_a_runtime_may_round_in_smaller_groups() -> None:
    x = np.random.default_rng(0).standard_normal((1, 2, 64)).astype(np.float32)
    for channels, size in ((16, 16), (64, 32), (0, 0)):
        found = evaluate(rounding(32), {"x": x}, channels_per_scale=lambda _width, it=channels: it)["y"]
        np.testing.assert_array_equal(found, quantize_dequantize_tokens(x, size))


def test_what_is_rounded_is_found() -> None:
    model = rounding(32)
    assert rounded_in_blocks(model.graph.outputs[0].producer().inputs[0]) == (model.graph.inputs[0], 32)
    assert rounded_in_blocks(model.graph.inputs[0]) is None
    assert rounded_in_blocks(model.graph.outputs[0]) is None


def test_below_opset_21_there_are_no_integers_of_4_bits() -> None:
    model = parse("(float[N] x) => (float[N] y) { y = Identity(x) }")
    model.opset_imports[""] = model.graph.opset_imports[""] = 20
    with pytest.raises(UnsupportedError, match="opset 21"):
        round_in_blocks(model, model.graph.inputs[0], 32, model.graph[0])


@pytest.mark.parametrize("runtime", RUNTIMES)
@pytest.mark.parametrize(("axis", "inputs"), [(0, 64), (0, 40), (1, 64)])
def test_a_codebook_in_blocks(runtime: str, axis: int, inputs: int) -> None:
    rng = np.random.default_rng(0)
    shape, blocks = [inputs, 8], [-(-inputs // 16), 8]
    if axis == 1:
        shape, blocks = shape[::-1], blocks[::-1]
    numbers = {
        "w": rng.integers(0, 16, shape).astype(np.uint8),
        "c": np.sort(rng.uniform(-1, 1, 16)).astype(np.float32),
        "s": rng.uniform(0.5, 2, blocks).astype(np.float32),
    }
    model = parse(
        "(float[N] x) => (float[A,B] y) { y = Identity(w) }".replace("float[A,B]", f"float{shape}"), **numbers
    )
    given = [model.graph.initializers[name] for name in ("w", "c", "s")]
    node = model.graph[0]
    node.replace_input_with(0, call(model, CODEBOOK, given, node, axis=axis, block_size=16))
    scale = np.repeat(numbers["s"], 16, axis).take(np.arange(inputs), axis)
    expected = numbers["c"][numbers["w"]] * scale
    feed = {"x": np.zeros(1, np.float32)}
    np.testing.assert_array_equal(evaluate(model, feed)["y"], expected)
    np.testing.assert_array_equal(backends.get(runtime).open_session(model).run(feed)["y"], expected)


@pytest.mark.parametrize("runtime", RUNTIMES)
def test_scales_of_scales_are_counted_output_by_output(runtime: str) -> None:
    rng = np.random.default_rng(0)
    numbers = {
        "w": rng.integers(0, 256, (5, 120)).astype(np.uint8),
        "c": np.sort(rng.uniform(-1, 1, 256)).astype(np.float32),
        "s": rng.uniform(0.5, 2, 3).astype(np.float32),
        "o": np.float32(3.5),
    }
    model = parse("(float[N] x) => (float[5,120] y) { y = Identity(w) }", **numbers)
    given = [model.graph.initializers[name] for name in ("w", "c", "s", "o")]
    node = model.graph[0]
    node.replace_input_with(0, call(model, SCALE, given, node, block_size=256))
    row = numbers["c"][numbers["w"].T.ravel()] * np.repeat(numbers["s"], 256)[:600] + np.float32(3.5)
    expected = row.reshape(120, 5).T
    feed = {"x": np.zeros(1, np.float32)}
    np.testing.assert_array_equal(evaluate(model, feed)["y"], expected)
    np.testing.assert_allclose(backends.get(runtime).open_session(model).run(feed)["y"], expected, rtol=1e-6)
