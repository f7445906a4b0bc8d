"""Calibration data in every form that users have, as a stream of checked feeds."""

from __future__ import annotations

import dataclasses
import itertools
import math
import os
import pathlib
import zipfile
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import IO, Any

import numpy as np
import onnx_ir as ir

from qcompile.calibration_indices import index_limits
from qcompile.calibration_sample import Array, Feed, as_array, check, is_array, sample_code
from qcompile.errors import CalibrationError
from qcompile.plain_files import check_plain

_FORMS = "Give an iterable of dicts, arrays or tuples, a callable that returns one, a dict of arrays, or an .npz file"


@dataclasses.dataclass(frozen=True, eq=False)
class Calibration:
    """Calibration data and how it is used; `compile` and `rewrite` take it wherever they take plain data.

    Attributes:
        data: one of
            - an iterable (list, generator, DataLoader, Dataset) of samples, or a callable that returns one;
            - a calibration data reader of ONNX Runtime (`get_next`);
            - the path of a .txt file, in UTF-8, for a Hugging Face folder or a GGUF file, whose tokenizer cuts it;
            - the path of an .npz file, or one dict of arrays or tensors: samples stacked along axis 0;
            - for a model of one input, one array or tensor of stacked samples.
            A sample is a mapping from input names (a BatchEncoding too), a tuple or list in the order of the inputs,
            or, for a model of one input, an array or tensor. Stacked arrays have either one dim more than the
            input, or its rank; then they are cut along axis 0 into pieces of the input's fixed size, or of 1.
        num_calibration_samples: most samples that are read, a batch of a DataLoader counts as one; None: all.
        transform: makes of each sample, as the data gives it, one that fits the model; for a DataLoader of images and
            labels, `lambda sample: sample[0]`. Of stacked arrays it gets the pieces. None: samples fit as they are.
        padding_mask: name of the input that is 1 at data and 0 at padding; None: such inputs are found by dataflow.
        cache: folder where statistics are kept between runs, under the hash of the model, the samples and what was
            observed; it is made if need be, and nothing is ever deleted from it. None: nothing is kept.

    Raises:
        CalibrationError: num_calibration_samples is less than 1, or an attribute has the wrong type.
    """

    data: Any = dataclasses.field(repr=False)
    num_calibration_samples: int | None = None
    transform: Callable[[Any], Any] | None = None
    padding_mask: str | None = None
    cache: str | os.PathLike[str] | None = None

    def __post_init__(self) -> None:
        count: Any  # what users give may be of any type
        transform: Any
        cache: Any
        count, transform, cache = self.num_calibration_samples, self.transform, self.cache
        if count is not None and (isinstance(count, bool) or not isinstance(count, int | np.integer) or count < 1):
            mend = "Give a whole number, 1 or more, or None for all samples"
            raise CalibrationError("num_calibration_samples", f"it is {count!r}", mend)
        if transform is not None and not callable(transform):
            mend = "Give a function of one sample, or None"
            raise CalibrationError("transform= of Calibration", f"it is a {type(transform).__name__}", mend)
        if cache is not None and not isinstance(cache, str | os.PathLike):
            mend = "Give the path of a folder, or None"
            raise CalibrationError("cache= of Calibration", f"it is a {type(cache).__name__}", mend)

    @classmethod
    def of(cls, given: Any) -> Calibration:
        """Return a Calibration as it is, and anything else as the data of one."""
        return given if isinstance(given, Calibration) else cls(given)

    def read(self, inputs: Sequence[ir.Value]) -> Iterator[Feed]:
        """Yield one checked feed per sample: input name -> array of the input's dtype.

        Args:
            inputs: inputs of the model that need a value.

        Raises:
            CalibrationError: the data is of no known form, the code that makes it fails, or a sample does not fit;
                names the sample, and the input that it does not fit.
        """
        limits = index_limits(inputs)
        for index, sample in enumerate(itertools.islice(stored(self.data, inputs), self.num_calibration_samples)):
            yield check(self.transformed(sample, index), index, inputs, limits)

    def transformed(self, sample: Any, index: int) -> Any:
        """Return what the transform makes of a sample; raises CalibrationError when it fails on it or makes nothing."""
        if self.transform is None:
            return sample
        with sample_code("transform= of Calibration", index):
            transformed = self.transform(sample)
        if transformed is None:
            reason = f"transform= of Calibration returned None of a {type(sample).__name__}"
            raise CalibrationError(f"calibration sample {index}", reason, "Let it return the inputs of the model")
        return transformed


def stored(data: Any, inputs: Sequence[ir.Value]) -> Iterator[Any]:
    """Yield the samples as the data gives them; stacked arrays are cut, and no more of a stream is read than is asked.

    Args:
        data: see `Calibration`.
        inputs: inputs of the model; how stacked arrays are cut depends on their rank.

    Raises:
        CalibrationError: the data is of no known form, a file cannot be read, or the code that makes the data fails.
    """
    if isinstance(data, str | os.PathLike):
        return _from_npz(pathlib.Path(data), inputs)
    if hasattr(data, "get_next"):
        return _from_reader(data)
    if isinstance(data, Mapping):
        return _from_arrays({str(name): as_array(stacked) for name, stacked in data.items()}, inputs)
    if is_array(data):
        name = str(inputs[0].name) if len(inputs) == 1 else ""
        return (piece[name] for piece in _from_arrays({name: as_array(data)}, inputs))
    if callable(data) and not isinstance(data, Iterable):
        return _from_iterable(data)
    if isinstance(data, Iterable) or hasattr(data, "__getitem__"):
        return _from_iterable(lambda: data)
    raise CalibrationError("calibration data", f"a {type(data).__name__} holds no samples", _FORMS)


