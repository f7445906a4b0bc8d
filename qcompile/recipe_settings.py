"""The settings that a recipe may give to a pass: the fields of its dataclass, and how plain data gets their types."""

from __future__ import annotations

import dataclasses
import importlib
import math
import pkgutil
import types
import typing
from collections.abc import Mapping
from typing import Any

from qcompile.contract import Pass
from qcompile.errors import RecipeError
from qcompile.misspelt import mend

BOUND = ("calibrator", "finished", "ignore", "operators", "runs")
"""Fields that the compiler fills in, not the recipe."""


def pass_names() -> list[str]:
    """Return the names of the passes that are installed."""
    package = importlib.import_module("qcompile.passes")
    return sorted(
        module.name
        for module in pkgutil.iter_modules(package.__path__)
        if not module.name.startswith("_") and _defined(module.name) is not None
    )


def pass_class(name: str) -> type[Any]:
    """Return the class of a pass by the name of its file; imports that file only.

    Raises:
        RecipeError: there is no such pass.
    """
    package = importlib.import_module("qcompile.passes")
    exists = any(module.name == name for module in pkgutil.iter_modules(package.__path__))
    cls = _defined(name) if exists else None
    if cls is None:
        raise RecipeError(str(name), "there is no such pass", mend(name, pass_names()))
    return cls


def settings_of(name: str) -> dict[str, Any]:
    """Return the settings of a pass: name -> type."""
    cls = pass_class(name)
    fields = {field.name: field.type for field in dataclasses.fields(cls) if field.init and field.name not in BOUND}
    # Only these annotations are resolved: the others may name types that the pass imports for type checkers alone.
    holder = types.SimpleNamespace(__annotations__=fields)
    return typing.get_type_hints(holder, globalns=vars(importlib.import_module(cls.__module__)))


def convert(annotation: Any, value: Any, subject: str) -> Any:
    """Return plain data as an instance of the annotated type: mappings become dataclasses, lists become tuples.

    Raises:
        RecipeError: the value is not of this type; for a closed set of names, with the nearest.
    """
    origin, arguments = typing.get_origin(annotation), typing.get_args(annotation)
    if origin in (typing.Union, types.UnionType):
        return _union(arguments, value, subject)
    if origin is typing.Literal:
        if any(type(value) is type(option) and value == option for option in arguments):
            return value
        raise RecipeError(subject, f"{value!r} is not valid", mend(str(value), [str(option) for option in arguments]))
    if dataclasses.is_dataclass(annotation) and isinstance(annotation, type):
        return _dataclass(annotation, value, subject)
    if origin is tuple and isinstance(value, (list, tuple)):
        return tuple(convert(arguments[0], item, subject) for item in value)
    if annotation is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if annotation is float and isinstance(value, float) and not math.isfinite(value):
        raise RecipeError(subject, f"{value!r} is not finite", "Give a finite number")
    if isinstance(annotation, type) and type(value) is annotation:
        return value
    if annotation in (None, type(None)) and value is None:
        return None
    wanted = "null" if annotation in (None, type(None)) else getattr(annotation, "__name__", str(annotation))
    raise RecipeError(subject, f"{value!r} is a {type(value).__name__}", f"Give a value of type {wanted}")


def _defined(name: str) -> type[Any] | None:
    module = importlib.import_module(f"qcompile.passes.{name}")
    cls = getattr(module, "".join(part.capitalize() for part in name.split("_")), None)
    return cls if isinstance(cls, type) and issubclass(cls, Pass) else None


def _union(members: tuple[Any, ...], value: Any, subject: str) -> Any:
    refusals = []
    for member in members:
        try:
            return convert(member, value, subject)
        except RecipeError as error:
            refusals.append(error)
    mends = ", or: ".join(dict.fromkeys(error.mend for error in refusals))
    raise RecipeError(subject, f"{value!r} is not valid", mends)


def _dataclass(annotation: type[Any], value: Any, subject: str) -> Any:
    hints = typing.get_type_hints(annotation)
    data = (
        {field.name: getattr(value, field.name) for field in dataclasses.fields(annotation)}
        if isinstance(value, annotation)
        else value
    )
    if not isinstance(data, Mapping):
        example = next((f"{{{field.name}: {field.default}}}" for field in dataclasses.fields(annotation)), "{}")
        advice = f"Give a mapping of {', '.join(hints)}, such as {example}"
        raise RecipeError(subject, f"{value!r} is not a {annotation.__name__}", advice)
    for key in data:
        if key not in hints:
            raise RecipeError(f"{subject}.{key}", "there is no such setting", mend(str(key), hints))
    converted = {key: convert(hints[key], item, f"{subject}.{key}") for key, item in data.items()}
    try:
        return annotation(**converted)
    except (TypeError, ValueError) as error:
        raise RecipeError(subject, str(error), "Give another value") from error
