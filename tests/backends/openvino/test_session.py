from __future__ import annotations

from pathlib import Path

import numpy as np

from qcompile.backends.openvino import BACKEND
from tests.backends.portable import parse

BRANCHED = """(float[n,4] x, bool c) => (float[n,4] v, float[n,4] y) {
  v = Relu (x)
  y = If (c) < then_branch = yes () => (float[n,4] a) { a = Abs (v) },
               else_branch = no () => (float[n,4] b) { b = Neg (x) } >
}"""


def test_an_output_that_a_branch_reads_keeps_its_name(tmp_path: Path) -> None:
    model = parse(BRANCHED)
    feed = {"x": np.array([[-1, 2, -3, 4]], np.float32), "c": np.array(False)}
    lowered = BACKEND.lower(model, tmp_path, target=None)
    found = BACKEND.open_artifact(tmp_path / lowered.model_file).run(feed)
    assert list(found) == ["v", "y"]
    np.testing.assert_array_equal(found["v"], [[0, 2, 0, 4]])
    np.testing.assert_array_equal(found["y"], -feed["x"])
