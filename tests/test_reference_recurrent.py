"""GRU, LSTM and RNN of the reference against ONNX Runtime, over their attributes and inputs."""

from __future__ import annotations

import numpy as np
import pytest

from qcompile import backends
from qcompile.reference_evaluator import evaluate
from tests.backends.portable import parse

STEPS, BATCH, INPUTS, SIZE = 5, 3, 4, 2
GATES = {"GRU": 3, "LSTM": 4, "RNN": 1}


def check(kind: str, attributes: str, inputs: str, directions: int = 1, *, batch_first: bool = False) -> None:
    rng = np.random.default_rng(0)
    gates, states = GATES[kind] * SIZE, (directions, BATCH, SIZE)
    arrays = {
        "w": rng.normal(size=(directions, gates, INPUTS)),
        "r": rng.normal(size=(directions, gates, SIZE)),
        "b": rng.normal(size=(directions, 2 * gates)),
        "h": rng.normal(size=states),
        "c": rng.normal(size=states),
        "p": rng.normal(size=(directions, 3 * SIZE)),
    }
    given = {name: array.astype(np.float32) for name, array in arrays.items()} | {"l": np.array([5, 2, 4], np.int32)}
    if batch_first:
        given |= {name: np.ascontiguousarray(given[name].swapaxes(0, 1)) for name in ("h", "c")}
    names = ["y", "last", *(["cells"] if kind == "LSTM" else [])]
    outputs = ", ".join(f"float[?] {name}" for name in names)
    call = f"{kind}<hidden_size = {SIZE}{attributes}>(x, w, r{inputs})".replace("'", '"')
    dims = (BATCH, STEPS, INPUTS) if batch_first else (STEPS, BATCH, INPUTS)
    sizes = ", ".join(map(str, dims))
    used = {name: given[name] for name in given if name in ("w", "r") or f" {name}" in inputs}
    model = parse(f"(float[{sizes}] x) => ({outputs}) {{ {', '.join(names)} = {call} }}", **used)
    feed = {"x": rng.normal(size=dims).astype(np.float32)}
    expected = backends.get("onnxruntime").open_session(model).run(feed)
    found = evaluate(model, feed)
    for name in names:
        assert found[name].shape == expected[name].shape
        np.testing.assert_allclose(found[name], expected[name], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("direction", ["forward", "reverse", "bidirectional"])
@pytest.mark.parametrize("inputs", ["", ", b", ", b, l", ", b, , h", ", b, l, h"])
@pytest.mark.parametrize("kind", ["GRU", "LSTM", "RNN"])
def test_the_same_as_the_runtime(kind: str, inputs: str, direction: str) -> None:
    check(kind, f", direction = '{direction}'", inputs, 2 if direction == "bidirectional" else 1)


@pytest.mark.parametrize("inputs", ["", ", b, l, h"])
def test_a_reset_behind_the_product(inputs: str) -> None:
    check("GRU", ", linear_before_reset = 1", inputs)


@pytest.mark.parametrize("direction", ["forward", "bidirectional"])
def test_a_cell_at_the_start_and_peepholes(direction: str) -> None:
    directions = 2 if direction == "bidirectional" else 1
    check("LSTM", f", direction = '{direction}'", ", b, l, h, c", directions)
    check("LSTM", f", direction = '{direction}'", ", b, , h, c, p", directions)
