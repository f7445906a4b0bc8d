"""A causal language model of transformers with its cache as inputs and outputs, in words that ONNX has."""

from __future__ import annotations

import contextvars
from collections.abc import Callable
from typing import Any

import torch
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.cache_utils import Cache, CacheLayerMixin
from transformers.masking_utils import causal_mask_function

_ATTENTION = "qcompile"
"""Name under which transformers finds `_attend` and `_mask`."""

_LAYERS: contextvars.ContextVar[list[_PastLayer]] = contextvars.ContextVar("layers of the cache that is being exported")

_KNOWN = frozenset({"dropout", "scaling", "softcap", "sliding_window", "is_causal", "position_ids", "use_cache"}) | {
    "output_router_logits"
}
"""What an attention layer says beside its tensors that `_attend` knows, that is in the mask already, or that changes
only what else a model returns."""


class _PastLayer(CacheLayerMixin):  # type: ignore[misc]  # no annotations
    """Keys and values of one layer before this step; it hands the new ones on as they are.

    `_attend` gives old and new ones to the Attention operator, which joins them itself, for every kind of layer: what a
    sliding window leaves out is in the mask.
    """

    is_sliding = False

    def __init__(self, keys: torch.Tensor, values: torch.Tensor) -> None:
        super().__init__()
        self.keys, self.values, self.is_initialized = keys, values, True
        self.present: tuple[torch.Tensor, torch.Tensor] | None = None

    def lazy_initialization(self, key_states: torch.Tensor, value_states: torch.Tensor) -> None:
        """There is nothing to do."""

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, *_: Any, **__: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the new keys and values alone."""
        return key_states, value_states

    def get_seq_length(self) -> int:
        """How many positions are in the cache."""
        assert self.keys is not None
        return self.keys.shape[-2]

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        """Length of the mask, and the position of its first key."""
        return self.get_seq_length() + query_length, 0

    def get_max_length(self) -> int:
        """There is no maximum."""
        return -1


class Decoder(torch.nn.Module):
    """A causal language model with its cache as plain tensors.

    Attributes:
        model: transformers' ForCausalLM module whose attention implementation is set to `attention_name()`.
    """

    def __init__(self, model: torch.nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(
        self,
        input_ids: torch.Tensor,
        attention_mask: torch.Tensor,
        position_ids: torch.Tensor,
        past_key_values: list[tuple[torch.Tensor, torch.Tensor]],
    ) -> dict[str, torch.Tensor]:
        """Return logits and presents by name; ids, mask and positions are int64, past [batch, heads, past, size]."""
        layers = [_PastLayer(*pair) for pair in past_key_values]
        token = _LAYERS.set(layers)
        try:
            output = self.model(
                input_ids=input_ids,
                attention_mask=attention_mask,
                position_ids=position_ids,
                past_key_values=Cache(layers=[*layers]),
                use_cache=True,
            )
        finally:
            _LAYERS.reset(token)
        found = {"logits": output.logits}
        for index, layer in enumerate(layers):
            if layer.present is None:
                raise NotImplementedError(f"layer {index} does not attend to its own cache")
            found[f"present.{index}.key"], found[f"present.{index}.value"] = layer.present
        return found


def attention_name() -> str:
    """Return the name of the attention implementation that writes one Attention operator; registers it first."""
    AttentionInterface.register(_ATTENTION, _attend)
    AttentionMaskInterface.register(_ATTENTION, _mask)
    return _ATTENTION


def _mask(
    q_length: int,
    kv_length: int,
    q_offset: int = 0,
    kv_offset: int = 0,
    mask_function: Callable[..., Any] = causal_mask_function,
    attention_mask: torch.Tensor | None = None,
    **_: Any,
) -> torch.Tensor:
    """Boolean mask [batch or 1, 1, sequence, past + sequence], written out also where it is only causal.

    Attention's own is_causal aligns the mask with the first key in opset 23, which is wrong behind a cache.
    """
    queries = (torch.arange(q_length) + q_offset).reshape(1, 1, -1, 1)
    keys = (torch.arange(kv_length) + kv_offset).reshape(1, 1, 1, -1)
    zero = torch.zeros(1, 1, 1, 1, dtype=torch.int64)
    allowed: torch.Tensor = mask_function(zero, zero, queries, keys)
    return allowed if attention_mask is None else allowed & attention_mask[:, None, None, :]


def _attend(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    scaling: float | None = None,
    softcap: float | None = None,
    **others: Any,
) -> tuple[torch.Tensor, None]:
    """Attention of opset 23 over the cache and the new keys, [batch, heads, sequence, size] each."""
    unknown = sorted(name for name, said in others.items() if name not in _KNOWN and said is not None)
    if unknown:
        raise NotImplementedError(f"attention with {', '.join(unknown)}")
    layer = _LAYERS.get()[module.layer_idx]  # type: ignore[index]
    output, keys, values, _ = torch.onnx.ops.attention(
        query, key, value, attention_mask, layer.keys, layer.values, scale=scaling, softcap=softcap or 0.0
    )
    layer.present = keys, values
    return output.transpose(1, 2).contiguous(), None
