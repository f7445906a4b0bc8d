"""Finds what a graph of torch.fx does besides returning outputs: writes into given tensors, and draws of numbers."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch.fx
from torch._ops import OpOverload
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.fx.experimental.symbolic_shapes import ShapeEnv
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode

from qcompile.errors import ModelError


@dataclasses.dataclass(frozen=True)
class Effects:
    """What a graph does besides returning outputs.

    Attributes:
        write: the first node that writes into a given tensor, and the placeholder or attribute of that tensor.
        random: the first node that draws random numbers.
    """

    write: tuple[torch.fx.Node, torch.fx.Node] | None
    random: torch.fx.Node | None


def find_effects(gm: torch.fx.GraphModule, example_inputs: Sequence[Any]) -> Effects:
    """Run the graph without data and return what it does besides returning outputs.

    The graph runs on fake tensors, which have storages and no data. Whatever name an operation goes by (a method, an
    assignment, out=, inplace=True, through a view or not), the schemas of the ATen operators that it ends in say what
    is written, and their tags whether they take numbers from a random generator. Tensors that the graph makes itself
    may be written.

    Args:
        gm: the graph.
        example_inputs: a value for each placeholder; tensors, or sizes as SymInt.

    Raises:
        ModelError: torch cannot run the graph without data.
    """
    mode = FakeTensorMode(allow_non_fake_inputs=True, shape_env=ShapeEnv())
    run = _Run(gm, mode)
    inputs = [
        mode.from_tensor(value, static_shapes=True) if isinstance(value, torch.Tensor) else _number(value)
        for value in example_inputs
    ]
    try:
        with torch.no_grad(), mode:
            run.run(*inputs)
    except RuntimeError as error:
        mend = "Keep it out of the compiled function with torch.compiler.disable"
        raise ModelError(f"node {run.current}", f"torch cannot trace it: {error}", mend) from error
    return Effects(run.written, run.random)


def _number(value: Any) -> Any:
    return int(value) if isinstance(value, torch.SymInt) else value


class _Run(torch.fx.Interpreter):
    """Runs a graph node by node and remembers the first write into a placeholder or an attribute, and the first draw.

    Attributes:
        current: the node that runs.
        written: the writing node and the placeholder or attribute.
        random: the node that draws random numbers.
    """

    def __init__(self, gm: torch.fx.GraphModule, mode: FakeTensorMode) -> None:
        super().__init__(gm)
        self.current: torch.fx.Node | None = None
        self.written: tuple[torch.fx.Node, torch.fx.Node] | None = None
        self.random: torch.fx.Node | None = None
        self._mode = mode
        self._given: dict[int, torch.fx.Node] = {}

    def run_node(self, n: torch.fx.Node) -> Any:
        """Run one node; a given tensor is noted by its storage, which its views share."""
        self.current = n
        with _Operators(self._given) as seen:
            result = super().run_node(n)
        if n.op == "get_attr" and isinstance(result, torch.Tensor):
            result = self._mode.from_tensor(result, static_shapes=True)
        if n.op in ("placeholder", "get_attr") and isinstance(result, torch.Tensor):
            self._given.setdefault(_storage(result), n)
        if self.written is None and seen.target is not None:
            self.written = n, seen.target
        if self.random is None and seen.draws:
            self.random = n
        return result


class _Operators(TorchDispatchMode):  # type: ignore[no-untyped-call]  # torch has no types here
    """Sees every ATen operator: whether it writes into one of the given storages, and whether it draws numbers.

    Attributes:
        target: node of the first storage that is written.
        draws: True when one of them took random numbers.
    """

    def __init__(self, given: Mapping[int, torch.fx.Node]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.target: torch.fx.Node | None = None
        self.draws = False
        self._given = given

    # Those are passed on: torch itself refuses the ones whose branches write.
    supports_higher_order_operators = True

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if isinstance(func, OpOverload):
            self.draws = self.draws or _draws(func, args, kwargs)
            for position, argument in enumerate(func._schema.arguments):
                if argument.alias_info is not None and argument.alias_info.is_write:
                    value = args[position] if position < len(args) else kwargs.get(argument.name)
                    self._note(value)
        return func(*args, **kwargs)

    def _note(self, value: Any) -> None:
        for leaf in pytree.tree_leaves(value):
            if self.target is None and isinstance(leaf, torch.Tensor):
                self.target = self._given.get(_storage(leaf))


def _draws(func: OpOverload[Any, Any], args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> bool:
    """Whether an ATen operator takes random numbers: those with a dropout have the tag in evaluation mode too."""
    if torch.Tag.nondeterministic_seeded not in func.tags:
        return False
    names = [argument.name for argument in func._schema.arguments]
    given = dict(zip(names, args, strict=False)) | dict(kwargs)
    never = "dropout_p" in names and not given.get("dropout_p")
    return not never and not any(given.get(name) is False for name in ("train", "training"))


def _storage(tensor: torch.Tensor) -> int:
    return int(tensor.untyped_storage()._cdata)
