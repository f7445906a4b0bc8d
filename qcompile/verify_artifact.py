"""Does the runtime compute what the quantized graph means? The artifact against the reference evaluation, step by step.

Two runs of one deep quantized model may end far apart although both are right: a rounding tie that falls the other way
is one step at the next quantizer, and a few layers later the difference is as large as the noise of quantization
itself. So the artifact is run with the values at its quantizers as further outputs, and the reference computes each of
them from the runtime's own values upstream. What then differs is the work of one layer, and is known in the steps of
the quantizer that it comes to.

An integer or a truth value is decided on floats, and a tie makes another one. These floats are seen as well, and what
is decided on the runtime's own has to be equal.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Iterable, Mapping, Sequence

import numpy as np
import onnx_ir as ir

from qcompile.calibration_masks import PaddingMask
from qcompile.errors import VerificationError
from qcompile.memory import return_freed_memory
from qcompile.reference_coverage import not_covered
from qcompile.reference_evaluator import OutOfReachError, evaluate
from qcompile.reference_ties import unseen_jump
from qcompile.session import Agreement, Feed, Probe, Session
from qcompile.verify import run_all
from qcompile.verify_observed import MAX_STEPS, Outlook
from qcompile.verify_quantizers import without_quantizers
from qcompile.verify_ties import moved_by_ties, towards

RMS_STEPS = 12**-0.5
"""How many steps all numbers of a value may be apart on average: as much as rounding to steps itself moves them."""

NOISE_RATIO = 2.0
"""How far outputs may be apart when nothing is observed on the way, in units of what quantization adds to them.

