"""The table from an operator of ONNX to the function that computes it with torch.

A function takes the operator's inputs by position and its attributes by name, so that what became an input in a later
opset (the axes of a reduction) is one parameter for both. Parameters with these names are filled by the lowering:

- `like`: a tensor on whose device new ones are made, or None for the processor;
- `outputs`: how many outputs of the node are named;
- `types`: types of the node's inputs in ONNX, None where they are not known;
- `result`: type of the node's first output in ONNX, or None;
- `counted`: whether the number of turns alone ends a Loop, see `bodies.is_counted`;
- `in_place`: whether the first input is one of the model that nothing else reads, so that it may be written to.
"""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Callable
from typing import Any, TypeVar

FILLED = ("like", "outputs", "types", "result", "counted", "in_place")
"""Parameters that the lowering fills, see above."""

_Function = TypeVar("_Function", bound=Callable[..., Any])


@dataclasses.dataclass(frozen=True)
class Operator:
    """An entry of the table.

    Attributes:
        function: what computes it; a tuple for an operator that may have several outputs.
        since: first opset of the domain in which the operator means this.
        host: names of the parameters that are numbers in Python (shapes, axes), not tensors.
        either: names of those that are numbers where they are constants or follow from shapes, else tensors.
        random: it draws random numbers, so that nothing is computed when it is lowered.
        parameters: names of the function's parameters; empty where it is one of torch's and takes inputs alone.
        variadic: any number of inputs may follow the parameters.
    """

    function: Callable[..., Any]
    since: int
    host: frozenset[str]
    either: frozenset[str]
    random: bool
    parameters: tuple[str, ...]
    variadic: bool

    def is_host(self, position: int, known: bool = False) -> bool:
        """True where the input at this position is wanted as numbers in Python; `known`: it can be without waiting."""
        name = self.parameters[position] if position < len(self.parameters) else ""
        return name in self.host or (known and name in self.either)


_TABLE: dict[tuple[str, str], list[Operator]] = {}
_ON_HOST: dict[str, tuple[Callable[..., Any], int | None]] = {}


def operator(
    *names: str,
    domain: str = "",
    since: int = 1,
    host: tuple[str, ...] = (),
    either: tuple[str, ...] = (),
    random: bool = False,
    settings_of: Callable[..., Any] | None = None,
) -> Callable[[_Function], _Function]:
    """Decorator: enter a function for these operators, see `Operator`.

    One that hands what attributes it does not name itself to another function, as `**settings`, has those of
    `settings_of`.
    """

    def enter(function: _Function) -> _Function:
        entry = _entry(function, since, frozenset(host), frozenset(either), random)
        if settings_of is not None:
            entry = dataclasses.replace(entry, parameters=(*entry.parameters, *_keywords(settings_of)))
        for name in names:
            _enter(name, domain, entry)
        return function

    return enter


def enter_torch(functions: dict[str, Callable[..., Any]]) -> None:
    """Enter functions of torch that take the inputs of the operator in their order, and no attributes."""
    for name, function in functions.items():
        _enter(name, "", Operator(function, 1, frozenset(), frozenset(), False, (), True))


def _enter(name: str, domain: str, entry: Operator) -> None:
    _TABLE.setdefault((domain, name), []).append(entry)


def _entry(
    function: Callable[..., Any], since: int, host: frozenset[str], either: frozenset[str], random: bool
) -> Operator:
    given = inspect.signature(function).parameters
    variadic = any(parameter.kind is parameter.VAR_POSITIONAL for parameter in given.values())
    unnamed = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
    parameters = tuple(key for key, parameter in given.items() if parameter.kind not in unnamed)
    return Operator(function, since, host, either, random, parameters, variadic)


def _keywords(function: Callable[..., Any]) -> tuple[str, ...]:
    given = inspect.signature(function).parameters
    return tuple(key for key, parameter in given.items() if parameter.kind is inspect.Parameter.KEYWORD_ONLY)


def on_host(*names: str, symbolic: int | None = None) -> Callable[[_Function], _Function]:
    """Decorator: enter a function that computes these operators of the standard domain on numbers in Python.

    The others of its inputs than the first `symbolic` must be constants, for they decide on the size of what is made,
    or on which numbers are taken; None: all may be symbolic.
    """

    def enter(function: _Function) -> _Function:
        _ON_HOST.update(dict.fromkeys(names, (function, symbolic)))
        return function

    return enter


def find(domain: str, name: str, opset: int) -> Operator | None:
    """The entry for an operator in an opset of its domain, None where there is none."""
    fitting = [entry for entry in _TABLE.get((domain, name), []) if entry.since <= opset]
    return max(fitting, key=lambda entry: entry.since, default=None)


def find_on_host(name: str) -> tuple[Callable[..., Any], int | None] | None:
    """The function for an operator on numbers in Python, and how many inputs may be symbolic, see `on_host`."""
    return _ON_HOST.get(name)
