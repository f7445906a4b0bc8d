"""Keeps checked calibration samples on disk, so that any data can be gone through again in constant memory."""

from __future__ import annotations

import dataclasses
import hashlib
import os
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


class FeedFile:
    """Feeds in a temporary file, which goes when this does.

    It has no name, but on Windows: samples may be private, and nothing is left of them where the process is killed.
    """

    def __init__(self) -> None:
        self._file = tempfile.TemporaryFile(prefix="qcompile-calibration-")  # noqa: SIM115  # open as long as this is
        weakref.finalize(self, self._file.close)
        self._places: list[tuple[int, dict[str, np.dtype[Any]]]] = []

    @property
    def count(self) -> int:
        """Number of feeds."""
        return len(self._places)

    def append(self, feed: Feed) -> None:
        """Store a feed; of texts the characters."""
        start = self._file.seek(0, os.SEEK_END)
        for array in feed.values():
            np.save(self._file, as_characters(array))
        self._file.flush()  # where the disk is full, that is said here
        self._places.append((start, {name: array.dtype for name, array in feed.items()}))

    def __iter__(self) -> Iterator[Feed]:
        """Yield the feeds in order."""
        for start, dtypes in self._places:
            self._file.seek(start)  # another iterator may have read meanwhile
            yield {name: _restored(np.load(self._file), dtype) for name, dtype in dtypes.items()}


class Spool(FeedFile):
    """Checked samples, and what they are.

    Attributes:
        fingerprint: sha256 over names, dtypes, shapes and contents of all samples in order.
        levels: input name -> whether it looks like a mask.
    """

    def __init__(self, calibration: Calibration, inputs: Sequence[ir.Value]) -> None:
        super().__init__()
        self.levels = {str(value.name): Levels() for value in inputs}
        digest = hashlib.sha256()
        for index, feed in enumerate(calibration.read(inputs)):
            for name, array in feed.items():
                stored = as_characters(array)
                digest.update(f"{name} {stored.dtype} {stored.shape}".encode())
                digest.update(np.ascontiguousarray(stored).tobytes())
                self.levels[name].add(stored, index)
            self.append(feed)
        if self.count == 0:
            raise CalibrationError(
                "calibration data", "it holds no sample", "Give one at least; a generator serves once"
            )
        self.fingerprint = digest.hexdigest()


def as_characters(array: Array) -> Array:
    """Return an array of texts as its characters: of objects there are only addresses; others as they are."""
    return array.astype(str) if array.dtype.hasobject else array


def _restored(array: Array, dtype: np.dtype[Any]) -> Array:
    """Return a stored array as it was: numpy's format forgets the name of a dtype like bfloat16."""
    return array.astype(object) if dtype.hasobject else array.view(dtype)
