"""What tuning measures of a layer: its operator, its shapes, and whether integers flow into it and out of it."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Literal

import onnx_ir as ir

from qcompile import layers
from qcompile.graph import Convolution, Names, readers
from qcompile.layers import Layer
from qcompile.scheme import Scheme
from qcompile.session import Feed, OpenSession

Reads = Literal["float", "shared", "integers"]
Writes = Literal["float", "rounded", "integers"]
Attribute = tuple[str, int | str | tuple[int, ...]]


@dataclasses.dataclass(frozen=True)
class Group:
    """A layer and what is around it, as far as its time depends on them. Layers with equal groups take the same time.

    Attributes:
        operator: MatMul, Conv or ConvTranspose.
        attributes: of the node, sorted by name.
        x: shape of the input, [..., in_features] or [batch, in_channels, *spatial].
        weight: shape of the weight.
        bias: there is one.
        activation: Relu and Clip that alone read the output of a convolution.
        reads: "float" where the input is quantized for this layer alone; "shared" where it is quantized for others too,
            and float for this one if it stays float; "integers" where a quantized convolution writes it.
        writes: "float" where nothing quantizes the output; "rounded" where a quantized convolution writes integers that
            no quantized layer reads; "integers" where one does.
    """

    operator: str
    attributes: tuple[Attribute, ...]
    x: tuple[int, ...]
    weight: tuple[int, ...]
    bias: bool
    activation: tuple[str, ...]
    reads: Reads = "float"
    writes: Writes = "float"


def groups_of(
    chosen: Sequence[Layer], activations: Scheme, shapes: Mapping[str, tuple[int, ...]]
) -> list[tuple[Layer, Group]]:
    """Return the group of each layer whose input has a shape; no attribute of these operators is anything but numbers.

    Args:
        chosen: the layers that are to be quantized.
        activations: scheme of what they read.
        shapes: name of a value -> its shape, see `run_for_shapes`.
    """
    flowing = frozenset(() if activations.dynamic else layers.flowing_outputs(chosen))
    nodes = {layers.node_of(layer) for layer in chosen}
    return [
        (layer, _group(layer, shapes[str(layer.x.name)], flowing, nodes, activations))
        for layer in chosen
        if str(layer.x.name) in shapes
    ]


def _group(
    layer: Layer, x: tuple[int, ...], flowing: Collection[ir.Value], nodes: Collection[ir.Node], activations: Scheme
) -> Group:
    node, end = layers.node_of(layer), layer.output
    activation: tuple[str, ...] = ()
    if isinstance(layer, Convolution):
        end = layers.activated_output(layer)
        activation = tuple(value.consumers()[0].op_type for value in _between(layer.output, end))
    shared = not activations.dynamic and any(reader in nodes for reader in readers(layer.x) if reader is not node)
    read_as_integers = any(reader in nodes for reader in readers(end))
    return Group(
        node.op_type,
        tuple(sorted((name, _plain(attribute)) for name, attribute in node.attributes.items())),
        x,
        tuple(layer.weight.shape.numpy()) if layer.weight.shape is not None else (),
        layer.bias is not None,
        activation,
        "integers" if layer.x in flowing else "shared" if shared else "float",
        "float" if end not in flowing else "integers" if read_as_integers else "rounded",
    )


def _between(first: ir.Value, last: ir.Value) -> Iterable[ir.Value]:
    """Yield the values from the first to the one before the last, each read by one node alone."""
    while first is not last:
        yield first
        first = first.consumers()[0].outputs[0]


def _plain(attribute: ir.Attr) -> int | str | tuple[int, ...]:
    value = attribute.value
    return value if isinstance(value, (int, str)) else tuple(value)


@dataclasses.dataclass(frozen=True)
class Run:
    """What one run of the float model tells.

    Attributes:
        shapes: name of a value -> its shape.
        times: "float" -> how long the run kept the calling thread busy, in milliseconds.
    """

    shapes: Mapping[str, tuple[int, ...]]
    times: Mapping[str, float]


def run_for_shapes(model: ir.Model, names: Collection[str], sample: Feed, open_session: OpenSession) -> Run:
    """Run a model for the shapes of values of its main graph, and for its time; it is not changed.

    Its own outputs stay: where shapes are fixed, a runtime knows them and would compute nothing else.

    Raises:
        ModelError: the runtime refuses the model.
        InputError: it does not take the sample.
    """
    seen = model.clone()
    new = Names(seen.graph)
    values = [*seen.graph.inputs, *(value for node in seen.graph for value in node.outputs)]
    probes = {str(value.name): _probe(seen.graph, value, new) for value in values if value.name in names}
    session = open_session(seen)
    session.run(sample)
    start = time.thread_time()
    found = session.run(sample)
    times = {"float": 1000 * (time.thread_time() - start)}
    return Run({name: tuple(found[probe].tolist()) for name, probe in probes.items()}, times)


def _probe(graph: ir.Graph, value: ir.Value, new: Names) -> str:
    """Make the shape of a value an output of the graph, and return its name."""
    node = ir.node("Shape", [value], name=new.new(f"qcompile.shape/{value.name}"))
    shape, producer = node.outputs[0], value.producer()
    shape.name, shape.dtype = new.new(f"{node.name}/output"), ir.DataType.INT64
    if producer is None:
        graph.insert_before(graph[0], node)
    else:
        graph.insert_after(producer, node)
    graph.outputs.append(shape)
    return str(shape.name)
