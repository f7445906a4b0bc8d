"""Cosines and sines of a rotary embedding for every position, as the kernels read them that rotate by themselves."""

from __future__ import annotations

import dataclasses

import numpy as np
import onnx_ir as ir

from qcompile.backends.onnxruntime.small_graphs import small_graph

_MOST_POSITIONS = 2**20


@dataclasses.dataclass(frozen=True)
class RotaryTable:
    """Angles by position.

    Attributes:
        positions: input of the graph that they were computed from, int64 [batch, sequence].
        cos: float32 [context length, half of the rotated features].
        sin: the same for sines.
    """

    positions: ir.Value
    cos: np.ndarray
    sin: np.ndarray


def rotary_table(rotary: ir.Node, context_length: int) -> RotaryTable | None:
    """Tabulate what a RotaryEmbedding reads, by running the nodes of the graph that compute it.

    Does not apply where the angles of a position depend on more than that position: on other positions, as with
    frequencies that change with the length, on sizes, or on another input. Nor to caches that the node itself
    indexes by positions, and to more than a million of these: the table would take gigabytes.

    Args:
        rotary: RotaryEmbedding of opset 23 with cos and sin [batch or 1, sequence, half].
        context_length: number of positions.
    """
    if context_length > _MOST_POSITIONS or (len(rotary.inputs) > 3 and rotary.inputs[3] is not None):
        return None
    found = [_tabulated(value, context_length) for value in rotary.inputs[1:3]]
    (positions, cos), (other, sin) = found[0] or (None, None), found[1] or (None, None)
    if positions is None or cos is None or sin is None or positions is not other:
        return None
    return RotaryTable(positions, cos, sin)


def _tabulated(value: ir.Value | None, context_length: int) -> tuple[ir.Value, np.ndarray] | None:
    part = None if value is None else small_graph(value)
    if part is None or len(part.numbers) != 1 or part.shapes:
        return None
    (positions,) = part.numbers
    if positions.dtype != ir.DataType.INT64 or positions.shape is None or len(positions.shape) != 2:
        return None
    table = part.compute({positions: np.arange(context_length, dtype=np.int64)[None]}, {})
    # Both of these would differ where the length, or the first position, changed the frequencies.
    early = part.compute({positions: np.array([[1, 0]], np.int64)}, {})
    late = part.compute({positions: np.array([[context_length - 1]], np.int64)}, {})
    if table is None or early is None or late is None or table.ndim != 3 or table.dtype != np.float32:
        return None
    same = np.array_equal(early[0], table[0, 1::-1]) and np.array_equal(late[0], table[0, -1:])
    return (positions, table[0]) if same else None
