"""Does a rewrite keep what it promises? Validity of the graph, and agreement of outputs on sample inputs."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Collection, Iterable, Mapping, Sequence

import numpy as np
import onnx
import onnx_ir as ir

from qcompile.calibration_masks import PaddingMask
from qcompile.decoder_inputs import complete, is_computed
from qcompile.errors import InputError, ModelError, VerificationError
from qcompile.initializers import without_data
from qcompile.memory import return_freed_memory
from qcompile.outputs import Outputs, is_numeric
from qcompile.session import Feed, OpenSession, Session
from qcompile.solvers.sqnr import decibels, powers

EXACT_TOLERANCE = 1e-4
"""Largest difference that an exact pass may make, as part of the range of each output, beyond float32's rounding."""

_ROUNDING = 2.0**-20
"""What float32 may round otherwise, in parts of an output's largest number: 8 roundings. Less is no difference."""

_BLOCK = 2**18
"""Elements of an output that are compared at a time."""

_MOST_MADE_UP = 2**28
"""Elements of an input that are made up for a model: a header may claim any number."""

MADE_UP = "made-up inputs"
"""What `synthetic_samples` makes, in words."""


@dataclasses.dataclass(frozen=True)
class Difference:
    """How far two sets of outputs are apart.

    Attributes:
        output: the output that differs most.
        relative: largest difference as part of that output's range over all samples.
        sqnr_db: signal-to-noise ratio over all outputs, in dB; NaN where nothing could be compared.
        of_outputs: output -> the same of it alone.
    """

    output: str
    relative: float
    sqnr_db: float
    of_outputs: Mapping[str, float]


def check_valid(model: ir.Model, pass_name: str) -> None:
    """Raise VerificationError when onnx's checker refuses the model, naming the pass that made it so.

    The checker sees the graph without the data of its weights: it tests structure, and weights may be larger than a
    protobuf message can be.
    """
    skeleton, _ = without_data(model, larger_than=1024)
    try:
        onnx.checker.check_model(ir.to_proto(skeleton), full_check=False)
    except (onnx.checker.ValidationError, ValueError, TypeError) as error:
        reason = f"it leaves a model that onnx's checker refuses: {str(error).strip()}"
        raise VerificationError(f"pass {pass_name}", reason, "Report this, or leave the pass out") from error


def outputs_of(model: ir.Model, samples: Sequence[Feed], open_session: OpenSession) -> list[dict[str, np.ndarray]]:
    """Run the model on each sample.

    Raises:
        ModelError: the runtime refuses the model.
        InputError: the model fails on a sample.
    """
    outputs = run_all(open_session(model), samples)
    return_freed_memory()
    return outputs


def run_all(session: Session, samples: Sequence[Feed]) -> list[dict[str, np.ndarray]]:
    """Return the outputs on each sample, as copies: a runtime's own arrays may keep all memory of its session alive.

    Raises:
        InputError: the model fails on a sample; names its place among them.
    """
    return [
        {name: np.array(array) for name, array in _run(session, sample, index).items()}
        for index, sample in enumerate(samples)
    ]


def _run(session: Session, sample: Feed, index: int) -> dict[str, np.ndarray]:
    try:
        return session.run(sample)
    except InputError as error:
        raise InputError(f"sample {index}, {error.subject}", error.reason, error.mend) from error


def usable_masks(masks: Iterable[PaddingMask], samples: Sequence[Feed]) -> tuple[PaddingMask, ...]:
    """Return the masks that hold nothing but 0 and 1, and leave a valid position, in every sample.

    An additive mask, 0 where a position counts and a large negative number elsewhere, is not such a mask: padded
    positions are compared then too.
    """

    def usable(array: np.ndarray, valid: int) -> bool:
        return bool(np.all((array == 0) | (array == 1)) and np.any(array == valid))

    return tuple(mask for mask in masks if all(usable(sample[mask.name], mask.valid) for sample in samples))


def difference(before: Outputs, after: Outputs) -> Difference:
    """Compare the outputs of two models on the same samples; see `total_difference`."""
    return total_difference(zip(before, after, strict=True))


def total_difference(pairs: Iterable[tuple[Mapping[str, np.ndarray], Mapping[str, np.ndarray]]]) -> Difference:
    """Compare the outputs of two models sample by sample: pairs of output name -> array.

    Outputs that are not numbers must be equal; an output of another shape is infinitely far. Where there is no number
    to compare, the ratio is NaN: nothing was measured.
    """
    compared: dict[str, _Comparison] = {}
    for expected, actual in pairs:
        for name, array in expected.items():
            compared.setdefault(name, _Comparison()).add(np.asarray(array), np.asarray(actual[name]))
    worst = max(compared, key=lambda name: compared[name].relative, default="")
    each = {name: _ratio([item]) for name, item in compared.items()}
    return Difference(worst, compared[worst].relative if worst else 0.0, _ratio(compared.values()), each)


