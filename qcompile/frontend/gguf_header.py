"""The head of a GGUF file: its metadata and where its tensors lie, checked before anything else reads the file.

The `gguf` package's reader trusts the file: it loops over a count of 2**60 that a damaged file states, and makes two
arrays of each word of the vocabulary, which takes seconds. Here every length is held against what is left of the file
before it is used. The format: docs/gguf.md of ggml.
"""

from __future__ import annotations

import dataclasses
import math
import struct
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

import gguf
import numpy as np

from qcompile.errors import ModelError, UnsafeModelError

MOST_TENSORS = 1 << 17
MOST_FIELDS = 1 << 16
MOST_ELEMENTS = 1 << 22
"""Of one array of metadata; the largest vocabularies have a quarter of a million tokens."""

_ELEMENTS_KEPT = 1 << 12
"""Numbers in an array up to which its content is kept: sizes by layer, and no scores of a vocabulary."""

_MOST_AXES = 4
_VERSIONS = (2, 3)
_KIND = gguf.GGUFValueType
_FORMATS: Mapping[int, str] = MappingProxyType(
    {
        _KIND.UINT8: "B",
        _KIND.INT8: "b",
        _KIND.UINT16: "H",
        _KIND.INT16: "h",
        _KIND.UINT32: "I",
        _KIND.INT32: "i",
        _KIND.FLOAT32: "f",
        _KIND.BOOL: "?",
        _KIND.UINT64: "Q",
        _KIND.INT64: "q",
        _KIND.FLOAT64: "d",
    }
)
_AGAIN = "Download or convert the model again"


@dataclasses.dataclass(frozen=True)
class Field:
    """One entry of the metadata.

    Attributes:
        kind: type of the value.
        value: number, text, or list of numbers; None for arrays of texts and for long ones.
        element: type of the elements of an array.
        count: number of the elements of an array.
    """

    kind: gguf.GGUFValueType
    value: Any
    element: gguf.GGUFValueType | None = None
    count: int = 0


@dataclasses.dataclass(frozen=True)
class TensorPlace:
    """Where a tensor lies in the file.

    Attributes:
        shape: slowest axis first, as in torch: [out, in] of a linear.
        kind: how the numbers are stored.
        start: first byte, from the beginning of the file.
        nbytes: how many bytes it takes.
    """

    shape: tuple[int, ...]
    kind: gguf.GGMLQuantizationType
    start: int
    nbytes: int

    @property
    def row_bytes(self) -> int:
        """Bytes of the last axis, whose numbers are stored in blocks."""
        block, size = gguf.GGML_QUANT_SIZES[self.kind]
        return self.shape[-1] // block * size


@dataclasses.dataclass(frozen=True)
class Header:
    """What a GGUF file says of itself before its data.

    Attributes:
        metadata: by name.
        tensors: by name, in the order of the file.
    """

    metadata: Mapping[str, Field]
    tensors: Mapping[str, TensorPlace]


