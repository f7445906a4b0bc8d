"""torch.nn.RNN, LSTM and GRU as the operators of ONNX: torch's exporter has no translation, or one for one length."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import onnxscript
import torch

from qcompile.errors import UnsupportedError

op: Any = onnxscript.opset18
"""What the operators are called by; their types do not know of lists and numbers, which onnxscript makes constants."""

_PER_DIRECTION = 4
"""Parameters of a direction: weight and bias of the input, weight and bias of the state; without biases two."""


@dataclasses.dataclass(frozen=True)
class _Cell:
    """What one step computes.

    Attributes:
        operator: of ONNX.
        order: which of torch's gates each gate of ONNX is.
        attributes: of the operator, for one direction where they are lists.
    """

    operator: str
    order: tuple[int, ...] = (0,)
    attributes: Mapping[str, Any] = dataclasses.field(default_factory=dict)


_LSTM = _Cell("LSTM", (0, 3, 1, 2))
_GRU = _Cell("GRU", (1, 0, 2), {"linear_before_reset": 1})


def translations() -> dict[Any, Callable[..., Any]]:
    """Return torch's operator -> its translation, for `custom_translation_table` of torch.onnx.export.

    Without it the exporter writes out the steps of an RNN of the example, of which there may be as many as the input
    says: of a longer input the rest would be silently left out. LSTM and GRU it reshapes to the length of the example,
    where that comes first (torch 2.13). Does not apply to packed sequences (`lstm.data`).
    """
    return {
        torch.ops.aten.rnn_tanh.input: _translation(_Cell("RNN", attributes={"activations": ["Tanh"]})),
        torch.ops.aten.rnn_relu.input: _translation(_Cell("RNN", attributes={"activations": ["Relu"]})),
        torch.ops.aten.gru.input: _translation(_GRU),
        torch.ops.aten.lstm.input: _translation(_LSTM),
    }


def _translation(cell: _Cell) -> Callable[..., Any]:
    def translate(
        input: Any,
        hx: Any,
        params: Sequence[Any],
        has_biases: bool,
        num_layers: int,
        dropout: float,  # noqa: ARG001
        train: bool,  # noqa: ARG001
        bidirectional: bool,
        batch_first: bool,
    ) -> Any:
        """rnn_tanh.input, rnn_relu.input, gru.input and lstm.input of torch, in evaluation."""
        directions = 2 if bidirectional else 1
        each = (_PER_DIRECTION if has_biases else _PER_DIRECTION // 2) * directions
        if len(params) != each * num_layers:
            reason = f"an {cell.operator} with proj_size has no operator in ONNX"
            raise UnsupportedError("torch.nn", reason, "Use proj_size=0 and a Linear behind it")
        first = hx if isinstance(hx, (list, tuple)) else [hx]
        x = op.Transpose(input, perm=[1, 0, 2]) if batch_first else input
        states: list[Sequence[Any]] = []
        for layer in range(num_layers):
            given = [op.Slice(state, [layer * directions], [(layer + 1) * directions], [0]) for state in first]
            x, *last = _layer(x, given, params[layer * each : (layer + 1) * each], directions, has_biases, cell)
            states.append(last)
        y = op.Transpose(x, perm=[1, 0, 2]) if batch_first else x
        return y, *(parts[0] if num_layers == 1 else op.Concat(*parts, axis=0) for parts in zip(*states, strict=True))

    return translate


def _layer(
    x: Any, states: Sequence[Any], params: Sequence[Any], directions: int, has_biases: bool, cell: _Cell
) -> tuple[Any, ...]:
    """Return the outputs [sequence, batch, directions * hidden] and the last states of one layer."""
    each, hidden = len(params) // directions, params[1].shape[1]
    parts = [
        [_in_order(param, hidden, cell.order) for param in params[each * index : each * (index + 1)]]
        for index in range(directions)
    ]
    inputs, weights = (_stacked([part[place] for part in parts]) for place in (0, 1))
    biases = _stacked([op.Concat(part[2], part[3], axis=0) for part in parts]) if has_biases else None
    attributes = {
        name: value * directions if isinstance(value, list) else value for name, value in cell.attributes.items()
    }
    y, *last = getattr(op, cell.operator)(
        x,
        inputs,
        weights,
        biases,
        None,
        *states,
        hidden_size=hidden,
        direction="bidirectional" if directions == 2 else "forward",
        **attributes,
    )
    return op.Reshape(op.Transpose(y, perm=[0, 2, 1, 3]), op.Constant(value_ints=[0, 0, -1])), *last


def _in_order(param: Any, hidden: int, order: Sequence[int]) -> Any:
    """Return a weight or bias of gates [gates * hidden, ..] with the gates in another order."""
    if len(order) == 1:
        return param
    gates = [op.Slice(param, [gate * hidden], [(gate + 1) * hidden], [0]) for gate in order]
    return op.Concat(*gates, axis=0)


def _stacked(tensors: Sequence[Any]) -> Any:
    """Return tensors one behind the other along a new first axis."""
    return op.Concat(*(op.Unsqueeze(tensor, [0]) for tensor in tensors), axis=0)
