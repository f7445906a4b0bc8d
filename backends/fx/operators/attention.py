"""Attention, as torch's scaled_dot_product_attention wherever only its result is asked for."""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional

from qcompile.backends.fx.table import operator
from qcompile.backends.fx.types import torch_type


def _heads(x: Tensor, count: int | None) -> Tensor:
    """[batch, length, heads * size] -> [batch, heads, length, size]; four dimensions as they are."""
    return (
        x
        if x.dim() == 4 or count is None
        else x.reshape(x.shape[0], x.shape[1], count, x.shape[2] // count).transpose(1, 2)
    )


def _allowed(
    query: Tensor, total: int, offset: Tensor | int, nonpad: Tensor | None, causal: int, left: int, right: int
) -> Tensor | None:
    """Which keys each query may attend: by order, by windows and by the length of each sample; None: all."""
    length, device = query.shape[2], query.device
    keys = torch.arange(total, device=device)
    found = None if nonpad is None else (keys < nonpad[:, None])[:, None, None, :]
    if not causal and left < 0 and right < 0:
        return found
    if isinstance(length, int) and length == 1 and nonpad is None and left < 0 and total == offset + 1:
        return found  # one new token, behind all others
    distance = torch.arange(length, device=device)[:, None] + offset - keys
    distance = distance if distance.dim() == 2 else distance[:, None]
    for limited, kept in ((causal, distance >= 0), (left >= 0, distance <= left), (right >= 0, -distance <= right)):
        if limited:
            found = kept if found is None else found & kept
    return found


def _bias(mask: Tensor | None, allowed: Tensor | None, total: int, dtype: torch.dtype) -> Tensor | None:
    """The mask to add, or to choose by where it is of truth values; what it is too short for is not attended."""
    if mask is None:
        return allowed
    if mask.shape[-1] != total:
        missing = total - mask.shape[-1]
        mask = functional.pad(mask, (0, missing), value=False if mask.dtype is torch.bool else -torch.inf)
    if mask.dtype is torch.bool:
        return mask if allowed is None else mask & allowed
    mask = mask.to(dtype)
    return mask if allowed is None else torch.where(allowed, mask, -torch.inf)


@operator("Attention")
def attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None = None,
    past_key: Tensor | None = None,
    past_value: Tensor | None = None,
    nonpad_kv_seqlen: Tensor | None = None,
    *,
    is_causal: int = 0,
    kv_num_heads: int | None = None,
    left_window_size: int = -1,
    q_num_heads: int | None = None,
    qk_matmul_output_mode: int = 0,
    right_window_size: int = -1,
    scale: float | None = None,
    softcap: float = 0.0,
    softmax_precision: int | None = None,
    outputs: int,
) -> tuple[Tensor, ...]:
    """softmax(scale * query @ key^T + mask) @ value; also the cache with the new keys and values behind the old."""
    flat = query.dim() == 3
    query = _heads(query, q_num_heads)
    key, value = _heads(key, kv_num_heads), _heads(value, kv_num_heads)
    offset: Tensor | int = 0
    if past_key is not None and past_value is not None:
        offset = past_key.shape[2]
        key, value = torch.cat([past_key, key], 2), torch.cat([past_value, value], 2)
    elif nonpad_kv_seqlen is not None:
        offset = (nonpad_kv_seqlen - query.shape[2])[:, None, None]
    factor = 1 / math.sqrt(query.shape[-1]) if scale is None else scale
    total = key.shape[2]
    square = attn_mask is None and past_key is None and nonpad_kv_seqlen is None
    square = square and left_window_size < 0 and right_window_size < 0
    products = None
    if outputs < 4 and not softcap and softmax_precision is None:
        bias = None
        if not square:
            allowed = _allowed(query, total, offset, nonpad_kv_seqlen, is_causal, left_window_size, right_window_size)
            bias = _bias(attn_mask, allowed, total, query.dtype)
        made = _fused(query, key, value, bias, bool(is_causal) and square, factor)
    else:
        allowed = _allowed(query, total, offset, nonpad_kv_seqlen, is_causal, left_window_size, right_window_size)
        bias = _bias(attn_mask, allowed, total, query.dtype)
        repeats = query.shape[1] // key.shape[1]
        made, products = _explicit(
            query,
            key.repeat_interleave(repeats, 1),
            value.repeat_interleave(repeats, 1),
            bias,
            factor,
            softcap,
            None if softmax_precision is None else torch_type(softmax_precision),
            qk_matmul_output_mode,
        )
    made = made.transpose(1, 2).flatten(2) if flat else made
    return (made, key, value, products)[:outputs] if products is not None else (made, key, value)


def _fused(query: Tensor, key: Tensor, value: Tensor, bias: Tensor | None, causal: bool, scale: float) -> Tensor:
    grouped, kind = query.shape[1] != key.shape[1], query.dtype
    if kind is torch.float16 and query.device.type == "cpu":
        # torch's kernel for the processor rounds the probabilities to float16: up to two steps of the result.
        query, key, value = query.float(), key.float(), value.float()
        bias = bias.float() if bias is not None and bias.dtype is kind else bias
    return functional.scaled_dot_product_attention(
        query, key, value, bias, is_causal=causal, scale=scale, enable_gqa=grouped
    ).to(kind)


def _explicit(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    bias: Tensor | None,
    scale: float,
    softcap: float,
    precision: torch.dtype | None,
    mode: int,
) -> tuple[Tensor, Tensor]:
    """Attention in single steps, for one of them: 0 the products, 1 capped, 2 with the mask, 3 the probabilities."""
    half = math.sqrt(scale)
    products = torch.matmul(query * half, key.transpose(-1, -2) * half)
    capped = softcap * torch.tanh(products / softcap) if softcap else products
    if bias is None:
        masked = capped
    elif bias.dtype is torch.bool:
        masked = torch.where(bias, capped, -torch.inf)
    else:
        masked = capped + bias
    chances = torch.softmax(masked if precision is None else masked.to(precision), -1)
    if bias is not None:
        none = ~bias.any(-1, keepdim=True) if bias.dtype is torch.bool else (bias == -torch.inf).all(-1, keepdim=True)
        chances = torch.where(none, torch.zeros_like(chances), chances)
    chances = chances.to(query.dtype)
    return torch.matmul(chances, value), (products, capped, masked, chances)[mode]
