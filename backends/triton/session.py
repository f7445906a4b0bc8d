"""A model that is lowered to torch and loaded on the device."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np
import onnx_ir as ir
import torch

from qcompile.backends.feeds import Declared, check_feed
from qcompile.backends.fx import lower
from qcompile.backends.fx.types import array_of, tensor_of
from qcompile.backends.triton.runtime import device
from qcompile.errors import InputError
from qcompile.graph import all_nodes, is_standard
from qcompile.session import Feed, check_threads

REFUSALS = (RuntimeError, ValueError, IndexError, TypeError, ArithmeticError)
"""What functions of torch, and arithmetic on shapes, raise where values or shapes do not fit."""


@dataclasses.dataclass(frozen=True)
class TorchSession:
    """Runs feeds on the device, after it has checked them.

    Float32 is computed in float32: TF32, which torch takes for convolutions on its own, has 10 bits of mantissa.

    Attributes:
        module: the lowered model, on the device, or what was compiled of it.
        inputs: every input of the model, in the order of the module's parameters.
        outputs: type of every output in ONNX.
        written: inputs that the module writes to: it is given copies.
        threads: number of threads of torch's operators on the processor, which they share with all else in the
            process, while the model runs; None leaves it as it is.
    """

    module: Callable[..., Any]
    inputs: Mapping[str, Declared]
    outputs: Mapping[str, ir.DataType | None]
    written: frozenset[str]
    threads: int | None

    def run(self, feed: Feed) -> dict[str, np.ndarray]:
        """Run the model: input name -> array, to output name -> array.

        Raises InputError for a missing or unknown input, for a type or shape that is not the input's, and when an
        operator refuses the values.
        """
        check_feed(feed, self.inputs)
        try:
            made = self.computed(feed)
        except REFUSALS as error:
            shapes = ", ".join(f"{name} {list(array.shape)}" for name, array in feed.items())
            reason = f"torch refuses it: {error}"
            mend = "Check the shapes, and that indices lie inside of their tables"
            raise InputError(f"feed of {shapes}", reason, mend) from error
        return {name: _array(made[name], dtype) for name, dtype in self.outputs.items()}

    def computed(self, feed: Mapping[str, np.ndarray | torch.Tensor]) -> dict[str, Any]:
        """Run the model on what is not checked: arrays, or tensors on the device; to tensors on the device.

        Raises what torch raises.
        """
        given = [self._tensor(name, feed[name]) for name in self.inputs]
        with torch.inference_mode(), _threads(self.threads), torch.backends.cudnn.flags(allow_tf32=False):
            made: dict[str, Any] = self.module(*given)
        return made

    def _tensor(self, name: str, array: np.ndarray | torch.Tensor) -> torch.Tensor:
        if isinstance(array, torch.Tensor):
            return array
        return tensor_of(array.copy() if name in self.written else array, f"input {name!r}").to(device())


def load(model: ir.Model, *, threads: int | None = None) -> TorchSession:
    """Lower a model as it is, and load it; it is not changed.

    Raises UnsupportedOperator for what is none of torch's, RecipeError for a wrong `threads`.
    """
    check_threads(threads)
    return session_of(lower(model).to(device()), model, threads)


def session_of(module: Callable[..., Any], model: ir.Model, threads: int | None) -> TorchSession:
    """Return the session of a model that is on the device already: a module, or what was compiled of it."""
    given = [value for value in model.graph.inputs if value.name not in model.graph.initializers]
    scattered = {node.inputs[0] for node in all_nodes(model) if is_standard(node, "TensorScatter")}
    return TorchSession(
        module,
        {str(value.name): _declared(value) for value in given},
        {str(value.name): value.dtype for value in model.graph.outputs},
        frozenset(str(value.name) for value in given if value in scattered),
        threads,
    )


def load_sharing(model: ir.Model, other: TorchSession) -> TorchSession:
    """Lower a model, and load it with the weights of another where they are the same; its threads are the other's.

    The other is a module of torch, not a package. Of weights that have the same name and numbers there is one tensor.
    """
    module = lower(model)
    known = dict(other.module.named_buffers()) if isinstance(other.module, torch.nn.Module) else {}
    for name, buffer in module.named_buffers():
        moved, same = buffer.to(device()), known.get(name)
        alike = same is not None and same.dtype == moved.dtype and torch.equal(same, moved)
        owner, _, last = name.rpartition(".")
        setattr(module.get_submodule(owner), last, same if alike else moved)
    return session_of(module, model, other.threads)


@contextlib.contextmanager
def _threads(count: int | None) -> Iterator[None]:
    before = torch.get_num_threads()
    if count is not None:
        torch.set_num_threads(count)
    try:
        yield
    finally:
        if count is not None:
            torch.set_num_threads(before)


def _declared(value: ir.Value) -> Declared:
    """What the model says about an input; numpy has types for what torch computes with, but for bfloat16."""
    shape = None if value.shape is None else [size if isinstance(size, int) else None for size in value.shape]
    if value.dtype is None:
        return Declared(None, shape)
    dtype = np.dtype(value.dtype.numpy())
    return Declared(dtype.name if dtype.isbuiltin == 1 else None, shape)


def _array(value: Any, dtype: ir.DataType | None) -> Any:
    """The array of an output, in memory of its own; a list of them for a sequence."""
    if isinstance(value, (list, tuple)):
        return [_array(element, dtype) for element in value]
    return value if value is None else np.array(array_of(value, dtype))
