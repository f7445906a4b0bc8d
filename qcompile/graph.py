"""Questions about the graph: which nodes are linears and convolutions, what they read, how the user calls them."""

from __future__ import annotations

import ast
import dataclasses
import itertools
from collections.abc import Collection, Iterable, Iterator

import numpy as np
import onnx_ir as ir

NAME_SCOPES = "pkg.torch.onnx.name_scopes"
"""Where torch's exporter writes which module a node is of, see `layer_name`."""

RANDOM = ("Bernoulli", "Multinomial", "RandomNormal", "RandomNormalLike", "RandomUniform", "RandomUniformLike")
"""Standard operators that draw random numbers; Dropout does so in training mode."""


@dataclasses.dataclass(frozen=True)
class Linear:
    """y = x @ weight + bias in canonical form: MatMul with a constant second input, then an Add that alone reads it.

    Attributes:
        matmul: the MatMul node.
        add: the Add node of the bias, or None.
        x: input value, shape [..., in_features].
        weight: initializer, shape [in_features, out_features].
        bias: initializer, shape [out_features], or None.
        output: value that the rest of the graph reads, shape [..., out_features].
    """

    matmul: ir.Node
    add: ir.Node | None
    x: ir.Value
    weight: ir.Value
    bias: ir.Value | None
    output: ir.Value

    @property
    def name(self) -> str:
        """Name of the layer as the user knows it."""
        return layer_name(self.matmul)


@dataclasses.dataclass(frozen=True)
class Convolution:
    """Conv or ConvTranspose with a constant weight.

    Attributes:
        node: the Conv or ConvTranspose node.
        x: input value, shape [batch, in_channels, *spatial].
        weight: initializer; [out_channels, in_channels / group, *kernel] for Conv and
            [in_channels, out_channels / group, *kernel] for ConvTranspose.
        bias: initializer [out_channels], or None.
        output: shape [batch, out_channels, *spatial].
    """

    node: ir.Node
    x: ir.Value
    weight: ir.Value
    bias: ir.Value | None
    output: ir.Value

    @property
    def name(self) -> str:
        """Name of the layer as the user knows it."""
        return layer_name(self.node)

    @property
    def transposed(self) -> bool:
        """True for ConvTranspose, whose weight has its output channels on axis 1."""
        return self.node.op_type == "ConvTranspose"


def is_standard(node: ir.Node | None, *op_types: str) -> bool:
    """True when the node is one of these operators of the standard ONNX domain."""
    return node is not None and node.domain in ("", "ai.onnx") and node.op_type in op_types


def constant(value: ir.Value | None) -> ir.TensorProtocol | None:
    """Return the tensor of an initializer (not of one that is also a graph input), else None."""
    if value is None or value.const_value is None or value.is_graph_input():
        return None
    return value.const_value


def constant_array(value: ir.Value | None) -> np.ndarray | None:
    """Return the numpy array of a constant value, else None."""
    tensor = constant(value)
    return None if tensor is None else tensor.numpy()


def computed_constants(model: ir.Model) -> frozenset[ir.Value]:
    """Values of the main graph that are computed from constants alone: a runtime computes them once, when it loads it.

    Not of them: constants, what a random number or the body of a Loop or If takes part in.
    """
    found: set[ir.Value] = set()
    for node in model.graph:
        if reads_constants_alone(node, found) and not is_standard(node, *RANDOM):
            found.update(node.outputs)
    return frozenset(found)


def reads_constants_alone(node: ir.Node, computed: Collection[ir.Value]) -> bool:
    """True where a node reads something, and nothing but constants and these values; False where it has a body."""
    given = [value for value in node.inputs if value is not None]
    fixed = all(value in computed or constant(value) is not None for value in given)
    return bool(given) and fixed and not bodies(node)


def bodies(node: ir.Node) -> list[ir.Graph]:
    """The graphs that a node has as attributes: branches of an If, the body of a Loop or a Scan."""
    found: list[ir.Graph] = []
    for attribute in node.attributes.values():
        if attribute.type == ir.AttributeType.GRAPH:
            found.append(attribute.as_graph())
        elif attribute.type == ir.AttributeType.GRAPHS:
            found += attribute.as_graphs()
    return found


def readers(value: ir.Value) -> tuple[ir.Node, ...]:
    """Nodes that read the value, each once, in graph order of registration."""
    return tuple(dict.fromkeys(value.consumers()))


