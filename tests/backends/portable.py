"""Portable quantized models, drawn at random, with their expected outputs: the cases of the conformance suite.

The expected values come from the reference implementation of the onnx package, which shares no code with any runtime.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import numpy as np
import onnx
import onnx.numpy_helper
import onnx.parser
import onnx_ir as ir
from onnx.reference import ReferenceEvaluator

HEADER = '<ir_version: 10, opset_import: ["" : 23, "qcompile" : 1]>'
PER_TOKEN = """
<domain: "qcompile", opset_import: ["" : 23]>
QuantizeDequantizePerToken (x) => (y)
{
    axis = Constant <value = int64[1] {-1}> ()
    levels = Constant <value = float {127.0}> ()
    least = Constant <value = float {-127.0}> ()
    zero = Constant <value = float {0.0}> ()
    one = Constant <value = float {1.0}> ()
    magnitude = Abs (x)
    largest = ReduceMax <keepdims = 1> (magnitude, axis)
    step = Div (largest, levels)
    is_zero = Equal (step, zero)
    scale = Where (is_zero, one, step)
    steps = Div (x, scale)
    rounded = Round (steps)
    clipped = Clip (rounded, least, levels)
    y = Mul (clipped, scale)
}
"""


@dataclasses.dataclass(frozen=True)
class Case:
    """A portable model and what is known about it.

    Attributes:
        model: the portable model.
        feed: one input.
        step: largest change of an output when one quantized value moves by one step; 0 for a float model. Shape []
            or [batch, sequence, 1].
        integer: number of linears and convolutions that have quantized operands.
    """

    model: ir.Model
    feed: Mapping[str, np.ndarray]
    step: np.ndarray = dataclasses.field(default_factory=lambda: np.zeros(()))
    integer: int = 0


def parse(graph: str, functions: str = "", **initializers: np.ndarray) -> ir.Model:
    """Model of a graph in ONNX text with these initializers."""
    proto = onnx.parser.parse_model(f"{HEADER}\nmain {graph}\n{functions}")
    for name, array in initializers.items():
        proto.graph.initializer.append(onnx.numpy_helper.from_array(np.asarray(array), name))
    onnx.checker.check_model(proto)
    return ir.from_proto(proto)


def reference(model: ir.Model, feed: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Outputs by the reference implementation of the onnx package."""
    names = [value.name or "" for value in model.graph.outputs]
    return dict(zip(names, ReferenceEvaluator(ir.to_proto(model)).run(names, dict(feed)), strict=True))


def weight(
    rng: np.random.Generator, shape: tuple[int, ...], axis: int, *, per_tensor: bool = False, zero: int = 0
) -> dict[str, np.ndarray]:
    """Quantized weight w, its scale ws and zero point wz, one per channel of `axis` or one for all."""
    size = () if per_tensor else (shape[axis],)
    return {
        "w": rng.integers(-127, 128, shape).astype(np.int8),
        "ws": rng.uniform(0.002, 0.01, size).astype(np.float32),
        "wz": np.full(size, zero, np.int8),
    }


def dequantized(parts: Mapping[str, np.ndarray], axis: int) -> np.ndarray:
    shape = [1] * parts["w"].ndim
    if parts["ws"].size > 1:
        shape[axis] = -1
    zero = parts["wz"].astype(np.float32).reshape(shape)
    return (parts["w"].astype(np.float32) - zero) * parts["ws"].reshape(shape)


def activation(dtype: str, *, sym: bool) -> dict[str, np.ndarray]:
    """Scale and zero point of an activation that is about normally distributed."""
    middle = {"uint8": 128, "int8": 0}[dtype]
    return {"s": np.float32(0.03), "z": np.asarray(middle if sym else middle - 29, dtype)}


LINEAR = """(float[{x}] x) => (float[{y}] y)
{{
    q = QuantizeLinear (x, s, z)
    d = DequantizeLinear (q, s, z)
    f = DequantizeLinear <axis = 1> (w, ws, wz)
    {matmul}
}}"""


def linear_case(
    dtype: str = "uint8",
    *,
    sym: bool = False,
    per_tensor: bool = False,
    weight_zero: int = 0,
    bias: bool = True,
    shape: tuple[int, ...] = (2, 5, 32),
    names: str = "N,S",
) -> Case:
    rng = np.random.default_rng(0)
    parts = weight(rng, (32, 24), 1, per_tensor=per_tensor, zero=weight_zero)
    scales = activation(dtype, sym=sym)
    matmul = "m = MatMul (d, f)\n y = Add (m, b)" if bias else "y = MatMul (d, f)"
    text = LINEAR.format(x=f"{names},32", y=f"{names},24", matmul=matmul)
    extra = {"b": rng.standard_normal(24).astype(np.float32)} if bias else {}
    matrix = dequantized(parts, 1)
    return Case(
        parse(text, **parts, **scales, **extra),
        {"x": rng.standard_normal(shape).astype(np.float32)},
        step=scales["s"] * np.abs(matrix).max(),
        integer=1,
    )


