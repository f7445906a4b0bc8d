"""What a model would grow to: nested subgraphs, functions that call functions, sizes that no memory has.

All of it is counted on the model as written, in time linear in its length; nothing is expanded.
"""

from __future__ import annotations

import graphlib
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping

import onnx

from qcompile.errors import ModelError, UnsafeModelError
from qcompile.untrusted.tensors import check_data, count, tensors_of_model

DEEPEST_SUBGRAPH = 32
"""As deep as messages of protobuf may nest: a hundred, three for each subgraph."""

MOST_NODES = 100_000
"""With every function written out; the largest exports of language models have a quarter of it."""

_WRITE_FLAT = "Export the model without functions and nested subgraphs"

Function = tuple[str, str, str]
"""Domain, name and overload."""

Calls = Counter[Function]

Depths = dict[Function, int]
"""Operator or function -> how deep the deepest subgraph lies that calls it; 0 in a body itself."""


def check_structure(model: onnx.ModelProto, subject: str) -> None:
    """Check that a model, which may have been made to break its reader, is as large as it looks.

    Args:
        model: any; where its external data lies is not checked here.
        subject: what to call the model in errors.

    Raises:
        UnsafeModelError: subgraphs nest too deeply, functions call themselves, or expand to too many nodes.
        ModelError: two values of a graph have one name, the dims of a value overflow, or a
            tensor does not hold what its dims ask for.
    """
    graphs = list(_graphs(model, subject))
    _check_size(model, subject)
    for graph in graphs:
        _check_names(graph)
    for values in (*(_values(graph) for graph in graphs), *(function.value_info for function in model.functions)):
        for value in values:
            _check_type(value.type, value.name or "a value")
    for tensor in tensors_of_model(model):
        if tensor.data_location != onnx.TensorProto.EXTERNAL:
            check_data(tensor)


def check_dense(model: onnx.ModelProto, subject: str) -> None:
    """Raise ModelError where a graph has a sparse initializer, in subgraphs too: onnx_ir leaves those out."""
    for graph in _graphs(model, subject):
        for sparse in graph.sparse_initializer:
            raise ModelError(
                sparse.values.name, "is a sparse initializer, which is not read", "Store it as a dense one"
            )


def _check_names(graph: onnx.GraphProto) -> None:
    """Check that no two values of one graph have the same name; raises ModelError.

    onnx_ir takes the last of two initializers of one name, runtimes take either, and none of them fails. An initializer
    may have the name of an input, whose default it is, and a subgraph may hide names of the graph around it.
    """
    stored = [tensor.name for tensor in (*graph.initializer, *(each.values for each in graph.sparse_initializer))]
    given = [value.name for value in graph.input]
    made = [*{*stored, *given}, *(name for node in graph.node for name in node.output)]
    for what, names in (("initializers", stored), ("inputs", given), ("values", made)):
        for name, times in Counter(names).items():
            if name and times > 1:  # what has no name, as an output that is left out, cannot be read
                raise ModelError(name, f"is the name of two {what} of graph {graph.name!r}", "Rename one of them")


def _values(graph: onnx.GraphProto) -> Iterator[onnx.ValueInfoProto]:
    yield from graph.input
    yield from graph.output
    yield from graph.value_info


def _graphs(model: onnx.ModelProto, subject: str) -> Iterator[onnx.GraphProto]:
    """Yield the main graph, those of training and all subgraphs; raises when they nest too deeply."""
    roots = [model.graph, *(graph for each in model.training_info for graph in (each.initialization, each.algorithm))]
    waiting = [(graph, 0) for graph in roots]
    nodes = sum(len(function.node) for function in model.functions)
    _check_count(nodes, subject)
    waiting += [(graph, 1) for function in model.functions for graph in _subgraphs(function.node)]
    waiting += [(graph, 1) for function in model.functions for graph in _graphs_of_attributes(function.attribute_proto)]
    while waiting:
        graph, depth = waiting.pop()
        _check_depth(depth, subject)
        nodes += len(graph.node)
        _check_count(nodes, subject)
        yield graph
        waiting += [(each, depth + 1) for each in _subgraphs(graph.node)]


def _subgraphs(nodes: Iterable[onnx.NodeProto]) -> Iterator[onnx.GraphProto]:
    for node in nodes:
        yield from _graphs_of_attributes(node.attribute)


