from __future__ import annotations

import tracemalloc

import numpy as np
import onnx_ir as ir
import pytest

from qcompile.errors import ModelError
from qcompile.passes.fold_constants import FoldConstants

TEXT = """
<ir_version: 10, opset_import: ["" : 20]> g (float[B, 4] x) => (float[B, 4] y)
<float[4] w = {1, 2, 3, 4}, float o = {1}> { v = Add(w, o) y = Mul(x, v) }
"""


def test_small_constants_are_folded_under_their_name(rewrite) -> None:
    result = rewrite(TEXT, FoldConstants())
    assert result.operators == ["Mul"]
    assert result.model.graph.initializers["v"].const_value.numpy().tolist() == [2, 3, 4, 5]


def test_large_constants_stay(rewrite) -> None:
    assert rewrite(TEXT, FoldConstants(size_limit=3)).operators == ["Add", "Mul"]


@pytest.mark.parametrize(("lazy", "operators"), [(False, ["MatMul"]), (True, ["Transpose", "MatMul"])])
def test_a_large_weight_is_transposed_here_only_where_it_is_in_memory(lazy: bool, operators: list[str]) -> None:
    model = ir.from_onnx_text("""
    <ir_version: 10, opset_import: ["" : 20]> g (float[B, 4] x) => (float[B, 3] y)
    <float[3, 4] w = {1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12}> { v = Transpose<perm = [1, 0]>(w) y = MatMul(x, v) }
    """)
    weight = model.graph.initializers["w"]
    tensor = weight.const_value
    if lazy:
        weight.const_value = ir.LazyTensor(lambda: tensor, ir.DataType.FLOAT, ir.Shape([3, 4]), name="w")
    FoldConstants(size_limit=8)(model)
    assert [node.op_type for node in model.graph] == operators


LONG = {
    "Expand": ("Expand(o, s)", "float[1] o = {1}, int64[2] s = {10000, 10000}"),
    "Tile": ("Tile(o, s)", "float[1] o = {1}, int64[1] s = {100000000}"),
    "Range": ("Range(a, b, c)", "float a = {0}, float b = {1e8}, float c = {1}"),
    "Pad": ("Pad(o, s)", "float[1] o = {1}, int64[2] s = {0, 100000000}"),
    "OneHot": ("OneHot(i, s, o)", "int64[1] i = {0}, int64 s = {100000000}, float[2] o = {0, 1}"),
    "Resize": ("Resize(o, empty, empty, s)", "float[1] o = {1}, float[0] empty = {}, int64[1] s = {100000000}"),
    "AveragePool": (
        "AveragePool<kernel_shape = [10000, 10000], pads = [9999, 9999, 9999, 9999], strides = [20000, 20000]>(o)",
        "float[1, 1, 1, 1] o = {1}",
    ),
}


@pytest.mark.parametrize(("call", "constants"), LONG.values(), ids=LONG)
def test_what_a_short_model_makes_long_is_not_computed(call: str, constants: str) -> None:
    """The declared shape of the result is a lie; onnxscript measures a result when it has it."""
    text = f"""
    <ir_version: 10, opset_import: ["" : 20]> g (float[1] x) => (float y) <{constants}>
    {{ z = {call} m = ReduceMax<keepdims = 0>(z) y = Mul(x, m) }}
    """
    model = ir.from_onnx_text(text)
    z = model.graph[0].outputs[0]
    z.shape, z.dtype = ir.Shape([1]), ir.DataType.FLOAT
    tracemalloc.start()
    FoldConstants()(model)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 2**24
    assert len(model.graph) == 3


def test_a_product_of_two_long_vectors_is_not_computed() -> None:
    for equation in ("MatMul(a, b)", "Add(a, b)", 'Einsum<equation = "ij,jk->ik">(a, b)'):
        text = f"""<ir_version: 10, opset_import: ["" : 20]> g (float[1] x) => (float y)
        {{ z = {equation} m = ReduceMax<keepdims = 0>(z) y = Mul(x, m) }}"""
        model = ir.from_onnx_text(text)
        for name, shape in (("a", (8192, 1)), ("b", (1, 8192))):
            value = next(value for value in model.graph[0].inputs if value is not None and value.name == name)
            value.const_value = ir.tensor(np.ones(shape, np.float32), name=name)
            value.shape, value.dtype = ir.Shape(shape), ir.DataType.FLOAT
            model.graph.register_initializer(value)
        tracemalloc.start()
        FoldConstants()(model)
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert peak < 2**24, equation


def test_small_results_of_what_could_be_long_are_folded(rewrite) -> None:
    text = """
    <ir_version: 10, opset_import: ["" : 20]> g (float[B, 4] x) => (float[B, 4] y)
    <float[1] o = {1}, int64[1] s = {4}, int64[1] once = {1}> { e = Expand(o, s) t = Tile(e, once) y = Mul(x, t) }
    """
    assert rewrite(text, FoldConstants()).operators == ["Mul"]


@pytest.mark.parametrize(("length", "refused"), [(2**40, True), (2**20, False)])
def test_a_split_into_endless_tensors_is_refused(length: int, refused: bool) -> None:
    model = ir.from_onnx_text(f"""
    <ir_version: 10, opset_import: ["" : 20]> g (float[{length}] x) => (seq(float[1048576]) y)
    <int64 s = {{1048576}}> {{ y = SplitToSequence(x, s) }}
    """)
    if refused:
        with pytest.raises(ModelError, match="more than 65536 tensors"):
            FoldConstants()(model)
    else:
        FoldConstants()(model)
