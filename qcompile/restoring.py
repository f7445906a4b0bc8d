"""Layers of a quantized model as they were before: as if the passes had been told to ignore them."""

from __future__ import annotations

from collections.abc import Collection

import networkx
import onnx_ir as ir
from onnx_ir.passes import common

from qcompile.graph import Names, constant, is_standard, layer_name
from qcompile.layers import every_layer, flowing_outputs, node_of
from qcompile.unused_nodes import RemoveUnusedNodes

_PRODUCTS = ("Attention", "Conv", "ConvTranspose", "Gather", "MatMul")


def restored(quantized: ir.Model, before: ir.Model, layers: Collection[str]) -> ir.Model:
    """Return the quantized model with some layers in float; neither model is changed, and weights are shared.

    What a layer that stays float reads, it reads as it is, unless it is the output of a quantized convolution, which
    all nodes read as it is quantized (`InsertQdq`); so do the nodes between the layers. Does not apply where a pass
    between the two models did anything but quantize: values are known by their names.

    Args:
        quantized: the model behind the passes that quantize.
        before: the model in front of them.
        layers: names, by which a layer is known to the passes.
    """
    model = quantized.clone()
    writer = _Writer(model)
    still = {node for node in before.graph if writer.quantized(node) and layer_name(node) not in layers}
    convolutions = [layer for layer in every_layer(before) if node_of(layer) in still]
    flowing = {str(value.name) for value in flowing_outputs(convolutions)}
    for node in before.graph:
        if node not in still and writer.changed(node):
            writer.restore(node, flowing)
    RemoveUnusedNodes()(model)
    common.RemoveUnusedFunctionsPass()(model)  # type: ignore[no-untyped-call]
    common.RemoveUnusedOpsetsPass()(model)
    return model


def shared_weights(before: ir.Model, layers: Collection[str]) -> list[frozenset[str]]:
    """Return the layers in groups that share a weight, in graph order; the others are groups of one.

    Of a weight that one layer reads in float and another in integers, the model would hold both.

    Args:
        before: the model in front of the passes that quantize.
        layers: names of the layers, linears, convolutions and others.
    """
    graph = networkx.Graph()
    graph.add_nodes_from(layers)
    first: dict[ir.Value, str] = {}
    for layer in every_layer(before):
        if layer.name in layers:
            graph.add_edge(first.setdefault(layer.weight, layer.name), layer.name)
    places: dict[str, int] = {}
    for index, node in enumerate(before.graph):
        places.setdefault(layer_name(node), index)
    groups = map(frozenset, networkx.connected_components(graph))
    return sorted(groups, key=lambda group: min(places.get(name, len(places)) for name in group))


class _Writer:
    """Writes nodes of the model before into the quantized one; values of one name are the same in both."""

    def __init__(self, model: ir.Model) -> None:
        self._graph = model.graph
        self._names = Names(model.graph)
        self._values: dict[str, ir.Value] = {
            str(value.name): value
            for value in (
                *model.graph.inputs,
                *model.graph.initializers.values(),
                *(value for node in model.graph for value in node.outputs),
            )
        }
        self._constants: dict[ir.Value, ir.Value] = {}

    def changed(self, node: ir.Node) -> bool:
        """True where the quantized model computes the output by another operator, or from other values."""
        now = self._now(node)
        return now.op_type != node.op_type or _read(now) != _read(node)

    def quantized(self, node: ir.Node) -> bool:
        """True for a product whose weight, or else what it reads, is quantized now."""
        if not is_standard(node, *_PRODUCTS) or not self.changed(node):
            return False
        now, weight = self._now(node), node.inputs[1] if len(node.inputs) > 1 else None
        return constant(weight) is None or now.op_type != node.op_type or _read(now)[1] != _read(node)[1]

    def restore(self, node: ir.Node, flowing: Collection[str]) -> None:
        """Let the quantized model compute the output as the node does, but for inputs that are quantized for all."""
        now = self._now(node)
        same = now.op_type == node.op_type
        inputs: list[ir.Value | None] = []
        for index, value in enumerate(node.inputs):
            stays = same and value is not None and value.name in flowing
            inputs.append(now.inputs[index] if stays else None if value is None else self._value(value))
        if same:
            now.resize_inputs(len(inputs))
            for index, read in enumerate(inputs):
                now.replace_input_with(index, read)
            return
        new = ir.Node(node.domain, node.op_type, inputs, node.attributes.values(), name=node.name)
        new.metadata_props.update(node.metadata_props)
        old = now.outputs[0]
        ir.convenience.replace_nodes_and_values(self._graph, now, [now], [new], [old], [new.outputs[0]])
        self._values[str(old.name)] = new.outputs[0]

    def _now(self, node: ir.Node) -> ir.Node:
        now = self._values[str(node.outputs[0].name)].producer()
        assert now is not None
        return now

    def _value(self, value: ir.Value) -> ir.Value:
        """The same value in the quantized model; a constant that is not there any more is added again."""
        found = self._constants.get(value) or self._values.get(str(value.name))
        if value.const_value is None or (found is not None and found.const_value is value.const_value):
            assert found is not None
            return found
        name = self._names.new(str(value.name)) if found is not None else str(value.name)
        again = ir.Value(name=name, shape=value.shape, type=value.type, const_value=value.const_value)
        self._graph.register_initializer(again)
        self._constants[value] = again
        return again


def _read(node: ir.Node) -> list[str | None]:
    return [None if value is None else value.name for value in node.inputs]
