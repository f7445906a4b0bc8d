"""Weights of NF4 in OpenVINO: kept in 4 bits where it has them, and the same weight to the bit everywhere."""

from __future__ import annotations

from pathlib import Path

import ml_dtypes
import numpy as np
import onnx_ir as ir
import pytest

pytest.importorskip("openvino")

from qcompile import backends
from qcompile.backends.openvino.normal_floats import LEVELS
from qcompile.block_functions import CODEBOOK, call
from qcompile.passes.quantize_codebooks import QuantizeCodebooks
from qcompile.reference_evaluator import evaluate
from tests.backends.openvino.test_decompression import weight_types
from tests.backends.portable import parse


def codebook_linear(inputs: int, group: int, levels: np.ndarray = LEVELS) -> tuple[ir.Model, np.ndarray]:
    """A linear with such a weight, and the weight."""
    rng = np.random.default_rng(0)
    indices = rng.integers(0, 16, (inputs, 24))
    scale = rng.uniform(0.5, 2, (-(-inputs // group), 24)).astype(np.float32)
    model = parse(
        f"(float[N,{inputs}] x) => (float[N,24] y) {{ y = MatMul (x, w) }}",
        w=indices.astype(ml_dtypes.uint4),
        c=levels,
        s=scale,
    )
    node = model.graph[0]
    given = [model.graph.initializers[name] for name in "wcs"]
    node.replace_input_with(1, call(model, CODEBOOK, given, node, axis=0, block_size=group))
    return model, levels[indices] * np.repeat(scale, group, axis=0)[:inputs]


@pytest.mark.parametrize("backend", backends.BACKENDS)
@pytest.mark.parametrize(
    ("inputs", "group", "kind"),
    [(128, 64, "nf4"), (288, 32, "nf4"), (34, 64, "nf4"), (33, 64, "f32"), (96, 48, "f32"), (40, 16, "f32")],
)
def test_the_weight_is_kept_to_the_bit(backend: str, inputs: int, group: int, kind: str, tmp_path: Path) -> None:
    model, weight = codebook_linear(inputs, group)
    engine, identity = backends.get(backend), np.eye(inputs, dtype=np.float32)
    lowered = engine.lower(model, tmp_path, target=None)
    for session in (engine.open_artifact(tmp_path / lowered.model_file, threads=1), engine.open_session(model)):
        for rows in (slice(0, 1), slice(1, 4), slice(4, None)):
            np.testing.assert_array_equal(session.run({"x": identity[rows]})["y"], weight[rows])
    if backend == "openvino":
        assert weight_types(tmp_path / lowered.model_file) == [("FullyConnected", kind)]
    assert (tmp_path / "model.onnx").exists() == (lowered.model_file == "model.onnx")


@pytest.mark.parametrize("group", [64, 32])
def test_scales_of_8_bits_stay_so_in_the_file_and_the_weight_stays_in_4_bits(group: int, tmp_path: Path) -> None:
    weight = np.random.default_rng(0).normal(size=(128, 300)).astype(np.float32)
    model = parse("(float[N,128] x) => (float[N,300] y) { y = MatMul (x, w) }", w=weight)
    QuantizeCodebooks(group, double_quantization=True, head=None)(model)
    engine, identity = backends.get("openvino"), np.eye(128, dtype=np.float32)
    lowered = engine.lower(model, tmp_path, target=None)
    found = engine.open_artifact(tmp_path / lowered.model_file).run({"x": identity})["y"]
    np.testing.assert_array_equal(found, evaluate(model, {"x": identity})["y"])
    assert weight_types(tmp_path / lowered.model_file) == [("FullyConnected", "nf4")]
    scales = 300 * 128 // group
    assert (tmp_path / "model.bin").stat().st_size < 128 * 300 // 2 + 1.1 * scales + 2048  # 1 KiB of it are levels


def test_other_levels_are_computed_in_float(tmp_path: Path) -> None:
    model, weight = codebook_linear(64, 32, np.linspace(-1, 1, 16, dtype=np.float32))
    engine = backends.get("openvino")
    lowered = engine.lower(model, tmp_path, target=None)
    identity = np.eye(64, dtype=np.float32)
    found = engine.open_artifact(tmp_path / lowered.model_file).run({"x": identity})["y"]
    np.testing.assert_array_equal(found, weight)
    assert weight_types(tmp_path / lowered.model_file) == [("FullyConnected", "f32")]
