"""Forms in which the files of a runtime may hold a matrix of the portable graph, and how that graph reads them."""

from __future__ import annotations

import dataclasses

import numpy as np
import onnx_ir as ir

_FORM = "qcompile.form"
"""Metadata of the nodes that read a matrix in another form: the name of that form."""

_UNSIGNED = {ir.DataType.INT4: ir.DataType.UINT4, ir.DataType.INT8: ir.DataType.UINT8}
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


def read_as(value: ir.Value, held: ir.TensorProtocol, form: Form) -> None:
    """Let an initializer be computed from what a file holds, by standard operators in front of the graph.

    Args:
        value: the initializer; its name stays that of what is read in its place.
        held: what the file holds in its place, with no name yet.
        form: in which.
    """
    graph, name = value.graph, str(value.name)
    assert isinstance(graph, ir.Graph)
    assert value.dtype is not None
    graph.initializers.pop(name)
    source = ir.Value(
        name=f"{name}.held", shape=ir.Shape(held.shape.numpy()), type=ir.TensorType(held.dtype), const_value=held
    )
    held.name = source.name
    graph.register_initializer(source)
    nodes = [ir.node("Transpose", [source], {"perm": [1, 0]}, metadata_props={_FORM: form.name})]
    if form.unsigned:
        half = ir.tensor(np.array(_half(value.dtype), np.int16), name=f"{name}.half")
        offset = ir.Value(name=half.name, shape=ir.Shape([]), type=ir.TensorType(half.dtype), const_value=half)
        graph.register_initializer(offset)
        nodes.append(ir.node("Cast", [nodes[-1].outputs[0]], {"to": ir.DataType.INT16.value}))
        nodes.append(ir.node("Sub", [nodes[-1].outputs[0], offset]))
        nodes.append(ir.node("Cast", [nodes[-1].outputs[0]], {"to": value.dtype.value}))
    for index, node in enumerate(nodes):
        node.name = f"{name}.read.{index}"
        node.outputs[0].name = f"{name}.step.{index}"
    last = nodes[-1].outputs[0]
    last.shape, last.type = value.shape, value.type
    value.replace_all_uses_with(last)
    last.name = name
    first = next(iter(graph), None)
    graph.extend(nodes) if first is None else graph.insert_before(first, nodes)


def restore(model: ir.Model) -> None:
    """Undo `read_as`: initializers again, computed from what the files hold each time they are read."""
    graph = model.graph
    for node in [each for each in graph if each.metadata_props.get(_FORM) in FORMS]:
        form, source = FORMS[node.metadata_props[_FORM]], node.inputs[0]
        chain = [node]
        for _ in range(3 if form.unsigned else 0):
            chain.append(chain[-1].outputs[0].consumers()[0])
        last = chain[-1].outputs[0]
        assert source is not None
        assert source.const_value is not None
        assert last.name is not None
        value = _restored(source.const_value, form, last.name, last.dtype or source.const_value.dtype)
        last.replace_all_uses_with(value)
        read = [each for part in chain for each in part.inputs if each is not None and each.name in graph.initializers]
        graph.remove(chain, safe=True)
        for each in read:
            graph.initializers.pop(str(each.name), None)
        graph.register_initializer(value)


def _restored(held: ir.TensorProtocol, form: Form, name: str, dtype: ir.DataType) -> ir.Value:
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
