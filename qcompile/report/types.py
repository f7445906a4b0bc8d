"""Are the fields of a dataclass of the types that it says? What was read from a file may hold anything.

Knows the annotations that reports use: classes, unions, literals, lists, tuples of any length, mappings, dataclasses.
"""

from __future__ import annotations

import dataclasses
import types
import typing
from collections.abc import Mapping
from typing import Any, Literal, Union


def check_types(value: Any) -> None:
    """Raise TypeError, naming the field, where a field of a dataclass, or of one in it, is not what it is said to be.

    An int is a float; a bool is no number.
    """
    hints = typing.get_type_hints(type(value))
    for field in dataclasses.fields(value):
        found = getattr(value, field.name)
        if not _is(found, hints[field.name]):
            raise TypeError(f"{field.name} of {type(value).__name__} is {found!r}, which is no {field.type}")


def _is(value: Any, wanted: Any) -> bool:
    kind, inner = typing.get_origin(wanted) or wanted, typing.get_args(wanted)
    if kind is Any:
        return True
    if kind in (Union, types.UnionType):
        return any(_is(value, each) for each in inner)
    if kind is Literal:
        return value in inner
    if kind in (list, tuple):
        return isinstance(value, kind) and all(_is(item, inner[0]) for item in value)
    if issubclass(kind, Mapping):
        return isinstance(value, Mapping) and all(_is(key, inner[0]) and _is(value[key], inner[1]) for key in value)
    if kind in (int, float):
        return isinstance(value, (int, kind)) and not isinstance(value, bool)
    if isinstance(value, kind) and dataclasses.is_dataclass(kind):
        check_types(value)
    return isinstance(value, kind)
