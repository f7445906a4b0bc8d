"""What the comparison of an artifact looks at: values at quantizers, floats that ties are decided on, and logits."""

from __future__ import annotations

import dataclasses
from collections.abc import Collection

import numpy as np
import onnx_ir as ir

from qcompile.graph import is_standard
from qcompile.reference_ties import behind_jumps, decisions_to_see, exact_values
from qcompile.verify_quantizers import Quantized, quantized_values, quantizes

_ABSOLUTE = ("Erf", "HardSigmoid", "Sigmoid")
"""Functions that kernels compute to so many parts of 1, however small the result: to 1.3e-7 Sigmoid of ONNX Runtime,
to 3e-7 Erf of OpenVINO (measured, 1.31 and 2026.4). HardSigmoid subtracts from numbers up to 1 by its definition."""

_SATURATING = (*_ABSOLUTE, "Softmax", "Tanh")
"""Functions of numbers up to 1, whose ranges may be tiny; Softmax and Tanh are as accurate as any then."""

_VIEWS = ("Flatten", "Identity", "Reshape", "Squeeze", "Transpose", "Unsqueeze")

MAX_STEPS = 2.0
"""How many quantization steps one number may be apart: ties, and ties of ties within a layer."""

ROUNDING = 2.0**-21
"""Least step of what an `_ABSOLUTE` one makes; and, in parts of the largest number, where nothing but float32 rounds:
two steps are 8 roundings of it."""


@dataclasses.dataclass(frozen=True)
class Outlook:
    """What is known of the values that a comparison sees.

    Attributes:
        seen: names of the values.
        steps: name of a form of a quantized value -> the value.
        absolute: names of outputs that kernels compute to so many parts of 1; their logits are seen.
        exact: names of outputs that follow from what is seen without any rounding: they have to be equal.
        fixed: names of outputs that follow so from inputs and weights alone.
        tied: names of outputs behind an answer to a tie in numbers that come from a quantizer.
    """

    seen: frozenset[str]
    steps: dict[str, Quantized]
    absolute: frozenset[str]
    exact: frozenset[str]
    fixed: frozenset[str]
    tied: frozenset[str]

    @classmethod
    def of(cls, portable: ir.Model, seen: Collection[str]) -> Outlook:
        """Return what is known where values of these names are seen."""
        sources = [node.outputs[0] for node in portable.graph if quantizes(node)]
        outputs = portable.graph.outputs
        sides = (exact_values(portable, seen), exact_values(portable, ()), behind_jumps(portable, sources))
        exact, fixed, tied = (frozenset(str(value.name) for value in outputs if value in side) for side in sides)
        return cls(
            frozenset(seen),
            {name: value for value in quantized_values(portable) for name in value.names},
            frozenset(str(value.name) for value in outputs if _logits(value, _ABSOLUTE) is not None),
            exact,
            fixed,
            tied,
        )

    def step(self, name: str, expected: np.ndarray) -> np.ndarray:
        """Size of one quantization step of a value, where the reference computed `expected`; broadcasts to it."""
        if name in self.steps:
            return self.steps[name].step(name, expected)
        if name in self.exact and expected.dtype.kind == "f":
            return np.asarray(255 * _output_step(expected) * ROUNDING)
        return self.end_step(name, expected)

    def end_step(self, name: str, expected: np.ndarray) -> np.ndarray:
        """The same of an output, where nothing before it is seen."""
        step = _output_step(expected)
        return np.maximum(step, ROUNDING) if name in self.absolute else step

    def tells_nothing(self, name: str, expected: np.ndarray) -> bool:
        """True for an output so small that 0 in its place would be taken for what its kernel rounds."""
        return name in self.absolute and bool(np.nanmax(np.abs(expected), initial=0) <= MAX_STEPS * ROUNDING)


def _output_step(expected: np.ndarray) -> np.ndarray:
    """Step of a value that nothing quantizes: that of 8 bits over its range; 1 for integers."""
    if expected.dtype.kind != "f":
        return np.array(1.0)
    finite = expected[np.isfinite(expected)].astype(np.float64)
    return np.array(max(float(np.ptp(finite)), float(np.abs(finite).max())) / 255 if finite.size else 0.0)


def observed_values(portable: ir.Model) -> tuple[tuple[str, ...], ...]:
    """Return the values of the portable graph to look at in a runtime, each by the names of its forms, the best first.

    Besides what quantizers read, these are floats that an integer or a truth value is decided on, unless they follow
    from others without rounding; and what a saturating function makes an output of, whose own range may be tiny.
    """
    quantized = [value.names for value in quantized_values(portable)]
    seen = {name for names in quantized for name in names}
    others = [str(value.name) for value in decisions_to_see(portable, seen)]
    seen.update(others)
    logits = [value for output in portable.graph.outputs if (value := _logits(output, _SATURATING)) is not None]
    others += [str(value.name) for value in logits if value.name not in seen]
    return (*quantized, *((name,) for name in dict.fromkeys(others)))


def _logits(output: ir.Value, functions: Collection[str]) -> ir.Value | None:
    """Return what one of these functions reads that makes this output; None: there is none, or it is an input."""
    node = output.producer()
    while node is not None and is_standard(node, *_VIEWS) and node.inputs[0] is not None:
        node = node.inputs[0].producer()
    read = node.inputs[0] if node is not None and is_standard(node, *functions) else None
    return read if read is not None and read.producer() is not None else None
