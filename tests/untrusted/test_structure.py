"""Models that would grow are refused as written, before anything grows."""

from __future__ import annotations

import time
from collections.abc import Callable

import onnx
import onnx.helper as oh
import onnx_ir as ir
import pytest

from qcompile.errors import ModelError, UnsafeModelError
from qcompile.frontend import trace
from qcompile.untrusted.structure import DEEPEST_SUBGRAPH, MOST_NODES, check_structure

IMPORTS = [oh.make_opsetid("", 20), oh.make_opsetid("local", 1)]


def model_of(
    nodes: list[onnx.NodeProto], functions: list[onnx.FunctionProto], size: int | str = "n"
) -> onnx.ModelProto:
    x, y = (oh.make_tensor_value_info(name, onnx.TensorProto.FLOAT, [size, 4]) for name in "xy")
    graph = oh.make_graph(nodes, "g", [x], [y])
    return oh.make_model(graph, opset_imports=IMPORTS, ir_version=10, functions=functions)


def function(name: str, nodes: list[onnx.NodeProto]) -> onnx.FunctionProto:
    return oh.make_function("local", name, ["x"], ["y"], nodes, IMPORTS)


def call(name: str, x: str, y: str) -> onnx.NodeProto:
    return oh.make_node(name, [x], [y], domain="local")


def doubling(levels: int) -> onnx.ModelProto:
    """Each function calls the one before it twice: 2**levels nodes in all."""
    functions = [function("f0", [oh.make_node("Relu", ["x"], ["y"])])]
    for level in range(1, levels + 1):
        callee = f"f{level - 1}"
        functions.append(function(f"f{level}", [call(callee, "x", "t"), call(callee, "t", "y")]))
    return model_of([call(f"f{levels}", "x", "y")], functions)


def calling_itself() -> onnx.ModelProto:
    return model_of([call("f", "x", "y")], [function("f", [call("g", "x", "y")]), function("g", [call("f", "x", "y")])])


def doubling_in_branches(levels: int) -> onnx.ModelProto:
    """As `doubling`, with the calls inside the branches of an If."""
    model = doubling(levels)
    for body in model.functions[1:]:
        calls = [onnx.NodeProto.FromString(node.SerializeToString()) for node in body.node]
        out = oh.make_tensor_value_info("y", onnx.TensorProto.FLOAT, None)
        branch = oh.make_graph(calls, "b", [], [out])
        del body.node[:]
        body.node.append(oh.make_node("If", ["x"], ["y"], then_branch=branch, else_branch=branch))
    return model


def long_chain() -> onnx.ModelProto:
    node = oh.make_node("Relu", ["x"], ["y"])
    return model_of([node] * (MOST_NODES + 1), [])


@pytest.mark.parametrize(
    "make", [lambda: doubling(17), lambda: doubling(60), lambda: doubling_in_branches(20), calling_itself, long_chain]
)
def test_what_expands_is_refused_in_under_a_second(make: Callable[[], onnx.ModelProto]) -> None:
    model = make()
    start = time.perf_counter()
    with pytest.raises(UnsafeModelError, match=r"nodes once its functions are written out|calls itself"):
        check_structure(model, "m")
    assert time.perf_counter() - start < 1


def test_every_form_of_a_model_that_expands_is_refused() -> None:
    model = doubling(60)
    for given in (model, model.SerializeToString(), ir.from_proto(model)):
        with pytest.raises(UnsafeModelError, match="written out"):
            trace(given)


def test_functions_that_stay_small_are_read() -> None:
    assert len(trace(doubling(8)).functions) == 9


def nest(graph: onnx.GraphProto | onnx.FunctionProto, depth: int) -> None:
    """Put a branch into a branch, in place: protobuf does not copy what is this deep."""
    for _ in range(depth):
        node = graph.node.add(op_type="If", input=["x"], output=["y"])
        graph = node.attribute.add(name="then_branch", type=onnx.AttributeProto.GRAPH).g
    graph.node.add(op_type="Identity", input=["x"], output=["y"])


@pytest.mark.parametrize("place", ["graph", "function", "list"])
def test_subgraphs_nest_up_to_the_limit(place: str) -> None:
    for depth in (DEEPEST_SUBGRAPH, DEEPEST_SUBGRAPH + 1):
        model = model_of([], [function("f", [])])
        if place == "list":
            attribute = model.graph.node.add(op_type="If").attribute.add(name="b", type=onnx.AttributeProto.GRAPHS)
            nest(attribute.graphs.add(), depth - 1)
        else:
            nest(model.graph if place == "graph" else model.functions[0], depth)
        if depth == DEEPEST_SUBGRAPH:
            check_structure(model, "m")
        else:
            with pytest.raises(UnsafeModelError, match="deeper than 32"):
                check_structure(model, "m")


def chain_in_branches(functions: int, depth: int) -> onnx.ModelProto:
    """Each function calls the one before it from inside nested branches; none of them is deep itself."""
    model = model_of([call(f"f{functions - 1}", "x", "y")], [function(f"f{index}", []) for index in range(functions)])
    for index, body in enumerate(model.functions):
        nest(body, depth)
        inner = body
        for _ in range(depth):
            inner = inner.node[0].attribute[0].g
        if index:
            inner.node[0].op_type, inner.node[0].domain = f"f{index - 1}", "local"
    return model