def sole_reader(value: ir.Value) -> ir.Node | None:
    """The single node that reads the value, or None when there are several uses or the value is a graph output.

    None too where that node is in a branch of an If or in the body of a Loop, and the value outside: what it computes
    cannot be computed in its place, for a branch has to make its own outputs.
    """
    uses = tuple(value.uses())
    if len(uses) != 1 or value.is_graph_output() or uses[0].node.graph is not value.graph:
        return None
    return uses[0].node


def dims_are_known(dims: Iterable[int | ir.SymbolicDim]) -> bool:
    """True where every dim has a number or a name: equal ones are then surely of one size."""
    return all(isinstance(dim, int) or dim.value is not None for dim in dims)


def _linear(node: ir.Node) -> Linear | None:
    x, weight = node.inputs
    tensor = constant(weight)
    if x is None or weight is None or tensor is None or len(tensor.shape) != 2 or constant(x) is not None:
        return None
    output, bias = node.outputs[0], None
    add = sole_reader(output)
    if is_standard(add, "Add"):
        assert add is not None
        (other,) = [value for value in add.inputs if value is not output] or [None]
        shape = constant(other).shape.numpy() if constant(other) is not None else None  # type: ignore[union-attr]
        if shape is not None and tuple(shape) == (tensor.shape[1],):
            bias, output = other, add.outputs[0]
    return Linear(node, add if bias is not None else None, x, weight, bias, output)


def linears(model: ir.Model) -> list[Linear]:
    """Every linear of the main graph, in graph order. MatMuls of two activations are not linears."""
    found = (_linear(node) for node in model.graph if is_standard(node, "MatMul"))
    return [linear for linear in found if linear is not None]


def convolutions(model: ir.Model) -> list[Convolution]:
    """Every Conv and ConvTranspose of the main graph whose weight is constant, in graph order."""
    return [
        Convolution(node, node.inputs[0], node.inputs[1], _input(node, 2), node.outputs[0])
        for node in model.graph
        if is_standard(node, "Conv", "ConvTranspose")
        and node.inputs[0] is not None
        and node.inputs[1] is not None
        and constant(node.inputs[1]) is not None
    ]


def _input(node: ir.Node, index: int) -> ir.Value | None:
    return node.inputs[index] if len(node.inputs) > index else None


def layer_name(node: ir.Node) -> str:
    """Name that the user knows: the module path that torch's exporter recorded, else the name of the node.

    torch.onnx.export stores the path of the owning module in `pkg.torch.onnx.name_scopes` as a Python list whose
    last item is the name of the traced value; the item before it is the module. Other texts are passed over: metadata
    are anybody's to write.
    """
    modules = [scope for scope in name_scopes(node)[:-1] if scope]
    return str(modules[-1]) if modules else node.name or node.outputs[0].name or node.op_type


def name_scopes(node: ir.Node) -> list[object]:
    """What torch's exporter recorded of a node: modules from the outermost in, then the traced value; else empty."""
    text = node.metadata_props.get(NAME_SCOPES, "[]")
    try:
        scopes = ast.literal_eval(text)
    except (ValueError, TypeError, SyntaxError, MemoryError, RecursionError):  # All that literal_eval says it raises.
        return []
    return scopes if isinstance(scopes, list) else []


def all_nodes(model: ir.Model) -> Iterator[ir.Node]:
    """Every node of the main graph and of its subgraphs, in graph order."""
    yield from model.graph.all_nodes()


def numbered(name: str) -> Iterator[str]:
    """The name, then the name with 1, 2, ... behind it: candidates for what is new in a graph."""
    yield name
    yield from (f"{name}_{number}" for number in itertools.count(1))


class Names:
    """Names that are taken in a graph; hands out new ones.

    Made in time proportional to the nodes, and knows only what was in the graph then. Does not know the graph around a
    subgraph: give it the main graph.

    Args:
        graph: values and nodes of it and of its subgraphs are looked at: runtimes want names unique over all of these.
    """

    def __init__(self, graph: ir.Graph) -> None:
        parts = (graph, *graph.subgraphs())
        self._taken = {str(value.name) for part in parts for value in (*part.inputs, *part.initializers.values())}
        for node in graph.all_nodes():
            self._taken.add(str(node.name))
            self._taken.update(str(value.name) for value in node.outputs)

    def new(self, name: str) -> str:
        """Return the name, with a number behind it where it is taken; from now on it is."""
        free = next(candidate for candidate in numbered(name) if candidate not in self._taken)
        self._taken.add(free)
        return free


def unique_name(graph: ir.Graph, name: str) -> str:
    """One name that no value or node of the graph or of its subgraphs has; for several make `Names` once."""
    return Names(graph).new(name)
