"""One graph of torch.fx while it is written: which value of ONNX is which constant, number in Python, or node."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable, Mapping
from typing import Any, TypeAlias

import onnx_ir as ir
import torch
from torch import fx

from qcompile.backends.fx import bodies, calls, host
from qcompile.backends.fx.host import Host
from qcompile.backends.fx.table import Operator, find, find_on_host
from qcompile.backends.fx.types import tensor_of
from qcompile.graph import bodies as graphs_of
from qcompile.graph import is_standard

MOST_FOLDED = 1 << 16
"""Constants of more elements stay operators: a weight is dequantized or transposed where it is used."""
MOST_ON_HOST = 1 << 10
"""Constants of more elements are no numbers in Python."""


@dataclasses.dataclass(frozen=True)
class Fixed:
    """A value that is known when the model is lowered."""

    tensor: torch.Tensor


@dataclasses.dataclass(frozen=True)
class OnHost:
    """A value that is a `Host` when the module runs."""

    node: fx.Node


@dataclasses.dataclass(frozen=True)
class OnDevice:
    """A value that is a tensor when the module runs; or a sequence of tensors, or None."""

    node: fx.Node


Operand: TypeAlias = Fixed | OnHost | OnDevice


class Scope:
    """The graph of the model, or of the body of an If, Loop or Scan inside another scope.

    Args:
        model: for its functions.
        opsets: domain -> opset of the nodes.
        around: the scope that the body is in; what the body reads from there becomes inputs behind its own.
    """

    def __init__(self, model: ir.Model, opsets: Mapping[str, int], around: Scope | None = None) -> None:
        self.model, self.opsets, self.around = model, opsets, around
        self.graph, self.root = fx.Graph(), torch.nn.Module()
        self.captured: list[fx.Node] = []
        self._values: dict[ir.Value, Operand] = {}
        self._buffers: dict[ir.Value, fx.Node] = {}
        self._anchor: fx.Node | None = None
        self.attributes: Mapping[str, ir.Attr] = {}

    def give(self, value: ir.Value, operand: Operand) -> None:
        """Say what a value is."""
        self._values[value] = operand
        if self._anchor is None and isinstance(operand, OnDevice) and isinstance(value.type, ir.TensorType):
            self._anchor = operand.node

    @staticmethod
    def placed(node: fx.Node) -> Operand:
        """The operand of a tensor's node."""
        return OnDevice(node)

    def nodes(self, nodes: Iterable[ir.Node]) -> None:
        """Write nodes, in their order."""
        for node in nodes:
            self._node(node)

    def module(self) -> fx.GraphModule:
        """The module of what was written."""
        self.graph.eliminate_dead_code()
        self.graph.lint()
        return fx.GraphModule(self.root, self.graph)

    def operand(self, value: ir.Value) -> Operand:
        """What a value is; one of the scope around becomes an input of this one."""
        if value in self._values:
            return self._values[value]
        if value.const_value is not None:
            self._values[value] = Fixed(tensor_of(value.const_value.numpy(), f"initializer {value.name!r}"))
        else:
            assert self.around is not None, f"{value} is not computed"
            self._values[value] = self._captured(value, self.around)
        return self._values[value]

    def _captured(self, value: ir.Value, around: Scope) -> Operand:
        outer = around.operand(value)
        if isinstance(outer, Fixed) and outer.tensor.numel() <= MOST_FOLDED:
            return outer
        if isinstance(outer, Fixed):
            outer = OnDevice(around.tensor(value))
        return dataclasses.replace(outer, node=self._capture(outer.node))

    def _capture(self, node: fx.Node) -> fx.Node:
        """A new input of this body, for a node of the graph around it."""
        self.captured.append(node)
        inputs = self.graph.find_nodes(op="placeholder")
        place = inputs[-1] if inputs else next(iter(self.graph.nodes), None)
        if place is None:
            return self.graph.placeholder(f"captured_{len(self.captured)}")
        with self.graph.inserting_after(place) if inputs else self.graph.inserting_before(place):
            return self.graph.placeholder(f"captured_{len(self.captured)}")

    def tensor(self, value: ir.Value, like: fx.Node | None = None) -> fx.Node:
        """The node of a value as a tensor: a constant as a buffer, numbers filled on the device."""
        operand = self.operand(value)
        if isinstance(operand, OnHost):
            return self.graph.call_function(host.to_tensor, (operand.node, like or self.anchor()))
        if isinstance(operand, OnDevice):
            return operand.node
        if value not in self._buffers:
            self._buffers[value] = self.buffer(operand.tensor, str(value.name))
        return self._buffers[value]

    def buffer(self, tensor: torch.Tensor, name: str) -> fx.Node:
        """The node of a new buffer."""
        text = "".join(character if character.isalnum() else "_" for character in name) or "constant"
        # Not `named_buffers`, which leaves out a tensor that it has seen under another name.
        name = next(new for new in bodies.numbered(f"onnx_{text}") if not hasattr(self.root, new))
        self.root.register_buffer(name, tensor)
        return self.graph.get_attr(name)

    def anchor(self) -> fx.Node | None:
        """A tensor on the device of the model, None where it has neither inputs nor constants."""
        if self._anchor is None and self.around is not None:
            outer = self.around.anchor()
            if outer is not None:
                self._anchor = self._capture(outer)
        return self._anchor or next(iter(self._buffers.values()), None)

    def numbers(self, value: ir.Value) -> Host | fx.Node:
        """A value as numbers in Python; those of a tensor are waited for."""
        operand = self.operand(value)
        if isinstance(operand, Fixed):
            return host.from_tensor(operand.tensor)
        if isinstance(operand, OnHost):
            return operand.node
        return self.graph.call_function(host.from_tensor, (operand.node,))

    def _node(self, node: ir.Node) -> None:
        operands = [None if value is None else self.operand(value) for value in node.inputs]
        if is_standard(node, "Constant"):
            self.give(node.outputs[0], Fixed(calls.constant(node, self.attributes)))
        elif is_standard(node, "Shape", "Size"):
            self._shape(node, operands[0])
        elif is_standard(node, "If") and isinstance(operands[0], Fixed):
            self._inline_branch(node, bool(operands[0].tensor))
        elif self._is_on_host(node, operands):
            self._on_host(node)
        else:
            domain = "" if node.domain == "ai.onnx" else node.domain
            entry = find(domain, node.op_type, self.opsets.get(domain, 1))
            if entry is None:
                self._function(node)
            elif not self._folded(node, entry, operands):
                self._call(node, entry)

    def _shape(self, node: ir.Node, operand: Operand | None) -> None:
        arguments = calls.attributes(node, self.attributes)
        function = host.shape_of if node.op_type == "Shape" else host.size_of
        shape = node.inputs[0].shape if node.inputs[0] is not None else None
        if isinstance(operand, Fixed):
            self.give(node.outputs[0], Fixed(host.to_tensor(function(operand.tensor, **arguments), None)))
        elif isinstance(operand, OnHost) and shape is not None and shape.is_static():
            known = Host((), tuple(shape.numpy()), torch.int64)
            self.give(node.outputs[0], Fixed(host.to_tensor(function(known, **arguments), None)))
        else:
            assert operand is not None
            self.give(node.outputs[0], OnHost(self.graph.call_function(function, (operand.node,), arguments)))

    def _inline_branch(self, node: ir.Node, condition: bool) -> None:
        branch = node.attributes["then_branch" if condition else "else_branch"].as_graph()
        self.nodes(branch)
        for output, value in zip(node.outputs, branch.outputs, strict=True):
            self.give(output, self.operand(value))

    def _is_on_host(self, node: ir.Node, operands: list[Operand | None]) -> bool:
        """True where a node computes with shapes and small constants alone, and can do so in Python."""
        numbers = [
            isinstance(operand, OnHost) or (isinstance(operand, Fixed) and operand.tensor.numel() <= MOST_ON_HOST)
            for operand in operands
            if operand is not None
        ]
        if not all(numbers) or not any(isinstance(operand, OnHost) for operand in operands):
            return False
        found = find_on_host(node.op_type) if node.domain in ("", "ai.onnx") else None
        if found is None:
            return False
        return found[1] is None or not any(isinstance(operand, OnHost) for operand in operands[found[1] :])

    def _on_host(self, node: ir.Node) -> None:
        found = find_on_host(node.op_type)
        assert found is not None
        function = found[0]
        arguments = calls.attributes(node, self.attributes)
        if node.op_type == "Split":
            arguments["outputs"] = len(node.outputs)
        given = [None if value is None else self.numbers(value) for value in node.inputs]
        made = self.graph.call_function(function, tuple(given), arguments)
        if node.op_type != "Split":
            self.give(node.outputs[0], OnHost(made))
            return
        for index, output in enumerate(node.outputs):
            self.give(output, OnHost(self.graph.call_function(calls.item, (made, index))))

    def _folded(self, node: ir.Node, entry: Operator, operands: list[Operand | None]) -> bool:
        """Compute a node of small constants at once; False where it is not one, or what it makes is large."""
        fixed = [operand.tensor for operand in operands if isinstance(operand, Fixed)]
        if len(fixed) != sum(operand is not None for operand in operands) or entry.random or graphs_of(node):
            return False
        if not fixed or sum(tensor.numel() for tensor in fixed) > MOST_FOLDED:
            return False
        given = iter(fixed)
        arguments = [
            None if value is None else (host.from_tensor(next(given)) if entry.is_host(index) else next(given))
            for index, value in enumerate(node.inputs)
        ]
        made = calls.results(node, entry.function(*arguments, **calls.keywords(node, entry, self.attributes, None)))
        if not all(isinstance(tensor, torch.Tensor) for tensor in made):
            return False
        if sum(math.prod(tensor.shape) for tensor in made) > MOST_FOLDED:
            return False
        for output, tensor in zip(node.outputs, made, strict=False):
            self.give(output, Fixed(tensor))
        return True

    def _call(self, node: ir.Node, entry: Operator) -> None:
        like = next((o.node for o in map(self._known, node.inputs) if isinstance(o, OnDevice)), None)
        arguments = [
            None if value is None else self._argument(value, entry, index, like)
            for index, value in enumerate(node.inputs)
        ]
        keywords: dict[str, Any] = calls.keywords(node, entry, self.attributes, like or self.anchor())
        for name, attribute in node.attributes.items():
            if attribute.type == ir.AttributeType.GRAPH:
                keywords[name] = bodies.body(self, attribute.as_graph(), name)
                if "counted" in entry.parameters:
                    keywords["counted"] = bodies.is_counted(node, attribute.as_graph())
        if "in_place" in entry.parameters:
            keywords["in_place"] = self._is_own(node.inputs[0])
        made = self.graph.call_function(entry.function, tuple(arguments), keywords)
        if not calls.is_several(node):
            self.give(node.outputs[0], OnDevice(made))
            return
        for index, output in enumerate(node.outputs):
            if output.name:
                self.give(output, OnDevice(self.graph.call_function(calls.item, (made, index))))

    def _argument(self, value: ir.Value, entry: Operator, index: int, like: fx.Node | None) -> Host | fx.Node:
        known = not isinstance(self.operand(value), OnDevice)
        return self.numbers(value) if entry.is_host(index, known) else self.tensor(value, like)

    def _is_own(self, value: ir.Value | None) -> bool:
        """True for an input of the model that one node alone reads, and that is no output."""
        return (
            value is not None and value.is_graph_input() and len(value.uses()) == 1 and not value.is_graph_output()
        ) and self.around is None

    def _known(self, value: ir.Value | None) -> Operand | None:
        return None if value is None else self._values.get(value)

    def _function(self, node: ir.Node) -> None:
        """Write the nodes of the function that the model, or ONNX itself, has for an operator."""
        function, attributes = bodies.function_of(self.model, node, self.opsets, self.attributes)
        opsets, outer = self.opsets, self.attributes
        inputs = [None if value is None else self.operand(value) for value in node.inputs]
        inputs += [None] * (len(function.inputs) - len(inputs))
        for value, operand in zip(function.inputs, inputs, strict=True):
            if operand is not None:
                self._values[value] = operand
        self.opsets, self.attributes = function.opset_imports, attributes
        bodies.drop_absent(function, inputs)
        self.nodes(function)
        self.opsets, self.attributes = opsets, outer
        for output, value in zip(node.outputs, function.outputs, strict=False):
            if output.name:
                self.give(output, self.operand(value))