def conv_case(
    *,
    kind: str = "Conv",
    groups: int = 1,
    behind: str = "",
    bias: str = "int32",
    requantized: bool = True,
    zero_point: int = 110,
) -> Case:
    """Convolution of 8 channels by 3x3, with an activation such as "Relu (c)" in front of the next quantization."""
    rng = np.random.default_rng(1)
    axis = 0 if kind == "Conv" else 1
    parts, scales, s_y = weight(rng, (8, 8 // groups, 3, 3), axis), activation("uint8", sym=False), np.float32(0.05)
    values: dict[str, Any] = {**parts, **scales, "s_y": s_y, "z_y": np.uint8(zero_point)}
    values |= {"low": np.float32(0), "high": np.float32(13)}
    if bias == "int32":
        bias_scale = (parts["ws"] * scales["s"]).astype(np.float32)
        values |= {"bq": rng.integers(-3000, 3000, 8).astype(np.int32), "bs": bias_scale, "bz": np.zeros(8, np.int32)}
    else:
        values |= {"b": rng.standard_normal(8).astype(np.float32)}
    text = f"""(float[N,8,10,9] x) => (float[N,8,H,W] y)
    {{
        q = QuantizeLinear (x, s, z)
        d = DequantizeLinear (q, s, z)
        f = DequantizeLinear <axis = {axis}> (w, ws, wz)
        {"b = DequantizeLinear <axis = 0> (bq, bs, bz)" if bias == "int32" else ""}
        {"c" if behind else "a"} = {kind} <kernel_shape = [3, 3], pads = [1, 1, 1, 1], group = {groups}> (d, f, b)
        {f"a = {behind}" if behind else ""}
        {"yq = QuantizeLinear (a, s_y, z_y)" if requantized else ""}
        {"y = DequantizeLinear (yq, s_y, z_y)" if requantized else "y = Abs (a)"}
    }}"""
    step = scales["s"] * np.abs(dequantized(parts, axis)).max() + (s_y if requantized else 0)
    x = rng.standard_normal((2, 8, 10, 9)).astype(np.float32)
    return Case(parse(text, **values), {"x": x}, step=step, integer=1)


def fixed_shapes(case: Case) -> Case:
    """The case with the sizes of its feed in the place of every symbolic size."""
    model = case.model.clone()
    arrays = {**case.feed, **reference(model, case.feed)}
    for value in (*model.graph.inputs, *model.graph.outputs):
        value.shape = ir.Shape(arrays[value.name or ""].shape)
    return dataclasses.replace(case, model=model)


LAYERS = {"Conv": "Conv <pads = [1, 1, 1, 1]>", "MatMul": "MatMul"}


def two_layers(kind: str, dtype: str, *, sym: bool, behind: str = "") -> Case:
    """Two linears or convolutions of 16 channels with Relu in between; `behind` is done with the second."""
    rng = np.random.default_rng(8)
    convolution = kind == "Conv"
    axis, sizes, shape = (0, "16,H,W", (16, 16, 3, 3)) if convolution else (1, "S,16", (16, 16))
    first, second = (weight(rng, shape, axis) for _ in range(2))
    model = parse(
        f"""(float[N,{sizes}] x) => (float[N,{sizes}] y)
        {{
            q = QuantizeLinear (x, s, z)
            d = DequantizeLinear (q, s, z)
            f = DequantizeLinear <axis = {axis}> (w, ws, wz)
            h = {LAYERS[kind]} (d, f)
            r = Relu (h)
            rq = QuantizeLinear (r, s_r, z)
            rd = DequantizeLinear (rq, s_r, z)
            g = DequantizeLinear <axis = {axis}> (v, vs, vz)
            {f"m = {LAYERS[kind]} (rd, g)" if behind else f"y = {LAYERS[kind]} (rd, g)"}
            {behind}
        }}""",
        **first,
        **{name.replace("w", "v", 1): array for name, array in second.items()},
        **activation(dtype, sym=sym),
        s_r=np.float32(0.1),
    )
    x = rng.standard_normal((1, 16, 10, 10) if convolution else (2, 8, 16)).astype(np.float32)
    return Case(model, {"x": x}, step=0.1 * np.abs(dequantized(second, axis)).max(), integer=2)


def three_readers(quantize: str, functions: str = "", **initializers: np.ndarray) -> Case:
    """Three linears that read one quantized value `d`, of an x with rows of different magnitudes, one of them zero.

    The case's `step` is that of an activation with scale 1.
    """
    rng = np.random.default_rng(2)
    x = rng.standard_normal((2, 5, 32)).astype(np.float32) * np.array([0.1, 1, 3, 0, 10], np.float32)[:, None]
    values: dict[str, np.ndarray] = dict(initializers)
    lines, largest = [quantize], 0.0
    for name in "abc":
        parts = weight(rng, (32, 16), 1)
        values |= {f"{key}_{name}": array for key, array in parts.items()}
        values[f"b_{name}"] = rng.standard_normal(16).astype(np.float32)
        largest = max(largest, float(np.abs(dequantized(parts, 1)).max()))
        lines.append(f"f_{name} = DequantizeLinear <axis = 1> (w_{name}, ws_{name}, wz_{name})")
        lines.append(f"m_{name} = MatMul (d, f_{name})")
        lines.append(f"y_{name} = Add (m_{name}, b_{name})")
    outputs = ", ".join(f"float[N,S,16] y_{name}" for name in "abc")
    body = "\n".join(lines)
    model = parse(f"(float[N,S,32] x) => ({outputs}) {{ {body} }}", functions, **values)
    return Case(model, {"x": x}, step=np.asarray(largest), integer=3)


def static_shared() -> Case:
    quantize = "q = QuantizeLinear (x, s, z)\n d = DequantizeLinear (q, s, z)"
    case = three_readers(quantize, s=np.float32(0.1), z=np.uint8(120))
    return dataclasses.replace(case, step=0.1 * case.step)


def dynamic_per_tensor() -> Case:
    case = three_readers("q, s, z = DynamicQuantizeLinear (x)\n d = DequantizeLinear (q, s, z)")
    return dataclasses.replace(case, step=case.step * np.ptp(case.feed["x"]) / 255)


def dynamic_per_token() -> Case:
    case = three_readers("d = qcompile.QuantizeDequantizePerToken (x)", PER_TOKEN)
    rows = np.abs(case.feed["x"]).max(axis=-1, keepdims=True)
    return dataclasses.replace(case, step=case.step * rows / 127)


HEADS_IN = "r_{0} = Reshape ({0}, heads)\n t_{0} = Transpose <perm = [0, 2, 1, 3]> (r_{0})"
HEADS_OUT = "u = Transpose <perm = [0, 2, 1, 3]> (o)\n y = Reshape (u, flat)"


def attention_case() -> Case:
    """Self attention of 4 heads with padding, as torch exports it."""
    rng = np.random.default_rng(6)
    mask = np.arange(7) < np.array([[7], [4]])
    heads = "\n".join(HEADS_IN.format(name) for name in "qkv")
    model = parse(
        f"""(float[N,S,32] q, float[N,S,32] k, float[N,S,32] v, bool[N,1,1,S] mask) => (float[N,S,32] y)
        {{
            {heads}
            wide = Expand (mask, mask_shape)
            o = Attention <scale = 0.35> (t_q, t_k, t_v, wide)
            {HEADS_OUT}
        }}""",
        heads=np.array([0, 0, 4, 8]),
        flat=np.array([0, 0, 32]),
        mask_shape=np.array([1, 1, 7, 1]),
    )
    feed = {name: rng.standard_normal((2, 7, 32)).astype(np.float32) for name in "qkv"}
    return Case(model, {**feed, "mask": mask[:, None, None, :]})


def decoder_case() -> Case:
    """Causal attention with 4 query heads, 2 key heads, rotary embedding and caches of batch 1, as torch exports it."""
    rng = np.random.default_rng(7)
    angles = np.arange(7)[:, None] * 10.0 ** -np.arange(4)
    model = parse(
        f"""(float[N,S,32] q, float[N,S,16] k, float[N,S,16] v) => (float[N,S,32] y)
        {{
            {HEADS_IN.format("q")}
            {HEADS_IN.format("k").replace("heads)", "key_heads)")}
            {HEADS_IN.format("v").replace("heads)", "key_heads)")}
            e_q = RotaryEmbedding (t_q, cosines, sines)
            e_k = RotaryEmbedding (t_k, cosines, sines)
            o = Attention <is_causal = 1> (e_q, e_k, t_v)
            {HEADS_OUT}
        }}""",
        heads=np.array([0, 0, 4, 8]),
        key_heads=np.array([0, 0, 2, 8]),
        flat=np.array([0, 0, 32]),
        cosines=np.cos(angles)[None].astype(np.float32),
        sines=np.sin(angles)[None].astype(np.float32),
    )
    sizes = {"q": 32, "k": 16, "v": 16}
    return Case(model, {name: rng.standard_normal((2, 7, size)).astype(np.float32) for name, size in sizes.items()})