def read_header(data: np.ndarray, subject: str) -> Header:
    """Read and check the head of a GGUF file.

    Args:
        data: the bytes of the file, uint8 [size]; only those of the head are touched.
        subject: the file, in words.

    Raises:
        ModelError: it is no GGUF file, is truncated, or contradicts itself.
        UnsafeModelError: it states more entries than any model has.
    """
    if data[:4].tobytes() != b"GGUF":
        raise ModelError(subject, "is not a GGUF file: it does not begin with these four letters", _AGAIN)
    head = _Head(data.data, subject, 4)
    version = head.number("I")
    if version not in _VERSIONS:
        stated = f"states version {version}" if version < 1 << 16 else "is for processors that are big-endian"
        raise ModelError(subject, f"{stated}; versions 2 and 3, little-endian, can be read", _AGAIN)
    tensors, fields = head.count(MOST_TENSORS, 24, "tensors"), head.count(MOST_FIELDS, 13, "entries of metadata")
    metadata = {}
    for _ in range(fields):
        name = head.text()
        if name in metadata:
            raise head.broken(f"has the metadata {name!r} twice")
        metadata[name] = head.field()
    stated_places = head.places(tensors)
    alignment = _alignment(metadata, head)
    begin = -(-head.position // alignment) * alignment
    places = {
        name: head.place(name, shape, kind, offset, begin, alignment)
        for name, (shape, kind, offset) in stated_places.items()
    }
    return Header(MappingProxyType(metadata), MappingProxyType(places))


def _alignment(metadata: Mapping[str, Field], head: _Head) -> int:
    field = metadata.get("general.alignment", Field(_KIND.UINT32, gguf.GGUF_DEFAULT_ALIGNMENT))
    if field.kind != _KIND.UINT32 or field.value < 1 or field.value & (field.value - 1):
        raise head.broken("aligns its data to what is no power of two")
    return int(field.value)


class _Head:
    """A place in the head of a file; every read is held against the end of the file."""

    def __init__(self, data: memoryview, subject: str, position: int) -> None:
        self.data, self.subject, self.position = data, subject, position

    def broken(self, reason: str) -> ModelError:
        return ModelError(self.subject, reason, _AGAIN)

    def take(self, nbytes: int) -> int:
        """Step over bytes; return where they begin."""
        begin = self.position
        if nbytes > len(self.data) - begin:
            raise self.broken(f"is truncated: it ends at byte {len(self.data)}, within what it states of itself")
        self.position = begin + nbytes
        return begin

    def number(self, form: str) -> Any:
        form = "<" + form
        return struct.unpack_from(form, self.data, self.take(struct.calcsize(form)))[0]

    def count(self, most: int, each: int, what: str) -> int:
        """Read a number of things that take at least `each` bytes."""
        stated = int(self.number("Q"))
        if stated > (len(self.data) - self.position) // each:
            raise self.broken(f"is truncated: it states {stated} {what}, for which it is too short")
        if stated > most:
            raise UnsafeModelError(self.subject, f"states {stated} {what}; no model has more than {most}", _AGAIN)
        return stated

    def text(self) -> str:
        length = int(self.number("Q"))
        begin = self.take(length)
        try:
            return str(self.data[begin : begin + length], "utf-8")
        except UnicodeDecodeError as error:
            raise self.broken(f"has text at byte {begin} that is not UTF-8") from error

    def kind(self) -> gguf.GGUFValueType:
        stated = self.number("I")
        try:
            return _KIND(stated)
        except ValueError as error:
            raise self.broken(f"has metadata of the unknown type {stated}") from error

    def field(self) -> Field:
        kind = self.kind()
        if kind == _KIND.STRING:
            return Field(kind, self.text())
        if kind in _FORMATS:
            return Field(kind, self.number(_FORMATS[kind]))
        element = self.kind()
        if element == _KIND.STRING:
            count = self.count(MOST_ELEMENTS, 8, "texts in an array")
            for _ in range(count):
                self.text()
            return Field(kind, None, element, count)
        if element not in _FORMATS:
            raise self.broken("has an array of arrays in its metadata, which no reader of GGUF takes")
        form, size = _FORMATS[element], struct.calcsize("<" + _FORMATS[element])
        count = self.count(MOST_ELEMENTS, size, "numbers in an array")
        begin = self.take(count * size)
        kept = list(struct.unpack_from(f"<{count}{form}", self.data, begin)) if count <= _ELEMENTS_KEPT else None
        return Field(kind, kept, element, count)

    def places(self, count: int) -> dict[str, tuple[tuple[int, ...], int, int]]:
        """Shape, type and offset of each tensor, as the file states them."""
        found: dict[str, tuple[tuple[int, ...], int, int]] = {}
        for _ in range(count):
            name = self.text()
            if name in found:
                raise self.broken(f"has the tensor {name!r} twice")
            axes = self.number("I")
            if not 1 <= axes <= _MOST_AXES:
                raise self.broken(f"states {axes} axes of the tensor {name!r}; GGUF has 1 to {_MOST_AXES}")
            shape = tuple(int(self.number("Q")) for _ in range(axes))
            found[name] = shape[::-1], self.number("I"), int(self.number("Q"))
        return found

    def place(
        self, name: str, shape: tuple[int, ...], kind: int, offset: int, begin: int, alignment: int
    ) -> TensorPlace:
        """Check what the file states of a tensor."""
        try:
            known = gguf.GGMLQuantizationType(kind)
        except ValueError as error:
            raise self.broken(f"has the tensor {name!r} of the unknown type {kind}") from error
        block, size = gguf.GGML_QUANT_SIZES[known]
        if 0 in shape or shape[-1] % block:
            raise self.broken(f"states the shape {list(shape)} of the tensor {name!r}, not one of {known.name}")
        nbytes = math.prod(shape) // block * size
        if offset % alignment or begin + offset + nbytes > len(self.data):
            raise self.broken(f"is truncated, or lies about the tensor {name!r}: it would not be inside the file")
        return TensorPlace(shape, known, begin + offset, nbytes)
