"""What linears lack to what the float model computes there, when those in front of them are quantized already."""

from __future__ import annotations

import itertools
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence

import numpy as np
import onnx_ir as ir

from qcompile import calibration_stages
from qcompile.calibration import Calibrator
from qcompile.calibration_layers import LayerStatistics, has_gram
from qcompile.calibration_masks import PaddingMask, mask_axes, position_dims
from qcompile.calibration_sample import Feed
from qcompile.calibration_spool import FeedFile
from qcompile.calibration_stages import Stage
from qcompile.graph import Linear, constant, dims_are_known, is_standard, sole_reader
from qcompile.outputs import without_padding

_ROWS = 4096
"""Rows that are multiplied at a time."""


def asymmetric_statistics(
    calibrator: Calibrator, model: ir.Model, exact: ir.Model, chosen: Sequence[Linear]
) -> Iterator[LayerStatistics]:
    """Yield the linears, those that read one value at a time, with their statistics and what they lack.

    With x what a linear reads now, its outputs lack d = y' - y, where y' is what the float model computes there and y
    what this one does while the linear itself is float: the errors of all that stands in front of it. y is its output;
    where that is added to another value alone, as to the residual stream, it is the sum, so that the linear makes up
    for the errors of that stream too.

    Nothing is said of what is lacking of linears without second moments, with more than MOST_INPUTS; of those whose
    weight something else reads too, which has other errors in front; of several into one sum, but for the first; where
    padding is not told apart as it is for second moments; and where float makes another number of rows, as behind a
    choice that data make.

    Args:
        calibrator: source of the samples.
        model: the model as it is now; the caller quantizes the linears that were yielded before it asks for others.
        exact: a copy of it from before, with the same names of values.
        chosen: the linears, in graph order.
    """
    now, before = calibrator.begin(model), calibrator.begin(exact)
    masks, inputs = calibrator.masks(model), {str(value.name) for value in exact.graph.inputs}
    parts = [list(part) for _, part in itertools.groupby(chosen, key=lambda linear: linear.x)]
    for index, part in enumerate(parts):
        x = str(part[0].x.name)
        done = [linear.matmul for each in parts[: index + 1] for linear in each]
        later = [linear.matmul for each in parts[index + 1 :] for linear in each]
        cut = calibration_stages.find_cut(model, done, later) if later else None
        moments = has_gram(part[0])
        values = calibrator.collect(model, {x: -1}, gram={x} if moments else (), stage=now)
        padding = _masks_of(part[0].x, masks, model)
        ends = {} if padding is None or not moments else _ends(part)
        compared = {x if end is linear.output else str(end.name) for linear, end in ends.items()}
        kept, at_cut = FeedFile(), set(cut or ())
        wanted = _keeping(kept, inputs | at_cut, calibrator.values(exact, before, compared | at_cut))
        runs = zip(calibrator.values(model, now, {x} | compared), wanted, strict=True)
        lacks = _lacks(ends, _cross_moments(x, compared, runs, padding or ()))
        yield LayerStatistics(tuple(part), values, lacks=lacks)
        if cut is not None:
            now = calibrator.advance(model, now, cut)
            before = Stage(kept, f"{before.fingerprint} {cut}", cut)


def _keeping(file: FeedFile, names: Collection[str], feeds: Iterable[Feed]) -> Iterator[Feed]:
    """Yield feeds, and keep of each the values of these names, for the runs from the next cut."""
    for feed in feeds:
        file.append({name: array for name, array in feed.items() if name in names})
        yield feed


def _masks_of(x: ir.Value, masks: Sequence[PaddingMask], model: ir.Model) -> Sequence[PaddingMask] | None:
    """The masks that rule out positions of x [batch, sequence, ..], as observers do; None where it has other axes."""
    dims = position_dims(x, -1)
    if not masks or dims is None:
        return ()
    inputs = {value.name: value for value in model.graph.inputs}
    for mask in masks:
        axes = mask_axes(dims, inputs[mask.name])
        if axes is not None:
            return (mask,) if axes == (0, 1) else None
    if len(dims) > 2 or all(isinstance(dim, int) for dim in dims):
        return ()  # observers find no padding there either
    return masks if (len(dims), len(masks)) == (2, 1) else None


