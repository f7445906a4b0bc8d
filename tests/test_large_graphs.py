"""Work grows with the nodes of a graph, not with their square: counted in calls of functions, which do not vary."""

from __future__ import annotations

import cProfile
import pstats
from collections.abc import Callable

import ml_dtypes
import numpy as np
import onnx_ir as ir
import pytest

from qcompile.backends import Site, get
from qcompile.backends.onnxruntime.blocks import multiply_in_blocks
from qcompile.tuning_sites import model_of, read_values
from qcompile.verify_observed import observed_values

FEW, MANY = 40, 160


def layers(count: int) -> ir.Model:
    """Return count times DequantizeLinear in blocks, MatMul, Add, LayerNormalization, Round."""

    def constant(name: str, array: np.ndarray) -> ir.Value:
        value = ir.val(name, const_value=ir.tensor(array, name=name))
        initializers.append(value)
        return value

    initializers: list[ir.Value] = []
    x = ir.val("x", dtype=ir.DataType.FLOAT, shape=[4, 32])
    gain = constant("gain", np.ones(32, np.float32))
    nodes: list[ir.Node] = []

    def node(operator: str, *inputs: ir.Value, **attributes: int) -> ir.Value:
        name = f"{operator}_{len(nodes)}"
        nodes.append(ir.node(operator, inputs, attributes, name=name))
        output = nodes[-1].outputs[0]
        output.name, output.dtype, output.shape = name, ir.DataType.FLOAT, ir.Shape([4, 32])
        return output

    value = x
    for index in range(count):
        numbers = constant(f"weight_{index}", np.ones((32, 32)).astype(ml_dtypes.int4))
        scale = constant(f"scale_{index}", np.ones((2, 32), np.float32))
        weight = node("DequantizeLinear", numbers, scale, axis=0, block_size=16)
        total = node("Add", node("MatMul", value, weight), x)
        value = node("Round", node("LayerNormalization", total, gain))
    graph = ir.Graph([x], [value], nodes=nodes, initializers=initializers, opset_imports={"": 23})
    return ir.Model(graph, ir_version=10)


def calls(function: Callable[[], object]) -> int:
    profile = cProfile.Profile()
    profile.runcall(function)
    return pstats.Stats(profile).total_calls  # type: ignore[attr-defined, no-any-return]


def lower(model: ir.Model) -> Callable[[], object]:
    return lambda: multiply_in_blocks(model)


@pytest.mark.parametrize(
    "work",
    [lower, lambda model: lambda: observed_values(model)],
    ids=["weights in blocks", "values that decisions are made on"],
)
def test_four_times_the_layers_are_four_times_the_work(work: Callable[[ir.Model], Callable[[], object]]) -> None:
    few, many = (calls(work(layers(count))) for count in (FEW, MANY))
    assert many < 1.1 * MANY / FEW * few


def test_a_site_as_a_model_of_its_own_costs_the_same_in_any_graph() -> None:
    def first(count: int) -> Callable[[], object]:
        site: Site = get("onnxruntime").sites(layers(count))[0]
        return lambda: model_of(site, tuple((4, 32) for _ in read_values(site)), site.forms[0])

    assert calls(first(FEW)) == calls(first(MANY))
