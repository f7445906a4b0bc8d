"""Forms in which the files of a runtime may hold a matrix of the portable graph, and how that graph reads them."""

from __future__ import annotations

import dataclasses

import numpy as np
import onnx_ir as ir

_FORM = "qcompile.form"
"""Metadata of the nodes that read a matrix in another form: the name of that form."""

_UNSIGNED = {ir.DataType.INT4: ir.DataType.UINT4, ir.DataType.INT8: ir.DataType.UINT8}
_SIGNED = {unsigned: signed for signed, unsigned in _UNSIGNED.items()}
_MATRICES = frozenset({*_UNSIGNED, *_UNSIGNED.values(), ir.DataType.FLOAT})


@dataclasses.dataclass(frozen=True)
class Form:
    """How a file holds a matrix [rows, columns].

    Attributes:
        name: of it.
        transposed: as [columns, rows]: kernels read the numbers of one output in a row.
        unsigned: signed integers with half of their range added: ONNX Runtime's blocks have no sign.
    """

    name: str
    transposed: bool = False
    unsigned: bool = False

    def fits(self, tensor: ir.TensorProtocol) -> bool:
        """Whether a tensor can be held so."""
        if self.unsigned and tensor.dtype not in _UNSIGNED:
            return False
        return not self.transposed or (len(tensor.shape) == 2 and tensor.dtype in _MATRICES)

    def of(self, tensor: ir.TensorProtocol) -> ir.TensorProtocol:
        """Return the tensor as the file holds it."""
        if not self.transposed:
            return tensor
        array, dtype = tensor.numpy().T, tensor.dtype
        if self.unsigned:
            array, dtype = array.astype(np.int16) + _half(dtype), _UNSIGNED[dtype]
        return ir.tensor(np.ascontiguousarray(array).astype(dtype.numpy()), dtype)


PLAIN = Form("plain")
TRANSPOSED = Form("transposed", transposed=True)
UNSIGNED = Form("transposed, unsigned", transposed=True, unsigned=True)
FORMS = {form.name: form for form in (PLAIN, TRANSPOSED, UNSIGNED)}


def read_as(value: ir.Value, held: ir.TensorProtocol, form: Form, taken: set[str]) -> None:
    """Let an initializer be computed from what a file holds, by standard operators in front of the graph.

    Args:
        value: the initializer; its name stays that of what is read in its place.
        held: what the file holds in its place, with no name yet.
        form: in which.
        taken: names of values in the graph; gets the new ones.
    """
    graph, name = value.graph, str(value.name)
    assert isinstance(graph, ir.Graph)
    assert value.dtype is not None
    graph.initializers.pop(name)

    def constant(tensor: ir.TensorProtocol, part: str) -> ir.Value:
        tensor.name = _new(f"{name}.{part}", taken)
        shape, kind = ir.Shape(tensor.shape.numpy()), ir.TensorType(tensor.dtype)
        made = ir.Value(name=tensor.name, shape=shape, type=kind, const_value=tensor)
        graph.register_initializer(made)
        return made

    nodes = [ir.node("Transpose", [constant(held, "held")], {"perm": [1, 0]}, metadata_props={_FORM: form.name})]
    if form.unsigned:
        half = constant(ir.tensor(np.array(_half(value.dtype), np.int16)), "half")
        nodes.append(ir.node("Cast", [nodes[-1].outputs[0]], {"to": ir.DataType.INT16.value}))
        nodes.append(ir.node("Sub", [nodes[-1].outputs[0], half]))
        nodes.append(ir.node("Cast", [nodes[-1].outputs[0]], {"to": value.dtype.value}))
    for node in nodes:
        node.name = node.outputs[0].name = _new(f"{name}.{node.op_type}", taken)
    last = nodes[-1].outputs[0]
    last.shape, last.type = value.shape, value.type
    value.replace_all_uses_with(last)
    last.name = name
    graph.insert_before(graph[0], nodes)


def _new(wanted: str, taken: set[str]) -> str:
    name = next(name for name in (wanted, *(f"{wanted}_{n}" for n in range(len(taken)))) if name not in taken)
    taken.add(name)
    return name


def restore(model: ir.Model) -> None:
    """Undo `read_as`: initializers again, computed from what the files hold each time they are read.

    What only looks like it, in a graph that somebody else has written, stays: it is standard operators.
    """
    graph = model.graph
    for chain in [found for node in graph if (found := _chain(node)) is not None]:
        form, source, last = FORMS[chain[0].metadata_props[_FORM]], chain[0].inputs[0], chain[-1].outputs[0]
        assert source is not None
        assert source.const_value is not None
        value = _restored(source.const_value, form, str(last.name))
        read = [each for node in chain for each in node.inputs if each is not None]
        last.replace_all_uses_with(value)
        graph.remove(chain, safe=True)
        for each in read:
            if not each.uses():
                graph.initializers.pop(str(each.name), None)
        graph.register_initializer(value)


def _chain(node: ir.Node) -> list[ir.Node] | None:
    """Return the nodes of `read_as` that begin with this one; None where they are others."""
    form, source = FORMS.get(node.metadata_props.get(_FORM, ""), PLAIN), node.inputs[0] if node.inputs else None
    if form == PLAIN or source is None or source.const_value is None or len(source.const_value.shape) != 2:
        return None
    if form.unsigned and source.const_value.dtype not in _UNSIGNED.values():
        return None
    chain = [node]
    for _ in range(3 if form.unsigned else 0):
        readers = chain[-1].outputs[0].consumers()
        if len(readers) != 1:
            return None
        chain.append(readers[0])
    wanted = ["Transpose", *(["Cast", "Sub", "Cast"] if form.unsigned else [])]
    own = any(each.outputs[0].is_graph_output() for each in chain)
    return None if own or [each.op_type for each in chain] != wanted else chain


def _restored(held: ir.TensorProtocol, form: Form, name: str) -> ir.Value:
    dtype = _SIGNED[held.dtype] if form.unsigned else held.dtype

    def numbers() -> ir.TensorProtocol:
        array = held.numpy().T
        if form.unsigned:
            array = (array.astype(np.int16) - _half(dtype)).astype(dtype.numpy())
        return ir.tensor(np.ascontiguousarray(array), dtype, name=name)

    shape = ir.Shape(tuple(reversed(held.shape.numpy())))
    tensor = ir.LazyTensor(numbers, dtype, shape, name=name)
    return ir.Value(name=name, shape=shape, type=ir.TensorType(dtype), const_value=tensor)


def _half(dtype: ir.DataType) -> int:
    """Return half of the range of a type of integers."""
    return 1 << (int(dtype.bitwidth) - 1)
