"""Checks one calibration sample against the inputs of a model."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from qcompile.calibration_indices import IndexLimit
from qcompile.decoder_inputs import complete
from qcompile.errors import CalibrationError, UserCode
from qcompile.misspelt import SHOWN, nearest

Array = npt.NDArray[Any]
Feed = dict[str, Array]


def sample_code(what: str, index: int) -> UserCode:
    """Return the context in which code of the user makes the calibration sample of this index: see `UserCode`."""
    mend = "Mend that code, or leave the sample out; the traceback of the error shows the place"
    return UserCode(what, lambda reason: CalibrationError(f"calibration sample {index}", reason, mend))


def is_array(data: Any) -> bool:
    """True for an array of numpy and a tensor of torch."""
    return isinstance(data, np.ndarray) or (hasattr(data, "detach") and hasattr(data, "dtype"))


def as_array(data: Any) -> Array:
    """Return a numpy array of an array, a tensor of torch or nested lists; torch's bfloat16 becomes float32."""
    if hasattr(data, "detach"):
        data = data.detach().cpu()
        data = data.float() if str(data.dtype) == "torch.bfloat16" else data
    return np.asarray(data)


def named(sample: Any, index: int, inputs: Sequence[ir.Value]) -> dict[str, Any]:
    """Return input name -> content of a sample given as a mapping, a tuple in the order of inputs or a lone array."""
    if isinstance(sample, Mapping):
        return {str(name): content for name, content in sample.items()}
    names = [str(value.name) for value in inputs]
    if sample is None:
        mend = "Give a dict from input names, or one array for each input in this order"
        raise CalibrationError(f"calibration sample {index}", f"it is None, the inputs are {', '.join(names)}", mend)
    contents = list(sample) if isinstance(sample, tuple | list) else [sample]
    if len(contents) != len(names):
        held, taken = counted(len(contents), "array"), counted(len(names), "input")
        mend = "Give a dict from input names, or one array for each input in this order"
        if len(contents) > len(names):
            mend = f"Say which are inputs: {transform_to(len(names))}"
        reason = f"it has {held}, the model {taken}: {', '.join(names)}"
        raise CalibrationError(f"calibration sample {index}", reason, mend)
    return dict(zip(names, contents, strict=True))


def counted(count: int, word: str) -> str:
    """Return a number of things in words."""
    return f"{count} {word}" if count == 1 else f"{count} {word}s"


def transform_to(count: int) -> str:
    """Return the code that makes samples of the first `count` arrays of each, to be shown to users."""
    chosen = "sample[0]" if count == 1 else f"sample[:{count}]"
    return f"qcompile.Calibration(data, transform=lambda sample: {chosen})"


def _mend_name(name: str, names: Sequence[str], given: Mapping[str, Any]) -> str:
    """Return the advice for what is no input: one with nearly its name is meant, or one that is missing."""
    meant = nearest(name, names) or [each for each in names if each not in given]
    question = f"Did you mean {' or '.join(meant[:SHOWN])}? Otherwise leave it out" if meant else "Leave it out"
    return f"{question}, in the data or with transform= of Calibration"


def check(sample: Any, index: int, inputs: Sequence[ir.Value], limits: Mapping[str, IndexLimit] | None = None) -> Feed:
    """Return the sample as arrays of the inputs' dtypes, in the order of the inputs.

    Args:
        sample: as the user gives it.
        index: its place in the data, for errors.
        inputs: of the model.
        limits: input name -> what its numbers may be, for inputs that are indices.

    Raises:
        CalibrationError: a name is not an input's, an input is missing that `decoder_inputs` cannot make, or an array
            has the wrong rank, shape or dtype, is empty, holds NaN or infinity, or an index outside of its table.
    """
    contents = named(sample, index, inputs)
    names = [str(value.name) for value in inputs]
    for name in contents:
        if name not in names:
            reason = f"the model has no such input; its inputs are {', '.join(names)}"
            raise _error(name, index, reason, _mend_name(name, names, contents))
    sizes: dict[str, tuple[int, str]] = {}
    feed = {}
    for value in inputs:
        name = str(value.name)
        if name in contents:
            feed[name] = _checked(contents[name], value, index, sizes)
            if limits is not None and name in limits:
                _check_indices(feed[name], limits[name], name, index)
    full = complete(inputs, feed)
    for name in names:
        if name not in full:
            raise _error(name, index, "it is missing", "Give a value for every input of the model")
    return full


def _check_indices(array: Array, limit: IndexLimit, name: str, index: int) -> None:
    outside = array[(array < -limit.size) | (array >= limit.size)]
    if outside.size:
        reason = f"it holds {outside[0]}, and {limit.node} takes it for an index into {limit.size} rows"
        mend = f"Give 0 to {limit.size - 1}; for token ids, use the tokenizer that belongs to the model"
        raise _error(name, index, reason, mend)


