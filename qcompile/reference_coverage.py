"""Which models the reference can evaluate in the place of a runtime. Independent of everything that compiles."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import onnx_ir as ir

from qcompile.reference_resampling import ROUNDINGS
from qcompile.reference_ties import jump

_COVERED = """
    Abs Acos Acosh Add And ArgMax ArgMin Asin Asinh Atan Atanh Attention AveragePool BatchNormalization BitwiseAnd
    BitwiseNot BitwiseOr BitwiseXor Cast CastLike Ceil Celu Clip Concat Constant ConstantOfShape Conv ConvTranspose
    Cos Cosh CumSum DepthToSpace DequantizeLinear Div Dropout DynamicQuantizeLinear Einsum Elu Equal Erf Exp Expand
    EyeLike Flatten Floor GRU Gather GatherElements GatherND Gelu Gemm GlobalAveragePool GlobalMaxPool Greater
    GreaterOrEqual GroupNormalization HardSigmoid HardSwish Hardmax Identity If InstanceNormalization IsInf IsNaN
    LRN LSTM LayerNormalization LeakyRelu Less LessOrEqual Log LogSoftmax Loop LpNormalization MatMul Max MaxPool
    Mean MeanVarianceNormalization Min Mish Mod Mul Neg NonMaxSuppression NonZero Not OneHot Or PRelu Pad Pow
    QuantizeLinear RMSNormalization RNN Range Reciprocal ReduceL1 ReduceL2 ReduceLogSum ReduceLogSumExp ReduceMax
    ReduceMean ReduceMin ReduceProd ReduceSum ReduceSumSquare Relu Reshape Resize RotaryEmbedding Round Scan
    ScatterElements ScatterND Selu SequenceAt Shape Shrink Sigmoid Sign Sin Sinh Size Slice Softmax Softplus
    Softsign SpaceToDepth Split SplitToSequence Sqrt Squeeze Sub Sum Tan Tanh ThresholdedRelu Tile TopK Transpose
    Trilu Unsqueeze Where Xor
"""
COVERED = frozenset(_COVERED.split())
"""Standard operators whose reference agrees with the runtimes; of each there is a test."""

_ACTIVATIONS = {"GRU": ["Sigmoid", "Tanh"], "LSTM": ["Sigmoid", "Tanh", "Tanh"], "RNN": ["Tanh"]}
_TRANSFORMATIONS = ("half_pixel", "pytorch_half_pixel", "asymmetric", "align_corners")


def not_covered(model: ir.Model) -> str | None:
    """Return why a model cannot be evaluated in the place of a runtime; None: it can.

    From the runtime's own floats, where ties decide: see `qcompile.reference_ties`.
    """
    for node in model.graph.all_nodes():
        if node.domain == "qcompile":
            continue
        if node.domain not in ("", "ai.onnx") or node.op_type not in COVERED:
            return f"the reference does not cover {node.domain + '.' if node.domain else ''}{node.op_type}"
        reason = next((reason for reason in (rule(node) for rule in _RULES) if reason is not None), None)
        if reason is None and node.graph is not model.graph:
            reason = jump(node)  # in a body, into which no runtime lets one see
        if reason is not None:
            return reason
    return None


def _quantizer(node: ir.Node) -> str | None:
    if node.op_type != "QuantizeLinear":
        return None
    point = node.inputs[2].dtype if len(node.inputs) > 2 and node.inputs[2] is not None else None
    kind = point or ir.DataType(node.attributes.get_int("output_dtype", 0) or ir.DataType.UINT8)
    if kind in (ir.DataType.INT8, ir.DataType.UINT8) and not node.attributes.get_int("block_size", 0):
        return None
    return "the reference covers QuantizeLinear of 8 bits, and none in blocks"


def _recurrent(node: ir.Node) -> str | None:
    usual = _ACTIVATIONS.get(node.op_type)
    if usual is None:
        return None
    given = node.attributes.get_strings("activations", ())
    directions = 2 if node.attributes.get_string("direction", "forward") == "bidirectional" else 1
    own = bool(given) and list(given) != usual * directions
    if own or {"clip", "input_forget"} & {name for name, item in node.attributes.items() if item.value}:
        return f"the reference covers {node.op_type} with its usual activations, and without clip or input_forget"
    return None


def _resize(node: ir.Node) -> str | None:
    if node.op_type != "Resize":
        return None
    text, number = node.attributes.get_string, node.attributes.get_int
    known = (
        text("mode", "nearest") in ("nearest", "linear")
        and text("coordinate_transformation_mode", "half_pixel") in _TRANSFORMATIONS
        and text("nearest_mode", "round_prefer_floor") in ROUNDINGS
        and text("keep_aspect_ratio_policy", "stretch") == "stretch"
        and not number("antialias", 0)
    )
    return None if known else "the reference covers Resize to the nearest pixel or linear, without antialias"


def _training(node: ir.Node) -> str | None:
    if node.op_type == "BatchNormalization" and node.attributes.get_int("training_mode", False):
        return "the reference covers BatchNormalization with the statistics that it is given"
    return None


def _second_output(node: ir.Node) -> str | None:
    if node.op_type in ("MaxPool", "BatchNormalization", "Dropout") and _used(node.outputs[1:]):
        return f"the reference covers the first output of {node.op_type} only"
    return None


def _used(values: Iterable[ir.Value]) -> bool:
    return any(value.uses() or value.is_graph_output() for value in values)


_RULES: tuple[Callable[[ir.Node], str | None], ...] = (
    _quantizer,
    _recurrent,
    _resize,
    _training,
    _second_output,
)
