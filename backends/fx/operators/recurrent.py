"""RNN, GRU and LSTM, step by step: torch's own modules have other gates, and neither lengths nor peepholes."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from qcompile.backends.fx.operators import activations
from qcompile.backends.fx.table import operator
from qcompile.errors import UnsupportedOperator

Step = Callable[[Tensor, Tensor, Tensor], tuple[Tensor, Tensor]]

_ACTIVATIONS: dict[str, Callable[[Tensor, float | None, float | None], Tensor]] = {
    "Relu": lambda x, _alpha, _beta: torch.relu(x),
    "Tanh": lambda x, _alpha, _beta: torch.tanh(x),
    "Sigmoid": lambda x, _alpha, _beta: torch.sigmoid(x),
    "Affine": lambda x, alpha, beta: (1.0 if alpha is None else alpha) * x + (0.0 if beta is None else beta),
    "LeakyRelu": lambda x, alpha, _beta: activations.leaky_relu(x, alpha=0.01 if alpha is None else alpha),
    "ThresholdedRelu": lambda x, alpha, _beta: activations.thresholded_relu(x, alpha=1.0 if alpha is None else alpha),
    "ScaledTanh": lambda x, alpha, beta: (
        (1.0 if alpha is None else alpha) * torch.tanh((1.0 if beta is None else beta) * x)
    ),
    "HardSigmoid": lambda x, alpha, beta: activations.hard_sigmoid(
        x, alpha=0.2 if alpha is None else alpha, beta=0.5 if beta is None else beta
    ),
    "Elu": lambda x, alpha, _beta: activations.elu(x, alpha=1.0 if alpha is None else alpha),
    "Softsign": lambda x, _alpha, _beta: torch.nn.functional.softsign(x),
    "Softplus": lambda x, _alpha, _beta: activations.softplus(x),
}


def _chosen(
    names: Sequence[str], alphas: Sequence[float], betas: Sequence[float], clip: float | None, operator_name: str
) -> list[Callable[[Tensor], Tensor]]:
    """The activation functions, behind the clip of what they get; settings are given in the order of the names."""
    left = {"alpha": list(alphas), "beta": list(betas)}
    found = []
    for name in names:
        if name not in _ACTIVATIONS:
            raise UnsupportedOperator(operator_name, f"the activation {name!r} is not known", "Use one of ONNX's")
        alpha = left["alpha"].pop(0) if left["alpha"] else None
        beta = left["beta"].pop(0) if left["beta"] else None
        found.append(_clipped(_ACTIVATIONS[name], alpha, beta, clip))
    return found


def _clipped(
    function: Callable[[Tensor, float | None, float | None], Tensor],
    alpha: float | None,
    beta: float | None,
    clip: float | None,
) -> Callable[[Tensor], Tensor]:
    return lambda x: function(x if clip is None else x.clamp(-clip, clip), alpha, beta)


def _one_direction(
    step: Step, x: Tensor, hidden: Tensor, cell: Tensor, lengths: Tensor | None, reverse: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """All steps over x [sequence, batch, input]; behind the end of a sample its state stays and its output is 0."""
    if not x.shape[0]:
        return hidden.new_zeros(0, *hidden.shape), hidden, cell
    made = []
    order = range(x.shape[0])[::-1] if reverse else range(x.shape[0])
    for time in order:
        new_hidden, new_cell = step(x[time], hidden, cell)
        if lengths is None:
            hidden, cell = new_hidden, new_cell
            made.append(hidden)
            continue
        inside = (time < lengths)[:, None]
        hidden, cell = torch.where(inside, new_hidden, hidden), torch.where(inside, new_cell, cell)
        made.append(torch.where(inside, new_hidden, torch.zeros_like(new_hidden)))
    return torch.stack(made[::-1] if reverse else made), hidden, cell


def _run(
    make_step: Callable[[int], Step],
    x: Tensor,
    directions: int,
    direction: str,
    hidden_size: int,
    lengths: Tensor | None,
    initial: Tensor | None,
    initial_cell: Tensor | None,
    layout: int,
) -> tuple[Tensor, Tensor, Tensor]:
    """Every direction: y [sequence, directions, batch, hidden], and the last states [directions, batch, hidden]."""
    x = x.transpose(0, 1) if layout else x
    states = [x.new_zeros(directions, x.shape[1], hidden_size) for _ in range(2)]
    for index, given in enumerate((initial, initial_cell)):
        if given is not None:
            states[index] = given.transpose(0, 1) if layout else given
    found = [
        _one_direction(
            make_step(index), x, states[0][index], states[1][index], lengths, direction == "reverse" or index == 1
        )
        for index in range(directions)
    ]
    y, hidden, cell = torch.stack([f[0] for f in found], 1), *(torch.stack([f[i] for f in found]) for i in (1, 2))
    if layout:
        return y.permute(2, 0, 1, 3), hidden.transpose(0, 1), cell.transpose(0, 1)
    return y, hidden, cell


def _biases(bias: Tensor | None, gates: int, size: int, like: Tensor) -> tuple[Tensor, Tensor]:
    """Biases of the input and of the state, for each direction."""
    if bias is None:
        zero = like.new_zeros(like.shape[0], gates * size)
        return zero, zero
    return bias[:, : gates * size], bias[:, gates * size :]


@operator("RNN")
def rnn(
    x: Tensor,
    w: Tensor,
    r: Tensor,
    bias: Tensor | None = None,
    lengths: Tensor | None = None,
    initial: Tensor | None = None,
    *,
    activation_alpha: Sequence[float] = (),
    activation_beta: Sequence[float] = (),
    activations: Sequence[str] = ("Tanh", "Tanh"),
    clip: float | None = None,
    direction: str = "forward",
    hidden_size: int,
    layout: int = 0,
) -> tuple[Tensor, Tensor]:
    """f(x @ w^T + h @ r^T + biases)."""
    functions = _chosen(activations, activation_alpha, activation_beta, clip, "RNN")
    of_input, of_state = _biases(bias, 1, hidden_size, w)

    def make(index: int) -> Step:
        def step(x: Tensor, hidden: Tensor, cell: Tensor) -> tuple[Tensor, Tensor]:
            total = x @ w[index].t() + hidden @ r[index].t() + of_input[index] + of_state[index]
            return functions[index](total), cell

        return step

    y, hidden, _ = _run(make, x, w.shape[0], direction, hidden_size, lengths, initial, None, layout)
    return y, hidden


@operator("GRU")
def gru(
    x: Tensor,
    w: Tensor,
    r: Tensor,
    bias: Tensor | None = None,
    lengths: Tensor | None = None,
    initial: Tensor | None = None,
    *,
    activation_alpha: Sequence[float] = (),
    activation_beta: Sequence[float] = (),
    activations: Sequence[str] = ("Sigmoid", "Tanh", "Sigmoid", "Tanh"),
    clip: float | None = None,
    direction: str = "forward",
    hidden_size: int,
    layout: int = 0,
    linear_before_reset: int = 0,
) -> tuple[Tensor, Tensor]:
    """(1 - z) * g(candidate) + z * h with gates z, r of f, in the order z, r, h."""
    functions = _chosen(activations, activation_alpha, activation_beta, clip, "GRU")
    of_input, of_state = _biases(bias, 3, hidden_size, w)

    def make(index: int) -> Step:
        gate, candidate = functions[2 * index : 2 * index + 2]
        weights, biases = torch.split(r[index], hidden_size), torch.split(of_state[index], hidden_size)

        def step(x: Tensor, hidden: Tensor, cell: Tensor) -> tuple[Tensor, Tensor]:
            parts = torch.split(x @ w[index].t() + of_input[index], hidden_size, -1)
            update, reset = (gate(parts[k] + hidden @ weights[k].t() + biases[k]) for k in range(2))
            if linear_before_reset:
                new = candidate(parts[2] + reset * (hidden @ weights[2].t() + biases[2]))
            else:
                new = candidate(parts[2] + (reset * hidden) @ weights[2].t() + biases[2])
            return (1 - update) * new + update * hidden, cell

        return step

    y, hidden, _ = _run(make, x, w.shape[0], direction, hidden_size, lengths, initial, None, layout)
    return y, hidden


@operator("LSTM")
def lstm(
    x: Tensor,
    w: Tensor,
    r: Tensor,
    bias: Tensor | None = None,
    lengths: Tensor | None = None,
    initial: Tensor | None = None,
    initial_cell: Tensor | None = None,
    peepholes: Tensor | None = None,
    *,
    activation_alpha: Sequence[float] = (),
    activation_beta: Sequence[float] = (),
    activations: Sequence[str] = ("Sigmoid", "Tanh", "Tanh", "Sigmoid", "Tanh", "Tanh"),
    clip: float | None = None,
    direction: str = "forward",
    hidden_size: int,
    input_forget: int = 0,
    layout: int = 0,
) -> tuple[Tensor, Tensor, Tensor]:
    """Gates i, o, f and the candidate c, in that order; peepholes i, o, f."""
    functions = _chosen(activations, activation_alpha, activation_beta, clip, "LSTM")
    of_input, of_state = _biases(bias, 4, hidden_size, w)
    views = w.new_zeros(w.shape[0], 3 * hidden_size) if peepholes is None else peepholes

    def make(index: int) -> Step:
        gate, candidate, squash = functions[3 * index : 3 * index + 3]
        to_input, to_output, to_forget = torch.split(views[index], hidden_size)

        def step(x: Tensor, hidden: Tensor, cell: Tensor) -> tuple[Tensor, Tensor]:
            total = x @ w[index].t() + hidden @ r[index].t() + of_input[index] + of_state[index]
            given, out, forget, new = torch.split(total, hidden_size, -1)
            entering = gate(given + to_input * cell)
            kept = 1 - entering if input_forget else gate(forget + to_forget * cell)
            cell = kept * cell + entering * candidate(new)
            return gate(out + to_output * cell) * squash(cell), cell

        return step

    return _run(make, x, w.shape[0], direction, hidden_size, lengths, initial, initial_cell, layout)
