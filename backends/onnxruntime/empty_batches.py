"""Models with which ONNX Runtime ends the process where a batch is empty."""

from __future__ import annotations

import itertools
from pathlib import Path

import onnx_ir as ir

from qcompile.graph import all_nodes, is_standard


def aborts(model: ir.Model) -> bool:
    """Return True where the model has an LSTM or a GRU, whose kernels call std::terminate on an empty batch.

    No exception reaches Python (measured with 1.31.1). A GRU does so on an empty sequence too, an RNN never. Branches,
    loops and functions count, whether they run or not.
    """
    inner = itertools.chain.from_iterable(function.all_nodes() for function in model.functions.values())
    return any(is_standard(node, "LSTM", "GRU") for node in itertools.chain(all_nodes(model), inner))


def aborts_file(path: Path) -> bool:
    """Return `aborts` of the model in a file; its weights are not read. True where there is no such file any more."""
    try:
        return aborts(ir.load(path))
    except FileNotFoundError:
        return True
