"""What the runtimes are known to compute wrong: each is emitted on purpose, and the verifier must see it.

Every case says what the installed runtimes make of it. Where one of them says "right", the mistake is mended there, or
needs another form than this one; the test fails when that changes, in either direction. That our own emission avoids
each form is tested beside the code that does: overflow in tests/passes/test_insert_qdq_refusals.py, blocks in
tests/backends/test_openvino.py and tests/backends/onnxruntime/test_blocks.py, biases in
tests/backends/onnxruntime/test_biases.py and tests/backends/openvino/test_convolution_biases.py, transposed floats in
tests/backends/onnxruntime/test_transposed_floats.py, outputs that branches read, concatenations, products,
normalizations, transposed weights and reductions in tests/backends/openvino/, in the files of these names, alpha in
tests/passes/test_lower_gemms.py; saturation here.
"""

from __future__ import annotations

import dataclasses
import os
import subprocess
import sys
from pathlib import Path
from typing import Any, Literal

import ml_dtypes
import numpy as np
import onnx_ir as ir
import pytest

from qcompile.backends.onnx_files import MODEL_FILE, write
from qcompile.backends.onnxruntime.session import open_file
from qcompile.backends.openvino.runtime import core
from qcompile.backends.openvino.session import load
from qcompile.errors import ModelError, VerificationError
from qcompile.reference_operators import whole_token
from qcompile.session import Probe, Session
from qcompile.verify_artifact import verify_artifact
from tests.backends.portable import parse

State = Literal["right", "wrong", "refused"]
ROOT = Path(__file__).resolve().parents[1]
RANDOM = np.random.default_rng(0)
PAIR = "q = QuantizeLinear(x, xs, xz) e = DequantizeLinear(q, xs, xz)"
ACTIVATION: dict[str, Any] = {"xs": np.float32(0.03), "xz": np.uint8(128)}
LONG = 70_000


@dataclasses.dataclass(frozen=True)
class Case:
    """A valid graph, and what onnxruntime 1.31 with all optimizations and OpenVINO 2026.4 make of it."""

    model: ir.Model
    feed: dict[str, np.ndarray]
    onnxruntime: State
    openvino: State


def linear(text: str, onnxruntime: State, openvino: State, **initializers: np.ndarray) -> Case:
    model = parse(f"(float[8,1024] x) => (float[8,32] y) {{ {text} }}", **initializers)
    return Case(model, {"x": RANDOM.normal(size=(8, 1024)).astype(np.float32)}, onnxruntime, openvino)


