"""One scale per tensor at run time, in integers, and vectors."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from qcompile.backends import openvino as room
from qcompile.backends.openvino import readback
from tests.backends.portable import dynamic_per_tensor, parse, reference


@pytest.mark.parametrize("loud", [1, 30, 0])
def test_the_scale_is_that_of_the_tensor(loud: int, tmp_path: Path) -> None:
    case = dynamic_per_tensor()
    feed = {"x": case.feed["x"].copy()}
    feed["x"][0, 0] *= loud
    if not loud:
        feed["x"][:] = 0
    lowered = room.BACKEND.lower(case.model, tmp_path, target=None)
    session = room.BACKEND.open_artifact(tmp_path / lowered.model_file, threads=1)
    expected, actual = reference(case.model, feed), session.run(feed)
    for name, array in expected.items():
        np.testing.assert_allclose(actual[name], array, rtol=0, atol=1e-5 * max(1.0, float(np.abs(array).max())))
    assert len(readback.integer_kernels(session.compiled)) == 3


def test_a_vector_keeps_its_shape(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    model = parse(
        """(float[K] x) => (float[16] y) { m = Mul (x, c) q = QuantizeLinear (m, sx, zx)
        d = DequantizeLinear (q, sx, zx) f = DequantizeLinear <axis = 1> (w, s, z) y = MatMul (d, f) }""",
        c=np.ones(64, np.float32),
        sx=np.float32(0.02),
        zx=np.uint8(128),
        w=rng.integers(-127, 128, (64, 16)).astype(np.int8),
        s=np.full(16, 0.01, np.float32),
        z=np.zeros(16, np.int8),
    )
    for node in model.graph:
        if node.op_type == "Mul":
            node.outputs[0].shape = node.inputs[0].shape
    lowered = room.BACKEND.lower(model, tmp_path, target=None)
    session = room.BACKEND.open_artifact(tmp_path / lowered.model_file, threads=1)
    assert session.run({"x": np.ones(64, np.float32)})["y"].shape == (16,)
    assert "vector" in lowered.findings[0].reason
