"""GRU, LSTM and RNN of the reference evaluation: onnx's own know one direction and no lengths.

In float64, with the activations that the operators have by default. Independent of everything that compiles.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from onnx.reference.op_run import OpRun

State = tuple[np.ndarray, ...]
Step = Callable[[np.ndarray, State], State]


class RNN(OpRun):
    """h' = tanh(x W + h R + b)."""

    def _run(
        self,
        x: np.ndarray,
        w: np.ndarray,
        r: np.ndarray,
        b: np.ndarray | None = None,
        sequence_lens: np.ndarray | None = None,
        initial_h: np.ndarray | None = None,
        **attributes: Any,
    ) -> tuple[np.ndarray, ...]:
        def cell(w: np.ndarray, r: np.ndarray, b: np.ndarray) -> Step:
            return lambda x, state: (np.tanh(x @ w.T + state[0] @ r.T + b[0] + b[1]),)

        return _run(cell, 1, x, (w, r, b), sequence_lens, (initial_h,), attributes)


class GRU(OpRun):
    """h' = (1 - z) n + z h, with gates z, r and n in this order."""

    def _run(
        self,
        x: np.ndarray,
        w: np.ndarray,
        r: np.ndarray,
        b: np.ndarray | None = None,
        sequence_lens: np.ndarray | None = None,
        initial_h: np.ndarray | None = None,
        linear_before_reset: int | None = None,
        **attributes: Any,
    ) -> tuple[np.ndarray, ...]:
        def cell(w: np.ndarray, r: np.ndarray, b: np.ndarray) -> Step:
            size = r.shape[-1]

            def step(x: np.ndarray, state: State) -> State:
                (h,) = state
                gates = x @ w.T + b[0]
                update, reset = np.split(
                    _sigmoid(gates[:, : 2 * size] + h @ r[: 2 * size].T + b[1, : 2 * size]), 2, axis=1
                )
                last, shift = r[2 * size :].T, b[1, 2 * size :]
                inner = reset * (h @ last + shift) if linear_before_reset else (reset * h) @ last + shift
                new = np.tanh(gates[:, 2 * size :] + inner)
                return ((1 - update) * new + update * h,)

            return step

        return _run(cell, 3, x, (w, r, b), sequence_lens, (initial_h,), attributes)


class LSTM(OpRun):
    """c' = f c + i tanh(..), h' = o tanh(c'), with gates i, o, f and c in this order, and peepholes where given."""

    def _run(
        self,
        x: np.ndarray,
        w: np.ndarray,
        r: np.ndarray,
        b: np.ndarray | None = None,
        sequence_lens: np.ndarray | None = None,
        initial_h: np.ndarray | None = None,
        initial_c: np.ndarray | None = None,
        p: np.ndarray | None = None,
        **attributes: Any,
    ) -> tuple[np.ndarray, ...]:
        directions, size = r.shape[0], r.shape[-1]
        peepholes = iter(np.zeros((directions, 3 * size)) if p is None else p.astype(np.float64))

        def cell(w: np.ndarray, r: np.ndarray, b: np.ndarray) -> Step:
            to_input, to_output, to_forget = np.split(next(peepholes), 3)

            def step(x: np.ndarray, state: State) -> State:
                h, c = state
                i, o, f, n = np.split(x @ w.T + h @ r.T + b[0] + b[1], 4, axis=1)
                new = _sigmoid(f + to_forget * c) * c + _sigmoid(i + to_input * c) * np.tanh(n)
                return _sigmoid(o + to_output * new) * np.tanh(new), new

            return step

        return _run(cell, 4, x, (w, r, b), sequence_lens, (initial_h, initial_c), attributes)


def _run(
    cell: Callable[[np.ndarray, np.ndarray, np.ndarray], Step],
    gates: int,
    x: np.ndarray,
    weights: tuple[np.ndarray, np.ndarray, np.ndarray | None],
    lengths: np.ndarray | None,
    initial: tuple[np.ndarray | None, ...],
    attributes: dict[str, Any],
) -> tuple[np.ndarray, ...]:
    """Return all states h [sequence, directions, batch, size] and the last of each state [directions, batch, size].

    With layout 1 the batch comes first in what is read and returned. Behind the end of an item of the batch its
    outputs are 0, and its last state is that at the end.
    """
    batch_first = bool(attributes.get("layout"))
    w, r, b = weights
    directions, size = r.shape[0], r.shape[-1]
    sequence = (x.swapaxes(0, 1) if batch_first else x).astype(np.float64)
    steps, batch = sequence.shape[:2]
    ends = np.full(batch, steps) if lengths is None else np.asarray(lengths)
    bias = np.zeros((directions, 2, gates * size)) if b is None else b.reshape(directions, 2, -1).astype(np.float64)
    starts = [
        np.zeros((directions, batch, size)) if state is None else (state.swapaxes(0, 1) if batch_first else state)
        for state in initial
    ]
    outputs, last = np.zeros((steps, directions, batch, size)), []
    for direction in range(directions):
        step = cell(w[direction].astype(np.float64), r[direction].astype(np.float64), bias[direction])
        state: State = tuple(start[direction].astype(np.float64) for start in starts)
        backward = attributes.get("direction") == "reverse" or direction == 1
        for index in reversed(range(steps)) if backward else range(steps):
            valid = (index < ends)[:, None]
            state = tuple(
                np.where(valid, new, old) for new, old in zip(step(sequence[index], state), state, strict=True)
            )
            outputs[index, direction] = np.where(valid, state[0], 0)
        last.append(state)
    finals = [np.stack(states) for states in zip(*last, strict=True)]
    if batch_first:
        outputs, finals = outputs.transpose(2, 0, 1, 3), [final.swapaxes(0, 1) for final in finals]
    return tuple(np.asarray(array, x.dtype) for array in (outputs, *finals))


def _sigmoid(x: np.ndarray) -> np.ndarray:
    return np.asarray(1 / (1 + np.exp(-x)))
