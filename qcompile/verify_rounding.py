"""Is what an exact pass changed more than rounding? Asked where a runtime's outputs differ by more than is allowed.

Float32 leaves few digits of an output whose range is tiny beside the numbers that it comes from, or beside the absolute
error of a kernel: a sigmoid that never exceeds 1e-5 moves by 0.5 % of its range when the operands of a sum change
places. So the two models are computed in float64, independently of the runtime, and have to agree there; and the
runtime must be about as near to that with the pass as without it, so that a rewrite that cancels digits is refused.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np
import onnx_ir as ir

from qcompile.calibration_masks import PaddingMask
from qcompile.reference_coverage import not_covered
from qcompile.reference_evaluator import OutOfReachError, evaluate
from qcompile.reference_precision import in_float64
from qcompile.session import Feed
from qcompile.verify import EXACT_TOLERANCE, Difference, Outputs, difference, without_padding

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
        rounding: how far the runtime is from float64 without the pass; floating outputs.
        rounding_after: the same with the pass.
        unknown: why it is not known.
    """

    found: Difference
    in_float64: float | None = None
    rounding: float | None = None
    rounding_after: float | None = None
    unknown: str = ""

    @property
    def kept(self) -> bool:
        """True when the pass kept what the model computes."""
        if self.found.relative <= EXACT_TOLERANCE:
            return True
        if self.in_float64 is None or self.rounding is None or self.rounding_after is None:
            return False
        as_accurate = self.rounding_after <= EXACT_TOLERANCE + MOST_LOST * self.rounding
        return self.in_float64 <= EXACT_TOLERANCE and self.rounding <= MOST_ROUNDING and as_accurate

    @property
    def words(self) -> str:
        """What rounding has to do with it, for a message about a pass that is refused."""
        if self.in_float64 is None:
            return f"whether that is rounding is not known: {self.unknown}"
        return (
            f"in float64 the difference is {self.in_float64:.2g}; the runtime rounds by {self.rounding:.2g} without "
            f"the pass and {self.rounding_after:.2g} with it"
        )


def judge(
    models: tuple[ir.Model, ir.Model],
    outputs: tuple[Outputs, Outputs],
    samples: Sequence[Feed],
    masks: Sequence[PaddingMask],
) -> Verdict:
    """Compare the outputs of a model without and with an exact pass; the models in float64 only where they differ.

    Args:
        models: without the pass, and with it; they are not changed.
        outputs: of the runtime, of each of them.
        samples: inputs that they are of.
        masks: inputs that mark padding, which does not count.
    """
    without, after = (without_padding(side, samples, masks) for side in outputs)
    found = difference(without, after)
    if found.relative <= EXACT_TOLERANCE:
        return Verdict(found)
    try:
        exact = [without_padding(_in_float64(model, samples), samples, masks) for model in models]
    except OutOfReachError as error:
        return Verdict(found, unknown=str(error))
    apart = difference(*exact).relative
    # What is no float is right or wrong, and a tie makes it so: it counts in float64 alone.
    before, behind = (difference(*map(_floats, sides)).relative for sides in zip(exact, (without, after), strict=True))
    return Verdict(found, apart, before, behind)


def _in_float64(model: ir.Model, samples: Sequence[Feed]) -> Outputs:
    reason = not_covered(model)
    if reason is not None:
        raise OutOfReachError(reason)
    double = in_float64(model)
    try:
        return [evaluate(double, {name: _wide(array) for name, array in sample.items()}) for sample in samples]
    except _FAILURES as error:
        raise OutOfReachError(f"the reference fails in float64 ({type(error).__name__}: {error})") from error


def _wide(array: np.ndarray) -> np.ndarray:
    return array.astype(np.float64) if array.dtype == np.float32 else array


def _floats(outputs: Outputs) -> Outputs:
    return [{name: array for name, array in each.items() if array.dtype.kind == "f"} for each in outputs]
