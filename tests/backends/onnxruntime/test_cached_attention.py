from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx_ir as ir
import onnxruntime
import pytest
from onnx_ir.passes import common

from qcompile.backends.onnxruntime.cached_attention import attend_in_place
from tests.backends.onnxruntime.caches import case, feed
from tests.backends.onnxruntime.rewrites import operators, run

GROUPED = "GroupQueryAttention"
OUTPUT = "=> (float[B,S,64] y"


def in_place(model: ir.Model) -> ir.Model:
    """The model with the cache written in place; asserts that it computes the same, with and without a cache."""
    after = model.clone()
    assert attend_in_place(after, 32) == (True, ())
    common.RemoveUnusedNodesPass()(after)
    for sequence, past in ((6, 0), (1, 0), (1, 9)):
        given = feed(sequence, past)
        expected = run(model, given)
        # What stands behind padding is never read: the operator moves keys there, Attention does not.
        real = given["padding"][:, past:, None] != 0
        result = run(after, given)
        np.testing.assert_allclose(np.where(real, result["y"], 0), np.where(real, expected["y"], 0), atol=2e-6)
        for name in ("new_k", "new_v"):
            shown = given["padding"][:, None, :, None] != 0
            np.testing.assert_allclose(np.where(shown, result[name], 0), np.where(shown, expected[name], 0), atol=2e-6)
    return after


def reason(model: ir.Model) -> str:
    """Why the model is left as it is."""
    before = ir.to_proto(model).SerializeToString(deterministic=True)
    done, (finding,) = attend_in_place(model, 32)
    assert not done
    assert ir.to_proto(model).SerializeToString(deterministic=True) == before
    return finding.reason


def attributes(model: ir.Model) -> dict[str, object]:
    (node,) = (each for each in model.graph if each.op_type == GROUPED)
    return {name: attribute.value for name, attribute in node.attributes.items()}


def test_rotation_and_mask_go_into_the_operator() -> None:
    after = in_place(case())
    assert operators(after) == {GROUPED: 1, "ReduceSum": 1, "Sub": 1, "Cast": 2, "Shape": 1, "Squeeze": 1}
    assert attributes(after)["do_rotary"] == 1
    assert {name for name in after.graph.initializers if name.startswith("rotary")} == {"rotary.cos", "rotary.sin"}
    assert not attend_in_place(after, 32)[0]


def test_one_buffer_for_input_and_output(tmp_path: Path) -> None:
    """ONNX Runtime is given one longer buffer for both, as onnxruntime-genai does, and fills it step by step."""
    after = in_place(case())
    ir.save(after, tmp_path / "model.onnx")
    session = onnxruntime.InferenceSession(tmp_path / "model.onnx", providers=["CPUExecutionProvider"])
    prompt, token = feed(6, 0), feed(1, 6)
    prompt["padding"][:] = 1
    expected = run(case(), prompt)
    token.update(past_k=expected["new_k"], past_v=expected["new_v"])
    buffers = {name: onnxruntime.OrtValue.ortvalue_from_numpy(np.zeros((2, 2, 20, 16), np.float32)) for name in "kv"}
    for given in (prompt, token):
        binding = session.io_binding()
        for name in (each.name for each in session.get_inputs()):
            if name not in ("past_k", "past_v"):
                binding.bind_cpu_input(name, given[name])
        for name, buffer in buffers.items():
            binding.bind_ortvalue_input(f"past_{name}", buffer)
            binding.bind_ortvalue_output(f"new_{name}", buffer)
        binding.bind_output("y")
        session.run_with_iobinding(binding)
    np.testing.assert_allclose(binding.get_outputs()[-1].numpy(), run(case(), token)["y"], atol=2e-6)
    np.testing.assert_allclose(buffers["k"].numpy()[:, :, :7], run(case(), token)["new_k"], atol=2e-6)


def test_pairs_of_neighbours() -> None:
    turned = [(f"<num_heads = {heads}>", f"<num_heads = {heads}, interleaved = 1>") for heads in (2, 4)]
    assert attributes(in_place(case(*turned)))["rotary_interleaved"] == 1


def test_scale_and_limit_of_the_products() -> None:
    after = in_place(case(("<q_num_heads", "<scale = 0.5, softcap = 2.0, q_num_heads")))
    assert attributes(after)["scale"] == 0.5
    assert attributes(after)["softcap"] == 2.0


