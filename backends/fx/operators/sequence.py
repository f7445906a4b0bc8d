"""Sequences, which are lists of tensors, and optional values, which may be None."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from qcompile.backends.fx.host import Host, device_of, ints, single
from qcompile.backends.fx.table import operator


@operator("SequenceEmpty")
def sequence_empty(*, dtype: int = 1) -> list[Tensor]:  # noqa: ARG001 - a list holds any
    """A sequence of no tensors."""
    return []


@operator("SequenceConstruct")
def sequence_construct(*tensors: Tensor) -> list[Tensor]:
    """A sequence of these tensors."""
    return list(tensors)


@operator("SequenceInsert", host=("position",))
def sequence_insert(sequence: list[Tensor], tensor: Tensor, position: Host | None = None) -> list[Tensor]:
    """The sequence with a tensor more, last where no position is given."""
    place = len(sequence) if position is None else int(single(position))
    return [*sequence[:place], tensor, *sequence[place:]]


@operator("SequenceErase", host=("position",))
def sequence_erase(sequence: list[Tensor], position: Host | None = None) -> list[Tensor]:
    """The sequence without a tensor, the last where no position is given."""
    gone = (-1 if position is None else int(single(position))) % len(sequence)
    return [tensor for place, tensor in enumerate(sequence) if place != gone]


@operator("SequenceAt", host=("position",))
def sequence_at(sequence: list[Tensor], position: Host) -> Tensor:
    """One tensor of a sequence."""
    return sequence[int(single(position))]


@operator("SequenceLength")
def sequence_length(sequence: list[Tensor], *, like: object) -> Tensor:
    """How many tensors a sequence has."""
    return torch.full((), len(sequence), dtype=torch.int64, device=device_of(like))


@operator("ConcatFromSequence")
def concat_from_sequence(sequence: list[Tensor], *, axis: int, new_axis: int = 0) -> Tensor:
    """The tensors of a sequence one behind the other, along a new axis or one of theirs."""
    return torch.stack(sequence, axis) if new_axis else torch.cat(sequence, axis)


@operator("SplitToSequence", host=("split",))
def split_to_sequence(x: Tensor, split: Host | None = None, *, axis: int = 0, keepdims: int = 1) -> list[Tensor]:
    """Parts of a tensor: of these sizes, of one size, or single entries."""
    if split is None:
        parts = torch.split(x, 1, axis)
        return list(parts) if keepdims else [part.squeeze(axis) for part in parts]
    return list(torch.split(x, ints(split) if split.shape else int(single(split)), axis))


@operator("Optional")
def optional(value: Any = None) -> Any:
    """The value, or none."""
    return value


@operator("OptionalHasElement")
def optional_has_element(value: Any = None, *, like: object) -> Tensor:
    """Whether there is a value."""
    return torch.full((), value is not None, dtype=torch.bool, device=device_of(like))


@operator("OptionalGetElement")
def optional_get_element(value: Any) -> Any:
    """The value that there is."""
    return value
