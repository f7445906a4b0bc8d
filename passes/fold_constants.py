"""FoldConstants."""

from __future__ import annotations

import dataclasses
import functools
import math
from typing import ClassVar

import onnx
import onnx_ir as ir
from onnxscript import optimizer

from qcompile.contract import Pass, Result
from qcompile.errors import ModelError
from qcompile.graph import all_nodes, constant, constant_array, is_standard
from qcompile.stored_blocks import StoredTensor

_NAMES = """
Abs Acos Acosh Add And Asin Asinh Atan Atanh BitShift BitwiseAnd BitwiseNot BitwiseOr BitwiseXor Cast CastLike Ceil Clip
Concat Cos Cosh CumSum Div Einsum Elu Equal Erf Exp Expand EyeLike Flatten Floor Gather GatherElements GatherND Gelu
Gemm Greater GreaterOrEqual HardSigmoid HardSwish Identity IsInf IsNaN LeakyRelu Less LessOrEqual Log LogSoftmax MatMul
Max Mean Min Mish Mod Mul Neg Not OneHot Or PRelu Pad Pow Range Reciprocal ReduceL1 ReduceL2 ReduceLogSum
ReduceLogSumExp ReduceMax ReduceMean ReduceMin ReduceProd ReduceSum ReduceSumSquare Relu Reshape Round ScatterElements
ScatterND Selu Shape Sigmoid Sign Sin Sinh Size Slice Softmax Softplus Softsign Sqrt Squeeze Sub Sum Tan Tanh Tile Trilu
Unsqueeze Where Xor
"""
_BOUNDED = frozenset(_NAMES.split())
"""Operators whose work grows with inputs and result alone; no pooling, resizing, loops, regular expressions."""

_MOST_PRODUCTS = 2**24
"""Products that an Einsum may take."""

_INFERENCE_DATA = 1024
"""Elements of an input that may say what shape the result has: rank by rank of the pads of a tensor is less."""


@dataclasses.dataclass(frozen=True)
class FoldConstants(Pass):
    """An operator of small constants -> its result, as onnxscript's optimizer computes it.

    Does not touch large constants, whose result would be a second copy in memory (`fold_weight_views` does lazily what
    can be done lazily), nor operators that are not deterministic. Nor what a short model can make long: operators whose
    result, as its inputs alone tell, would be larger than the limit, or whose work does not follow from those sizes.

    Attributes:
        size_limit: largest number of elements of an input or a result. The default has room for the vectors of norms
            and biases (1 + weight in Gemma), and not for weights of linears.
    """

    size_limit: int = 2**16
    looks_for: ClassVar[str] = "operators whose inputs are small constants"

    def call(self, model: ir.Model) -> Result:
        """Fold in place.

        Raises:
            ModelError: a node makes a sequence of more tensors than the limit.
        """
        for node in all_nodes(model):
            self._check_sequence(node)
        folded = optimizer.fold_constants(
            model,
            onnx_shape_inference=False,
            input_size_limit=self.size_limit,
            output_size_limit=self.size_limit,
            should_fold=functools.partial(self._folds, version=model.opset_imports.get("", 1)),
        )
        return Result(model, modified=bool(folded.modified))

    def _folds(self, node: ir.Node, version: int) -> bool | None:
        """Tell onnxscript not to fold a node; None leaves it the other conditions."""
        if node.domain in ("", "ai.onnx") and node.op_type == "Transpose":
            # No larger than its input, so folded for large ones too; but what is not in memory, or came quantized, is
            # left to `FoldWeightViews`: it does not bring the one there, and keeps what the other knows of its file.
            return False if any(self._lies_in_file(tensor) for tensor in map(constant, node.inputs)) else None
        if node.domain not in ("", "ai.onnx") or node.op_type not in _BOUNDED:
            return False
        sizes = [value.const_value.size for value in node.inputs if value is not None and value.const_value is not None]
        if max(sizes, default=0) > self.size_limit:
            return False
        if node.op_type == "Einsum" and math.prod(sizes) > _MOST_PRODUCTS:
            return False
        size = _result_size(node, version)
        return None if size is not None and size <= self.size_limit else False

    def _lies_in_file(self, tensor: ir.TensorProtocol | None) -> bool:
        is_large = tensor is not None and tensor.size > self.size_limit
        return isinstance(tensor, StoredTensor) or (is_large and isinstance(tensor, ir.LazyTensor))

    def _check_sequence(self, node: ir.Node) -> None:
        """Refuse a split into more tensors than a graph can have: onnxscript writes a Split with an output for each."""
        if not is_standard(node, "SplitToSequence") or len(node.inputs) < 2:
            return
        x, split = node.inputs[:2]
        array = constant_array(split) if split is not None and split.const_value is not None else None
        rank, axis = len(x.shape) if x is not None and x.shape is not None else 0, node.attributes.get_int("axis", 0)
        if x is None or x.shape is None or array is None or array.ndim or not -rank <= axis < rank:
            return
        length = x.shape[axis]
        if isinstance(length, int) and length > self.size_limit * max(int(array), 1):
            reason = f"it splits {length} entries into more than {self.size_limit} tensors"
            raise ModelError(f"node {node.name}", reason, "Check the shape of its input")


def _result_size(node: ir.Node, version: int) -> int | None:
    """Elements of the result, as onnx infers them from the inputs; what the model declares for it is not read."""
    inputs = {str(value.name): value.const_value for value in node.inputs if value is not None}
    types, data = {}, {}
    for name, tensor in inputs.items():
        assert tensor is not None  # onnxscript asks when all inputs are constants
        types[name] = onnx.helper.make_tensor_type_proto(int(tensor.dtype), list(tensor.shape.numpy()))
        if tensor.size <= _INFERENCE_DATA:
            data[name] = ir.serde.serialize_tensor(tensor)
    try:
        schema = onnx.defs.get_schema(node.op_type, version, "")
        inferred = onnx.shape_inference.infer_node_outputs(schema, ir.serde.serialize_node(node), types, data)
    except (onnx.defs.SchemaError, onnx.shape_inference.InferenceError, onnx.checker.ValidationError, ValueError):
        return None
    dims = [dim for kind in inferred.values() for dim in kind.tensor_type.shape.dim]
    known = all(kind.tensor_type.HasField("shape") for kind in inferred.values())
    if not (inferred and known and all(dim.HasField("dim_value") and dim.dim_value >= 0 for dim in dims)):
        return None
    sizes = [math.prod(dim.dim_value for dim in kind.tensor_type.shape.dim) for kind in inferred.values()]
    return int(max(sizes))