def _ends(part: Sequence[Linear]) -> dict[Linear, ir.Value]:
    """Where each linear is held to float: see `_end`; of several with one end, the first alone makes up for all."""
    found: dict[Linear, ir.Value] = {}
    for linear in part:
        end = _end(linear)
        if len(linear.weight.uses()) == 1 and end not in found.values():
            found[linear] = end
    return found


def _lacks(ends: Mapping[Linear, ir.Value], means: Mapping[str, np.ndarray]) -> dict[ir.Node, np.ndarray]:
    """Return the mean of x dT for each linear: d is (x' - x) W at its own output, where x' is what float reads there.

    The fewer numbers are multiplied of all samples: x has fewer than all outputs of the linears that read it.
    """
    found = {}
    for linear, end in ends.items():
        own = end is linear.output
        mean = means.get(str((linear.x if own else end).name))
        if mean is not None:
            tensor = linear.weight.const_value
            assert tensor is not None
            found[linear.matmul] = mean @ tensor.numpy() if own else mean
    return found


def _cross_moments(
    x: str, ends: Collection[str], runs: Iterable[tuple[Feed, Feed]], masks: Sequence[PaddingMask]
) -> dict[str, np.ndarray]:
    """Return the mean of x dT for the difference d at each end, over all positions that are not padding.

    None of an end that has another shape in float on any sample.
    """
    sums, left = _CrossMoments(), set(ends)
    for now, wanted in runs:
        left -= {name for name in left if wanted[name].shape != now[name].shape}
        differences = {name: wanted[name] - now[name] for name in left}
        (kept,) = without_padding([{"": now[x], **differences}], [now], masks)
        sums.add(kept.pop(""), kept)
    return {name: mean for name, mean in sums.means().items() if name in left}


class _CrossMoments:
    """Sums of x dT, over thousands of rows at a time: behind each run, threads of the runtime spin for a while."""

    def __init__(self) -> None:
        self._rows: list[tuple[np.ndarray, dict[str, np.ndarray]]] = []
        self._sums: dict[str, np.ndarray] = {}
        self._waiting = self._count = 0

    def add(self, x: np.ndarray, differences: dict[str, np.ndarray]) -> None:
        """Take x [..., inputs] and each d [..., outputs] of one run."""
        rows = x.reshape(-1, x.shape[-1])
        self._rows.append((rows, {name: each.reshape(-1, each.shape[-1]) for name, each in differences.items()}))
        self._waiting += len(rows)
        if self._waiting >= _ROWS:
            self._multiply()

    def means(self) -> dict[str, np.ndarray]:
        """Return the mean of x dT of each d, float32 [inputs, outputs]."""
        if self._rows:
            self._multiply()
        return {name: total / np.float32(max(self._count, 1)) for name, total in self._sums.items()}

    def _multiply(self) -> None:
        x = np.concatenate([rows for rows, _ in self._rows]).T
        for name in self._rows[-1][1]:
            product = x @ np.concatenate([differences[name] for _, differences in self._rows])
            self._sums[name] = product + self._sums.get(name, np.float32(0))
        self._count += self._waiting
        self._rows, self._waiting = [], 0


def _end(linear: Linear) -> ir.Value:
    """The sum that the output of a linear alone goes into, where both have one shape; else the output."""
    add = sole_reader(linear.output)
    if add is None or not is_standard(add, "Add") or any(constant(value) is not None for value in add.inputs):
        return linear.output
    total = add.outputs[0]
    same = all(value is not None and value.shape == total.shape for value in add.inputs)
    return total if same and total.shape is not None and dims_are_known(total.shape) else linear.output
