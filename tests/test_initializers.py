"""New initializers have names of their own, in the graph where every reader of their source can see them."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from qcompile.initializers import derive_initializer, new_initializer, remove_unused

MODEL = """
<ir_version: 10, opset_import: ["" : 23]>
g (float[N, 2] x, bool c) => (float[N, 2] y) <float[2] b = {1, 2}, float[2] once = {3, 4}> {
    taken = Add(x, b)
    p = Add(taken, once)
    y = If(c) <
        then_branch = then () => (float[N, 2] t) { t = Add(p, b) },
        else_branch = other () => (float[N, 2] inner) { inner = Neg(p) }
    >
}
"""


def test_a_derived_initializer_for_a_branch_is_in_the_graph_of_its_source() -> None:
    model = ir.from_onnx_text(MODEL)
    source = model.graph.initializers["b"]
    for name, expected in (("taken", "taken_1"), ("inner", "inner_1"), ("free", "free")):
        new = derive_initializer(source, name, (1, 2), lambda array: 2 * array.reshape(1, 2))
        assert (new.name, new.graph, new.shape) == (expected, model.graph, [1, 2])
        np.testing.assert_array_equal(new.const_value.numpy(), [[2, 4]])
    np.testing.assert_array_equal(source.const_value.numpy(), [1, 2])


def test_what_has_one_reader_is_changed_in_place() -> None:
    model = ir.from_onnx_text(MODEL)
    source = model.graph.initializers["once"]
    assert derive_initializer(source, "other", (2,), lambda array: array + 1) is source
    assert (source.name, source.const_value.name) == ("once", "once")
    np.testing.assert_array_equal(source.const_value.numpy(), [4, 5])


def test_what_is_an_output_too_stays_as_it_is() -> None:
    model = ir.from_onnx_text(MODEL)
    source = model.graph.initializers["once"]
    model.graph.outputs.append(source)
    assert derive_initializer(source, "other", (2,), lambda array: array + 1).name == "other"
    np.testing.assert_array_equal(source.const_value.numpy(), [3, 4])


def test_a_new_initializer_and_one_that_nothing_reads() -> None:
    graph = ir.from_onnx_text(MODEL).graph
    new = new_initializer(graph, "inner", np.arange(6, dtype=np.int64).reshape(2, 3).T)
    assert (new.name, new.shape, new.dtype) == ("inner_1", [3, 2], ir.DataType.INT64)
    remove_unused([new, graph.initializers["b"]])
    assert set(graph.initializers) == {"b", "once"}
