"""torch.nn.RNN, LSTM and GRU become those of ONNX: right for every length and batch, and what both backends run."""

from __future__ import annotations

import importlib.util
from collections import Counter

import numpy as np
import pytest
import torch

import qcompile
from qcompile import backends
from qcompile.errors import UnsupportedError
from qcompile.frontend.torch_recurrent import translations

BACKENDS = ["onnxruntime", *(["openvino"] if importlib.util.find_spec("openvino") else [])]
CASES = [
    ("RNN", "given", {"nonlinearity": "relu", "bias": False}),
    ("RNN", "zeros", {"num_layers": 2, "bidirectional": True, "batch_first": True}),
    ("LSTM", "given", {"num_layers": 2, "bidirectional": True}),
    ("LSTM", "zeros", {"bias": False, "batch_first": True}),
    ("GRU", "given", {"bias": False, "batch_first": True}),
    ("GRU", "zeros", {"num_layers": 2, "bidirectional": True}),
]


class Recurrent(torch.nn.Module):
    """The outputs and the last states, from given first states or from zeros."""

    def __init__(self, kind: str, **settings) -> None:
        super().__init__()
        self.rnn = getattr(torch.nn, kind)(6, 5, **settings)

    def forward(
        self, x: torch.Tensor, state: torch.Tensor | None = None, cell: torch.Tensor | None = None
    ) -> tuple[torch.Tensor, ...]:
        y, last = self.rnn(x, state if cell is None else (state, cell))
        return (y, *last) if isinstance(last, tuple) else (y, last)


def feed(model: Recurrent, *, length: int, batch: int, given: bool) -> dict[str, np.ndarray]:
    generator = np.random.default_rng(length)
    rnn = model.rnn
    shapes = {"x": (batch, length, 6) if rnn.batch_first else (length, batch, 6)}
    states = (rnn.num_layers * (1 + rnn.bidirectional), batch, 5)
    if given:
        shapes |= {"state": states} | ({"cell": states} if isinstance(rnn, torch.nn.LSTM) else {})
    return {name: generator.standard_normal(shape).astype(np.float32) for name, shape in shapes.items()}


@pytest.mark.parametrize(("kind", "states", "settings"), CASES, ids=str)
def test_it_is_one_operator_for_each_layer_and_right_for_other_lengths(kind, states, settings):
    torch.manual_seed(0)
    model = Recurrent(kind, **settings).eval()
    auto, example = torch.export.Dim.AUTO, feed(model, length=4, batch=3, given=states == "given")
    shapes = {name: {0: auto, 1: auto} if name == "x" else {1: auto} for name in example}
    traced = qcompile.trace(model, example_inputs=example, dynamic_shapes=shapes)
    operators = Counter(node.op_type for node in traced.graph)
    assert operators[kind] == model.rnn.num_layers
    assert operators["MatMul"] == operators["SequenceAt"] == 0
    for session in [backends.get(name).open_session(traced) for name in BACKENDS]:
        for length, batch in ((4, 3), (9, 2)):
            inputs = feed(model, length=length, batch=batch, given=states == "given")
            with torch.no_grad():
                expected = model(**{name: torch.from_numpy(array) for name, array in inputs.items()})
            for actual, wanted in zip(session.run(inputs).values(), expected, strict=True):
                np.testing.assert_allclose(actual, wanted.numpy(), rtol=0, atol=1e-5)


def test_a_projected_state_is_refused():
    lstm = torch.nn.LSTM(6, 5, proj_size=3)
    translate = translations()[torch.ops.aten.lstm.input]
    with pytest.raises(UnsupportedError, match="proj_size"):
        translate(None, [None, None], list(lstm.parameters()), True, 1, 0.0, False, False, False)


@pytest.mark.parametrize(("kind", "backend"), [("RNN", "openvino"), ("LSTM", "onnxruntime"), ("GRU", "openvino")])
def test_both_backends_compile_it(kind, backend):
    pytest.importorskip(backend)
    torch.manual_seed(0)

    class Tagger(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.rnn = getattr(torch.nn, kind)(16, 32, num_layers=2, bidirectional=True)
            self.head = torch.nn.Linear(64, 8)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.head(self.rnn(x)[0])

    model, generator = Tagger().eval(), np.random.default_rng(0)
    data = [{"x": generator.standard_normal((6, 2, 16)).astype(np.float32)} for _ in range(4)]
    artifact = qcompile.compile(model, "w8a8-static", backend=backend, calibration=data, tune="none")
    assert [(layer.name, layer.operator, layer.action) for layer in artifact.report.layers] == [
        ("rnn", kind, "kept"),
        ("rnn", kind, "kept"),
        ("head", "Linear", "quantized"),
    ]
    assert artifact.report.agreements
    longer = generator.standard_normal((11, 3, 16)).astype(np.float32)
    with torch.no_grad():
        expected = model(torch.from_numpy(longer)).numpy()
    (actual,) = artifact(x=longer).values()
    assert actual.shape == expected.shape
    assert np.sqrt(np.mean((actual - expected) ** 2)) < 0.02 * np.sqrt(np.mean(expected**2))