class _Comparison:
    """One output over all samples; block by block, because logits over a vocabulary are large in float64."""

    def __init__(self) -> None:
        self.power = self.noise = 0.0
        self.count = 0
        self.other_shape = False
        self._same = self._equal = True
        self._distance = 0.0
        self._low, self._high = float("inf"), float("-inf")

    @property
    def relative(self) -> float:
        """Largest difference as part of the range of what is expected; 0 where float32 rounds as much.

        Of the size where there is no range; infinity for what no number tells, and 1 for integers and truth values that
        differ: a place that is one off is another place.
        """
        if not self._same:
            return float("inf")
        if not self._equal:
            return 1.0
        size = max(abs(self._high), abs(self._low))
        spread = self._high - self._low if self._high > self._low else size
        if self._distance <= _ROUNDING * size:
            return 0.0
        return self._distance / spread if spread > 0 else float("inf")

    def add(self, expected: np.ndarray, actual: np.ndarray) -> None:
        """Take the output on one sample."""
        if expected.shape != actual.shape:
            self._same, self.other_shape = False, True
        elif not (is_numeric(expected) and is_numeric(actual)):
            self._same &= bool(np.array_equal(expected, actual))
        else:
            if expected.dtype.kind in "biu":
                self._equal &= bool(np.array_equal(expected, actual))
            sides = np.ravel(expected), np.ravel(actual)
            for start in range(0, expected.size, _BLOCK):
                self._add_block(*(side[start : start + _BLOCK].astype(np.float64) for side in sides))

    def _add_block(self, expected: np.ndarray, actual: np.ndarray) -> None:
        finite = np.isfinite(expected)
        self._same &= bool(np.array_equal(finite, np.isfinite(actual)))
        self._low = min(self._low, float(expected.min(initial=np.inf, where=finite)))
        self._high = max(self._high, float(expected.max(initial=-np.inf, where=finite)))
        expected, actual = (np.nan_to_num(side, posinf=0.0, neginf=0.0) for side in (expected, actual))
        self._distance = max(self._distance, float(np.abs(expected - actual).max(initial=0, where=finite)))
        power, noise = powers(expected, np.where(finite, actual, 0))
        self.power, self.noise, self.count = self.power + power, self.noise + noise, self.count + int(finite.sum())


def _ratio(found: Collection[_Comparison]) -> float:
    if not any(item.count for item in found) or any(item.other_shape for item in found):
        return float("nan")
    return decibels(sum(item.power for item in found), sum(item.noise for item in found))


def check_exact(found: Difference, pass_name: str, first: str | None = None, rounding: str = "") -> None:
    """Raise VerificationError when an exact pass changed an output by more than EXACT_TOLERANCE of its range.

    `first` is the first value that differs, see `qcompile.first_difference`; None: nobody has looked. `rounding` says
    what float32 has to do with it, see `qcompile.verify_rounding`.
    """
    if found.relative > EXACT_TOLERANCE:
        reason = f"it changes output {found.output} by {found.relative:.2g} of its range where it promises to keep it"
        reason += f"; {rounding}" if rounding else ""
        reason += "" if first is None else f"; the first value that differs is {first}"
        raise VerificationError(f"pass {pass_name}", reason, "Report this, or leave the pass out of the recipe")


def synthetic_samples(model: ir.Model, count: int = 1, seed: int = 0) -> list[dict[str, np.ndarray]]:
    """Make inputs from nothing but types and shapes: normal numbers, integers (or texts) 0 and 1.

    A dynamic dim has size 2 where it is the first, else 8; a named one has one size in all inputs. The mask and the
    positions of a decoder follow from its ids and its cache.

    Raises:
        ModelError: an input has no type, is no tensor, or has more elements than are made up.
    """
    generator = np.random.default_rng(seed)
    inputs = [value for value in model.graph.inputs if value.const_value is None]
    # Runtimes that write the cache in place take several new tokens behind old ones of one sequence only.
    sizes: dict[str, int] = {"batch": 1} if any(map(is_computed, inputs)) else {}
    shapes = {value: _shape(value, sizes) for value in inputs if not is_computed(value)}
    made = [{str(v.name): _synthetic(v, shape, generator) for v, shape in shapes.items()} for _ in range(count)]
    return [complete(inputs, feed) for feed in made]


def _shape(value: ir.Value, sizes: dict[str, int]) -> list[int]:
    """Return the shape for an input; `sizes` remembers those of named dims."""
    if value.dtype is None or value.shape is None:
        raise ModelError(
            f"input {value.name}", "its type or shape is unknown", "Give example_inputs or calibration data"
        )
    shape = []
    for axis, dim in enumerate(value.shape):
        size = 2 if axis == 0 else 8
        if isinstance(dim, int):
            size = dim
        elif dim.value is not None:
            size = sizes.setdefault(dim.value, size)
        shape.append(size)
    if math.prod(shape) > _MOST_MADE_UP:
        raise ModelError(
            f"input {value.name}", f"it asks for {math.prod(shape)} elements", "Give an example, or pass verify=False"
        )
    return shape


def _synthetic(value: ir.Value, shape: Sequence[int], generator: np.random.Generator) -> np.ndarray:
    assert value.dtype is not None
    dtype = value.dtype.numpy()
    if np.issubdtype(dtype, np.floating):
        return generator.standard_normal(shape).astype(dtype)
    integers = generator.integers(0, 2, shape)
    return integers.astype(str).astype(object) if value.dtype == ir.DataType.STRING else integers.astype(dtype)