def _error(name: str, index: int, reason: str, mend: str) -> CalibrationError:
    return CalibrationError(f"input {name}, calibration sample {index}", reason, mend)


def _checked(content: Any, value: ir.Value, index: int, sizes: dict[str, tuple[int, str]]) -> Array:
    name = str(value.name)
    try:
        array = as_array(content)
    except (ValueError, TypeError, RuntimeError) as error:  # the last: a tensor of torch's meta device has no data
        raise _error(name, index, f"it is no array ({error})", "Give arrays, tensors or lists of numbers") from error
    array = _cast(array, value, index)
    _check_shape(array, value, index, sizes)
    if array.dtype.kind not in "OSU" and not np.all(np.isfinite(array.astype(np.float32, copy=False))):
        raise _error(name, index, "it holds NaN or infinity", "Leave the sample out, or mend what computes it")
    return array


def _check_shape(array: Array, value: ir.Value, index: int, sizes: dict[str, tuple[int, str]]) -> None:
    name = str(value.name)
    if array.size == 0:
        raise _error(name, index, f"it is empty, shape {list(array.shape)}", "Leave the sample out")
    if value.shape is None:
        return
    wanted = f"[{', '.join(map(_words, value.shape))}]"
    if array.ndim != len(value.shape):
        mend = "Add the batch dim" if array.ndim == len(value.shape) - 1 else "Give it the rank of the input"
        raise _error(name, index, f"it has shape {list(array.shape)} where the input has {wanted}", mend)
    for axis, (size, dim) in enumerate(zip(array.shape, value.shape, strict=True)):
        mend = ""
        if isinstance(dim, int):
            expected, source = dim, f"the input has {wanted}"
            mend = f"; or let the axis vary: {_varying(value, axis)}"
        elif dim.value is not None:
            expected, source = sizes.setdefault(dim.value, (size, f"dim {axis} of {name}"))
            source = f"{_words(dim).replace('?', 'the same size')} is {expected} in {source}"
        else:
            continue
        if size != expected:
            reason = f"it has shape {list(array.shape)}, size {size} on axis {axis}, where {source}"
            raise _error(name, index, reason, f"Give it size {expected} there{mend}")


def _varying(value: ir.Value, axis: int) -> str:
    """Return how a model is exported so that an axis of an input may vary, as others do already."""
    free = [other for other, dim in enumerate(value.shape or ()) if other == axis or not isinstance(dim, int)]
    axes = ", ".join(f"{each}: torch.export.Dim.AUTO" for each in free)
    return f'for a torch module pass dynamic_shapes={{"{value.name}": {{{axes}}}}}, else export the model so'


def _words(dim: int | ir.SymbolicDim) -> str:
    """Return a size or the name of one; not what torch's exporter calls the sizes that nobody gave a name: s77."""
    return "?" if isinstance(dim, ir.SymbolicDim) and re.fullmatch(r"None|[su]\d+", str(dim)) else str(dim)


def _texts(array: Array, value: ir.Value, index: int) -> Array:
    """Return an object array of str; bytes are UTF-8, as in ONNX."""
    plain = array.astype(object)
    try:
        texts = [each.decode() if isinstance(each, bytes) else each for each in plain.flat]
    except UnicodeDecodeError as error:
        raise _error(str(value.name), index, "it holds bytes that are not UTF-8", "Give texts") from error
    for text in texts:
        if not isinstance(text, str):
            raise _error(
                str(value.name), index, f"it holds a {type(text).__name__} where a text is expected", "Give texts"
            )
    plain.flat[:] = texts
    return plain


def _cast(array: Array, value: ir.Value, index: int) -> Array:
    """Return the array in the dtype of the input, where that loses at most the precision of floating point."""
    if value.dtype == ir.DataType.STRING:
        return _texts(array, value, index)
    if value.dtype is None or array.dtype == value.dtype.numpy():
        return array
    target = value.dtype.numpy()
    if array.dtype.hasobject:
        held = sorted({type(each).__name__ for each in array.flat})
        reason = f"it is no array of numbers (it holds {', '.join(held)}) where the input has {target}"
        raise _error(str(value.name), index, reason, "Give arrays, tensors or lists of numbers")
    if array.dtype.kind in "biuf" and not (array.dtype.kind == "f" and target.kind in "biu"):
        with np.errstate(over="ignore"):
            cast = array.astype(target)
        unchanged = np.array_equal(cast.astype(array.dtype), array) and np.array_equal(cast < 0, array < 0)
        if array.dtype.kind == "f" or unchanged:
            return cast
        raise _error(str(value.name), index, f"{array.dtype} holds numbers that {target} does not", f"Give {target}")
    reason = f"it has dtype {array.dtype} where the input has {target}"
    raise _error(str(value.name), index, reason, f"Give it as {target}")