def _graphs_of_attributes(attributes: Iterable[onnx.AttributeProto]) -> Iterator[onnx.GraphProto]:
    for attribute in attributes:
        if attribute.HasField("g"):
            yield attribute.g
        yield from attribute.graphs


def _check_size(model: onnx.ModelProto, subject: str) -> None:
    calls, depths = _calls(model.graph.node)
    bodies = {(_domain(each.domain), each.name, each.overload): _calls(each.node) for each in model.functions}
    check_expansion(calls, {name: body[0] for name, body in bodies.items()}, subject)
    check_nesting(depths, {name: body[1] for name, body in bodies.items()}, subject)


def check_expansion(main: Calls, bodies: Mapping[Function, Calls], subject: str) -> None:
    """Check how many nodes a model has once every function is written out.

    Args:
        main: how often the main graph and its subgraphs call each operator or function.
        bodies: the same for each function.
        subject: what to call the model in errors.

    Raises:
        UnsafeModelError: a function calls itself, or there are more than MOST_NODES.
    """
    sizes: dict[Function, int] = {}
    for name in _callees_first(bodies, subject):
        sizes[name] = _expanded(bodies[name], sizes)
    _check_count(_expanded(main, sizes), subject)


def check_nesting(main: Depths, bodies: Mapping[Function, Depths], subject: str) -> None:
    """Check how deep subgraphs nest once every function is written out where it is called.

    Args:
        main: how deep the main graph calls each operator or function.
        bodies: the same for each function.
        subject: what to call the model in errors.

    Raises:
        UnsafeModelError: a function calls itself, or subgraphs nest deeper than DEEPEST_SUBGRAPH.
    """
    deepest: Depths = {}
    for name in _callees_first(bodies, subject):
        deepest[name] = _written_out(bodies[name], deepest)
        _check_depth(deepest[name], subject)
    _check_depth(_written_out(main, deepest), subject)


def _written_out(body: Depths, deepest: Depths) -> int:
    return max((depth + deepest.get(called, 0) for called, depth in body.items()), default=0)


def _check_depth(depth: int, subject: str) -> None:
    if depth > DEEPEST_SUBGRAPH:
        raise UnsafeModelError(subject, f"its subgraphs nest deeper than {DEEPEST_SUBGRAPH}", _WRITE_FLAT)


def _callees_first(bodies: Mapping[Function, Iterable[Function]], subject: str) -> Iterator[Function]:
    """Yield every function after those that it calls; raises when one calls itself."""
    calls = {name: [called for called in body if called in bodies] for name, body in bodies.items()}
    try:
        yield from graphlib.TopologicalSorter(calls).static_order()
    except graphlib.CycleError as error:
        name = error.args[1][0]
        raise UnsafeModelError(subject, f"its function {name[0]}.{name[1]} calls itself", _WRITE_FLAT) from error


def _check_count(nodes: int, subject: str) -> None:
    if nodes > MOST_NODES:
        reason = f"it has more than {MOST_NODES} nodes once its functions are written out"
        raise UnsafeModelError(subject, reason, _WRITE_FLAT)


def _expanded(body: Calls, sizes: Mapping[Function, int]) -> int:
    return sum(times * sizes.get(called, 1) for called, times in body.items())


def _calls(nodes: Iterable[onnx.NodeProto]) -> tuple[Calls, Depths]:
    """How often and how deep each operator or function is called, in subgraphs too."""
    found: Calls = Counter()
    depths: Depths = {}
    waiting = [(nodes, 0)]
    while waiting:
        body, depth = waiting.pop()
        for node in body:
            name = (_domain(node.domain), node.op_type, node.overload)
            found[name] += 1
            depths[name] = max(depth, depths.get(name, 0))
            waiting += [(graph.node, depth + 1) for graph in _subgraphs((node,))]
    return found, depths


def _domain(name: str) -> str:
    return "" if name == "ai.onnx" else name


def _check_type(kind: onnx.TypeProto, name: str) -> None:
    """Check the dims that a type names, inside sequences, maps and optional values too."""
    while kind is not None:
        which = kind.WhichOneof("value")
        if which in ("tensor_type", "sparse_tensor_type"):
            dims = getattr(kind, which).shape.dim
            count((max(dim.dim_value, 0) for dim in dims if dim.HasField("dim_value")), name)
        inner = {"sequence_type": "elem_type", "optional_type": "elem_type", "map_type": "value_type"}.get(which or "")
        if inner is None:
            return
        kind = getattr(getattr(kind, which), inner)
