"""What a compiled program takes for granted of the sizes of its inputs, as torch.export has written it down.

Conditions are comparisons of integers, in Python's words: `L['x'].size()[0] == 2 * L['w'].size()[1]`. They are computed
here, not run: nothing but arithmetic means anything.
"""

from __future__ import annotations

import ast
import operator
from collections.abc import Callable, Mapping, Sequence
from typing import Any

Sizes = Mapping[str, Sequence[int]]
"""Name of a parameter of the program -> the shape of what it is given."""

_ARITHMETIC: Mapping[type[ast.AST], Callable[..., Any]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.FloorDiv: operator.floordiv,
    ast.Mod: operator.mod,
    ast.Pow: operator.pow,
    ast.USub: operator.neg,
    ast.Not: operator.not_,
    ast.Eq: operator.eq,
    ast.NotEq: operator.ne,
    ast.Lt: operator.lt,
    ast.LtE: operator.le,
    ast.Gt: operator.gt,
    ast.GtE: operator.ge,
}
_FUNCTIONS: Mapping[str, Callable[..., Any]] = {"min": min, "max": max, "Min": min, "Max": max, "abs": abs}


def holds(condition: str, sizes: Sizes) -> bool:
    """Whether a condition holds for some sizes, which one that divides by 0 does not.

    Raises ValueError for what is no condition, KeyError for a name that has no sizes.
    """
    try:
        return bool(_value(ast.parse(condition, mode="eval").body, sizes))
    except ZeroDivisionError:
        return False
    except (SyntaxError, IndexError, RecursionError, AttributeError) as error:
        raise ValueError(f"{condition} is no condition on sizes") from error


def _value(node: ast.expr, sizes: Sizes) -> Any:
    match node:
        case ast.Constant(value=int() as number):
            return number
        case ast.BinOp(left=left, op=op, right=right) if type(op) in _ARITHMETIC:
            return _ARITHMETIC[type(op)](_value(left, sizes), _value(right, sizes))
        case ast.UnaryOp(op=op, operand=operand) if type(op) in _ARITHMETIC:
            return _ARITHMETIC[type(op)](_value(operand, sizes))
        case ast.BoolOp(op=op, values=values):
            found = [_value(value, sizes) for value in values]
            return all(found) if isinstance(op, ast.And) else any(found)
        case ast.Compare(left=left, ops=ops, comparators=others) if all(type(op) in _ARITHMETIC for op in ops):
            values = [_value(value, sizes) for value in (left, *others)]
            pairs = zip(ops, values, values[1:], strict=False)
            return all(_ARITHMETIC[type(op)](first, second) for op, first, second in pairs)
        case ast.Call(func=ast.Name(id=name), args=arguments, keywords=[]) if name in _FUNCTIONS:
            return _FUNCTIONS[name](*(_value(argument, sizes) for argument in arguments))
        case ast.Subscript(
            value=ast.Call(
                func=ast.Attribute(
                    value=ast.Subscript(value=ast.Name(id="L"), slice=ast.Constant(value=name)), attr="size"
                ),
                args=[],
            ),
            slice=ast.Constant(value=int() as axis),
        ):
            return sizes[str(name)][axis]
    raise ValueError(f"{ast.unparse(node)} is no condition on sizes")
