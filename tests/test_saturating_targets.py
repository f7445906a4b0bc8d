"""Processors without VNNI: vpmaddubsw adds pairs of 8-bit products in 16 bits, where `target="avx2"` leaves them room.

ONNX Runtime has no switch for the kernels of an older processor; what its artifact holds is multiplied in numpy as the
instruction does, and test_emulated_processor.py runs it where there is an emulator. OpenVINO is asked for AVX2: oneDNN
honours ONEDNN_MAX_CPU_ISA, and DNNL_MAX_CPU_ISA as its old name. Scales per token cannot be run so: OpenVINO asks the
processor itself, finds VNNI, and asks oneDNN for a kernel that it was told not to have.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest

import qcompile
from tests.passes.quantizable import parse

RECIPES = ("w8a8-static", "w8a8-dynamic", "smoothquant-o1", "smoothquant-o3")


def saturating_model() -> ir.Model:
    """Weights of one size: as many pairs as there can be that saturate."""
    text = """g (float[N, 16, 6, 6] x) => (float[N, 4] y) {
        c = Conv(x, k) r = Relu(c) c2 = Conv(r, k2) p = GlobalAveragePool(c2) f = Flatten(p) y = MatMul(f, w)
    }"""
    shapes = {"k": (16, 16, 3, 3), "k2": (16, 16, 3, 3), "w": (16, 4)}
    return parse(text, **{name: np.full(shape, 0.1, np.float32) for name, shape in shapes.items()})


def data(count: int) -> list[dict[str, np.ndarray]]:
    rng = np.random.default_rng(count)
    return [{"x": rng.uniform(0.8, 1, (2, 16, 6, 6)).astype(np.float32)} for _ in range(count)]


def maddubs(x: np.ndarray, w: np.ndarray) -> np.ndarray:
    """Sums of x[2k] w[2k] + x[2k+1] w[2k+1] over k, each pair saturated to 16 bits: uint8 [K], int8 [K, N] to [N]."""
    products = x[:, None].astype(np.int32) * w.astype(np.int32)
    pairs = products[0::2] + products[1::2]
    return np.clip(pairs, -(2**15), 2**15 - 1).sum(axis=0)


def stored_weights(artifact: qcompile.Artifact) -> list[np.ndarray]:
    """The int8 weights in the files, [inputs, outputs]; of convolutions channels last, as kernels add them up."""
    if artifact.backend == "onnxruntime":
        tensors = [onnx.numpy_helper.to_array(each) for each in onnx.load(artifact.model_path).graph.initializer]
        found = [array for array in tensors if array.dtype == np.int8 and array.ndim > 1]
    else:
        import openvino

        nodes = openvino.Core().read_model(artifact.model_path).get_ordered_ops()
        constants = [node for node in nodes if node.get_type_name() == "Constant"]
        found = [node.data for node in constants if node.get_element_type() == openvino.Type.i8 and node.data.ndim > 1]
        found = [array if array.ndim > 2 else array.T for array in found]  # [outputs, inputs] there
    return [array.transpose(2, 3, 1, 0).reshape(-1, len(array)) if array.ndim > 2 else array for array in found]


def saturates(weight: np.ndarray) -> bool:
    """Whether any uint8 activation makes a pair saturate; the worst have 255 at all weights of one sign."""
    columns = weight.T
    worst = [np.where(sign * column > 0, 255, 0).astype(np.uint8) for column in columns for sign in (1, -1)]
    return any(not np.array_equal(maddubs(x, weight), x.astype(np.int64) @ weight.astype(np.int64)) for x in worst)


@pytest.mark.parametrize("backend", ["onnxruntime", "openvino"])
@pytest.mark.parametrize("recipe", RECIPES)
def test_no_pair_of_products_saturates_with_the_target_and_pairs_do_without(recipe: str, backend: str) -> None:
    for target, expected in (("avx2", False), (None, True)):
        settings = {"backend": backend, "calibration": data(2), "target": target}
        artifact = qcompile.compile(saturating_model(), recipe, tune="none", **settings)
        weights = stored_weights(artifact)
        assert len(weights) == (3 if recipe in ("w8a8-static", "smoothquant-o3") else 1)
        assert any(map(saturates, weights)) is expected


def test_random_weights_and_activations_of_seven_bits_never_saturate() -> None:
    rng = np.random.default_rng(0)
    for _ in range(50):
        weight = rng.integers(-63, 64, (64, 16)).astype(np.int8)
        x = rng.integers(0, 256, 64).astype(np.uint8)
        assert np.array_equal(maddubs(x, weight), x.astype(np.int64) @ weight.astype(np.int64))
    assert saturates(np.full((2, 1), 65, np.int8))
    assert not saturates(np.full((2, 1), 64, np.int8))


COMPILE = """
import sys
from qcompile import compile
from qcompile.errors import VerificationError
from tests.test_saturating_targets import data, saturating_model
for recipe in ("w8a8-static", "smoothquant-o3"):
    try:
        target = sys.argv[1] or None
        artifact = compile(saturating_model(), recipe, backend="openvino", calibration=data(2), target=target)
    except VerificationError as error:
        print(recipe, "caught")
        print(error, file=sys.stderr)
    else:
        print(recipe, *(layer.action for layer in artifact.report.layers), artifact.report.accuracy["sqnr_db"] > 35)
"""


QUANTIZED = "quantized quantized quantized True"


@pytest.mark.parametrize(
    ("switch", "target", "expected"),
    [
        ("ONEDNN_MAX_CPU_ISA", "avx2", QUANTIZED),
        ("ONEDNN_MAX_CPU_ISA", "", "caught"),
        ("DNNL_MAX_CPU_ISA", "", "caught"),
    ],
)
def test_openvino_kept_to_avx2(switch: str, target: str, expected: str) -> None:
    root = str(Path(__file__).resolve().parents[1])
    environment = {**os.environ, switch: "AVX2", "PYTHONPATH": os.pathsep.join([*sys.path, root])}
    command = [sys.executable, "-P", "-W", "ignore", "-c", COMPILE, target]
    run = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert run.stdout.splitlines() == [f"{name} {expected}" for name in ("w8a8-static", "smoothquant-o3")], run.stderr
