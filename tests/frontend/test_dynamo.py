"""torch.compile(module, backend="qcompile"): captured graphs become artifacts, under the names of the user."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch._dynamo.exc import BackendCompilerFailed

from qcompile.errors import ModelError
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


class Writer(torch.nn.Module):
    """Applies a function of (module, x, cache), both float32 [4, 4]."""

    def __init__(self, write: Callable[[Writer, torch.Tensor, torch.Tensor], torch.Tensor]) -> None:
        super().__init__()
        self.write, self.linear = write, torch.nn.Linear(4, 4)
        self.register_buffer("n", torch.zeros(1))

    def forward(self, x: torch.Tensor, cache: torch.Tensor) -> torch.Tensor:
        return self.write(self, self.linear(x), cache) + x


def counts(module: Writer, y: torch.Tensor, _cache: torch.Tensor) -> torch.Tensor:
    module.n.add_(1)
    return y + module.n


def assigns(_module: Writer, y: torch.Tensor, cache: torch.Tensor) -> torch.Tensor:
    cache[0] = y[0]
    return cache * 2


def assigns_in_a_view(_module: Writer, y: torch.Tensor, cache: torch.Tensor) -> torch.Tensor:
    cache.view(-1)[2:].copy_(y.view(-1)[2:])
    return cache * 2


def adds(_module: Writer, y: torch.Tensor, cache: torch.Tensor) -> torch.Tensor:
    cache += 1
    return y * cache


def gives_out(_module: Writer, y: torch.Tensor, cache: torch.Tensor) -> torch.Tensor:
    torch.add(y, 1, out=cache)
    return y


def sets_the_flag(_module: Writer, y: torch.Tensor, cache: torch.Tensor) -> torch.Tensor:
    return y + torch.nn.functional.relu(cache, inplace=True)


def writes_the_data(_module: Writer, y: torch.Tensor, cache: torch.Tensor) -> torch.Tensor:
    cache.data.zero_()
    return y + cache


def converts_in_vain(_module: Writer, y: torch.Tensor, cache: torch.Tensor) -> torch.Tensor:
    return y + cache.to(torch.float32).contiguous().mul_(2)


@pytest.mark.parametrize(
    ("write", "node", "code", "target"),
    [
        (counts, "add_", "module.n.add_(1)", "self.n"),
        (assigns, "setitem", "cache[0] = y[0]", "the input cache"),
        (assigns_in_a_view, "copy_", "cache.view(-1)[2:]", "the input cache"),
        (adds, "cache", "cache += 1", "the input cache"),
        (gives_out, "add", "out=cache", "the input cache"),
        (sets_the_flag, "relu", "inplace=True", "the input cache"),
        (writes_the_data, "zero_", "cache.data.zero_()", "the input cache"),
        (converts_in_vain, "", "mul_(2)", "the input cache"),
    ],
)
def test_a_write_into_what_is_given_is_refused(write: Any, node: str, code: str, target: str) -> None:
    compiled = torch.compile(Writer(write).eval(), backend="qcompile", options={"recipe": "float"})
    with torch.no_grad(), pytest.raises(BackendCompilerFailed) as caught:
        compiled(torch.ones(4, 4), torch.ones(4, 4))
    error = caught.value.inner_exception
    assert isinstance(error, ModelError)
    assert error.subject.startswith(f"node {node}")
    assert code in error.subject
    assert f"writes into {target}," in error.reason


def test_batch_norm_in_training_mode_is_refused() -> None:
    module = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 1), torch.nn.BatchNorm2d(4, momentum=0.1)).train()
    compiled = torch.compile(module, backend="qcompile", options={"recipe": "float"})
    with torch.no_grad(), pytest.raises(BackendCompilerFailed) as caught:
        compiled(torch.ones(2, 3, 4, 4))
    assert isinstance(caught.value.inner_exception, ModelError)
    assert "num_batches_tracked" in str(caught.value)


def test_a_tensor_that_the_graph_makes_may_be_written() -> None:
    def write(_module: Writer, y: torch.Tensor, cache: torch.Tensor) -> torch.Tensor:
        z = cache * 2
        z.add_(1)
        z[0] = y[0]
        torch.nn.functional.relu(y, inplace=True)
        return z + cache.clone().mul_(3) + y

    module = Writer(write).eval()
    compiled = torch.compile(module, backend="qcompile", options={"recipe": "float"})
    x, cache = torch.linspace(-1, 1, 16).reshape(4, 4), torch.linspace(0, 1, 16).reshape(4, 4)
    with torch.no_grad():
        torch.testing.assert_close(compiled(x, cache), module(x, cache), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(
    ("module", "count", "keywords", "names"),
    [
        (torch.nn.Linear(4, 4), 1, (), ["input"]),
        (torch.nn.Sequential(torch.nn.Linear(4, 4), torch.nn.ReLU()), 1, (), ["input"]),
        (torch.nn.MultiheadAttention(4, 2, batch_first=True), 3, (), ["key", "query", "value"]),
        (torch.nn.Bilinear(4, 4, 4), 1, ("input2",), ["input1", "input2"]),
    ],
)
def test_modules_of_torch_keep_the_names_of_their_arguments(
    module: torch.nn.Module, count: int, keywords: tuple[str, ...], names: list[str]
) -> None:
    found = []

    def backend(graph: torch.fx.GraphModule, inputs: list[Any]) -> Any:
        found.append(sorted(dynamo._closed_module(graph, inputs)[1]))
        return graph.forward

    with torch.no_grad():
        torch.compile(module.eval(), backend=backend)(
            *[torch.ones(1, 2, 4) * index for index in range(count)], **{name: torch.ones(1, 2, 4) for name in keywords}
        )
    assert found == [names]
