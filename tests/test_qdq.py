"""The words of the quantized graph: their names never meet those of the user's model."""

from __future__ import annotations

import numpy as np
import onnx
import onnx_ir as ir
import pytest

from qcompile import qdq
from qcompile.errors import UnsupportedError
from qcompile.graph import Names, unique_name

TAKEN = """
<ir_version: 10, opset_import: ["" : 23]>
g (float[N, 4] x, bool c) => (float[N, 4] y, float[N, 4] e)
<float[4, 4] w = {1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16}, float zero = {0}>
{
    "x.quantized" = Add (x, zero)
    "w.dequantized" = MatMul ("x.quantized", w)
    "x.dequantized" = MatMul (x, w)
    "x.scale" = Add ("w.dequantized", "x.dequantized")
    "x.zero_point" = Identity ("x.scale")
    y = Identity ("x.zero_point")
    e = If (c) <
        then_branch = then () => (float[N, 4] inner) { inner = Identity (x) },
        else_branch = other () => (float[N, 4] "w.scale") { "w.scale" = Neg (x) }
    >
}
"""


def products(model: ir.Model) -> list[ir.Node]:
    return [node for node in model.graph if node.op_type == "MatMul"]


def check(model: ir.Model) -> None:
    """The checker of ONNX refuses values of one name, and ONNX Runtime nodes of one name."""
    onnx.checker.check_model(ir.to_proto(model), full_check=True)
    names = [node.name for node in model.graph if node.name]
    assert len(names) == len(set(names))


@pytest.mark.parametrize("kind", ["static", "per tensor", "per token"])
def test_names_of_activations_that_the_user_has_taken(kind: str) -> None:
    model = ir.from_onnx_text(TAKEN)
    x, (_, reader) = model.graph.inputs[0], products(model)
    for _ in range(2):  # twice, as two passes may
        if kind == "static":
            new, _ = qdq.quantize_dequantize(x, np.float32(0.1), np.uint8(3), reader)
        elif kind == "per tensor":
            new, _ = qdq.dynamic_per_tensor(x, reader)
        else:
            new, _ = qdq.dynamic_per_token(x, reader, model)
    qdq.replace_input(reader, x, new)
    check(model)
    assert new.name == "x.dequantized_2"


def test_one_weight_that_is_dequantized_twice() -> None:
    model = ir.from_onnx_text(TAKEN)
    weight = model.graph.initializers["w"]
    for node in products(model):
        integers, scale = np.ones((4, 4), np.int8), np.ones(4, np.float32)
        new = qdq.dequantized_constant(weight, integers, scale, np.zeros(4, np.int8), 1, node)
        qdq.replace_input(node, weight, new)
    check(model)
    assert [node.inputs[1].name for node in products(model)] == ["w.dequantized_1", "w.dequantized_2"]
    assert "w.scale" not in model.graph.initializers  # a branch of the If has it


def test_free_names_are_kept_and_handed_out_once() -> None:
    graph = ir.from_onnx_text(TAKEN).graph
    names = Names(graph)
    assert [names.new("free"), names.new("free"), names.new("inner"), names.new("w")] == [
        "free",
        "free_1",
        "inner_1",
        "w_1",
    ]
    assert unique_name(graph, "free") == "free"


OLD = """
<ir_version: 7, opset_import: ["" : {opset}]>
g (float[N, 4] x) => (float[N, 2] y) <float[4, 2] w = {{1, 2, 3, 4, 5, 6, 7, 8}}> {{ y = MatMul (x, w) }}
"""


@pytest.mark.parametrize("opset", [17, 18])
def test_per_token_quantization_in_an_opset_that_could_not_be_left(opset: int) -> None:
    model = ir.from_onnx_text(OLD.format(opset=opset))
    x, (reader,) = model.graph.inputs[0], products(model)
    reader.name = "fc"
    if opset < 18:
        with pytest.raises(UnsupportedError, match=r"layer fc: a scale per token needs opset 18.*one scale per tensor"):
            qdq.dynamic_per_token(x, reader, model)
        assert list(model.graph) == [reader]
        return
    qdq.replace_input(reader, x, qdq.dynamic_per_token(x, reader, model)[0])
    check(model)


@pytest.mark.parametrize("opset", [12, 13])
@pytest.mark.parametrize("channels", [True, False])
def test_scales_per_channel_in_an_opset_that_could_not_be_left(opset: int, channels: bool) -> None:
    model = ir.from_onnx_text(OLD.format(opset=opset))
    w, (reader,) = model.graph.initializers["w"], products(model)
    shape = (2,) if channels else ()
    parts = np.ones((4, 2), np.int8), np.ones(shape, np.float32), np.zeros(shape, np.int8)
    if opset < 13 and channels:
        with pytest.raises(UnsupportedError, match=r"a scale per channel needs opset 13 or later.*from opset 12"):
            qdq.dequantized_constant(w, *parts, 1, reader)
        return
    qdq.replace_input(reader, w, qdq.dequantized_constant(w, *parts, 1, reader))
    check(model)
