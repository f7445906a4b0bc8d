"""If, Loop and Scan: in Python where the module runs, torch's own operators where it is compiled or exported.

A body is a module and what it reads from around, which follows its own inputs.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, TypeAlias

import torch
from torch import Tensor
from torch._higher_order_ops import while_loop

from qcompile.backends.fx.host import Host, single
from qcompile.backends.fx.table import operator
from qcompile.errors import UnsupportedOperator

Body: TypeAlias = "tuple[Callable[..., Sequence[Any]], tuple[Any, ...]]"


@operator("If", either=("condition",))
def if_(condition: Tensor | Host, *, then_branch: Body, else_branch: Body) -> Sequence[Any]:
    """One branch or the other. Compiled, both must make tensors of the same shapes, unless shapes decide."""
    then, otherwise = then_branch, else_branch
    if isinstance(condition, Host) or not torch.compiler.is_compiling():
        chosen = single(condition) if isinstance(condition, Host) else condition
        module, captured = then if bool(chosen) else otherwise
        return list(module(*captured))
    made: Sequence[Any] = torch.cond(
        condition.reshape(()), lambda: _fresh(then[0](*then[1])), lambda: _fresh(otherwise[0](*otherwise[1])), ()
    )
    return made


def _fresh(values: Sequence[Tensor]) -> tuple[Tensor, ...]:
    """Copies: torch's control flow refuses tensors that share memory."""
    return tuple(value.clone() for value in values)


@operator("Loop", host=("trips",))
def loop(
    trips: Host | None,
    condition: Tensor | None,
    *carried: Any,
    body: Body,
    counted: bool,
    outputs: int,
    like: Tensor | None,
) -> Sequence[Any]:
    """Repeat while the condition holds, at most so often; what each turn makes besides is stacked.

    Compiled, a loop that a known number of turns ends is unrolled; one that data end carries a state of fixed shapes.

    Raises:
        UnsupportedOperator: compiled, data end the loop and it makes something in each turn.
    """
    module, captured = body
    most = None if trips is None else single(trips)
    if torch.compiler.is_compiling() and not counted:
        return _while(most, condition, carried, body, outputs)
    state, made, turn = list(carried), [], 0
    going = counted or condition is None or bool(condition)
    device = None if like is None else like.device
    if condition is None:
        condition = torch.ones((), dtype=torch.bool, device=device)
    while going and (most is None or turn < most):
        results = module(torch.full((), turn, dtype=torch.int64, device=device), condition, *state, *captured)
        condition, state = results[0], list(results[1 : 1 + len(state)])
        made.append(results[1 + len(state) :])
        going, turn = counted or bool(condition), turn + 1
    if not made and outputs > len(state):
        raise UnsupportedOperator("Loop", "it takes no turn, and is to stack what turns make", "Give it a turn")
    return *state, *(torch.stack(parts) for parts in zip(*made, strict=True))


def _while(
    most: Any, condition: Tensor | None, carried: Sequence[Tensor], body: Body, outputs: int
) -> Sequence[Tensor]:
    """A Loop as torch's while_loop."""
    module, captured = body
    if outputs > len(carried):
        raise UnsupportedOperator(
            "Loop", "data end it, and it makes something in each turn", "Run it without compiling"
        )
    device = carried[0].device if carried else None
    going = torch.ones((), dtype=torch.bool, device=device) if condition is None else condition.reshape(()).clone()
    turn = torch.zeros((), dtype=torch.int64, device=device)

    def holds(turn: Tensor, going: Tensor, *_: Tensor) -> Tensor:
        return going if most is None else going & (turn < most)

    def once(turn: Tensor, going: Tensor, *state: Tensor) -> tuple[Tensor, ...]:
        made = _fresh(module(turn, going, *state, *captured))
        return turn + 1, made[0].reshape(()), *made[1:]

    made = while_loop(holds, once, (turn, going, *_fresh(carried)))  # type: ignore[no-untyped-call]
    return list(made[2:])


@operator("Scan", since=9)
def scan(
    *inputs: Tensor,
    body: Body,
    num_scan_inputs: int,
    scan_input_axes: Sequence[int] | None = None,
    scan_input_directions: Sequence[int] | None = None,
    scan_output_axes: Sequence[int] | None = None,
    scan_output_directions: Sequence[int] | None = None,
) -> Sequence[Tensor]:
    """Apply a body along axes of inputs, carrying a state; what each turn makes is stacked."""
    module, captured = body
    count = len(inputs) - num_scan_inputs
    axes = list(scan_input_axes or [0] * num_scan_inputs)
    turned = list(scan_input_directions or [0] * num_scan_inputs)
    read = [
        (x.movedim(axis, 0).flip(0) if back else x.movedim(axis, 0))
        for x, axis, back in zip(inputs[count:], axes, turned, strict=True)
    ]
    state, made = list(inputs[:count]), []
    if not read[0].shape[0]:
        raise UnsupportedOperator("Scan", "it takes no turn, and is to stack what turns make", "Give it a turn")
    for turn in range(read[0].shape[0]):
        results = module(*state, *(x[turn] for x in read), *captured)
        state = list(results[:count])
        made.append(results[count:])
    stacked = [torch.stack(parts) for parts in zip(*made, strict=True)]
    out_axes, back = list(scan_output_axes or [0] * len(stacked)), list(scan_output_directions or [0] * len(stacked))
    ordered = [x.flip(0) if turn else x for x, turn in zip(stacked, back, strict=True)]
    return *state, *(x.movedim(0, axis) for x, axis in zip(ordered, out_axes, strict=True))


@operator("Scan")
def scan_8(
    lengths: Tensor | None,
    *inputs: Tensor,
    body: Body,
    num_scan_inputs: int,
    directions: Sequence[int] | None = None,
) -> Sequence[Tensor]:
    """Scan of opset 8: for each sample of a batch on its own; all of one length, else raises UnsupportedOperator."""
    if lengths is not None:
        raise UnsupportedOperator("Scan", "sequences of several lengths are not supported", "Convert it to opset 9")
    samples = [
        scan(
            *(x[sample] for x in inputs),
            body=body,
            num_scan_inputs=num_scan_inputs,
            scan_input_directions=directions,
        )
        for sample in range(inputs[0].shape[0])
    ]
    return [torch.stack(parts) for parts in zip(*samples, strict=True)]