Two runs whose roundings have nothing in common are apart by the square root of 2.
"""

_MEND = (
    'Do not ship it: on a CPU without VNNI pass target="avx2", else report this with the model, or compile with '
    "another backend; verify=False skips the comparison"
)

_FLUSHED = 2.0**20 * float(np.finfo(np.float32).tiny)
"""Sum of a million products that a runtime may compute as 0, because they or their factors are below normal numbers."""

Arrays = Mapping[str, np.ndarray]


def verify_artifact(
    portable: ir.Model,
    original: ir.Model | None,
    open_artifact: Callable[[], Session],
    probes: Iterable[Probe],
    sample: Feed,
) -> list[Agreement]:
    """Compare an artifact with the arithmetic of the portable graph that it was made from, in each mode of its runtime.

    Args:
        portable: the quantized graph, before a backend lowered it.
        original: the float model; None: it is not at hand, see `without_quantizers`.
        open_artifact: loads what was written, as it will be run.
        probes: the same with values inside of it, see `observed_values`; one is loaded at a time.
        sample: one input; see `verification_sample`.

    Raises:
        OutOfReachError: the reference does not cover the model, or it would take too long.
        VerificationError: a value is more than MAX_STEPS, or on average more than RMS_STEPS, away from what follows
            from the values before it, or is an integer or truth value that does not; or the artifact as it is ends
            further from the reference than NOISE_RATIO.
    """
    original = without_quantizers(portable) if original is None else original
    reason = not_covered(portable) or not_covered(original)
    if reason is not None:
        raise OutOfReachError(reason)
    dtypes = {str(value.name): value.dtype for node in portable.graph for value in node.outputs}
    found: list[Agreement] = []
    expected: Arrays = {}
    outlook = Outlook.of(portable, ())
    (actual,) = run_all(open_artifact(), [sample])
    for probe in probes:
        runtime, values, channels_per_scale = probe.name, probe.values, probe.channels_per_scale
        reason = unseen_jump(portable, values)
        if reason is not None:
            raise OutOfReachError(reason)
        (outputs,) = run_all(probe.session, [sample])
        del probe  # and its session, which holds the weights, before the reference takes room for its own
        return_freed_memory()
        seen = {name: as_written(array, dtypes.get(name)) for name, array in outputs.items()}
        inner = {name: seen[name] for name in values}
        expected = evaluate(portable, sample, inner, channels_per_scale=channels_per_scale)
        outlook = Outlook.of(portable, values)
        ties = functools.cache(functools.partial(moved_by_ties, portable, sample, inner, channels_per_scale))
        found.append(_compare_inside(runtime, expected, seen, outlook, ties))
    left_out = _compare_whole(actual, expected, original, sample, outlook)
    return [*found[:-1], *(dataclasses.replace(last, left_out=(*last.left_out, *left_out)) for last in found[-1:])]


def verification_sample(model: ir.Model, samples: Sequence[Feed], masks: Sequence[PaddingMask]) -> Feed:
    """Return the smallest sample, of it the first item of a dynamic batch, every position valid.

    At padded positions runtimes differ, and nobody reads the result. The first axis is a batch where it has one
    symbolic name in all inputs and outputs, which have other axes, none of that name.
    """
    smallest = min(samples, key=lambda sample: sum(array.size for array in sample.values()))
    valid = {mask.name: np.full_like(smallest[mask.name], mask.valid) for mask in masks}
    sample = {**smallest, **valid}
    values = [*(value for value in model.graph.inputs if value.name in sample), *model.graph.outputs]
    shapes = [tuple(value.shape) if value.shape is not None else () for value in values]
    first = {shape[0] if len(shape) > 1 else None for shape in shapes}
    (batch,) = first if len(first) == 1 else (None,)
    named = isinstance(batch, ir.SymbolicDim) and batch.value is not None
    if named and not any(batch in shape[1:] for shape in shapes):
        return {name: array[:1] for name, array in sample.items()}
    return sample


def as_written(array: np.ndarray, dtype: ir.DataType | None) -> np.ndarray:
    """Return integers in the 8-bit type of the portable graph: a backend may store q as q + 128 in the other one."""
    if dtype == ir.DataType.INT8 and array.dtype == np.uint8:
        return (array.astype(np.int16) - 128).astype(np.int8)
    return array


def _compare_inside(
    runtime: str, expected: Arrays, seen: Arrays, outlook: Outlook, ties: Callable[[], Arrays]
) -> Agreement:
    """Raise VerificationError for the first value that is too far from the reference, in the order of the graph.

    A value that is too far is looked at again: where it is no further than other answers to ties move it (`ties`), in
    what is rounded at run time by scales of its own, the runtime has answered so. One such answer in a block of large
    numbers may be several steps of a value behind it.
    """
    subject, largest, on_average, worst = f"artifact on {runtime}", 0.0, 0.0, ""
    left_out = []
    for name, array in expected.items():
        actual = seen[name]
        if not _comparable(array, actual):
            raise VerificationError(subject, f"{name} is another kind of value: {_unlike(array, actual)}", _MEND)
        if array.dtype.kind != "f" and name in outlook.exact and not _nan_seen(expected, outlook):
            _check_equal(subject, name, array, actual)
            continue
        if array.dtype.kind not in "fiu" or (array.dtype.kind != "f" and array.dtype.itemsize > 1):
            left_out.append(f"{name} ({array.dtype}, {_part_equal(array, actual)} of it equal)")
            continue  # a comparison or a position: a tie makes another one
        if array.dtype.kind == "f" and array.size and np.isnan(array).all():
            left_out.append(f"{name} (NaN)")
            continue
        distance, mean = apart(array, actual, outlook.step(name, array))
        if distance == np.inf:
            reason = (
                f"{name} has NaN or infinity where what follows from the values before it is finite, or the reverse"
            )
            raise VerificationError(subject, reason, _MEND)
        if array.dtype.kind == "f" and (distance > MAX_STEPS or mean > RMS_STEPS):
            distance, mean = apart(array, towards(array, actual, ties()[name]), outlook.step(name, array))
        if distance > MAX_STEPS or mean > RMS_STEPS:
            reason = (
                f"{name} is up to {distance:.3g} quantization steps, and {mean:.2g} on average, away from what follows "
                f"from the values before it; {MAX_STEPS:g} and {RMS_STEPS:.2g} are allowed"
            )
            raise VerificationError(subject, reason, _MEND)
        if outlook.tells_nothing(name, array):
            left_out.append(f"{name} (less than its kernel may round)")
        worst = name if distance > largest else worst
        largest, on_average = max(largest, distance), max(on_average, mean)
    compared = tuple(name for name in expected if name in outlook.seen)
    return Agreement(runtime, compared, largest, on_average, worst, tuple(left_out))


def _nan_seen(expected: Arrays, outlook: Outlook) -> bool:
    """True where a value that is seen is not a number: runtimes decide on it as they like."""
    seen = (expected[name] for name in outlook.seen if name in expected)
    return any(array.dtype.kind == "f" and bool(np.isnan(array).any()) for array in seen)


def _check_equal(subject: str, name: str, expected: np.ndarray, actual: np.ndarray) -> None:
    if not np.array_equal(expected, actual):
        others = f"{np.count_nonzero(expected != actual)} of {expected.size} numbers"
        reason = f"{name} ({expected.dtype}) has {others} other than follow from the runtime's own values before it"
        raise VerificationError(subject, reason, _MEND)


def _compare_whole(
    actual: Arrays, expected: Arrays, original: ir.Model, sample: Feed, outlook: Outlook
) -> tuple[str, ...]:
    """Raise VerificationError when the artifact that nobody looks into ends further away than noise explains.

    An output behind a tie is not compared, which is returned in words: the same output was, of the artifact with values
    on the way, which a runtime may compute in another way because it has to show them.
    """
    names, left_out = [], []
    for name, array in actual.items():
        if array.dtype.kind == "f" and name not in outlook.tied and _comparable(expected[name], array):
            names.append(name)
        elif name in outlook.fixed:
            _check_equal("artifact", name, expected[name], array)
        else:
            left_out.append(f"{name} where no value before it is shown ({_part_equal(expected[name], array)} equal)")
    far = [name for name in names if not _close(expected[name], actual[name], outlook.end_step(name, expected[name]))]
    exact = evaluate(original, sample) if far else {}
    for name in far:
        if not _comparable(exact[name], actual[name]):
            continue  # its shape depends on the data
        noise, distance = _rms(expected[name], exact[name]), _rms(expected[name], actual[name])
        if distance > NOISE_RATIO * noise:
            reason = (
                f"output {name} is {distance / noise if noise else np.inf:.2g} times as far from the reference as "
                f"quantization itself moves it; {NOISE_RATIO:g} times are allowed"
            )
            raise VerificationError("artifact", reason, _MEND)
    return tuple(left_out)


def _part_equal(expected: np.ndarray, actual: np.ndarray) -> str:
    if expected.shape != actual.shape:
        return "another shape, none"
    return f"{np.mean(expected == actual) if expected.size else 1:.0%}"


def _close(expected: np.ndarray, actual: np.ndarray, step: np.ndarray) -> bool:
    distance, mean = apart(expected, actual, step)
    return distance <= MAX_STEPS and mean <= RMS_STEPS


def apart(expected: np.ndarray, actual: np.ndarray, step: np.ndarray) -> tuple[float, float]:
    """Largest and root mean square difference in steps; infinite where only one side is finite, or the signs differ.

    Where NaN is expected any number will do: what the Relu of NaN is, or padding times NaN, runtimes take as they like.
    Where the step is 0 every number is expected to be 0, and the runtime's rounding to float32 is forgiven; so is what
    numbers below the normal ones add up to, which runtimes take for 0.
    """
    if expected.dtype.kind in "iu" and expected.itemsize == 1 and step.size == 1:
        apart = np.subtract(expected, actual, dtype=np.int16)  # an image has millions of them, and few differ
        some = np.abs(apart[apart != 0]) / float(step.item())
        return float(some.max(initial=0)), float(np.sqrt(np.sum(some**2) / max(apart.size, 1)))
    least = np.where(step > 0, np.maximum(step, _FLUSHED), np.finfo(np.float32).eps)
    finite = np.isfinite(expected)
    if finite.all() and np.isfinite(actual).all():
        difference = np.subtract(expected, actual, dtype=np.float64)
    else:
        infinite = np.isinf(expected)
        if not np.array_equal(expected[infinite], actual[infinite]) or not np.isfinite(actual[finite]).all():
            return float("inf"), float("inf")
        difference = np.where(finite, expected, 0).astype(np.float64) - np.where(finite, actual, 0)
    steps = np.ravel(difference if least.size == 1 else difference / least)
    largest = max(float(steps.max(initial=0)), -float(steps.min(initial=0)))
    mean = float(np.sqrt(np.dot(steps, steps) / max(steps.size, 1)))
    return (largest / least.item(), mean / least.item()) if least.size == 1 else (largest, mean)


def _rms(first: np.ndarray, second: np.ndarray) -> float:
    difference = np.nan_to_num(first.astype(np.float64) - second, posinf=0, neginf=0)
    return float(np.sqrt(np.mean(difference**2)))


def _comparable(expected: np.ndarray, actual: np.ndarray) -> bool:
    return np.shape(expected) == np.shape(actual) and np.asarray(expected).dtype.kind == np.asarray(actual).dtype.kind


def _unlike(expected: np.ndarray, actual: np.ndarray) -> str:
    return f"{actual.dtype} {list(actual.shape)} where {expected.dtype} {list(expected.shape)} is expected"
