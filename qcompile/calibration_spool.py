"""Keeps checked calibration samples on disk, so that any data can be gone through again in constant memory."""

from __future__ import annotations

import dataclasses
import hashlib
import tempfile
import weakref
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import onnx_ir as ir

from qcompile.calibration_data import Calibration
from qcompile.calibration_sample import Array, Feed
from qcompile.errors import CalibrationError


@dataclasses.dataclass
class Levels:
    """Which of 0 and 1 an input holds, over all samples.

    Attributes:
        binary: True while it holds nothing but 0 and 1.
        seen: which of the two it holds anywhere.
        constant_in: level -> the first sample that holds nothing else.
    """

    binary: bool = True
    seen: set[int] = dataclasses.field(default_factory=set)
    constant_in: dict[int, int] = dataclasses.field(default_factory=dict)

    def masks_out(self, padding: int) -> bool:
        """True when the input holds nothing but 0 and 1, and somewhere the level that means padding."""
        return self.binary and padding in self.seen

    def add(self, array: Array, index: int) -> None:
        """Take the array of one sample."""
        if not self.binary or not np.all((array == 0) | (array == 1)):
            self.binary = False
            return
        # Nothing but the empty cache of a decoder is empty.
        here = {int(bool(level)) for level in (array.min(), array.max())} if array.size else set()
        self.seen |= here
        for level in here if len(here) == 1 else ():
            self.constant_in.setdefault(level, index)


class Spool:
    """Checked samples in a temporary file, which goes when the spool does.

    It has no name, but on Windows: samples may be private, and nothing is left of them where the process is killed.

    Attributes:
        count: number of samples.
        fingerprint: sha256 over names, dtypes, shapes and contents of all samples in order.
        levels: input name -> whether it looks like a mask.
    """

    def __init__(self, calibration: Calibration, inputs: Sequence[ir.Value]) -> None:
        self._file = tempfile.TemporaryFile(prefix="qcompile-calibration-")  # noqa: SIM115  # open as long as the spool
        weakref.finalize(self, self._file.close)
        self._starts: list[int] = []
        self.levels = {str(value.name): Levels() for value in inputs}
        digest = hashlib.sha256()
        for feed in calibration.read(inputs):
            self._dtypes = {name: array.dtype for name, array in feed.items()}
            stored = {name: array.astype(str) if array.dtype.hasobject else array for name, array in feed.items()}
            for name, array in stored.items():  # of texts the characters: of objects there are only addresses
                digest.update(f"{name} {array.dtype} {array.shape}".encode())
                digest.update(np.ascontiguousarray(array).tobytes())
                self.levels[name].add(array, len(self._starts))
            self._starts.append(self._file.tell())
            for array in stored.values():
                np.save(self._file, array)
            self._file.flush()  # where the disk is full, that is said here
        self.count = len(self._starts)
        if self.count == 0:
            raise CalibrationError(
                "calibration data", "it holds no sample", "Give one at least; a generator serves once"
            )
        self.fingerprint = digest.hexdigest()

    def __iter__(self) -> Iterator[Feed]:
        """Yield the samples in order."""
        for start in self._starts:
            self._file.seek(start)  # another iterator may have read meanwhile
            yield {name: _restored(np.load(self._file), dtype) for name, dtype in self._dtypes.items()}


def _restored(array: Array, dtype: np.dtype[Any]) -> Array:
    """Return a stored array as it was: numpy's format forgets the name of a dtype like bfloat16."""
    return array.astype(object) if dtype.hasobject else array.view(dtype)