def blocks(size: int, axis: int, onnxruntime: State, openvino: State) -> Case:
    shape = (1024 // size, 32) if axis == 0 else (1024, 32 // size)
    return linear(
        f"d = DequantizeLinear<axis = {axis}, block_size = {size}>(w, s) y = MatMul(x, d)",
        onnxruntime,
        openvino,
        w=RANDOM.integers(-8, 8, (1024, 32)).astype(ml_dtypes.int4),
        s=RANDOM.uniform(0.5, 2, shape).astype(np.float32),
    )


def twelve_linears_in_blocks() -> Case:
    text, value, numbers = "", "x", {}
    for i in range(12):
        text += f" d{i} = DequantizeLinear<axis = 0, block_size = 32>(w{i}, s{i}) m{i} = MatMul({value}, d{i})"
        text += f" t{i} = Tanh(m{i}) a{i} = Add({value}, t{i})"
        numbers[f"w{i}"] = np.random.default_rng(i).integers(-8, 8, (256, 256)).astype(ml_dtypes.int4)
        numbers[f"s{i}"] = np.full((8, 256), 0.02, np.float32)
        value = f"a{i}"
    model = parse(f"(float[16,256] x) => (float[16,256] y) {{ {text} y = Identity({value}) }}", **numbers)
    return Case(model, {"x": np.random.default_rng(0).normal(size=(16, 256)).astype(np.float32)}, "wrong", "wrong")


def convolution_with_a_large_bias() -> Case:
    model = parse(
        f"(float[1,3,5,5] x) => (float[1,4,3,3] y) {{ {PAIR} d = DequantizeLinear<axis = 0>(w, s, z) c = Conv(e, d, b) "
        "o = QuantizeLinear(c, xs, xz) y = DequantizeLinear(o, xs, xz) }",
        **ACTIVATION,
        w=RANDOM.integers(-127, 128, (4, 3, 3, 3)).astype(np.int8),
        s=np.array([1e-3, 1e-9, 1e-38, 1e-3], np.float32),
        z=np.zeros(4, np.int8),
        b=np.array([1.5, -2.5, 0.5, 2], np.float32),
    )
    return Case(model, {"x": RANDOM.normal(size=(1, 3, 5, 5)).astype(np.float32)}, "wrong", "right")


def long_sums() -> Case:
    model = parse(
        f"(float[2,{LONG}] x) => (float[2,4] y) {{ {PAIR} d = DequantizeLinear(w, s, z) y = MatMul(e, d) }}",
        xs=np.float32(0.01),
        xz=np.uint8(0),
        w=np.full((LONG, 4), 127, np.int8),
        s=np.float32(0.01),
        z=np.int8(0),
    )
    return Case(model, {"x": np.full((2, LONG), 2.55, np.float32)}, "wrong", "wrong")


def quantized_reduction(kind: str, then: str) -> Case:
    model = parse(
        "(float[2,7,48] x) => (float[2,3] y) { i = Constant<value = int64[1] {1}>() "
        f"m = {kind}<keepdims = 0>(x, i) x_ = {then} "
        f"{PAIR.replace('(x,', '(x_,', 1)} d = DequantizeLinear(w, s, z) y = MatMul(e, d) }}",
        **ACTIVATION,
        **INT8,
        f=np.linspace(0.5, 2, 48, dtype=np.float32),
        w=RANDOM.integers(-127, 128, (48, 3)).astype(np.int8),
    )
    return Case(model, {"x": RANDOM.normal(size=(2, 7, 48)).astype(np.float32)}, "right", "wrong")


def bias_of_patches_behind_a_token() -> Case:
    model = parse(
        f"(float[n,3,8,8] x) => (float[n,17,4] y) {{ {PAIR} d = DequantizeLinear<axis = 0>(w, s, z) "
        "c = Conv<strides = [2, 2]>(e, d, b) o = QuantizeLinear(c, xs, xz) p = DequantizeLinear(o, xs, xz) "
        "i = Constant<value = int64[3] {0, 4, 16}>() v = Reshape(p, i) t = Transpose<perm = [0, 2, 1]>(v) "
        "n = Shape<start = 0, end = 1>(x) j = Constant<value = int64[2] {1, 4}>() g = Concat<axis = 0>(n, j) "
        "k = Expand(token, g) y = Concat<axis = 1>(k, t) }",
        **ACTIVATION,
        w=RANDOM.integers(-127, 128, (4, 3, 2, 2)).astype(np.int8),
        s=np.full(4, 0.003, np.float32),
        z=np.zeros(4, np.int8),
        b=np.array([1, -1, 0.5, 2], np.float32),
        token=np.ones((1, 1, 1), np.float32),
    )
    return Case(model, {"x": RANDOM.normal(size=(2, 3, 8, 8)).astype(np.float32)}, "right", "wrong")


def floats_before_a_transpose(outputs: str, readers: str) -> Case:
    model = parse(
        f"(float[2,4,5] x) => ({outputs}) {{ v = Abs(x) t = Transpose<perm = [0, 2, 1]>(v) "
        f"q = QuantizeLinear(t, s, z) y = DequantizeLinear(q, s, z) {readers} }}",
        s=np.float32(0.1),
        z=np.uint8(0),
        m=np.float32(9),
    )
    return Case(model, {"x": RANDOM.normal(size=(2, 4, 5)).astype(np.float32)}, "wrong", "right")


def output_that_branches_read() -> Case:
    model = parse(
        f"(float[2,4] x) => (float[2,4] d, float[2,4] y) {{ {PAIR} d = DequantizeLinear(q, xs, xz) "
        "l = ReduceMax<keepdims = 0>(e) c = Less(l, m) y = If(c) <then_branch = yes () => (float[2,4] a) "
        "{ a = Exp(d) }, else_branch = no () => (float[2,4] b) { b = Neg(d) }> }",
        **ACTIVATION,
        m=np.float32(9),
    )
    return Case(model, {"x": RANDOM.normal(size=(2, 4)).astype(np.float32)}, "right", "wrong")


def product_read_with_and_without_a_vector() -> Case:
    model = parse(
        "(float[n,6,8] x) => (float[n,6,8] m, float[n,6,8] y) { q = QuantizeLinear(x, xs, z) "
        "e = DequantizeLinear(q, xs, z) d = DequantizeLinear(w, s, z) m = MatMul(e, d) a = Add(m, b) "
        "o = QuantizeLinear(a, ys, z) p = DequantizeLinear(o, ys, z) y = Abs(p) }",
        xs=np.float32(0.03),
        ys=np.float32(0.05),
        s=np.float32(0.004),
        z=np.int8(0),
        b=np.linspace(-2, 2, 8, dtype=np.float32),
        w=RANDOM.integers(-127, 128, (8, 8)).astype(np.int8),
    )
    return Case(model, {"x": RANDOM.normal(size=(2, 6, 8)).astype(np.float32)}, "right", "wrong")


def normalization_of_integers() -> Case:
    model = parse(
        "(float[2,5,8] x) => (float[2,5,8] y) { q = QuantizeLinear(x, xs, z) e = DequantizeLinear(q, xs, z) "
        "y = LayerNormalization(e, g) }",
        xs=np.float32(0.002),
        z=np.int8(0),
        g=np.ones(8, np.float32),
    )
    return Case(model, {"x": (0.002 * RANDOM.normal(size=(2, 5, 8))).astype(np.float32)}, "right", "wrong")


def weight_read_both_ways() -> Case:
    model = parse(
        "(float[4,8] x, float[8,8] w) => (float[4,8] y, float[4,8] v) { t = Transpose<perm = [1, 0]>(w) "
        "v = MatMul(x, t) y = MatMul(x, w) }",
        w=RANDOM.normal(size=(8, 8)).astype(np.float32),
    )
    return Case(model, {"x": RANDOM.normal(size=(4, 8)).astype(np.float32)}, "right", "wrong")


INT8 = {"s": np.float32(0.01), "z": np.int8(0)}
CASES = {
    "int8 DequantizeLinear, Reshape (onnxruntime 27845)": linear(
        f"{PAIR} d = DequantizeLinear(w, s, z) i = Constant<value = int64[2] {{1024, 32}}>() r = Reshape(d, i) "
        "y = MatMul(e, r)",
        "right",
        "right",
        **ACTIVATION,
        **INT8,
        w=RANDOM.integers(-127, 128, (1024, 4, 8)).astype(np.int8),
    ),
    "int4 in blocks along axis 0 (onnxsim 749)": blocks(32, 0, "right", "right"),
    "int4 in blocks, twelve deep: activations rounded": twelve_linears_in_blocks(),
    "blocks of 512 (onnxruntime 28551)": blocks(512, 0, "right", "right"),
    "blocks along axis 1 (openvino 32918)": blocks(16, 1, "right", "refused"),
    "Gemm with an alpha (onnxruntime 28130)": linear(
        f"{PAIR} d = DequantizeLinear(w, s, z) c = DequantizeLinear(b, bs, bz) g = Gemm<alpha = 0.5>(e, d, c) "
        "o = QuantizeLinear(g, ys, xz) y = DequantizeLinear(o, ys, xz)",
        "right",
        "right",
        **ACTIVATION,
        **INT8,
        ys=np.float32(0.3),
        w=RANDOM.integers(-127, 128, (1024, 32)).astype(np.int8),
        b=RANDOM.integers(-9999, 9999, 32).astype(np.int32),
        bs=np.float32(0.0003),
        bz=np.int32(0),
    ),
    "sums beyond int32": long_sums(),
    "float bias beyond int32": convolution_with_a_large_bias(),
    "maximum, quantized": quantized_reduction("ReduceMax", "Identity(m)"),
    "mean, multiplied by channel and quantized": quantized_reduction("ReduceMean", "Mul(m, f)"),
    "bias of a convolution behind which the batch size is read": bias_of_patches_behind_a_token(),
    "output, transposed and quantized": floats_before_a_transpose("float[2,4,5] v, float[2,5,4] y", ""),
    "read in a branch, transposed and quantized": floats_before_a_transpose(
        "float[2,4,5] o, float[2,5,4] y",
        "l = ReduceMax<keepdims = 0>(x) c = Less(l, m) o = If(c) <then_branch = yes () => (float[2,4,5] a) "
        "{ a = Exp(v) }, else_branch = no () => (float[2,4,5] b) { b = Neg(v) }>",
    ),
    "output that branches read": output_that_branches_read(),
    "product, read with and without a vector": product_read_with_and_without_a_vector(),
    "normalization of integers": normalization_of_integers(),
    "weight of two products, of one transposed": weight_read_both_ways(),
}


def open_as_it_is(model: ir.Model, runtime: str, folder: Path) -> Session:
    """Load the graph without any of our rewrites."""
    write(model, folder, external=False)
    if runtime == "onnxruntime":
        return open_file(folder / MODEL_FILE, threads=1, optimization="all")
    return load(core().read_model(folder / MODEL_FILE), "the graph as it is")


@pytest.mark.parametrize("runtime", ["onnxruntime", "openvino"])
@pytest.mark.parametrize("name", CASES)
def test_the_verifier_knows_right_from_wrong(name: str, runtime: str, tmp_path: Path) -> None:
    case = CASES[name]
    state: State = getattr(case, runtime)
    if state == "refused":
        with pytest.raises(ModelError):
            open_as_it_is(case.model, runtime, tmp_path)
        return
    session = open_as_it_is(case.model, runtime, tmp_path)
    probe = Probe(runtime, session, (), whole_token)
    if state == "right":
        verify_artifact(case.model, case.model, lambda: session, [probe], case.feed)
        return
    with pytest.raises(VerificationError, match="quantization steps"):
        verify_artifact(case.model, case.model, lambda: session, [probe], case.feed)


SATURATING = """
import sys
import numpy as np
import onnx_ir as ir
import qcompile
from qcompile.errors import VerificationError

weight = np.full((64, 8), 1.0, np.float32)
header = '<ir_version: 10, opset_import: ["" : 23]>'
model = ir.from_onnx_text(header + "g (float[4, 64] x) => (float[4, 8] y) { y = MatMul(x, w) }")
model.graph.register_initializer(ir.val("w", const_value=ir.tensor(weight, name="w")))
model.graph[0].replace_input_with(1, model.graph.initializers["w"])
data = [{"x": np.linspace(0, 1, 256, dtype=np.float32).reshape(4, 64)}, {"x": np.ones((4, 64), np.float32)}]
recipe = qcompile.Recipe.from_data({"name": "r", "steps": [{"insert_qdq": {}}]})
try:
    qcompile.compile(model, recipe, backend="openvino", calibration=data, target=sys.argv[1] if sys.argv[1:] else None)
except VerificationError as error:
    print("caught:", error)
else:
    print("right")
"""


@pytest.mark.parametrize(("target", "expected"), [((), "caught: artifact on openvino"), (("avx2",), "right")])
def test_sums_of_pairs_saturate_without_vnni_and_the_target_avoids_it(target: tuple[str, ...], expected: str) -> None:
    """64.0 becomes 32.4 where products are added in 16 bits, here by asking OpenVINO for AVX2."""
    environment = {**os.environ, "ONEDNN_MAX_CPU_ISA": "AVX2", "PYTHONPATH": os.pathsep.join(sys.path)}
    command = [sys.executable, "-P", "-c", SATURATING, *target]
    run = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert run.stdout.startswith(expected), run.stdout + run.stderr
