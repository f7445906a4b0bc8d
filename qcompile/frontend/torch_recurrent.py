"""torch.nn.RNN as the RNN of ONNX, for which torch's exporter has no translation."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import onnxscript
import torch

op: Any = onnxscript.opset18
"""What the operators are called by; their types do not know of lists and numbers, which onnxscript makes constants."""

_PER_DIRECTION = 4
"""Parameters of a direction: weight and bias of the input, weight and bias of the state; without biases two."""


def translations() -> dict[Any, Callable[..., Any]]:
    """Return torch's operator -> its translation, for `custom_translation_table` of torch.onnx.export.

    Without it the exporter writes out the steps of the example, of which there may be as many as the input says: of a
    longer input the rest would be silently left out. Does not apply to packed sequences (`rnn_tanh.data`).
    """
    return {
        torch.ops.aten.rnn_tanh.input: _translation("Tanh"),
        torch.ops.aten.rnn_relu.input: _translation("Relu"),
    }


def _translation(activation: str) -> Callable[..., Any]:
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
        """rnn_tanh.input and rnn_relu.input of torch, in evaluation."""
        directions = 2 if bidirectional else 1
        count = (_PER_DIRECTION if has_biases else _PER_DIRECTION // 2) * directions
        x = op.Transpose(input, perm=[1, 0, 2]) if batch_first else input
        states = []
        for layer in range(num_layers):
            state = op.Slice(hx, [layer * directions], [(layer + 1) * directions], [0])
            weights = params[layer * count : (layer + 1) * count]
            x, last = _layer(x, state, weights, directions, has_biases, activation)
            states.append(last)
        y = op.Transpose(x, perm=[1, 0, 2]) if batch_first else x
        return y, states[0] if len(states) == 1 else op.Concat(*states, axis=0)

    return translate


def _layer(
    x: Any, state: Any, params: Sequence[Any], directions: int, has_biases: bool, activation: str
) -> tuple[Any, Any]:
    """Return the outputs [sequence, batch, directions * hidden] and the last state of one layer."""
    each = len(params) // directions
    parts = [params[each * index : each * (index + 1)] for index in range(directions)]
    inputs, states = (_stacked([part[place] for part in parts]) for place in (0, 1))
    biases = [_stacked([op.Concat(part[2], part[3], axis=0) for part in parts])] if has_biases else [None]
    y, last = op.RNN(
        x,
        inputs,
        states,
        *biases,
        None,
        state,
        hidden_size=params[1].shape[1],
        direction="bidirectional" if directions == 2 else "forward",
        activations=[activation] * directions,
    )
    return op.Reshape(op.Transpose(y, perm=[0, 2, 1, 3]), op.Constant(value_ints=[0, 0, -1])), last


def _stacked(tensors: Sequence[Any]) -> Any:
    """Return tensors one behind the other along a new first axis."""
    return op.Concat(*(op.Unsqueeze(tensor, [0]) for tensor in tensors), axis=0)