def test_depths_add_up_along_calls() -> None:
    check_structure(chain_in_branches(4, DEEPEST_SUBGRAPH // 4), "m")
    check_structure(chain_in_branches(40, 0), "m")
    for model in (chain_in_branches(40, 30), chain_in_branches(3, 11)):
        with pytest.raises(UnsafeModelError, match="deeper than 32"):
            check_structure(model, "m")


def test_defaults_of_functions_nest_too() -> None:
    model = model_of([], [function("f", [])])
    nest(model.functions[0].attribute_proto.add(name="b", type=onnx.AttributeProto.GRAPH).g, DEEPEST_SUBGRAPH)
    with pytest.raises(UnsafeModelError, match="deeper than 32"):
        check_structure(model, "m")


def test_bytes_that_nest_deeper_than_the_format_can_are_refused() -> None:
    content = b""
    for _ in range(200):  # graph.node.attribute.g, written by hand: protobuf's own parser cannot
        for key in (0x32, 0x2A, 0x0A):
            content = bytes([key]) + _varint(len(content)) + content
    content = b"\x3a" + _varint(len(content)) + content
    with pytest.raises(ModelError, match="nests too deeply"):
        trace(content)


def _varint(number: int) -> bytes:
    written = bytearray()
    while number > 127:
        written.append(number & 127 | 128)
        number >>= 7
    return bytes([*written, number])


def sequence_of(kind: onnx.TypeProto) -> onnx.TypeProto:
    return oh.make_sequence_type_proto(oh.make_optional_type_proto(kind))


@pytest.mark.parametrize("wrap", [lambda kind: kind, sequence_of])
def test_dims_of_values_that_overflow_are_refused(wrap: Callable[[onnx.TypeProto], onnx.TypeProto]) -> None:
    model = model_of([oh.make_node("Relu", ["x"], ["y"])], [])
    kind = wrap(oh.make_tensor_type_proto(onnx.TensorProto.FLOAT, [2**31, 2**31]))
    model.graph.value_info.append(oh.make_value_info("v", kind))
    with pytest.raises(ModelError, match=r"v: the product of its dims \[2147483648, 2147483648\] overflows"):
        check_structure(model, "m")


def test_sizes_that_vary_do_not_overflow() -> None:
    check_structure(model_of([oh.make_node("Relu", ["x"], ["y"])], [], size=-1), "m")


WEIGHT = oh.make_tensor("w", onnx.TensorProto.FLOAT, [4], [1.0, 2.0, 3.0, 4.0])
SPARSE = oh.make_sparse_tensor(WEIGHT, oh.make_tensor("i", onnx.TensorProto.INT64, [4], range(4)), [4])


def with_values(what: str, *, inside: bool) -> onnx.ModelProto:
    """A model, or the branch of an If in it, with two values of one name."""
    add = [oh.make_node("Add", ["x", "w"], ["z"])]
    nodes = {"initializer and output": [oh.make_node("Relu", ["x"], ["w"]), *add], "outputs": add * 2}.get(what, add)
    wanted = oh.make_tensor_value_info("z", onnx.TensorProto.FLOAT, ["n", 4])
    graph = oh.make_graph(nodes, "b", [], [wanted], [WEIGHT])
    if what == "initializers":
        graph.initializer.append(WEIGHT)
    if what == "sparse":
        graph.sparse_initializer.append(SPARSE)
    if what == "inputs":
        graph.input.extend([wanted, wanted])
    model = model_of([oh.make_node("If", ["c"], ["y"], then_branch=graph, else_branch=graph)], [])
    if not inside:
        graph.input.append(model.graph.input[0])
        model.graph.CopyFrom(graph)
    return model


@pytest.mark.parametrize("inside", [False, True])
@pytest.mark.parametrize(
    ("what", "name", "found"),
    [
        ("initializers", "w", "two initializers"),
        ("sparse", "w", "two initializers"),
        ("inputs", "z", "two inputs"),
        ("initializer and output", "w", "two values"),
        ("outputs", "z", "two values"),
    ],
)
def test_two_values_of_one_name_are_refused(what: str, name: str, found: str, inside: bool) -> None:
    model = with_values(what, inside=inside)
    for given in (model, model.SerializeToString()):
        with pytest.raises(ModelError, match=found) as caught:
            trace(given)
        assert caught.value.subject == name


def test_an_input_may_have_a_default_and_outputs_may_be_left_out() -> None:
    model = model_of([oh.make_node("Dropout", ["w"], ["y", ""]), oh.make_node("Dropout", ["x"], ["z", ""])], [])
    model.graph.initializer.append(WEIGHT)
    model.graph.input.append(oh.make_tensor_value_info("w", onnx.TensorProto.FLOAT, [4]))
    check_structure(model, "m")


def test_a_sparse_initializer_of_a_branch_is_refused() -> None:
    model = with_values("none", inside=True)
    branch = model.graph.node[0].attribute[0].g
    branch.sparse_initializer.append(SPARSE)
    del branch.initializer[:]
    with pytest.raises(ModelError, match="sparse initializer"):
        trace(model)
