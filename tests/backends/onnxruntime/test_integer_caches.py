"""A cache that is held in int8 beside the portable graph that rounds it, for prompts, tokens and several at once."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import onnx_ir as ir
import onnxruntime
import pytest
from onnx_ir.passes import common

from qcompile.backends.onnxruntime.cached_attention import attend_in_place
from qcompile.backends.onnxruntime.integer_caches import hold_in_integers
from qcompile.cache_rounding import round_cache, without_rounding
from qcompile.graph import is_standard
from qcompile.initializers import new_initializer
from tests.backends.onnxruntime.caches import case, feed
from tests.backends.onnxruntime.rewrites import operators, run

SCALES = {
    name: np.random.default_rng(index).uniform(0.02, 0.04, (1, 2, 1, 16)).astype(np.float32)
    for index, name in enumerate(("past_k", "past_v"))
}
PRESENT = {"past_k": "new_k", "past_v": "new_v"}


def portable() -> ir.Model:
    model = case()
    (attention,) = (node for node in model.graph if is_standard(node, "Attention"))
    keys, values = (new_initializer(model.graph, f"{name}.scale", array) for name, array in SCALES.items())
    round_cache(model, attention, (keys, values))
    return model


def held(floats_outside: bool) -> ir.Model:
    """The same with attention over integers."""
    model = portable()
    scales = without_rounding(model)
    assert attend_in_place(model, 32) == (True, ())
    common.RemoveUnusedNodesPass()(model)
    hold_in_integers(model, scales, floats_outside=floats_outside)
    return model


def close(result: Mapping[str, np.ndarray], expected: Mapping[str, np.ndarray], real: np.ndarray, *, new: int) -> None:
    """Equal but for what rounding the new keys and values makes of the result: each by half a step at most.

    Args:
        result: y, new_k and new_v, of which those of padding are not read.
        expected: the same of the portable graph.
        real: padding of all positions, 1 where there is a token.
        new: how many of the last positions are new; more than 0 where the result has read them rounded.
    """
    tokens = expected["y"].shape[1]
    shown = real[:, None, :, None] != 0
    for past, present in PRESENT.items():
        steps = np.where(shown, (result[present] - expected[present]) / SCALES[past], 0)
        assert np.abs(steps).max() < 1.01, "a tie may fall the other way"
        assert (np.abs(steps) > 0.01).mean() < 0.01
    atol = 0.04 / 2 * (1 + 2 * 16**0.5) if new else 2e-6
    y = real[:, -tokens:, None] != 0
    np.testing.assert_allclose(np.where(y, result["y"], 0), np.where(y, expected["y"], 0), atol=atol)


def test_the_operators_of_both_forms() -> None:
    inside, outside = held(floats_outside=True), held(floats_outside=False)
    assert operators(outside)["If"] == 1
    assert not operators(outside)["GroupQueryAttention"]
    assert not operators(outside)["QuantizeLinear"]
    assert (operators(inside) - operators(outside)) == {"Div": 2, "QuantizeLinear": 2, "Cast": 2, "Mul": 2}
    for model, dtype in ((inside, ir.DataType.FLOAT), (outside, ir.DataType.INT8)):
        caches = [value for value in (*model.graph.inputs, *model.graph.outputs) if len(value.shape or ()) == 4]
        assert [value.dtype for value in caches] == [dtype] * 4


# A prompt with padding on the right of the second, one token alone, one behind others: a batch of 2.
@pytest.mark.parametrize(("sequence", "past"), [(6, 0), (12, 0), (1, 0), (1, 9)])
def test_prompts_and_tokens(sequence: int, past: int) -> None:
    given = feed(sequence, past)
    close(run(held(True), given), run(portable(), given), given["padding"], new=0 if sequence > 1 else sequence)


# Many read each other in float32, as in the portable graph; a few are rounded before.
@pytest.mark.parametrize(("sequence", "new"), [(5, 5), (12, 0)])
def test_several_tokens_behind_others(sequence: int, new: int) -> None:
    given = {name: array[:1] for name, array in feed(sequence, 9).items()}
    given["padding"] = np.ones_like(given["padding"])
    close(run(held(True), given), run(portable(), given), given["padding"], new=new)


def test_a_prompt_attends_in_float() -> None:
    """Coarse steps do not change what the first tokens read of each other."""
    model = portable()
    for name in SCALES:
        scale = model.graph.initializers[f"{name}.scale"]
        scale.const_value = ir.tensor(scale.const_value.numpy() * 30, name=scale.name)
    scales = without_rounding(model)
    attend_in_place(model, 32)
    hold_in_integers(model, scales, floats_outside=True)
    given = feed(2, 0)
    np.testing.assert_allclose(run(model, given)["y"], run(case(), given)["y"], atol=2e-6)


@pytest.mark.parametrize("length", [22, 40])
def test_one_buffer_for_input_and_output(length: int, tmp_path: Path) -> None:
    """A prompt, a token, three at once and twelve in a longer buffer, as onnxruntime-genai does it."""
    ir.save(held(floats_outside=False), tmp_path / "model.onnx")
    session = onnxruntime.InferenceSession(tmp_path / "model.onnx", providers=["CPUExecutionProvider"])
    buffers = {
        name: onnxruntime.OrtValue.ortvalue_from_numpy(np.full((1, 2, length, 16), 99, np.int8)) for name in SCALES
    }
    past = {name: np.zeros((1, 2, 0, 16), np.float32) for name in SCALES}
    reference, at = portable(), 0
    for count in (6, 1, 3, 12):
        before = {name: buffer.numpy()[:, :, :at].copy() for name, buffer in buffers.items()}
        given = {name: array[:1] for name, array in feed(count, at).items()} | past
        given["padding"] = np.ones((1, at + count), np.int64)
        binding = session.io_binding()
        for name in (each.name for each in session.get_inputs()):
            if name not in SCALES:
                binding.bind_cpu_input(name, given[name])
        for name, buffer in buffers.items():
            binding.bind_ortvalue_input(name, buffer)
            binding.bind_ortvalue_output(PRESENT[name], buffer)
        binding.bind_output("y")
        session.run_with_iobinding(binding)
        expected, at = run(reference, given), at + count
        found = {PRESENT[name]: buffer.numpy()[:, :, :at] * SCALES[name] for name, buffer in buffers.items()}
        found["y"] = binding.get_outputs()[-1].numpy()
        close(found, expected, given["padding"], new=0 if count in (6, 12) else count)
        past = {name: found[PRESENT[name]] for name in SCALES}
        for name, buffer in buffers.items():
            np.testing.assert_array_equal(buffer.numpy()[:, :, : before[name].shape[2]], before[name])
            assert (buffer.numpy()[:, :, at:] == 99).all(), "it writes behind the tokens"


def test_caches_without_scales_are_left_alone() -> None:
    model = case()
    attend_in_place(model, 32)
    before = ir.to_proto(model).SerializeToString(deterministic=True)
    hold_in_integers(model, {}, floats_outside=False)
    assert ir.to_proto(model).SerializeToString(deterministic=True) == before
