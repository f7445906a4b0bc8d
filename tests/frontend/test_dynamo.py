"""torch.compile(module, backend="qcompile"): captured graphs become artifacts, under the names of the user."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from qcompile.frontend import dynamo, trace


class Model(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first, self.second = torch.nn.Linear(16, 32), torch.nn.Linear(32, 8)
        self.register_buffer("scale", torch.full((8,), 2.0))

    def forward(self, x: torch.Tensor, shift: torch.Tensor | None = None) -> dict[str, Any]:
        y = self.second(torch.relu(self.first(x))) * self.scale
        return {"y": (y if shift is None else y + shift).reshape(x.shape[0], 2, 4), "kind": "pair"}


@pytest.fixture(autouse=True)
def fresh_dynamo() -> None:
    torch._dynamo.reset()


def captured(module: torch.nn.Module, **kwargs: Any) -> list[tuple[torch.fx.GraphModule, dict[str, int]]]:
    """What the plugin would hand to qcompile.compile for every graph that torch captures."""
    graphs = []

    def backend(graph: torch.fx.GraphModule, inputs: list[Any]) -> Any:
        graphs.append((*dynamo._closed_module(graph, inputs), inputs))
        return graph.forward

    compiled = torch.compile(module, backend=backend)
    with torch.no_grad():
        for batch in (2, 5):
            compiled(torch.ones(batch, 16), **kwargs)
    return graphs


def test_parameters_go_back_and_inputs_have_the_names_of_the_user() -> None:
    for graph, positions, inputs in captured(Model().eval(), shift=torch.ones(8)):
        assert sorted(positions) == ["shift", "x"]
        feed = {name: inputs[position] for name, position in positions.items()}
        expected = Model().eval()(**feed)["y"]
        torch.testing.assert_close(graph(**feed)[0], expected)
        assert sorted(value.name for value in trace(graph, example_inputs=feed).graph.inputs) == ["shift", "x"]


def test_the_plugin_runs_through_compile() -> None:
    module = Model().eval()
    compiled = torch.compile(module, backend="qcompile", options={"recipe": "float"})
    with torch.no_grad():
        for batch in (2, 3):
            x = torch.randn(batch, 16, generator=torch.Generator().manual_seed(batch))
            result = compiled(x)
            assert result["kind"] == "pair"
            torch.testing.assert_close(result["y"], module(x)["y"], atol=1e-5, rtol=1e-5)


def test_calibration_names_the_arguments_of_the_user() -> None:
    module = Model().eval()
    generator = np.random.default_rng(0)
    data = [{"x": generator.normal(size=(2, 16)).astype(np.float32)} for _ in range(4)]
    compiled = torch.compile(module, backend="qcompile", options={"recipe": "w8a8-static", "calibration": data})
    x = torch.from_numpy(data[0]["x"])
    with torch.no_grad():
        output, expected = compiled(x)["y"], module(x)["y"]
    assert 0 < (output - expected).abs().max() < 0.05 * expected.abs().max()


def test_an_unknown_option_is_refused() -> None:
    compiled = torch.compile(Model().eval(), backend="qcompile", options={"recip": "float"})
    with pytest.raises(Exception, match="recip"):
        compiled(torch.ones(2, 16))
