"""Names and layouts of a decoder's weights in GGUF and in transformers, by transformers' own tables.

GGUF's converter reorders some weights (the rows of the query and key for its rotary embedding) and changes others;
transformers has a processor for each architecture that takes it back. Which rows a processor moves is found by giving
it a matrix of row numbers, so that blocks can be moved as they are, and back again when a GGUF file is written.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import transformers
from transformers.modeling_gguf_pytorch_utils import TENSOR_PROCESSORS, TensorProcessor, get_gguf_hf_weights_map

from qcompile.errors import ModelError, first_line
from qcompile.frontend.transformers_refusals import REFUSALS


@dataclasses.dataclass(frozen=True)
class _Shallow:
    """What transformers asks of a model to find the names; it asks each submodule, which takes ten seconds."""

    config: Any
    parameters: Mapping[str, Any]
    children: tuple[tuple[str, _Shallow], ...]

    @classmethod
    def of(cls, module: Any, depth: int) -> _Shallow:
        below = module.named_children() if depth else ()
        children = tuple((name, cls.of(child, depth - 1)) for name, child in below)
        return cls(getattr(module, "config", None), module.state_dict(), children)

    def state_dict(self) -> Mapping[str, Any]:
        return self.parameters

    def named_children(self) -> tuple[tuple[str, _Shallow], ...]:
        return self.children


@dataclasses.dataclass(frozen=True)
class Names:
    """What a decoder's weights are called in GGUF and in transformers.

    Attributes:
        shapes: of each parameter of the model in transformers.
        of_gguf: from the name in GGUF to that of the parameter; stacked experts have several names for one.
        shared: from a parameter to the one that it is the same as (a tied output layer).
        processor: transformers' for the architecture.
    """

    shapes: Mapping[str, tuple[int, ...]]
    of_gguf: Mapping[str, str]
    shared: Mapping[str, str]
    processor: TensorProcessor

    @classmethod
    def of(cls, config: Any, architecture: str, subject: str) -> Names:
        """Return the names for a decoder.

        Args:
            config: of transformers.
            architecture: as GGUF calls it.
            subject: the model, in words.

        Raises:
            ModelError: transformers has no decoder for this configuration, or no names for this architecture.
        """
        import torch

        try:
            with torch.device("meta"):
                model = transformers.AutoModelForCausalLM.from_config(config)
            processor = TENSOR_PROCESSORS.get(architecture, TensorProcessor)(config=config.to_dict())
            of_gguf = get_gguf_hf_weights_map(_Shallow.of(model, 1), processor)
        except REFUSALS as error:
            reason = f"transformers cannot make a decoder of its metadata ({first_line(error)})"
            raise ModelError(
                subject, reason, "Check that transformers reads it: from_pretrained(gguf_file=...)"
            ) from error
        first: dict[int, str] = {}
        parameters = dict(model.named_parameters(remove_duplicate=False))
        shared = {name: kept for name, each in parameters.items() if (kept := first.setdefault(id(each), name)) != name}
        known = model.state_dict()
        return cls({name: tuple(known[name].shape) for name in known}, of_gguf, shared, processor)

    def parameter_of(self, tensor: str) -> str | None:
        """Name of the parameter that a tensor of a GGUF file belongs to; None where the model has no place for it."""
        return self.of_gguf.get(tensor) or self.of_gguf.get(tensor.removesuffix(".weight"))

    def assemble(self, parameter: str, tensors: Sequence[str], read: Callable[[str], np.ndarray]) -> np.ndarray:
        """Return a parameter as transformers has it, from the tensors of a GGUF file that belong to it."""
        stacked: dict[str, Any] = {"tensors": {}}
        for name in tensors:
            result = self._process(read(name), name, stacked)
            if result.name is not None:
                return np.asarray(result.weights)
        return np.asarray(stacked["tensors"][parameter].numpy())

    def row_order(self, tensor: str, shape: tuple[int, ...]) -> np.ndarray | None:
        """Return which row of a tensor in GGUF is which in transformers; None where it is no reordering of rows.

        Returns:
            int [rows], `in_transformers = in_gguf[row_order]`.
        """
        if len(shape) == 1:
            found: np.ndarray = np.asarray(self._process(np.arange(shape[0]), tensor, {"tensors": {}}).weights)
            return found if np.array_equal(np.sort(found), np.arange(shape[0])) else None
        if len(shape) != 2:
            return None
        count, width = shape
        rows = np.broadcast_to(np.arange(count, dtype=np.int32)[:, None], shape)
        columns = np.broadcast_to(np.arange(width, dtype=np.int32), shape)
        moved, kept = (self._process(each, tensor, {"tensors": {}}).weights for each in (rows, columns))
        if moved is rows and kept is columns:
            return np.arange(count)
        if moved.shape != shape or not np.array_equal(kept, columns) or (moved != moved[:, :1]).any():
            return None
        order: np.ndarray = np.ascontiguousarray(moved[:, 0])
        return order if np.array_equal(np.sort(order), rows[:, 0]) else None

    def disassemble(self, tensor: str, parameter: str, array: np.ndarray) -> np.ndarray | None:
        """Return what `assemble` makes this parameter of: its rows in another order, or it less a number.

        None where the architecture's processor does more than that.
        """
        order = self.row_order(tensor, array.shape)
        if order is not None:
            stored = array[np.argsort(order)]
        else:
            stored = array - np.asarray(self._process(np.zeros_like(array), tensor, {"tensors": {}}).weights)
        back = self.assemble(parameter, [tensor], lambda _: stored)
        same = back.shape == array.shape and np.allclose(back, array, rtol=0, atol=1e-6)
        return stored if same else None

    def _process(self, array: np.ndarray, name: str, stacked: dict[str, Any]) -> Any:
        return self.processor.process(
            weights=array, name=name, tensor_key_mapping=self.of_gguf, parsed_parameters=stacked
        )
