"""Models with an external tensor in every place that ONNX has for one."""

from __future__ import annotations

import numpy as np
import onnx
import onnx.helper as oh

WEIGHT = np.arange(16, dtype=np.float32).reshape(4, 4)


def external(location: str, *, offset: int = 0, length: int = 64, name: str = "w") -> onnx.TensorProto:
    tensor = onnx.TensorProto(name=name, data_type=onnx.TensorProto.FLOAT, dims=[4, 4])
    tensor.data_location = onnx.TensorProto.EXTERNAL
    for key, value in (("location", location), ("offset", str(offset)), ("length", str(length))):
        entry = tensor.external_data.add()
        entry.key, entry.value = key, value
    return tensor


def model_of(
    nodes: list[onnx.NodeProto], initializers: list[onnx.TensorProto], functions: tuple = ()
) -> onnx.ModelProto:
    graph = oh.make_graph(
        nodes,
        "g",
        [oh.make_tensor_value_info("x", onnx.TensorProto.FLOAT, ["n", 4])],
        [oh.make_tensor_value_info("y", onnx.TensorProto.FLOAT, ["n", 4])],
        initializers,
    )
    imports = [oh.make_opsetid("", 20), oh.make_opsetid("local", 1)]
    return oh.make_model(graph, opset_imports=imports, ir_version=10, functions=functions)


def in_initializer(tensor: onnx.TensorProto) -> onnx.ModelProto:
    return model_of([oh.make_node("MatMul", ["x", "w"], ["y"])], [tensor])


def in_constant(tensor: onnx.TensorProto) -> onnx.ModelProto:
    nodes = [oh.make_node("Constant", [], ["w"], value=tensor), oh.make_node("MatMul", ["x", "w"], ["y"])]
    return model_of(nodes, [])


def in_function(tensor: onnx.TensorProto) -> onnx.ModelProto:
    nodes = [oh.make_node("Constant", [], ["w"], value=tensor), oh.make_node("MatMul", ["x", "w"], ["y"])]
    function = oh.make_function("local", "F", ["x"], ["y"], nodes, [oh.make_opsetid("", 20)])
    return model_of([oh.make_node("F", ["x"], ["y"], domain="local")], [], (function,))


def in_subgraph(tensor: onnx.TensorProto) -> onnx.ModelProto:
    out = oh.make_tensor_value_info("z", onnx.TensorProto.FLOAT, None)
    then = oh.make_graph([oh.make_node("MatMul", ["x", "w"], ["z"])], "then", [], [out], [tensor])
    other = oh.make_graph([oh.make_node("Identity", ["x"], ["z"])], "else", [], [out])
    condition = oh.make_tensor("c", onnx.TensorProto.BOOL, [], [True])
    return model_of([oh.make_node("If", ["c"], ["y"], then_branch=then, else_branch=other)], [condition])


def in_sparse(tensor: onnx.TensorProto) -> onnx.ModelProto:
    model = model_of([oh.make_node("MatMul", ["x", "w"], ["y"])], [])
    indices = oh.make_tensor("i", onnx.TensorProto.INT64, [1], [0])
    model.graph.sparse_initializer.append(onnx.SparseTensorProto(values=tensor, indices=indices, dims=[4, 4]))
    return model


def in_indices(tensor: onnx.TensorProto) -> onnx.ModelProto:
    model = in_sparse(oh.make_tensor("v", onnx.TensorProto.FLOAT, [1], [0]))
    model.graph.sparse_initializer[0].indices.CopyFrom(tensor)
    return model


def in_attribute(**fields: object) -> onnx.ModelProto:
    model = model_of([oh.make_node("Thing", ["x"], ["y"], domain="local")], [])
    model.graph.node[0].attribute.append(onnx.AttributeProto(name="a", **fields))
    return model


def in_tensor_list(tensor: onnx.TensorProto) -> onnx.ModelProto:
    return in_attribute(type=onnx.AttributeProto.TENSORS, tensors=[tensor])


def in_sparse_attribute(tensor: onnx.TensorProto) -> onnx.ModelProto:
    sparse = onnx.SparseTensorProto(values=tensor, indices=oh.make_tensor("i", onnx.TensorProto.INT64, [1], [0]))
    return in_attribute(type=onnx.AttributeProto.SPARSE_TENSOR, sparse_tensor=sparse)


def in_sparse_list(tensor: onnx.TensorProto) -> onnx.ModelProto:
    sparse = onnx.SparseTensorProto(values=oh.make_tensor("v", onnx.TensorProto.FLOAT, [1], [0]), indices=tensor)
    return in_attribute(type=onnx.AttributeProto.SPARSE_TENSORS, sparse_tensors=[sparse])


def in_an_attribute_of_another_type(tensor: onnx.TensorProto) -> onnx.ModelProto:
    """The attribute says that it is a number; readers that look at the fields find the tensor."""
    return in_attribute(type=onnx.AttributeProto.INT, i=1, t=tensor)


def in_subgraph_of_function(tensor: onnx.TensorProto) -> onnx.ModelProto:
    model = in_function(tensor)
    del model.functions[0].node[:]
    model.functions[0].node.extend(in_subgraph(tensor).graph.node)
    return model


def in_default_of_function(tensor: onnx.TensorProto) -> onnx.ModelProto:
    model = model_of([oh.make_node("F", ["x"], ["y"], domain="local")], [])
    body = [oh.make_node("Relu", ["x"], ["y"])]
    model.functions.append(oh.make_function("local", "F", ["x"], ["y"], body, [oh.make_opsetid("", 20)]))
    model.functions[0].attribute_proto.append(oh.make_attribute("w", tensor))
    return model


def in_training(tensor: onnx.TensorProto) -> onnx.ModelProto:
    model = model_of([oh.make_node("Relu", ["x"], ["y"])], [])
    model.training_info.add().initialization.initializer.append(tensor)
    return model


PLACES = (
    in_initializer,
    in_constant,
    in_function,
    in_subgraph,
    in_sparse,
    in_indices,
    in_tensor_list,
    in_sparse_attribute,
    in_sparse_list,
    in_an_attribute_of_another_type,
    in_subgraph_of_function,
    in_default_of_function,
    in_training,
)
