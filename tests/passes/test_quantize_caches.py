"""QuantizeCaches: past and present are rounded by a scale for each channel of each head; refusals."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest

from qcompile.backends import get
from qcompile.cache_rounding import cache_scale, is_rounding
from qcompile.calibration import Calibrator
from qcompile.errors import CalibrationError
from qcompile.graph import constant_array
from qcompile.passes.observe_channels import ObserveChannels
from qcompile.passes.quantize_caches import QuantizeCaches
from tests.passes.quantizable import operators, parse

ROWS = """g (float[B,S,8] q, float[B,S,8] k, float[B,S,8] v, float[B,2,P,4] past_k, float[B,2,P,4] past_v)
    => (float[B,S,8] y, float[B,2,T,4] new_k, float[B,2,T,4] new_v) {
    y, new_k, new_v = Attention <q_num_heads = 2, kv_num_heads = 2> (q, k, v, , past_k, past_v)
}"""
HEADS = ROWS.replace("float[B,S,8]", "float[B,2,S,4]").replace(" <q_num_heads = 2, kv_num_heads = 2>", "")
TWO = """g (float[B,2,S,4] x, float[B,2,P,4] past_k, float[B,2,P,4] past_v, float[B,2,P,4] old_k, float[B,2,P,4] old_v)
    => (float[B,2,S,4] y, float[B,2,T,4] new_k, float[B,2,T,4] new_v, float[B,2,T,4] now_k, float[B,2,T,4] now_v) {
    a, new_k, new_v = Attention (x, x, x, , past_k, past_v)
    y, now_k, now_v = Attention (a, x, x, , old_k, old_v)
}"""
SIZES = np.array([1.0, 2.0, 30.0, 0.1])


def feed(model: ir.Model, seed: int = 0, past: int = 3) -> dict[str, np.ndarray]:
    """Inputs whose channels are of different sizes, with what went before of the same sizes."""
    generator = np.random.default_rng(seed)
    found = {}
    for value in model.graph.inputs:
        shape = [{"B": 2, "S": 5, "P": past, "D": 4}.get(str(dim), dim) for dim in value.shape]
        sizes = np.resize(SIZES, shape[-1:])
        found[str(value.name)] = (generator.uniform(-1, 1, shape) * sizes).astype(np.float32)
    return found


def quantize(model: ir.Model, count: int = 8, **settings) -> QuantizeCaches:
    samples = [feed(model, seed) for seed in range(count)]
    return QuantizeCaches(calibrator=Calibrator(samples, ObserveChannels, get("onnxruntime").open_session), **settings)


def run(model: ir.Model, given: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    return get("onnxruntime").open_session(model, optimization="disabled").run(given)


def scales(model: ir.Model) -> dict[str, np.ndarray]:
    return {str(node.inputs[0].name): constant_array(node.inputs[1]) for node in model.graph if is_rounding(node)}


def grid(values: np.ndarray, scale: np.ndarray) -> np.ndarray:
    return np.clip(np.rint(values / scale), -128, 127) * scale


@pytest.mark.parametrize("text", [ROWS, HEADS])
def test_past_and_present_are_rounded(text):
    model, before = parse(text), parse(text)
    rewrite = quantize(model)
    result = rewrite(model)
    word = "QuantizeDequantizeCache"
    assert operators(model) == [word, word, "Attention", word, word]
    assert [(each.action, each.reason) for each in result.findings] == [("converted", "its cache is rounded to 8 bits")]
    assert [value.name for value in model.graph.outputs] == ["y", "new_k", "new_v"]
    given = feed(model, 99)
    steps = scales(model)
    rounded = given | {name: grid(given[name], steps[name]) for name in ("past_k", "past_v")}
    expected, actual = run(before, rounded), run(model, given)
    np.testing.assert_allclose(actual["y"], expected["y"], rtol=1e-5, atol=1e-5)
    for name, past in (("new_k", "past_k"), ("new_v", "past_v")):
        np.testing.assert_allclose(actual[name], grid(expected[name], steps[past]), rtol=1e-5)
        assert np.abs(expected[name] - actual[name]).max() > 0
    again = run(model, given | {"past_k": rounded["past_k"], "past_v": rounded["past_v"]})
    for name, array in actual.items():
        np.testing.assert_allclose(again[name], array, rtol=1e-5, err_msg="rounding what is rounded changes it")
    assert not rewrite(model).modified


@pytest.mark.parametrize("text", [ROWS, HEADS])
def test_the_scales_are_those_of_channels_of_heads(text):
    model = parse(text)
    quantize(model, headroom=1.5)(model)
    samples = [feed(model, seed) for seed in range(8)]
    for past, new in (("past_k", "k"), ("past_v", "v")):
        every = np.concatenate([sample[new] for sample in samples])
        heads = every.reshape(*every.shape[:2], 2, 4).swapaxes(1, 2) if text == ROWS else every
        expected = np.abs(heads).max(axis=(0, 2)) * 1.5 / 127
        np.testing.assert_allclose(scales(model)[past], expected[None, :, None, :], rtol=1e-6)


def test_numbers_beyond_the_calibration_are_clipped():
    model = parse(HEADS)
    quantize(model)(model)
    given = feed(model, past=0)
    given["k"] = given["k"] * 100
    largest = np.abs(run(model, given)["new_k"]).max(axis=(0, 2))
    np.testing.assert_allclose(largest, scales(model)["past_k"][0, :, 0] * 128, rtol=0.01)


def test_a_channel_of_zeros_has_a_scale():
    np.testing.assert_allclose(cache_scale(np.array([[0.0, 2.0]]), 1.0), np.array([[[[1 / 127, 2 / 127]]]]), rtol=1e-6)


@pytest.mark.parametrize(
    ("given", "reason"),
    [
        ({"operators": frozenset({"Linear"})}, "the artifact can hold none in 8 bits"),
        ({"ignore": frozenset({"y"})}, "the recipe leaves it out"),
    ],
)
def test_refusals(given, reason):
    model = parse(HEADS)
    result = quantize(model, **given)(model)
    assert not result.modified
    assert [f"{each.action}: {each.reason}" for each in result.findings] == [f"kept: its cache stays float: {reason}"]


@pytest.mark.parametrize("name", ["k", "v"])
def test_broken_numbers_are_not_stored(name):
    values = ", ".join(["q", *("broken" if each == name else each for each in "kv")])
    body = "y, new_k, new_v = Attention"
    model = parse(HEADS.replace(f"{body} (q, k, v,", f"broken = Log ({name}) {body} ({values},"))
    (finding,) = quantize(model)(model).findings
    assert "its cache stays float: what it remembers holds NaN or infinity" in finding.reason


def test_heads_of_unknown_size():
    model = parse(HEADS.replace("float[B,2,P,4] past_v", "float[B,2,P,D] past_v"))
    (finding,) = quantize(model)(model).findings
    assert finding.reason == "its cache stays float: sizes of its heads are not known"


def test_all_caches_or_none():
    model = parse(TWO)
    first, second = quantize(model, ignore=frozenset({"a"}))(model).findings
    assert first.reason == "its cache stays float: the recipe leaves it out"
    assert second.reason == (
        "its cache stays float: that of a does, and runtimes have one type for all: the recipe leaves it out"
    )
    assert quantize(model)(model).modified
    assert sum(map(is_rounding, model.graph)) == 8


@pytest.mark.parametrize(
    "text",
    [
        ROWS.replace(", float[B,2,T,4] new_v)", ")").replace("y, new_k, new_v", "y, new_k"),
        ROWS.replace("past_k, past_v)\n}", "d, past_v)\n}").replace("y, new_k", "d = Neg (past_k) y, new_k"),
    ],
)
def test_what_is_no_cache(text):
    model = parse(text)
    assert QuantizeCaches()(model).findings == ()


def test_without_data():
    model = parse(ROWS)
    assert QuantizeCaches().without_calibration() is None
    with pytest.raises(CalibrationError, match="the scales of a cache need statistics"):
        QuantizeCaches()(model)
