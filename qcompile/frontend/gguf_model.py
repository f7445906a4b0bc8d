"""A decoder in a GGUF file: its weights, dequantized when they are read or as the file has them."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import gguf
import numpy as np

from qcompile.errors import ModelError, UnsupportedError
from qcompile.frontend.gguf_blocks import FORMS, unpack
from qcompile.frontend.gguf_config import architecture_of
from qcompile.frontend.gguf_header import Header, TensorPlace
from qcompile.frontend.gguf_names import Names
from qcompile.frontend.gguf_tokenizer import check_tokenizer, save_tokenizer
from qcompile.stored_blocks import Blocks, Stored, StoredTensor

_AGAIN = "Convert the model again"
_OTHERWISE = "Use a recipe that starts from the dequantized weights, such as w4a16-rtn"


@dataclasses.dataclass(frozen=True)
class GGUFModel:
    """A decoder in a GGUF file, which stays mapped: nothing of it is held twice.

    Attributes:
        path: of the file.
        config: of transformers.
        header: the metadata and the places of the tensors.
        names: what the tensors are called.
        sources: from a parameter to the tensors of the file that it is made of; several for stacked experts.
        data: the bytes of the file, mapped, uint8.
    """

    path: Path
    config: Any
    header: Header
    names: Names
    sources: Mapping[str, tuple[str, ...]]
    data: np.ndarray

    def weights(self) -> dict[str, StoredTensor]:
        """Return each parameter as `state_dict` of transformers has it: float32, dequantized each time it is read.

        A matrix knows how the file has it, see `stored`.

        Parameters that are the same (a tied output layer) have the same tensor. Reading one raises ModelError where it
        is of another shape than the configuration says.
        """
        found: dict[tuple[str, ...], StoredTensor] = {}
        return {name: found.setdefault(self._sources(name), self._weight(name)) for name in self.names.shapes}

    def blocks(self, parameter: str) -> Blocks:
        """Return a matrix as the file has it, [out, in], with the rows in the order of transformers.

        Raises:
            UnsupportedError: integers with a scale do not represent exactly what the file has.
        """
        place, order = self._kept_place(parameter)
        return unpack(self._rows(place)[order], place.kind)

    def stored(self, parameter: str) -> Stored | str:
        """Return how the file has a matrix, with the errors of `blocks`; or why integers with a scale are not it."""
        try:
            place, _ = self._kept_place(parameter)
        except UnsupportedError as error:
            return error.reason
        form = FORMS[place.kind]
        return Stored(place.kind.name, form.bits, form.group_size, lambda: self.blocks(parameter))

    def rows(self, architecture: str, tensor: str, kind: gguf.GGMLQuantizationType) -> np.ndarray | None:
        """Return the bytes of a tensor, rows of uint8, where the file has it in this type; see `artifact_gguf.AsItIs`.

        None too where the file calls the architecture otherwise, and may have rows in another order.
        """
        place = self.header.tensors.get(tensor)
        same = place is not None and place.kind == kind
        if place is None or not same or architecture_of(self.header, str(self.path)) != architecture:
            return None
        return self._rows(place)

    def check_tokenizer(self) -> None:
        """Raise what `save_tokenizer` does of a file without a tokenizer, or with one that is not known here."""
        check_tokenizer(self.path, self.header)

    def save_tokenizer(self, folder: Path) -> None:
        """Write the files of the tokenizer into a folder that exists; errors as of `gguf_tokenizer.save_tokenizer`."""
        save_tokenizer(self.path, self.header, folder)

    def _kept_place(self, parameter: str) -> tuple[TensorPlace, np.ndarray]:
        """Where the one tensor of a parameter is, and the order of its rows."""
        names = self._sources(parameter)
        if len(names) != 1:
            raise UnsupportedError(parameter, f"the file has it in {len(names)} tensors", _OTHERWISE)
        place = self.header.tensors[names[0]]
        if place.kind not in FORMS:
            known = ", ".join(kind.name for kind in FORMS)
            raise UnsupportedError(parameter, f"the file has it as {place.kind.name}, none of {known}", _OTHERWISE)
        order = self.names.row_order(names[0], place.shape)
        if order is None or place.shape != self.names.shapes[parameter]:
            reason = "more than the order of its rows differs between the file and transformers"
            raise UnsupportedError(parameter, reason, _OTHERWISE)
        return place, order

    def _sources(self, parameter: str) -> tuple[str, ...]:
        return self.sources.get(parameter) or self.sources[self.names.shared[parameter]]

    def _weight(self, parameter: str) -> StoredTensor:
        shape, tensors = self.names.shapes[parameter], self._sources(parameter)

        def read() -> np.ndarray:
            array = np.ascontiguousarray(self.names.assemble(parameter, tensors, self._values), dtype=np.float32)
            if array.shape != shape:
                reason = f"has {parameter} as {list(array.shape)}, and its metadata say {list(shape)}"
                raise ModelError(str(self.path), reason, _AGAIN)
            return array

        return StoredTensor(read, shape, parameter, self.stored(parameter))

    def _values(self, tensor: str) -> np.ndarray:
        place = self.header.tensors[tensor]
        return gguf.dequantize(self._rows(place), place.kind).reshape(place.shape)

    def _rows(self, place: TensorPlace) -> np.ndarray:
        return self.data[place.start : place.start + place.nbytes].reshape(-1, place.row_bytes)


def sources_of(header: Header, names: Names, data: np.ndarray, subject: str) -> dict[str, tuple[str, ...]]:
    """Return the tensors that each parameter is made of; it is called before any is read.

    Raises:
        ModelError: the tensors of the file are not those of the decoder that its metadata describe.
        UnsupportedError: numbers are of a type that the gguf package does not dequantize.
    """
    found: dict[str, list[str]] = {}
    for name in header.tensors:
        parameter = names.parameter_of(name)
        if parameter is None or parameter not in names.shapes:
            reason = f"has the tensor {name!r}, which transformers' decoder leaves out: it would compute something else"
            raise ModelError(subject, reason, "Start from the folder of the model that it was converted from")
        found.setdefault(parameter, []).append(name)
    for parameter, shape in names.shapes.items():
        tensors = found.get(parameter, [])
        if not tensors and names.shared.get(parameter) not in found:
            raise ModelError(subject, f"has no weights for {parameter}", _AGAIN)
        stated = sum(math.prod(header.tensors[name].shape) for name in tensors)
        if tensors and stated != math.prod(shape):
            reason = f"has {stated} numbers for {parameter}, which its metadata say to be {list(shape)}"
            raise ModelError(subject, reason, _AGAIN)
    _check_types(header, data, subject)
    return {parameter: tuple(tensors) for parameter, tensors in found.items()}


def _check_types(header: Header, data: np.ndarray, subject: str) -> None:
    """Dequantize one block of each type."""
    for kind, place in {place.kind: place for place in header.tensors.values()}.items():
        block = data[place.start : place.start + gguf.GGML_QUANT_SIZES[kind][1]].reshape(1, -1)
        try:
            gguf.dequantize(block, kind)
        except NotImplementedError as error:
            reason = f"holds tensors of the type {kind.name}, which the gguf package does not dequantize"
            raise UnsupportedError(subject, reason, "Convert the model to Q8_0 or F16") from error
