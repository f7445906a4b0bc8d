"""Every way to store weights in few bits, on every backend: compiled, verified and run, with what was asked for."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest

import qcompile
from qcompile import backends, block_weights
from qcompile.artifact import Artifact
from qcompile.artifact_portable import GRAPH
from qcompile.block_functions import CODEBOOK
from qcompile.recipe import Recipe
from qcompile.reference_evaluator import evaluate
from tests.backends.onnxruntime.rewrites import optimized
from tests.backends.portable import parse

FLOAT32_ROUNDING = 1e-5
AFFINE = ("w4a16-rtn", "w4a16-hqq", "w4a16-awq", "w4a16-gptq", "w4a16-learned", "w4a16-inc", "w4a8")
BITS = (2, 3, 4, 8)
ODD_WIDTHS = (*(("w4a16-gptq", inputs) for inputs in (1, 17, 33, 288)), ("w4a16-hqq", 4544))
"""Recipe and width; second moments of 4544 channels take seconds."""

NO_AUTO_ROUND = importlib.util.find_spec("auto_round") is None


def model(inputs: int = 96, hidden: int = 80, outputs: int = 40) -> ir.Model:
    """A norm and two linears, whose scales of channels fold; groups of 32 are filled by neither 80 nor odd widths."""
    random = np.random.default_rng(inputs)
    return parse(
        f"""(float[N,S,{inputs}] x) => (float[N,S,{outputs}] y)
        {{
            n = LayerNormalization <axis = -1, epsilon = 0.00001> (x, gamma, beta)
            p = MatMul (n, v)
            h = Add (p, b)
            g = Relu (h)
            y = MatMul (g, w)
        }}""",
        gamma=np.exp(random.normal(size=inputs)).astype(np.float32),
        beta=random.normal(size=inputs).astype(np.float32),
        v=(random.normal(size=(inputs, hidden)) / np.sqrt(inputs)).astype(np.float32),
        b=random.normal(size=hidden).astype(np.float32),
        w=(random.normal(size=(hidden, outputs)) / np.sqrt(hidden)).astype(np.float32),
    )


def samples(inputs: int, seed: int, count: int = 4) -> list[dict[str, np.ndarray]]:
    random = np.random.default_rng(seed)
    return [{"x": random.normal(size=(2, 16, inputs)).astype(np.float32)} for _ in range(count)]


def compiled(recipe: str, backend: str, folder: Path, inputs: int = 96, **settings: Any) -> Artifact:
    plan = Recipe.from_name(recipe, **settings)
    calibration = samples(inputs, 0)
    artifact = qcompile.compile(model(inputs), plan, backend=backend, calibration=calibration, output=folder)
    assert artifact.report.agreements, artifact.report.not_compared
    assert {layer.action for layer in artifact.report.layers} == {"quantized"}, artifact.report.summary()
    assert len(artifact.report.layers) == 2
    return artifact


def check_outputs(artifact: Artifact, inputs: int = 96) -> float:
    """Assert that it computes what its portable graph says, on other samples; return its error next to float."""
    portable = ir.load(artifact.path / GRAPH)
    (probe, *_) = backends.get(artifact.backend).probes(artifact.model_path, [])
    (feed,) = samples(inputs, 1, 1)
    expected = evaluate(portable, feed, channels_per_scale=probe.channels_per_scale)["y"]
    np.testing.assert_allclose(
        artifact.run(feed)["y"], expected, rtol=0, atol=FLOAT32_ROUNDING * np.abs(expected).max()
    )
    exact = evaluate(model(inputs), feed)["y"]
    return float(np.linalg.norm(expected - exact) / np.linalg.norm(exact))


def expanded(artifact: Artifact) -> int:
    """How many weights the runtime has as float matrices once it has loaded the model and optimized it."""
    if artifact.backend == "onnxruntime":
        constants = optimized(artifact.model_path).graph.initializer
        return sum(len(each.dims) == 2 and each.data_type == onnx.TensorProto.FLOAT for each in constants)
    from tests.backends.openvino.test_decompression import weight_types

    return sum(kind == "f32" for _, kind in weight_types(artifact.model_path))


def integers(artifact: Artifact) -> list[np.ndarray]:
    """The stored integers of each weight in groups of its portable graph."""
    found = (block_weights.of_node(node) for node in ir.load(artifact.path / GRAPH).graph)
    return [weight.integers.numpy().astype(np.int16) for weight in found if weight is not None]


@pytest.mark.parametrize("sym", [True, False], ids=["sym", "asym"])
@pytest.mark.parametrize("backend", backends.BACKENDS)
@pytest.mark.parametrize("recipe", AFFINE)
def test_integers_of_every_width(recipe: str, backend: str, sym: bool, tmp_path: Path) -> None:
    pytest.importorskip(backend)
    if recipe == "w4a16-inc" and NO_AUTO_ROUND:
        pytest.skip("needs the extra inc")
    errors = []
    for bits in BITS if backend != "triton" or recipe in ("w4a16-rtn", "w4a8") else (3,):  # all write the same form
        few = {"iters": 10} if recipe == "w4a16-inc" else {}
        artifact = compiled(recipe, backend, tmp_path / str(bits), bits=bits, group_size=32, sym=sym, **few)
        errors.append(check_outputs(artifact))
        stored = integers(artifact)
        assert len(stored) == 2
        for found in stored:
            smallest = -(2 ** (bits - 1)) if sym else 0
            assert found.min() >= smallest
            assert found.max() < smallest + 2**bits
            assert len(np.unique(found)) > 2 ** (bits - 1), "one bit less would do"
    assert errors == sorted(errors, reverse=True), "more bits are closer"


@pytest.mark.parametrize("backend", backends.BACKENDS)
@pytest.mark.parametrize("recipe", ["nf4", "nf4-dq"])
def test_codebooks(recipe: str, backend: str, tmp_path: Path) -> None:
    pytest.importorskip(backend)
    artifact = compiled(recipe, backend, tmp_path / "a", group_size=32)
    nearest = compiled("w4a16-rtn", backend, tmp_path / "b", bits=3, group_size=32)
    assert check_outputs(artifact) < check_outputs(nearest)
    assert sum(node.op_type == CODEBOOK for node in ir.load(artifact.path / GRAPH).graph) == 2


@pytest.mark.parametrize("backend", backends.BACKENDS)
@pytest.mark.parametrize(("recipe", "inputs"), ODD_WIDTHS)
@pytest.mark.parametrize("group_size", [64, -1])
def test_groups_that_the_inputs_do_not_fill(
    recipe: str, inputs: int, group_size: int, backend: str, tmp_path: Path
) -> None:
    pytest.importorskip(backend)
    bits = {"bits": 3, "sym": False} if group_size == -1 else {"bits": 4}
    check_outputs(compiled(recipe, backend, tmp_path / "a", inputs, group_size=group_size, **bits), inputs)
