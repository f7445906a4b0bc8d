"""torch.compile(module, backend="qcompile") on graphs that do more than return outputs: gradients, random numbers."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch._dynamo.exc import BackendCompilerFailed

from qcompile.errors import ModelError


@pytest.fixture(autouse=True)
def fresh_dynamo() -> None:
    torch._dynamo.reset()


def compiled(module: Any) -> Any:
    return torch.compile(module, backend="qcompile", options={"recipe": "float"})


def refusal(module: Any, *inputs: torch.Tensor) -> ModelError:
    with pytest.raises(BackendCompilerFailed) as caught:
        compiled(module)(*inputs)
    error = caught.value.inner_exception
    assert isinstance(error, ModelError)
    return error


@pytest.mark.parametrize("training", [True, False])
def test_outputs_require_gradients_where_those_of_the_module_do(training: bool) -> None:
    module, x = torch.nn.Linear(4, 4).train(training), torch.ones(2, 4)
    output = compiled(module)(x)
    assert output.requires_grad
    torch.testing.assert_close(output, module(x), atol=1e-5, rtol=1e-5)
    with pytest.raises(ModelError, match=r"gradients are asked for.*torch\.no_grad"):
        output.sum().backward()
    with torch.no_grad():
        assert not compiled(module)(x).requires_grad
    assert not compiled(module.requires_grad_(False))(x).requires_grad


def test_a_loss_with_other_gradients_fails_too() -> None:
    head = torch.nn.Linear(4, 1)
    with pytest.raises(ModelError, match="gradients are asked for"):
        head(compiled(torch.nn.Linear(4, 4))(torch.ones(2, 4))).sum().backward()


def test_outputs_that_have_no_gradients_have_none() -> None:
    outputs = compiled(lambda x: (x.argmax(dim=1), x * 2))(torch.ones(2, 4))
    assert [output.requires_grad for output in outputs] == [False, False]
    module = torch.nn.Linear(4, 4)
    index, number = compiled(lambda x: (module(x).argmax(dim=1), module(x)))(torch.ones(2, 4))
    assert (index.requires_grad, number.requires_grad) == (False, True)


def test_an_input_that_requires_a_gradient_is_refused_before_any_work() -> None:
    x = torch.ones(2, 4, requires_grad=True)
    error = refusal(torch.nn.Linear(4, 4).eval(), x)
    assert (error.subject, error.reason) == ("input input", "it requires a gradient, and an artifact has none")
    torch._dynamo.reset()
    with torch.no_grad():
        assert not compiled(torch.nn.Linear(4, 4).eval())(x).requires_grad


def test_an_input_that_other_code_computed_is_no_wish_for_gradients() -> None:
    before = torch.nn.Linear(4, 4).eval()
    assert compiled(torch.nn.Linear(4, 4).eval())(before(torch.ones(2, 4))).shape == (2, 4)


@pytest.mark.parametrize(
    ("module", "node"),
    [
        (torch.nn.Sequential(torch.nn.Linear(4, 4), torch.nn.Dropout(0.5)), "dropout"),
        (torch.nn.Sequential(torch.nn.Linear(4, 4), torch.nn.RReLU()), "rrelu"),
        (lambda x: x + torch.rand_like(x), "rand_like"),
        (lambda x: torch.nn.functional.scaled_dot_product_attention(x, x, x, dropout_p=0.1), "scaled_dot_product"),
    ],
)
def test_a_graph_that_draws_random_numbers_is_refused(module: Any, node: str) -> None:
    with torch.no_grad():
        error = refusal(module, torch.ones(1, 2, 4))
    assert node in error.subject
    assert "random numbers" in error.reason
    assert "module.eval()" in error.mend


class Encoder(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = torch.nn.Linear(4, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = x.unsqueeze(1)
        return torch.nn.functional.scaled_dot_product_attention(x, x, self.layer(x)).squeeze(1)


@pytest.mark.parametrize(
    "module",
    [
        torch.nn.Sequential(torch.nn.Linear(4, 4), torch.nn.Dropout(0.5)),
        Encoder(),
    ],
)
def test_dropout_in_evaluation_mode_draws_nothing(module: torch.nn.Module) -> None:
    module, x = module.eval(), torch.linspace(0, 1, 24).reshape(2, 3, 4)
    with torch.no_grad():
        torch.testing.assert_close(compiled(module)(x), module(x), atol=1e-5, rtol=1e-5)
