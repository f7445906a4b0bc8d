"""Outputs of a graph that the bodies of If and Loop in it read."""

from __future__ import annotations

import onnx_ir as ir

from qcompile import graph


def copy_outputs_that_bodies_read(model: ir.Model) -> None:
    """v, an output that a body reads  ->  v = Identity(v.inner), and every node reads v.inner.

    OpenVINO 2026.4 takes a value of a body that has the name of an output of the graph around it for an output of the
    body too, in front of its own: an If then gives that value in the place of its result, or is refused because its
    branches "have to have the same number of outputs" (where one of them reads it as an operand of two). It does so
    when it reads a file, and not when it reads a model in memory. The Identity is gone in what it makes of the file.
    Does not apply to inputs that are outputs, which it reads as they are.
    """
    for each in (model.graph, *model.graph.subgraphs()):
        for index, value in enumerate(each.outputs):
            if value.producer() is None or all(reader.graph is each for reader in graph.readers(value)):
                continue
            copy = ir.node("Identity", [value], name=graph.unique_name(model.graph, f"{value.name}.copy"))
            output, name = copy.outputs[0], value.name
            output.type, output.shape = value.type, value.shape
            value.name = graph.unique_name(model.graph, f"{name}.inner")
            output.name = name
            each.append(copy)
            each.outputs[index] = output
