"""The word that rounds a cache: where it is put, what it computes, and that it goes away without a trace."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from qcompile.backends import get
from qcompile.cache_rounding import cache_inputs, is_rounding, round_cache, without_rounding
from qcompile.initializers import new_initializer
from qcompile.reference_evaluator import evaluate
from qcompile.verify_quantizers import quantized_values, without_quantizers
from tests.passes.quantizable import operators, parse

TEXT = """g (float[B,2,S,4] x, float[B,2,P,4] past_k, float[B,2,P,4] past_v)
    => (float[B,2,S,4] y, float[B,2,T,4] new_k, float[B,2,T,4] new_v) {
    y, new_k, new_v = Attention (x, x, x, , past_k, past_v)
}"""
SCALES = np.random.default_rng(0).uniform(0.01, 0.02, (2, 1, 2, 1, 4)).astype(np.float32)


def rounded() -> ir.Model:
    model = parse(TEXT)
    keys, values = (
        new_initializer(model.graph, f"{name}.scale", array) for name, array in zip("kv", SCALES, strict=True)
    )
    round_cache(model, model.graph[0], (keys, values))
    return model


def feed() -> dict[str, np.ndarray]:
    generator = np.random.default_rng(1)
    sizes = {"x": 5, "past_k": 3, "past_v": 3}
    return {name: generator.standard_normal((2, 2, size, 4)).astype(np.float32) for name, size in sizes.items()}


def test_runtimes_compute_what_the_reference_does() -> None:
    model = rounded()
    found = get("onnxruntime").open_session(model, optimization="disabled").run(feed())
    for name, expected in evaluate(model, feed()).items():
        np.testing.assert_allclose(found[name], expected, rtol=1e-5, atol=1e-5)


def test_a_verification_sees_the_cache_in_its_own_steps() -> None:
    """What goes out is compared in steps of the channel of the head that it is of; what comes in is given."""
    found = {each.names: each for each in quantized_values(rounded())}
    assert set(found) == {("new_k",), ("new_v",)}
    for (name,), scale in zip((("new_k",), ("new_v",)), SCALES, strict=True):
        np.testing.assert_array_equal(found[name,].step(name, np.zeros((2, 2, 8, 4))), scale)
    assert not any(map(is_rounding, without_quantizers(rounded()).graph))


def test_it_goes_away_without_a_trace() -> None:
    model, before = rounded(), parse(TEXT)
    assert cache_inputs(model.graph[2]) == ()
    scales = without_rounding(model)
    assert list(scales) == ["past_k", "past_v"]
    np.testing.assert_array_equal(list(scales.values()), SCALES)
    assert operators(model) == ["Attention"]
    assert cache_inputs(model.graph[0]) == tuple(model.graph.inputs[1:])
    assert not model.functions
    assert not model.graph.initializers
    for kind in ("inputs", "outputs"):
        sides = [[value.name for value in getattr(each.graph, kind)] for each in (model, before)]
        assert sides[0] == sides[1]
    assert without_rounding(model) == {}
