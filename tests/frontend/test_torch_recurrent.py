"""torch.nn.RNN becomes the RNN of ONNX: right for every length and batch, and what both backends run."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
import torch

import qcompile
from qcompile import backends

SETTINGS = [
    {"batch_first": True},
    {"nonlinearity": "relu", "bias": False},
    {"num_layers": 2, "bidirectional": True, "batch_first": True, "nonlinearity": "relu"},
    {"num_layers": 2, "bidirectional": True},
]


class Recurrent(torch.nn.Module):
    """The outputs and the last states, from given first states."""

    def __init__(self, **settings) -> None:
        super().__init__()
        self.rnn = torch.nn.RNN(6, 5, **settings)

    def forward(self, x: torch.Tensor, state: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return self.rnn(x, state)


def feed(model: Recurrent, *, length: int, batch: int) -> dict[str, np.ndarray]:
    generator = np.random.default_rng(length)
    rnn = model.rnn
    shape = (batch, length, 6) if rnn.batch_first else (length, batch, 6)
    states = (rnn.num_layers * (1 + rnn.bidirectional), batch, 5)
    return {
        name: generator.standard_normal(size).astype(np.float32) for name, size in (("x", shape), ("state", states))
    }


@pytest.mark.parametrize("settings", SETTINGS, ids=str)
def test_it_is_one_operator_for_each_layer_and_right_for_other_lengths(settings):
    torch.manual_seed(0)
    model = Recurrent(**settings).eval()
    auto, example = torch.export.Dim.AUTO, feed(model, length=4, batch=3)
    shapes = {"x": {0: auto, 1: auto}, "state": {1: auto}}
    traced = qcompile.trace(model, example_inputs=example, dynamic_shapes=shapes)
    operators = Counter(node.op_type for node in traced.graph)
    assert operators["RNN"] == model.rnn.num_layers
    assert operators["MatMul"] == operators["SequenceAt"] == 0
    session = backends.get("onnxruntime").open_session(traced)
    for length, batch in ((4, 3), (9, 2)):
        given = feed(model, length=length, batch=batch)
        with torch.no_grad():
            expected = model(*map(torch.from_numpy, given.values()))
        for actual, wanted in zip(session.run(given).values(), expected, strict=True):
            np.testing.assert_allclose(actual, wanted.numpy(), rtol=0, atol=1e-5)


@pytest.mark.parametrize("backend", ["onnxruntime", "openvino"])
def test_both_backends_compile_it(backend):
    pytest.importorskip(backend)
    torch.manual_seed(0)

    class Tagger(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.rnn = torch.nn.RNN(16, 32, num_layers=2, bidirectional=True, batch_first=True)
            self.head = torch.nn.Linear(64, 8)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.head(self.rnn(x)[0])

    model, generator = Tagger().eval(), np.random.default_rng(0)
    data = [{"x": generator.standard_normal((2, 6, 16)).astype(np.float32)} for _ in range(4)]
    artifact = qcompile.compile(model, "w8a8-static", backend=backend, calibration=data, tune="none")
    assert [(layer.name, layer.operator, layer.action) for layer in artifact.report.layers] == [
        ("rnn", "RNN", "kept"),
        ("rnn", "RNN", "kept"),
        ("head", "Linear", "quantized"),
    ]
    assert artifact.report.agreements
    longer = generator.standard_normal((3, 11, 16)).astype(np.float32)
    with torch.no_grad():
        expected = model(torch.from_numpy(longer)).numpy()
    (actual,) = artifact(x=longer).values()
    assert actual.shape == expected.shape
    assert np.sqrt(np.mean((actual - expected) ** 2)) < 0.02 * np.sqrt(np.mean(expected**2))
