"""Empty batches of models with which ONNX Runtime ends the process: refused before it sees them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest

import qcompile
from qcompile.backends.onnxruntime import BACKEND
from qcompile.errors import InputError

GATES = {"GRU": 3, "LSTM": 4, "RNN": 1}
FUNCTIONS = """
<domain: "own", opset_import: ["" : 23]>
inner (x, w, r) => (y) { y = GRU<hidden_size = 3>(x, w, r) }
"""


def recurrent(kind: str, body: str = "{kind}<hidden_size = 3>(x, w, r)", functions: str = "") -> ir.Model:
    rng = np.random.default_rng(0)
    shapes = {"w": (1, 3 * GATES[kind], 4), "r": (1, 3 * GATES[kind], 3)}
    text = f"""<ir_version: 10, opset_import: ["" : 23, "own" : 1]>
        g (float[s, b, 4] x) => (float[s, d, b, 3] y) {{ y = {body.format(kind=kind)} }} {functions}"""
    tensors = [ir.tensor(rng.normal(size=shape).astype(np.float32), name=name) for name, shape in shapes.items()]
    return ir.from_onnx_text(text, initializers=tensors)


def feed(batch: int) -> dict[str, np.ndarray]:
    return {"x": np.zeros((5, batch, 4), np.float32)}


@pytest.mark.parametrize("kind", ["GRU", "LSTM"])
def test_an_artifact_refuses_an_empty_batch_and_stays_alive(kind: str, tmp_path: Path) -> None:
    artifact = qcompile.compile(recurrent(kind), "float", output=tmp_path / "a", verify=False)
    for opened in (artifact, qcompile.load(tmp_path / "a")):
        with pytest.raises(InputError, match=r"'x': it is empty, .* LSTM or GRU"):
            opened.run(feed(0))
        assert opened.run(feed(2))["y"].shape == (5, 1, 2, 3)


def test_a_session_of_a_model_and_one_with_it_in_a_function_refuse_it() -> None:
    for model in (recurrent("LSTM"), recurrent("GRU", "own.inner(x, w, r)", FUNCTIONS)):
        with pytest.raises(InputError, match="it is empty"):
            BACKEND.open_session(model).run(feed(0))


def test_other_models_give_the_empty_result(tmp_path: Path) -> None:
    assert BACKEND.open_session(recurrent("RNN")).run(feed(0))["y"].shape == (5, 1, 0, 3)
    qcompile.compile(recurrent("RNN"), "float", output=tmp_path / "a", verify=False)
    assert qcompile.load(tmp_path / "a").run(feed(0))["y"].shape == (5, 1, 0, 3)


def test_where_the_file_has_gone_the_process_is_not_risked(tmp_path: Path) -> None:
    artifact = qcompile.compile(recurrent("GRU"), "float", output=tmp_path / "a", verify=False)
    assert artifact.run(feed(1))["y"].shape == (5, 1, 1, 3)
    artifact.model_path.unlink()
    with pytest.raises(InputError, match="it is empty"):
        artifact.run(feed(0))
