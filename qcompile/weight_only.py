"""Linears whose weight alone is quantized: which solver finds the integers, and which linears write a vocabulary."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from typing import Any, Literal, Protocol, Self

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from qcompile import layers, tied_tables
from qcompile.calibration import Calibrator
from qcompile.calibration_layers import LayerStatistics, layer_statistics
from qcompile.calibration_statistics import ChannelStatistics
from qcompile.calibration_targets import asymmetric_statistics
from qcompile.contract import Finding
from qcompile.graph import Linear, constant, is_standard, sole_reader
from qcompile.layer_bias import correct_bias
from qcompile.scheme import GroupScheme
from qcompile.solvers import broken_numbers
from qcompile.solvers.bias_correction import output_shift
from qcompile.solvers.gptq_groups import gptq_groups
from qcompile.solvers.grouped import NOTHING_SEEN, Evidence, Grouped
from qcompile.solvers.hqq import hqq
from qcompile.solvers.inc import auto_round
from qcompile.solvers.rtn import rtn
from qcompile.solvers.sqnr import decibels, powers

Solver = Literal["rtn", "hqq", "gptq", "inc"]

BiasCorrection = Literal["none", "linears"]

SOLVERS: dict[Solver, tuple[Callable[..., Grouped], tuple[str, ...]]] = {
    "rtn": (rtn, ("range_grid",)),
    "hqq": (hqq, ()),
    "gptq": (gptq_groups, ("damp_percent", "desc_act", "static_groups", "range_grid", "sweeps")),
    "inc": (auto_round, ("iters",)),
}
"""Name -> the solver, and which settings of the pass it takes."""

NEEDS_MOMENTS: frozenset[Solver] = frozenset({"gptq", "inc"})
"""Solvers that are nothing without second moments."""

HEAD = GroupScheme(8, 64)
"""Scheme of a linear that writes a vocabulary."""

_COLUMNS = 4096
"""Outputs that are computed at a time: a vocabulary has many."""
_PRODUCTS, _LEAST_ROWS = 2**31, 64
"""So many products, or twice as many, tell the signal-to-noise ratio of a layer for the report; and no fewer rows."""

_KEEPS_FEATURES = ("Cast", "Div", "Gather", "Identity", "Mul", "Reshape", "Slice", "Squeeze", "Tanh", "Unsqueeze")
"""What may stand between the linear that writes logits and the output of the graph."""

_WIDER = 2
"""How many times as many outputs as inputs a linear has that writes a vocabulary."""


def writes_vocabulary(linear: Linear, model: ir.Model) -> bool:
    """Return True where a linear scores the words of a vocabulary.

    That is where its weight is the table of an embedding, transposed; or where its output, only scaled or reshaped, is
    an output of the graph, and twice as wide as its input.
    """
    return _is_output(linear) or tied_tables.table_of(linear, model) is not None


def _is_output(linear: Linear) -> bool:
    """Whether what a linear writes, only scaled or reshaped, is an output of the graph, twice as wide as its input."""
    inputs, outputs = linear.weight.shape.numpy() if linear.weight.shape is not None else (0, 0)
    value = linear.output
    while not value.is_graph_output():
        reader = sole_reader(value)
        if reader is None or not is_standard(reader, *_KEEPS_FEATURES):
            break
        value = reader.outputs[0]
    return value.is_graph_output() and outputs >= _WIDER * inputs


@dataclasses.dataclass(frozen=True)
class Selection:
    """Which linears of a model are quantized.

    Attributes:
        linears: those, in graph order.
        heads: products of those among them that score a vocabulary, where these have a scheme of their own.
        tables: weight of a head -> table of an embedding that it is, transposed.
        findings: why the others are not.
    """

    linears: tuple[Linear, ...]
    heads: frozenset[ir.Node]
    tables: Mapping[ir.Value, ir.Value]
    findings: tuple[Finding, ...]

    def mark_tables(self, written: Mapping[ir.Value, ir.Value]) -> None:
        """Say, of what was written for the weights of heads, which tables they were: see `tied_tables.mark`."""
        for weight, table in self.tables.items():
            if weight in written:
                tied_tables.mark(written[weight], table)


def select(model: ir.Model, ignore: Collection[str], operators: Collection[str], head: GroupScheme | None) -> Selection:
    """Return which linears with a float weight are quantized; the arguments are fields of the passes."""
    found = layers.float_linears(model)
    refused = {linear.matmul: _refused(linear, ignore, operators) for linear in found}
    chosen = tuple(linear for linear in found if refused[linear.matmul] is None)
    compared = {linear.weight: tied_tables.table_of(linear, model) for linear in chosen} if head else {}
    tables = {weight: table for weight, table in compared.items() if table is not None}
    # All that read one weight are heads where one is: their weight is written in front of the first of them.
    scoring = tables.keys() | {linear.weight for linear in chosen if head and _is_output(linear)}
    heads = frozenset(linear.matmul for linear in chosen if linear.weight in scoring)
    return Selection(chosen, heads, tables, tuple(finding for finding in refused.values() if finding is not None))


def _refused(linear: Linear, ignore: Collection[str], operators: Collection[str]) -> Finding | None:
    left_out = layers.left_out(layers.finding(linear, "kept"), ignore, operators)
    reason = refusal(linear) if left_out is None else ""
    return layers.finding(linear, "kept", reason) if reason else left_out


def refusal(linear: Linear) -> str:
    """Why the weight of a linear stays float; empty where it is quantized."""
    tensor = constant(linear.weight)
    assert tensor is not None
    if tensor.size == 0:
        return "its weight is empty"
    broken = broken_numbers.of_weight(tensor.numpy())
    return f"its weight {broken}" if broken else ""


def calibrated(
    calibrator: Calibrator | None,
    model: ir.Model,
    chosen: Sequence[Linear],
    *,
    grams: bool = False,
    exact: ir.Model | None = None,
) -> Iterator[LayerStatistics]:
    """Yield the statistics of some linears at a time, of the model as those before have made it; without data, none.

    With an exact copy of the model, they say too what each lacks, see `asymmetric_statistics`.
    """
    if calibrator is None or not chosen:
        return iter([LayerStatistics(tuple(chosen))])
    if exact is not None:
        return asymmetric_statistics(calibrator, model, exact, chosen)
    return layer_statistics(calibrator, model, chosen, [], grams=grams, for_rows=True)


def evidence(statistics: ChannelStatistics | None) -> Evidence:
    """Return what a solver is told of the input of a linear: its second moments, else what sampled rows say of them."""
    if statistics is None or not len(statistics.rows):
        return NOTHING_SEEN
    return Evidence(statistics.gram, np.square(statistics.rows, dtype=np.float32).mean(axis=0))


class InGroups(Protocol):
    """A weight with a scale for each group of inputs."""

    def columns(self, columns: slice) -> Self:
        """Return that of some outputs."""
        ...

    def weight(self, group_size: int) -> npt.NDArray[Any]:
        """Return the weight that it stands for, float32 [inputs, outputs]."""
        ...


def output_sqnr(weight: np.ndarray, found: InGroups, group_size: int, rows: np.ndarray) -> float | None:
    """Return the signal-to-noise ratio of rows @ weight in dB, of some rows where the weight is large; None without."""
    most = max(_LEAST_ROWS, _PRODUCTS // max(weight.size, 1))
    some = rows[:: max(len(rows) // most, 1)]
    return decibels(*output_powers(weight, found, group_size, some)) if len(rows) else None


def output_powers(weight: np.ndarray, found: InGroups, group_size: int, rows: np.ndarray) -> tuple[float, float]:
    """Return the power of rows @ weight and that of its error, some outputs at a time."""
    power = noise = 0.0
    for start in range(0, weight.shape[1], _COLUMNS):
        columns = slice(start, start + _COLUMNS)
        sums = powers(rows @ weight[:, columns], rows @ found.columns(columns).weight(group_size))
        power, noise = power + sums[0], noise + sums[1]
    return power, noise


def correct_outputs(linear: Linear, weight: np.ndarray, found: InGroups, group_size: int, rows: np.ndarray) -> None:
    """Take what rounding adds to the outputs on average off the bias, where the linear has one: see `output_shift`.

    Args:
        linear: the layer.
        weight: its float weight.
        found: what it is rounded to.
        group_size: inputs that share a scale.
        rows: of what it multiplies; without any nothing is done.
    """
    if linear.bias is not None and len(rows):
        correct_bias(linear, output_shift(rows @ weight, rows @ found.weight(group_size)))