def test_parts_of_one_value_are_read_as_one() -> None:
    parts = ("    size = Shape", "    q, k, v = Split <axis = -1> (qkv, sizes)\n    size = Shape")
    inputs = ("float[B,S,64] q, float[B,S,32] k, float[B,S,32] v,", "float[B,S,128] qkv,")
    after = case(inputs, parts, sizes=np.array([64, 32, 32]))
    expected = after.clone()
    assert attend_in_place(after, 32)[0]
    common.RemoveUnusedNodesPass()(after)
    assert "Split" not in operators(after)
    given = feed(1, 9)
    given["qkv"] = np.concatenate([given.pop(name) for name in "qkv"], axis=-1)
    np.testing.assert_allclose(run(after, given)["y"], run(expected, given)["y"], atol=2e-6)


@pytest.mark.parametrize(
    "change",
    [
        (
            "angles = Mul (column, frequencies)",
            "most = ReduceMax (column)\n longer = Mul (column, frequencies)\n angles = Mul (longer, most)",
        ),
        ("r_k = RotaryEmbedding <num_heads = 2> (k, cos, sin)", "r_k = RotaryEmbedding <num_heads = 2> (k, sin, cos)"),
        ("r_k = RotaryEmbedding <num_heads = 2> (k, cos, sin)", "r_k = Neg (k)"),
        ("2> (k", "2, interleaved = 1> (k"),
    ],
    ids=["angles by the length", "keys by other angles", "keys not rotated", "keys in other pairs"],
)
def test_rotation_stays_outside(change: tuple[str, str]) -> None:
    after = in_place(case(change))
    assert attributes(after)["do_rotary"] == 0
    assert "RotaryEmbedding" in operators(after)


def test_angles_that_are_no_multiple_of_eight_stay_outside() -> None:
    """ONNX Runtime refuses them: "cos_cache dimension 1 must be <= head_size / 2 and a multiple of 8"."""
    part = [(f"<num_heads = {heads}>", f"<num_heads = {heads}, rotary_embedding_dim = 8>") for heads in (2, 4)]
    model = case(*part, ("frequencies)", "few)"), few=np.array([1.0, 0.5, 0.2, 0.1], np.float32))
    assert attributes(in_place(model))["do_rotary"] == 0


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (("causal = LessOrEqual", "causal = Less"), "its mask is not causal with padding alone"),
        (("mask = And (causal, real)", "low = Sub (rows, one)\n recent = Greater (columns, low)\n"
          " window = And (causal, recent)\n mask = And (window, real)"), "its mask is not causal with padding alone"),
        (("mask = And (causal, real)", "wide = Constant <value = int64 {20}> ()\n low = Sub (rows, wide)\n"
          " recent = Greater (columns, low)\n window = And (causal, recent)\n mask = And (window, real)"),
         "its mask is not causal with padding alone"),
        (("mask = And (causal, real)", "not = Not (real)\n mask = And (causal, not)"), "not causal with padding"),
        (("(causal, real)", "(causal, causal)"), "its mask is not made of sizes and one input"),
        (("v, mask, past", "v, , past"), "it has no mask"),
        (("<q_num_heads", "<is_causal = 1, q_num_heads"), "it masks by itself"),
        (("float[B,2,T,16] new_k, float", "float"), "its keys and values are no outputs of the graph"),
        (("past_v)\n}", "copy)\n}"), "no attention reads and writes a cache"),
    ],
)  # fmt: skip
def test_other_attentions_stay(change: tuple[str, str], said: str) -> None:
    copy = ("    size = Shape", "    copy = Identity (past_v)\n    size = Shape")
    assert said in reason(case(change, copy))


def test_one_attention_that_stays_keeps_all() -> None:
    second = """past_k, past_v)
    z, later_k, later_v = Attention <is_causal = 1, q_num_heads = 4, kv_num_heads = 2> (q, k, v, mask, past_k, past_v)
}"""
    outputs = "=> (float[B,S,64] z, float[B,2,T,16] later_k, float[B,2,T,16] later_v, float[B,S,64] y"
    assert "it masks by itself" in reason(case(("past_k, past_v)\n}", second), (OUTPUT, outputs)))
