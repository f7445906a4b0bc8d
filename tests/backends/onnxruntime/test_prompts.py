from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest

from qcompile.backends.onnxruntime.prompts import multiply_prompts_in_integers
from tests.backends.onnxruntime.rewrites import operators, run

GENERATOR = np.random.default_rng(0)
CONTRIB = "com.microsoft"


def model(inputs: int, block: int, *, zero_points: bool = False, bits: int = 4) -> ir.Model:
    """x [B,S,inputs] times a weight in blocks, then what mixes positions, then times one that is for the last token."""
    x = ir.Value(name="x", type=ir.TensorType(ir.DataType.FLOAT), shape=ir.Shape(["B", "S", inputs]))
    ids = ir.Value(name="ids", type=ir.TensorType(ir.DataType.INT64), shape=ir.Shape(["B", "S"]))
    first = _weight("first", inputs, 24, block, zero_points=zero_points, bits=bits)
    last = _weight("last", 24, 8, 32, zero_points=zero_points, bits=bits)
    axis = _constant("axis", np.array(1))
    multiplied = _product("multiplied", [x, *first], inputs, 24, block, bits)
    mixed = ir.node("CumSum", [multiplied.outputs[0], axis], name="mixed")
    mixed.outputs[0].name = "mixed"
    mixed.outputs[0].shape, mixed.outputs[0].type = ir.Shape(["B", "S", 24]), x.type
    logits = _product("logits", [mixed.outputs[0], *last], 24, 8, 32, bits)
    graph = ir.Graph(
        [x, ids],
        [logits.outputs[0], mixed.outputs[0]],
        nodes=[multiplied, mixed, logits],
        initializers=[*first, *last, axis],
        opset_imports={"": 23, CONTRIB: 1},
        name="main",
    )
    return ir.Model(graph, ir_version=10)


def _product(name: str, values: list[ir.Value], inputs: int, outputs: int, block: int, bits: int) -> ir.Node:
    attributes = {"K": inputs, "N": outputs, "bits": bits, "block_size": block, "accuracy_level": 4}
    node = ir.node("MatMulNBits", values, attributes, domain=CONTRIB, name=name)
    node.outputs[0].name = name
    node.outputs[0].shape, node.outputs[0].type = ir.Shape(["B", "S", outputs]), values[0].type
    return node


def _constant(name: str, array: np.ndarray) -> ir.Value:
    tensor = ir.tensor(array, name=name)
    return ir.Value(name=name, const_value=tensor, type=ir.TensorType(tensor.dtype), shape=tensor.shape)


def _weight(name: str, inputs: int, outputs: int, block: int, *, zero_points: bool, bits: int) -> list[ir.Value]:
    blocks = -(-inputs // block)
    packed = GENERATOR.integers(0, 256, (outputs, blocks, block * bits // 8)).astype(np.uint8)
    scales = GENERATOR.uniform(-0.2, 0.2, (outputs, blocks)).astype(np.float32)
    scales[1] = 0  # an output that is zero
    values = [_constant(f"{name}.packed", packed), _constant(f"{name}.scales", scales.reshape(-1))]
    zeros = np.full((outputs, -(-blocks * bits // 8)), 0x77, np.uint8)
    return [*values, _constant(f"{name}.zeros", zeros)] if zero_points else values


def rounded(x: np.ndarray, written: ir.Model, inputs: int) -> np.ndarray:
    """x times the first weight by integers: each token, and each output of the weight, with one scale."""
    packed, scales = (written.graph.initializers[f"first.{name}"].const_value for name in ("packed", "scales"))
    assert packed is not None
    assert scales is not None
    nibbles = packed.numpy()
    numbers = np.stack([nibbles & 15, nibbles >> 4], -1).reshape(*nibbles.shape[:2], -1).astype(np.float64) - 8
    of_blocks = scales.numpy().astype(np.float64).reshape(numbers.shape[0], -1, 1)
    largest = np.maximum(np.abs(of_blocks).max(1, keepdims=True), 1e-12)
    weight = np.rint(numbers * np.rint(of_blocks / largest * 127) / 8) * largest * 8 / 127
    rows = np.maximum(np.abs(x).max(-1, keepdims=True), 1e-12) / 127
    tokens: np.ndarray = np.rint(x / rows) * rows
    return tokens @ weight.reshape(numbers.shape[0], -1)[:, :inputs].T


@pytest.mark.parametrize(("inputs", "block"), [(64, 32), (48, 32), (17, 16)], ids=["filled", "not filled", "one over"])
def test_products_of_a_prompt_are_those_of_integers(inputs: int, block: int) -> None:
    before = model(inputs, block)
    after = before.clone()
    assert multiply_prompts_in_integers(after, after.graph.inputs[1], after.graph.outputs[0], 4)
    x = GENERATOR.standard_normal((2, 5, inputs)).astype(np.float32)
    x[0, 2] = 0
    feed = {"x": x, "ids": np.zeros((2, 5), np.int64)}
    wanted = rounded(x, before, inputs).cumsum(1)
    np.testing.assert_allclose(run(after, feed)["mixed"], wanted, atol=1e-5 * np.abs(wanted).max())
    few = {"x": x[:, :3], "ids": feed["ids"][:, :3]}
    for name, array in run(before, few).items():
        np.testing.assert_array_equal(run(after, few)[name], array)


def test_the_last_product_stays_outside() -> None:
    after = model(64, 32)
    multiply_prompts_in_integers(after, after.graph.inputs[1], after.graph.outputs[0], 4)
    assert operators(after)["If"] == operators(after)["MatMulNBits"] == 1
    (choice,) = (node for node in after.graph if node.op_type == "If")
    bodies = {name: [node.op_type for node in choice.attributes[name].as_graph()] for name in choice.attributes}
    assert bodies["else_branch"] == ["MatMulNBits", "CumSum"]
    assert "MatMulNBits" not in bodies["then_branch"]
    assert [value.name for value in after.graph.outputs] == ["logits", "mixed"]


@pytest.mark.parametrize("other", [{"zero_points": True}, {"bits": 8}])
def test_weights_of_other_kinds_stay(other: dict[str, int]) -> None:
    after = model(64, 32, **other)  # type: ignore[arg-type]
    assert not multiply_prompts_in_integers(after, after.graph.inputs[1], after.graph.outputs[0], 4)
    assert operators(after) == {"MatMulNBits": 2, "CumSum": 1}
