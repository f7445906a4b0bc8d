from __future__ import annotations

import numpy as np

from qcompile.backends.onnxruntime.small_graphs import SmallGraph, small_graph
from tests.backends.onnxruntime.caches import case


def of(name: str, *changes: tuple[str, str]) -> SmallGraph | None:
    model = case(*changes)
    return small_graph(next(value for node in model.graph for value in node.outputs if value.name == name))


def test_sizes_and_numbers_are_told_apart() -> None:
    part = of("mask")
    assert part is not None
    assert [value.name for value in part.numbers] == ["padding"]
    assert {value.name for value in part.shapes} == {"past_k", "q"}
    mask = part.compute({part.numbers[0]: np.array([[1, 1, 0]])}, {"B": 1, "S": 2, "P": 1})
    np.testing.assert_array_equal(mask, [[[[True, True, False], [True, True, False]]]])


def test_a_size_that_nobody_gives() -> None:
    part = of("mask")
    assert part is not None
    assert part.compute({part.numbers[0]: np.array([[1, 1, 0]])}, {"B": 1, "S": 2}) is None


def test_the_size_of_what_lies_in_the_middle() -> None:
    """Only Shape reads it, so what computes it is no part of the graph."""
    part = of(
        "mask",
        ("    size = Shape <start = 1, end = 2> (q)", "    n = Neg (q)\n    size = Shape <start = 1, end = 2> (n)"),
    )
    assert part is not None
    assert {value.name for value in part.shapes} == {"past_k", "n"}
    mask = part.compute({part.numbers[0]: np.array([[1, 1, 0]])}, {"B": 1, "S": 2, "P": 1})
    assert mask is not None
    assert mask.shape == (1, 1, 2, 3)


def test_an_input_is_no_graph_and_a_long_one_is_not_small() -> None:
    assert small_graph(case().graph.inputs[0]) is None
    chain = "\n ".join(f"n{i + 1} = Neg (n{i})" for i in range(100))
    assert of("cos", ("cos = Cos (angles)", f"n0 = Neg (angles)\n {chain}\n cos = Cos (n100)")) is None
