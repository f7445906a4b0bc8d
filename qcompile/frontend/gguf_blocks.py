"""The blocks of GGUF's quantized tensors as integers, scales and minimums, from which nothing is quantized again.

Layouts: ggml's `ggml-common.h`; the same numbers as `gguf.dequantize` gives, bit for bit, which a test holds it to.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from types import MappingProxyType

import gguf
import numpy as np

from qcompile.stored_blocks import Blocks

_Q = gguf.GGMLQuantizationType


@dataclasses.dataclass(frozen=True)
class BlockForm:
    """What is known of a quantized type without reading data.

    Attributes:
        bits: that the integers need.
        group_size: weights that share a scale.
        unpack: from blocks uint8 [blocks, bytes] to integers [blocks, weights], scale and minimum [blocks, groups].
    """

    bits: int
    group_size: int
    unpack: Callable[[np.ndarray], tuple[np.ndarray, np.ndarray, np.ndarray | None]]


def unpack(rows: np.ndarray, kind: gguf.GGMLQuantizationType) -> Blocks:
    """Take rows of blocks apart; does not apply to types that are not in FORMS, such as those with a codebook.

    Args:
        rows: uint8 [rows, bytes of a row].
        kind: one of FORMS.
    """
    size = gguf.GGML_QUANT_SIZES[kind][1]
    integers, scale, minimum = FORMS[kind].unpack(np.ascontiguousarray(rows).reshape(-1, size))
    count = len(rows)
    return Blocks(
        integers.reshape(count, -1),
        scale.reshape(count, -1),
        None if minimum is None else minimum.reshape(count, -1),
    )


def _half(blocks: np.ndarray, at: int) -> np.ndarray:
    """The float16 at a byte of each block, as float32 [blocks, 1]."""
    return np.ascontiguousarray(blocks[:, at : at + 2]).view("<f2").astype(np.float32)


def _fields(packed: np.ndarray, run: int, bits: int) -> np.ndarray:
    """Unsigned fields of a byte, those of the lowest bits of `run` bytes first: uint8 [blocks, fields]."""
    shifts = np.arange(0, 8, bits, dtype=np.uint8)[:, None]
    return (packed.reshape(len(packed), -1, 1, run) >> shifts & np.uint8((1 << bits) - 1)).reshape(len(packed), -1)


def _fifth_bits(packed: np.ndarray) -> np.ndarray:
    return np.unpackbits(packed, axis=1, bitorder="little") << np.uint8(4)


def _scales_of_scales(blocks: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Scale and minimum of the 8 groups of Q4_K and Q5_K: 6 bits each, times a float16."""
    packed = blocks[:, 4:16]
    low, high, rest = packed[:, :4], packed[:, 4:8], packed[:, 8:]
    scale = np.concatenate([low & 63, rest & 15 | low >> 2 & 48], axis=1)
    minimum = np.concatenate([high & 63, rest >> 4 | high >> 2 & 48], axis=1)
    return _half(blocks, 0) * scale.astype(np.float32), -(_half(blocks, 2) * minimum.astype(np.float32))


def _q4_0(blocks: np.ndarray) -> tuple[np.ndarray, np.ndarray, None]:
    return _fields(blocks[:, 2:], 16, 4).view(np.int8) - np.int8(8), _half(blocks, 0), None


def _q4_1(blocks: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    return _fields(blocks[:, 4:], 16, 4), _half(blocks, 0), _half(blocks, 2)


def _q5_0(blocks: np.ndarray) -> tuple[np.ndarray, np.ndarray, None]:
    integers = _fields(blocks[:, 6:], 16, 4) | _fifth_bits(blocks[:, 2:6])
    return integers.view(np.int8) - np.int8(16), _half(blocks, 0), None


def _q5_1(blocks: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    return _fields(blocks[:, 8:], 16, 4) | _fifth_bits(blocks[:, 4:8]), _half(blocks, 0), _half(blocks, 2)


def _q8_0(blocks: np.ndarray) -> tuple[np.ndarray, np.ndarray, None]:
    return np.ascontiguousarray(blocks[:, 2:]).view(np.int8), _half(blocks, 0), None


def _q2_k(blocks: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    packed = blocks[:, :16]
    scale = _half(blocks, 80) * (packed & 15).astype(np.float32)
    return _fields(blocks[:, 16:80], 32, 2), scale, -(_half(blocks, 82) * (packed >> 4).astype(np.float32))


def _q3_k(blocks: np.ndarray) -> tuple[np.ndarray, np.ndarray, None]:
    scales = _fields(blocks[:, 96:104], 8, 4) | _fields(blocks[:, 104:108], 4, 2) << np.uint8(4)
    taken = (_fields(blocks[:, :32], 32, 1) ^ np.uint8(1)) << np.uint8(2)
    integers = _fields(blocks[:, 32:96], 32, 2).view(np.int8) - taken.view(np.int8)
    return integers, _half(blocks, 108) * (scales.view(np.int8) - np.int8(32)).astype(np.float32), None


def _q4_k(blocks: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    return _fields(blocks[:, 16:], 32, 4), *_scales_of_scales(blocks)


def _q5_k(blocks: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    integers = _fields(blocks[:, 48:], 32, 4) | _fields(blocks[:, 16:48], 32, 1) << np.uint8(4)
    return integers, *_scales_of_scales(blocks)


def _q6_k(blocks: np.ndarray) -> tuple[np.ndarray, np.ndarray, None]:
    integers = _fields(blocks[:, :128], 64, 4) | _fields(blocks[:, 128:192], 32, 2) << np.uint8(4)
    scale = _half(blocks, 208) * np.ascontiguousarray(blocks[:, 192:208]).view(np.int8).astype(np.float32)
    return integers.view(np.int8) - np.int8(32), scale, None


FORMS: Mapping[gguf.GGMLQuantizationType, BlockForm] = MappingProxyType(
    {
        _Q.Q4_0: BlockForm(4, 32, _q4_0),
        _Q.Q4_1: BlockForm(4, 32, _q4_1),
        _Q.Q5_0: BlockForm(5, 32, _q5_0),
        _Q.Q5_1: BlockForm(5, 32, _q5_1),
        _Q.Q8_0: BlockForm(8, 32, _q8_0),
        _Q.Q2_K: BlockForm(2, 16, _q2_k),
        _Q.Q3_K: BlockForm(3, 16, _q3_k),
        _Q.Q4_K: BlockForm(4, 32, _q4_k),
        _Q.Q5_K: BlockForm(5, 32, _q5_k),
        _Q.Q6_K: BlockForm(6, 16, _q6_k),
    }
)
"""The types that integers with a scale, and a minimum where they are unsigned, represent exactly."""
