"""Does a rewrite keep what it promises? Validity of the graph, and agreement of outputs on sample inputs."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Iterable, Mapping, Sequence

import numpy as np
import onnx
import onnx_ir as ir

from qcompile.calibration_masks import PaddingMask
from qcompile.errors import ModelError, VerificationError
from qcompile.session import Feed, OpenSession
from qcompile.solvers.sqnr import sqnr_db

EXACT_TOLERANCE = 1e-4
"""Largest difference that an exact pass may make, as part of the range of each output."""

Outputs = Sequence[Mapping[str, np.ndarray]]


@dataclasses.dataclass(frozen=True)
class Difference:
    """How far two sets of outputs are apart.

    Attributes:
        output: the output that differs most.
        relative: largest difference as part of that output's range over all samples.
        sqnr_db: signal-to-noise ratio over all outputs, in dB; NaN where nothing could be compared.
    """

    output: str
    relative: float
    sqnr_db: float


def check_valid(model: ir.Model, pass_name: str) -> None:
    """Raise VerificationError when onnx's checker refuses the model, naming the pass that made it so.

    The checker sees the graph without the data of its weights: it tests structure, and weights may be larger than a
    protobuf message can be.
    """
    skeleton = model.clone()
    graph = skeleton.graph
    for value in list(graph.initializers.values()):
        tensor = value.const_value
        if tensor is not None and tensor.nbytes > 1024:
            del graph.initializers[str(value.name)]
            value.const_value = None
            if not value.is_graph_input():
                graph.inputs.append(value)
    try:
        onnx.checker.check_model(ir.to_proto(skeleton), full_check=False)
    except (onnx.checker.ValidationError, ValueError, TypeError) as error:
        reason = f"it leaves a model that onnx's checker refuses: {str(error).strip()}"
        raise VerificationError(f"pass {pass_name}", reason, "Report this, or leave the pass out") from error


def without_padding(
    outputs: Outputs, samples: Sequence[Feed], masks: Sequence[PaddingMask]
) -> list[dict[str, np.ndarray]]:
    """Keep the valid positions of every output that has a mask's dims in front: [batch, sequence, ...] to [valid, ...].

    What a model computes at padded positions is never read, and says nothing about its accuracy.
    """
    kept = []
    for found, sample in zip(outputs, samples, strict=True):
        arrays = dict(found)
        for mask in masks:
            valid = sample[mask.name] == mask.valid
            fits = {name: array for name, array in arrays.items() if array.shape[: valid.ndim] == valid.shape}
            arrays.update({name: array[valid] for name, array in fits.items()})
        kept.append(arrays)
    return kept


def outputs_of(model: ir.Model, samples: Sequence[Feed], open_session: OpenSession) -> list[dict[str, np.ndarray]]:
    """Run the model on each sample.

    Raises:
        ModelError: the runtime refuses the model.
    """
    session = open_session(model)
    return [session.run(sample) for sample in samples]


def usable_masks(masks: Iterable[PaddingMask], samples: Sequence[Feed]) -> tuple[PaddingMask, ...]:
    """Return the masks that hold nothing but 0 and 1, and leave a valid position, in every sample.

    An additive mask, 0 where a position counts and a large negative number elsewhere, is not such a mask: padded
    positions are compared then too.
    """

    def usable(array: np.ndarray, valid: int) -> bool:
        return bool(np.all((array == 0) | (array == 1)) and np.any(array == valid))

    return tuple(mask for mask in masks if all(usable(sample[mask.name], mask.valid) for sample in samples))


def difference(before: Outputs, after: Outputs) -> Difference:
    """Compare the outputs of two models on the same samples.

    Outputs that are not numbers must be equal; an output of another shape is infinitely far. Where there is no number
    to compare, the ratio is NaN: nothing was measured.
    """
    worst, worst_name, pairs, apart = 0.0, "", [], False
    for name in before[0] if before else ():
        sides = [[outputs[name] for outputs in side] for side in (before, after)]
        if any(np.shape(expected) != np.shape(actual) for expected, actual in zip(*sides, strict=True)):
            relative, apart = float("inf"), True
        elif not all(map(is_numeric, itertools.chain(*sides))):
            equal = all(np.array_equal(expected, actual) for expected, actual in zip(*sides, strict=True))
            relative = 0.0 if equal else float("inf")
        else:
            expected, actual = (
                np.concatenate([np.ravel(array) for array in side]).astype(np.float64) for side in sides
            )
            pairs.append((expected, actual))
            relative = _relative(expected, actual)
        if relative > worst or not worst_name:
            worst, worst_name = relative, name
    expected, actual = (
        np.nan_to_num(np.concatenate([pair[side] for pair in pairs] or [np.zeros(0)]), posinf=0.0, neginf=0.0)
        for side in (0, 1)
    )
    return Difference(worst_name, worst, float("nan") if apart or not expected.size else sqnr_db(expected, actual))


def is_numeric(array: np.ndarray) -> bool:
    """True for numbers and truth values; False for texts."""
    return np.asarray(array).dtype.kind not in "OSUT"


def _relative(expected: np.ndarray, actual: np.ndarray) -> float:
    if not np.array_equal(np.isfinite(expected), np.isfinite(actual)):
        return float("inf")
    finite = np.isfinite(expected)
    if not finite.any():
        return 0.0
    distance = float(np.abs(expected[finite] - actual[finite]).max())
    spread = float(np.ptp(expected[finite])) or float(np.abs(expected[finite]).max())
    return distance / spread if spread > 0 else (0.0 if distance == 0 else float("inf"))


def check_exact(found: Difference, pass_name: str) -> None:
    """Raise VerificationError when an exact pass changed an output by more than EXACT_TOLERANCE of its range."""
    if found.relative > EXACT_TOLERANCE:
        reason = f"it changes output {found.output} by {found.relative:.2g} of its range where it promises to keep it"
        raise VerificationError(f"pass {pass_name}", reason, "Report this, or leave the pass out of the recipe")


def synthetic_samples(model: ir.Model, count: int = 1, seed: int = 0) -> list[dict[str, np.ndarray]]:
    """Make inputs from nothing but types and shapes: normal numbers, integers (or texts) 0 and 1.

    A dynamic dim has size 2 where it is the first, else 8; a named one has one size in all inputs.

    Raises:
        ModelError: an input has no type, or is no tensor.
    """
    generator = np.random.default_rng(seed)
    sizes: dict[str, int] = {}
    shapes = {value: _shape(value, sizes) for value in model.graph.inputs if value.const_value is None}
    return [
        {str(value.name): _synthetic(value, shape, generator) for value, shape in shapes.items()} for _ in range(count)
    ]


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
    return shape


def _synthetic(value: ir.Value, shape: Sequence[int], generator: np.random.Generator) -> np.ndarray:
    assert value.dtype is not None
    dtype = value.dtype.numpy()
    if np.issubdtype(dtype, np.floating):
        return generator.standard_normal(shape).astype(dtype)
    integers = generator.integers(0, 2, shape)
    return integers.astype(str).astype(object) if value.dtype == ir.DataType.STRING else integers.astype(dtype)
