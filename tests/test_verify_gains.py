"""What leaving one layer in float brings at the outputs, against what numpy computes."""

from __future__ import annotations

import math

import numpy as np
import onnx_ir as ir
import pytest

from qcompile.calibration_masks import PaddingMask
from qcompile.passes.insert_qdq import InsertQdq
from qcompile.verify_gains import output_gains
from tests.passes.quantizable import PER_TOKEN
from tests.scaled_models import parse
from tests.sessions import OnnxRuntime

INPUTS = "float[batch, sequence, 8] x, float[8, 8] w0, float[8, 8] w1"
FIRST, SECOND = (frozenset({name}) for name in ("a", "y"))


def models(body: str, inputs: str = INPUTS) -> tuple[ir.Model, ir.Model]:
    """The quantized model and the one before; the second linear loses nothing but what rounding costs."""
    quantized, before = (parse(inputs, body) for _ in range(2))
    InsertQdq(activations=PER_TOKEN)(quantized)
    return quantized, before


def feed(*shape: int) -> dict[str, np.ndarray]:
    return {"x": np.random.default_rng(0).standard_normal(shape).astype(np.float32)}


def decibels(exact: np.ndarray, noisy: np.ndarray) -> float:
    return float(10 * np.log10(np.sum(exact.astype(float) ** 2) / np.sum((exact - noisy).astype(float) ** 2)))


def test_the_gain_is_that_of_the_outputs_with_one_layer_in_float():
    quantized, before = models("a = MatMul(x, w0) y = MatMul(a, w1)")
    sample = feed(2, 3, 8)
    gains = output_gains(quantized, before, [FIRST, SECOND], [sample], (), OnnxRuntime(), seconds=math.inf)
    exact, with_all = (OnnxRuntime()(model).run(sample)["y"] for model in (before, quantized))
    only_second = parse(INPUTS, "a = MatMul(x, w0) y = MatMul(a, w1)")
    InsertQdq(activations=PER_TOKEN, ignore=frozenset({"a"}))(only_second)
    expected = decibels(exact, OnnxRuntime()(only_second).run(sample)["y"]) - decibels(exact, with_all)
    assert gains[FIRST] == pytest.approx(expected, abs=1e-3)
    assert set(gains) == {FIRST, SECOND}


def test_a_layer_that_does_not_reach_the_outputs_gains_nothing():
    quantized, before = models("a = MatMul(x, w0) z = Sub(a, a) y = MatMul(x, w1) o = Add(y, z)")
    gains = output_gains(quantized, before, [FIRST, SECOND], [feed(2, 3, 8)], (), OnnxRuntime(), seconds=math.inf)
    assert gains[FIRST] == 0
    assert gains[SECOND] > 60


def test_padding_does_not_count():
    body = "a = MatMul(x, w0) y = MatMul(a, w1) n = Identity(m)"
    quantized, before = models(body, f"{INPUTS}, int64[batch, sequence] m")
    sample = feed(2, 3, 8) | {"m": np.array([[1, 1, 0], [1, 0, 0]])}
    loud = sample | {"x": np.where(sample["m"][..., None] == 0, np.float32(50), sample["x"])}
    found = [
        output_gains(quantized, before, [FIRST], [each], masks, OnnxRuntime(), seconds=math.inf)[FIRST]
        for each, masks in ((sample, (PaddingMask("m"),)), (loud, (PaddingMask("m"),)), (loud, ()))
    ]
    assert found[0] == pytest.approx(found[1], abs=1e-6) != pytest.approx(found[2], abs=1e-3)


def test_without_time_nothing_more_is_run():
    quantized, before = models("a = MatMul(x, w0) y = MatMul(a, w1)")
    runtime = OnnxRuntime()
    assert output_gains(quantized, before, [FIRST], [feed(1, 3, 8)], (), runtime, seconds=0) == {}
    assert len(runtime.opened) == 1
