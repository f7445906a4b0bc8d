"""How many bits each weight of a model gets, from what each number of bits does to the output of its linear."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from types import MappingProxyType

import numpy as np
import onnx_ir as ir

from qcompile import weight_only
from qcompile.calibration import Calibrator
from qcompile.calibration_layers import LayerStatistics
from qcompile.contract import Finding
from qcompile.errors import RecipeError
from qcompile.graph import Linear, constant_array
from qcompile.rounding_trials import RoundingTrials, relative
from qcompile.scheme import GroupScheme
from qcompile.solvers.allocation import Allocation, Option, allocate, fewest
from qcompile.solvers.grouped import Grouped
from qcompile.solvers.rtn import rtn
from qcompile.solvers.sqnr import powers

Schemes = Mapping[ir.Value, GroupScheme]
"""Weight -> how it is stored."""

Told = Callable[[ir.Model], Finding]
"""What is to be said of the bits, given the model that has them."""

_GRID = 8
"""See `rtn`: the scale that is found in so many steps is near enough to compare weights."""


def effective_bits(scheme: GroupScheme, inputs: int) -> float:
    """Return how many bits a weight of so many inputs takes for each number, with its scales and zero points.

    Zero points take as many bits as the type that holds the integers; a scale is float32.
    """
    zero = 0 if scheme.sym else 4 if scheme.bits <= 4 else 8
    return scheme.bits + (32 + zero) * scheme.groups(inputs) / max(inputs, 1)


def check_target(bits: int | str, effective_bits: float | None, max_drop: float | None) -> None:
    """Raise RecipeError for more than one word on how many bits "auto" gives, or one that means nothing."""
    if max_drop is None:
        return
    subject = f"quantize_weights.max_drop {max_drop:g}"
    if bits != "auto":
        raise RecipeError(subject, f"bits are {bits} for all weights", 'Set bits to "auto" too, or leave it out')
    if effective_bits is not None:
        raise RecipeError(subject, f"effective_bits is {effective_bits:g} already", "Leave one of them out")
    if max_drop < 0:
        raise RecipeError(subject, "it is less than 0", "Give a number from 0 on, such as 0.01")


def allocate_bits(
    model: ir.Model,
    parts: Iterable[LayerStatistics],
    schemes: Sequence[GroupScheme],
    budget: float,
    calibrator: Calibrator | None,
) -> tuple[Schemes, Told]:
    """Return a scheme for each weight so that all take `budget` bits for each number, and what is to be said of it.

    The error of a scheme is the noise in the output of the model over its power, when this weight alone is rounded. It
    is measured with one of the schemes, and is taken to be in proportion to the noise in the output of the linear with
    the others. Without data it is that in the weight, times its numbers. Errors of several weights are added.

    Measured, MiniLM with weights rounded to nearest, 1 - cosine on held-out text: at 3.5 bits 0.089 where 3 bits for
    all give 0.103, and at 4.5 0.029 where 4 for all give 0.035. Noise in the outputs of linears alone: 0.117 to 0.182.

    Args:
        model: holds the linears; it is not changed.
        parts: the linears, with statistics where there is data; those with tied weights count once.
        schemes: the choices.
        budget: effective bits for each number of all weights together; where no choice fits, each gets the smallest.
        calibrator: of the data.
    """
    found = _rounded(parts, schemes, _GRID, () if calibrator is None else (_middle(schemes),))
    trials = None
    if calibrator is not None and found:
        trials = RoundingTrials(model, _arrays(found), calibrator)
    options = _options(found, schemes, trials)
    count = sum(each.count for each in found)
    allocation = allocate(options, budget * count)
    reached = _reached(allocation, count)
    met = (
        f"{reached}; {budget:g} were asked" if allocation.met else f"{reached}, the fewest; {budget:g} is not possible"
    )
    return _chosen(found, schemes, allocation), lambda _model: _finding(met)


def fewest_bits(
    model: ir.Model,
    parts: Iterable[LayerStatistics],
    schemes: Sequence[GroupScheme],
    max_drop: float,
    calibrator: Calibrator,
    *,
    fixed: Schemes = MappingProxyType({}),
    range_grid: int = _GRID,
) -> tuple[Schemes, Told]:
    """Return a scheme for each weight so that they are small and the model keeps its outputs; what is to be said of it.

    Weights get more bits in the order of `allocate_bits`, each time with all of them rounded to nearest, until the
    cosine to the outputs of the model drops by no more than it may, see `RoundingTrials.drop`. A solver that does
    better than rounding to nearest leaves a margin, which is told: the outputs of the model that it has made are
    measured.

    Args:
        model: as in `allocate_bits`, as for the next two.
        parts: the same.
        schemes: the same.
        max_drop: most that the cosine may drop; where no choice does, each weight gets the most bits that help it.
        calibrator: of the data. All weights rounded are in memory with the float ones, while they are tried.
        fixed: weights whose scheme is no choice, such as that of a vocabulary: their part of the drop counts too.
        range_grid: see `rtn`.
    """
    found = _rounded(parts, schemes, range_grid, range(len(schemes)))
    others = {str(value.name): _array(value) for value in fixed}
    trials = RoundingTrials(model, _arrays(found) | others, calibrator)
    always = {
        str(value.name): rtn(_array(value), scheme, range_grid=range_grid).weight(scheme.group_size)
        for value, scheme in fixed.items()
    }

    def drop(chosen: Sequence[int]) -> float:
        size = schemes[0].group_size
        return trials.drop(always | {e.name: e.ways[way].weight(size) for e, way in zip(found, chosen, strict=True)})

    allocation = fewest(_options(found, schemes, trials), drop, max_drop)
    trials.close()
    reached = _reached(allocation, sum(each.count for each in found))
    most = "" if allocation.met else ", the most that help"

    def told(made: ir.Model) -> Finding:
        lost = trials.drop_of(made)
        verdict = "met" if lost <= max_drop else "NOT met"
        asked = f"the cosine to float's outputs drops by {lost:.3g}, at most {max_drop:g} was asked: {verdict}"
        return _finding(f"{reached}{most}; {asked}")

    return _chosen(found, schemes, allocation), told


@dataclasses.dataclass
class _Rounded:
    """A weight in each of the schemes.

    Attributes:
        value: the weight.
        shape: [inputs, outputs].
        ways: it rounded to nearest, by the index of a scheme, where it is kept.
        errors: noise over power of what its linears compute with it, for each scheme, added up.
    """

    value: ir.Value
    shape: tuple[int, int]
    ways: dict[int, Grouped]
    errors: list[float]

    @property
    def name(self) -> str:
        return str(self.value.name)

    @property
    def count(self) -> int:
        return math.prod(self.shape)


def _rounded(
    parts: Iterable[LayerStatistics], schemes: Sequence[GroupScheme], range_grid: int, kept: Collection[int]
) -> list[_Rounded]:
    """Return each weight in the schemes; only what is kept of them takes memory."""
    found = dict[ir.Value, _Rounded]()
    for part in parts:
        for linear in part.layers:
            assert isinstance(linear, Linear)
            weight, known = _array(linear.weight), weight_only.evidence(part.of(linear.x))
            each = found.setdefault(linear.weight, _Rounded(linear.weight, weight.shape, {}, [0.0] * len(schemes)))
            for index, scheme in enumerate(schemes):
                way = rtn(weight, scheme, known, range_grid=range_grid)
                each.errors[index] += _error(weight, part, linear, way, scheme)
                if index in kept:
                    each.ways.setdefault(index, way)
    return list(found.values())


def _options(
    found: Sequence[_Rounded], schemes: Sequence[GroupScheme], trials: RoundingTrials | None
) -> list[list[Option]]:
    """Return size and error of each scheme of each weight."""
    middle = _middle(schemes)
    reached = [each.count * each.errors[middle] for each in found]
    if trials is not None:
        reached = _at_the_end(found, schemes[middle], middle, trials) or reached
    return [
        [
            Option(effective_bits(scheme, each.shape[0]) * each.count, far * error / (each.errors[middle] or 1.0))
            for scheme, error in zip(schemes, each.errors, strict=True)
        ]
        for each, far in zip(found, reached, strict=True)
    ]


def _at_the_end(found: Sequence[_Rounded], scheme: GroupScheme, way: int, trials: RoundingTrials) -> list[float]:
    """Return the noise over the power of what the model computes when each weight alone is rounded to nearest.

    Nothing of a model without floating outputs. Of several outputs those count that most weights reach: logits, not the
    keys of the first layer.
    """
    noise = np.array([trials.noise({each.name: each.ways[way].weight(scheme.group_size)}) for each in found])
    if not noise.size:
        return []
    counts = np.count_nonzero(noise, axis=0)
    return [float(error) for error in noise[:, counts == counts.max()].mean(axis=1)]


def _middle(schemes: Sequence[GroupScheme]) -> int:
    """Return the index of the scheme with which weights are tried alone."""
    return len(schemes) // 2


def _arrays(found: Sequence[_Rounded]) -> dict[str, np.ndarray]:
    return {each.name: _array(each.value) for each in found}


def _array(weight: ir.Value) -> np.ndarray:
    array = constant_array(weight)
    assert array is not None
    return array


def _chosen(found: Sequence[_Rounded], schemes: Sequence[GroupScheme], allocation: Allocation) -> Schemes:
    return {each.value: schemes[index] for each, index in zip(found, allocation.chosen, strict=True)}


def _reached(allocation: Allocation, count: int) -> str:
    return f"{allocation.size / max(count, 1):.4g} bits for each number, with scales and zero points"


def _finding(reason: str) -> Finding:
    return Finding("weights of linears", "kept", reason)


def _error(weight: np.ndarray, part: LayerStatistics, linear: Linear, found: Grouped, scheme: GroupScheme) -> float:
    seen = part.of(linear.x)
    if seen is None or not len(seen.rows):
        return relative(*powers(weight, found.weight(scheme.group_size)))
    return relative(*weight_only.output_powers(weight, found, scheme.group_size, seen.rows))
