from __future__ import annotations

import numpy as np
import onnx_ir as ir
from onnx_ir.passes import common

from qcompile.backends.onnxruntime.cached_attention import attend_in_place
from qcompile.backends.onnxruntime.packed_heads import pack_heads
from tests.backends.onnxruntime.caches import case, feed
from tests.backends.onnxruntime.rewrites import operators, run

CONTRIB = "com.microsoft"
GENERATOR = np.random.default_rng(0)


def model(*blocks: int) -> ir.Model:
    """GroupQueryAttention of three products of x, of which each has a block size of its own."""
    written = case()
    attend_in_place(written, 32)
    common.RemoveUnusedNodesPass()(written)
    graph = written.graph
    x = ir.Value(name="x", type=ir.TensorType(ir.DataType.FLOAT), shape=ir.Shape(["B", "S", 64]))
    for index, (outputs, block) in enumerate(zip((64, 32, 32), blocks, strict=True)):
        old = next(value for value in graph.inputs if value.name == "qkv"[index])
        count = 64 // block
        numbers = GENERATOR.integers(0, 256, (outputs, count, block // 2)).astype(np.uint8)
        scales = GENERATOR.uniform(-0.1, 0.1, outputs * count).astype(np.float32)
        values = [x]
        for word, array in (("packed", numbers), ("scales", scales)):
            tensor = ir.tensor(array, name=f"{old.name}.{word}")
            values.append(ir.Value(name=tensor.name, const_value=tensor, type=ir.TensorType(tensor.dtype)))
            graph.register_initializer(values[-1])
        attributes = {"K": 64, "N": outputs, "bits": 4, "block_size": block, "accuracy_level": 1}
        node = ir.node("MatMulNBits", values, attributes, domain=CONTRIB)
        node.outputs[0].name = f"{old.name}.product"
        node.outputs[0].shape, node.outputs[0].type = old.shape, old.type
        graph.insert_before(next(iter(graph)), node)
        old.replace_all_uses_with(node.outputs[0])
        graph.inputs.remove(old)
    graph.inputs.append(x)
    return written


def test_three_products_become_one() -> None:
    before = model(32, 32, 32)
    after = before.clone()
    pack_heads(after)
    assert operators(after)["MatMulNBits"] == 1
    assert not {name for name in after.graph.initializers if name.endswith("packed")}
    given = {name: array for name, array in feed(6, 0).items() if name not in ("q", "k", "v")}
    given["x"] = GENERATOR.standard_normal((2, 6, 64)).astype(np.float32)
    wanted = run(before, given)
    for name, array in run(after, given).items():
        np.testing.assert_array_equal(array, wanted[name])
    again = operators(after)
    pack_heads(after)
    assert operators(after) == again


def test_blocks_of_different_sizes_stay() -> None:
    after = model(32, 64, 32)
    pack_heads(after)
    assert operators(after)["MatMulNBits"] == 3


def test_a_product_that_is_read_elsewhere_stays() -> None:
    after = model(32, 32, 32)
    value = next(output for node in after.graph for output in node.outputs if output.name == "k.product")
    after.graph.outputs.append(value)
    pack_heads(after)
    assert operators(after)["MatMulNBits"] == 3
