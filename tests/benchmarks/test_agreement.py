"""How two artifacts are compared: each value from the other's values before it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest

pytest.importorskip("triton")

from benchmarks import agreement
from tests.backends.portable import two_layers

COLUMNS = ("model", "recipe", "steps", "rms steps", "steps, whole run")


def test_a_value_that_is_given_is_read_in_the_place_of_the_models_own() -> None:
    model = ir.from_onnx_text(
        '<ir_version: 10, opset_import: ["" : 23]> g (float[2] x) => (float[2] y) '
        "{ a = Relu (x) b = Neg (a) y = Add (b, a) }"
    )
    session, feed = agreement.given(model, {"a": np.array([5, 6], np.float32), "b": np.array([1, 1], np.float32)})
    made = session.run({"x": np.array([-1, 2], np.float32), **feed})
    assert {name: array.tolist() for name, array in made.items()} == {"y": [6, 7], "a": [0, 2], "b": [-5, -6]}


def test_artifacts_of_one_graph_agree(tmp_path: Path) -> None:
    case = two_layers("MatMul", "uint8", sym=False)
    found, outputs = agreement.compare(case.model, case.feed, tmp_path / "integers", {})
    assert found["values"] > len(outputs)  # those at quantizers, too
    assert found["steps"] <= 1
    assert found["of the noise"] == 0  # there is nothing to compare with
    exact = {name: array + 1 for name, array in outputs.items()}
    again, _ = agreement.compare(case.model, case.feed, tmp_path / "again", exact)
    assert again["of the noise"] < 1e-5


def test_the_work_of_one_layer_decides_not_the_whole_run() -> None:
    rows = [
        dict(zip(COLUMNS, ("a", "w4a8", 2.0, 0.1, 17.0), strict=True)),
        dict(zip(COLUMNS, ("b", "nf4", 2.1, 0.1, 0.1), strict=True)),
    ]
    goals = agreement.goals(rows)
    assert [goal.name for goal in goals] == ["a w4a8, steps", "b nf4, steps"]
    assert [goal.holds for goal in goals] == [True, False]