def _from_iterable(make: Callable[[], Any]) -> Iterator[Any]:
    """Yield what the user's object gives; one with a length and no __iter__ gives as many items as it says."""
    with sample_code("the calibration data", 0):
        data = make()
        if not isinstance(data, Iterable) and not hasattr(data, "__getitem__"):
            reason = f"the callable returned a {type(data).__name__}, which holds no samples"
            raise CalibrationError("calibration data", reason, "Let it return an iterable of dicts, arrays or tuples")
        counted = hasattr(data, "__len__") and not isinstance(data, Iterable)
        samples = map(data.__getitem__, range(len(data))) if counted else iter(data)
    for index in itertools.count():
        with sample_code("the calibration data", index):
            try:
                sample = next(samples)
            except StopIteration:
                return
        yield sample


def _from_reader(reader: Any) -> Iterator[Any]:
    with sample_code("the calibration data reader", 0):
        sample = reader.get_next()
        if sample is None and hasattr(reader, "rewind"):
            reader.rewind()
            sample = reader.get_next()
    for index in itertools.count(1):
        if sample is None:
            return
        yield sample
        with sample_code("the calibration data reader", index):
            sample = reader.get_next()


def _from_arrays(stacked: Mapping[str, Array], inputs: Sequence[ir.Value]) -> Iterator[Feed]:
    def blocks(name: str, size: int) -> Iterator[Array]:
        array = stacked[name]
        return (array[start : start + size] for start in range(0, len(array), size))

    return _unstack({name: array.shape for name, array in stacked.items()}, blocks, inputs)


def _from_npz(path: pathlib.Path, inputs: Sequence[ir.Value]) -> Iterator[Feed]:
    """Read an .npz file a sample at a time, so that it may be larger than memory."""
    try:
        check_plain(path)
    except FileNotFoundError as error:
        raise CalibrationError(str(path), "there is no such file", _FORMS) from error
    except OSError as error:
        raise CalibrationError(str(path), f"it cannot be read: {error}", _FORMS) from error
    if not zipfile.is_zipfile(path):
        raise CalibrationError(str(path), "it is no .npz file", _FORMS)
    try:
        with zipfile.ZipFile(path) as archive:
            yield from _from_archive(archive, path, inputs)
    except (zipfile.BadZipFile, zlib.error, EOFError, ValueError) as error:
        raise CalibrationError(str(path), f"it is damaged ({error})", "Write it again, numpy.savez(...)") from error


def _from_archive(archive: zipfile.ZipFile, path: pathlib.Path, inputs: Sequence[ir.Value]) -> Iterator[Feed]:
    headers = {name.removesuffix(".npy"): _header(archive, name, path) for name in archive.namelist()}

    def blocks(name: str, size: int) -> Iterator[Array]:
        shape, dtype = headers[name]
        with archive.open(f"{name}.npy") as stream:
            _read_header(stream)
            for start in range(0, shape[0], size):
                block = (min(size, shape[0] - start), *shape[1:])
                content = bytearray(stream.read(math.prod(block) * dtype.itemsize))  # torch takes no array of bytes
                yield np.frombuffer(content, dtype).reshape(block)

    return _unstack({name: shape for name, (shape, _) in headers.items()}, blocks, inputs)


def _header(archive: zipfile.ZipFile, name: str, path: pathlib.Path) -> tuple[tuple[int, ...], np.dtype[Any]]:
    if not name.endswith(".npy"):
        raise CalibrationError(str(path), f"{name} is no array", "Save plain arrays, numpy.savez(...)")
    with archive.open(name) as stream:
        shape, fortran_order, dtype = _read_header(stream)
    if fortran_order or dtype.hasobject:
        reason = f"{name} holds Python objects" if dtype.hasobject else f"{name} is in column-major order"
        raise CalibrationError(str(path), reason, "Save plain arrays, numpy.ascontiguousarray(...)")
    return shape, dtype


def _read_header(stream: IO[bytes]) -> tuple[tuple[int, ...], bool, np.dtype[Any]]:
    version = np.lib.format.read_magic(stream)
    read_header = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
    return read_header(stream)


def _unstack(
    shapes: Mapping[str, tuple[int, ...]], blocks: Callable[[str, int], Iterator[Array]], inputs: Sequence[ir.Value]
) -> Iterator[Feed]:
    """Cut stacked arrays into samples; `blocks(name, size)` yields consecutive pieces of `size` along axis 0."""
    by_name = {str(value.name): value for value in inputs}
    pieces, counts = {}, {}
    for name, shape in shapes.items():
        if not shape:
            raise CalibrationError(f"input {name}", "it is a scalar, not stacked samples", "Stack samples along axis 0")
        wanted = by_name[name].shape if name in by_name else None
        first = wanted[0] if wanted is not None and len(wanted) > 0 else None
        size = first if isinstance(first, int) and wanted is not None and len(wanted) == len(shape) else 1
        counts[name] = -(-shape[0] // size)
        own_axis = wanted is not None and len(shape) == len(wanted) + 1
        pieces[name] = (block[0] for block in blocks(name, 1)) if own_axis else blocks(name, size)
    if len(set(counts.values())) > 1:
        fewest = min(counts, key=counts.__getitem__)
        reason = f"it has {counts[fewest]} samples where another input has {max(counts.values())}"
        raise CalibrationError(f"input {fewest}", reason, "Stack as many samples of each input")
    for sample in zip(*pieces.values(), strict=True):
        yield dict(zip(pieces, sample, strict=True))
