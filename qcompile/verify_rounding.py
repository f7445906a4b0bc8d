"""Is what an exact pass changed more than rounding? Asked where a runtime's outputs differ by more than is allowed.

Float32 leaves few digits of an output whose range is tiny beside the numbers that it comes from, or beside the absolute
error of a kernel: a sigmoid that never exceeds 1e-5 moves by 0.5 % of its range when the operands of a sum change
places. So the two models are computed in float64, independently of the runtime, and have to agree there; and the
runtime must be about as near to that with the pass as without it, so that a rewrite that cancels digits is refused.

Integers and truth values are no nearer or further. Where the runtime's change, the floats that they are decided on are
asked for, are held to the same, and have to explain what was decided: then a tie fell the other way.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np
import onnx_ir as ir
from onnx_ir.passes.common import ShapeInferencePass

from qcompile.calibration_masks import PaddingMask
from qcompile.errors import InputError, ModelError
from qcompile.outputs import Outputs, without_padding
from qcompile.reference_coverage import not_covered
from qcompile.reference_evaluator import OutOfReachError, evaluate
from qcompile.reference_precision import in_float64
from qcompile.reference_ties import exact_values, loose_decisions
from qcompile.session import Feed, OpenSession
from qcompile.verify import EXACT_TOLERANCE, Difference, difference, outputs_of

MOST_LOST = 2.0
"""How many times as far from float64 a runtime may be with an exact pass as without it: one bit is lost."""

MOST_ROUNDING = 0.1
"""Part of an output's range that may be rounding: further apart, runtime and reference compute different things."""

_FAILURES = (NotImplementedError, RuntimeError, TypeError, ValueError)
"""What onnx's reference operators raise for types and attributes that they do not take."""


@dataclasses.dataclass(frozen=True)
class Verdict:
    """What a pass changed, and how much of that the runtime's rounding explains; all as parts of an output's range.

    Attributes:
        found: how far the outputs of the runtime are apart.
        in_float64: how far the two models are apart in float64; None: not asked for, or not known.
        rounding: how far the runtime is from float64 without the pass; floating outputs, and what others that changed
            are decided on.
        rounding_after: the same with the pass.
        decided: integers and truth values of the runtime that changed follow from its floats with the pass.
        unknown: why it is not known.
    """

    found: Difference
    in_float64: float | None = None
    rounding: float | None = None
    rounding_after: float | None = None
    decided: bool = True
    unknown: str = ""

    @property
    def kept(self) -> bool:
        """True when the pass kept what the model computes."""
        if self.found.relative <= EXACT_TOLERANCE:
            return True
        if self.in_float64 is None or self.rounding is None or self.rounding_after is None:
            return False
        as_accurate = self.rounding_after <= EXACT_TOLERANCE + MOST_LOST * self.rounding
        small = self.in_float64 <= EXACT_TOLERANCE and self.rounding <= MOST_ROUNDING
        return small and as_accurate and self.decided

    @property
    def words(self) -> str:
        """What rounding has to do with it, for a message about a pass that is refused."""
        if self.in_float64 is None:
            return f"whether that is rounding is not known: {self.unknown}"
        return (
            f"in float64 the difference is {self.in_float64:.2g}; the runtime rounds by {self.rounding:.2g} without "
            f"the pass and {self.rounding_after:.2g} with it"
            + ("" if self.decided else ", which does not explain the integers that it decides on")
        )


def judge(
    models: tuple[ir.Model, ir.Model],
    outputs: tuple[Outputs, Outputs],
    samples: Sequence[Feed],
    masks: Sequence[PaddingMask],
    open_session: OpenSession,
) -> Verdict:
    """Compare the outputs of a model without and with an exact pass; the models in float64 only where they differ.

    Args:
        models: without the pass, and with it; they are not changed.
        outputs: of the runtime, of each of them.
        samples: inputs that they are of.
        masks: inputs that mark padding, which does not count.
        open_session: the runtime.
    """
    without, after = (without_padding(side, samples, masks) for side in outputs)
    found = difference(without, after)
    if found.relative <= EXACT_TOLERANCE:
        return Verdict(found)
    others = difference(*map(_others, (without, after))).relative > 0
    try:
        first, second = (_side(model, samples, masks, open_session if others else None) for model in models)
    except OutOfReachError as error:
        return Verdict(found, unknown=str(error))
    apart = difference(
        *([{name: each[name] for name in without[0]} for each in side.exact] for side in (first, second))
    )
    before, behind = (
        difference(*map(_floats, (side.exact, side.shown or plain))).relative
        for side, plain in ((first, without), (second, after))
    )
    return Verdict(found, apart.relative, before, behind, second.decided)


@dataclasses.dataclass(frozen=True)
class _Side:
    """What one of the models computes, without padding.

    Attributes:
        exact: in float64, the floats that it decides on too where they were asked for.
        shown: the same in the runtime; empty where they were not.
        decided: whatever else the runtime computes follows from these floats.
    """

    exact: Outputs
    shown: Outputs = ()
    decided: bool = True


def _side(
    model: ir.Model, samples: Sequence[Feed], masks: Sequence[PaddingMask], open_session: OpenSession | None
) -> _Side:
    """Evaluate a model in float64; with a runtime, the floats that it decides on too, and run it there to see them."""
    if open_session is None:
        return _Side(without_padding(_in_float64(model, samples), samples, masks))
    model = _showing_decisions(model)
    exact = without_padding(_in_float64(model, samples), samples, masks)
    try:
        shown = outputs_of(model, samples, open_session)
    except (InputError, ModelError) as error:
        raise OutOfReachError("the runtime does not show the floats that integers are decided on") from error
    seen = _floats(shown)
    follows = without_padding(_in_float64(model, samples, seen), samples, masks)
    kept = without_padding(shown, samples, masks)
    known = {value.name for value in exact_values(model, seen[0].keys())}
    decided = all(
        name in known and np.array_equal(array, each[name])
        for each, others in zip(follows, _others(kept), strict=True)
        for name, array in others.items()
    )
    return _Side(exact, kept, decided)


def _showing_decisions(model: ir.Model) -> ir.Model:
    """Return a copy of which the floats are outputs that integers and truth values are decided on."""
    copy = ShapeInferencePass(strict_mode=False)(model.clone()).model
    copy.graph.sort()
    outputs = set(copy.graph.outputs)
    copy.graph.outputs.extend(value for value in loose_decisions(copy, ()) if value not in outputs)
    return copy


def _in_float64(model: ir.Model, samples: Sequence[Feed], seen: Outputs = ()) -> Outputs:
    """Evaluate a model in float64, from floats of the runtime in the place of its own where they were seen."""
    reason = not_covered(model)
    if reason is not None:
        raise OutOfReachError(reason)
    double = in_float64(model)
    feeds, observed = map(_wide, samples), [*map(_wide, seen)] or [{}] * len(samples)
    try:
        return [evaluate(double, *each) for each in zip(feeds, observed, strict=True)]
    except _FAILURES as error:
        raise OutOfReachError(f"the reference fails in float64 ({type(error).__name__}: {error})") from error


def _wide(arrays: Feed) -> dict[str, np.ndarray]:
    return {name: array.astype(np.float64) if array.dtype == np.float32 else array for name, array in arrays.items()}


def _floats(outputs: Outputs) -> Outputs:
    return [{name: array for name, array in each.items() if array.dtype.kind == "f"} for each in outputs]


def _others(outputs: Outputs) -> Outputs:
    return [{name: array for name, array in each.items() if array.dtype.kind != "f"} for each in outputs]
