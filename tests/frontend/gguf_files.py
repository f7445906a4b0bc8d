"""Small GGUF files of random decoders, written with the gguf package alone and llama.cpp's own order of rows."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path

import gguf
import numpy as np

KIND = gguf.GGMLQuantizationType
# Bytes at which a block has its float16 numbers; random bytes there could be infinite.
HALVES = {
    KIND.Q4_0: (0,),
    KIND.Q4_1: (0, 2),
    KIND.Q5_0: (0,),
    KIND.Q5_1: (0, 2),
    KIND.Q8_0: (0,),
    KIND.Q2_K: (80, 82),
    KIND.Q3_K: (108,),
    KIND.Q4_K: (0, 2),
    KIND.Q5_K: (0, 2),
    KIND.Q6_K: (208,),
}


def random_blocks(kind: KIND, rows: int, width: int, seed: int = 0) -> np.ndarray:
    """Rows of blocks with every pattern of bits in the integers and packed scales, uint8 [rows, bytes]."""
    rng = np.random.default_rng(seed)
    block, size = gguf.GGML_QUANT_SIZES[kind]
    raw = rng.integers(0, 256, (rows * width // block, size), dtype=np.uint8)
    for at in HALVES[kind]:
        half = rng.normal(0, 0.01, (len(raw), 1)).astype("<f2")
        raw[:, at : at + 2] = half.view(np.uint8)
    return raw.reshape(rows, -1)


@dataclasses.dataclass(frozen=True)
class Decoder:
    """Sizes of a random decoder; its matrices are of `kinds`, by a part of their name, and of `kind` else."""

    hidden: int = 64
    feed_forward: int = 96
    layers: int = 2
    heads: int = 4
    key_heads: int = 2
    words: int = 80
    tied: bool = False
    kind: KIND = KIND.F32
    kinds: Mapping[str, KIND] = dataclasses.field(default_factory=dict)

    def shapes(self) -> dict[str, tuple[int, ...]]:
        width, kept = self.hidden, self.hidden // self.heads * self.key_heads
        found: dict[str, tuple[int, ...]] = {"token_embd.weight": (self.words, width), "output_norm.weight": (width,)}
        if not self.tied:
            found["output.weight"] = (self.words, width)
        for layer in range(self.layers):
            parts = {
                "attn_norm": (width,),
                "ffn_norm": (width,),
                "attn_q": (width, width),
                "attn_k": (kept, width),
                "attn_v": (kept, width),
                "attn_output": (width, width),
                "ffn_gate": (self.feed_forward, width),
                "ffn_up": (self.feed_forward, width),
                "ffn_down": (width, self.feed_forward),
            }
            found |= {f"blk.{layer}.{name}.weight": shape for name, shape in parts.items()}
        return found


def write_decoder(path: Path, decoder: Decoder = Decoder(), extra: Mapping[str, np.ndarray] | None = None) -> Path:
    """Write a random decoder of the architecture that most GGUF files are of."""
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_block_count(decoder.layers)
    writer.add_context_length(128)
    writer.add_embedding_length(decoder.hidden)
    writer.add_feed_forward_length(decoder.feed_forward)
    writer.add_head_count(decoder.heads)
    writer.add_head_count_kv(decoder.key_heads)
    writer.add_rope_dimension_count(decoder.hidden // decoder.heads)
    writer.add_rope_freq_base(10000.0)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("smollm")
    writer.add_token_list(words(decoder.words))
    writer.add_token_types([gguf.TokenType.CONTROL] * 3 + [gguf.TokenType.NORMAL] * (decoder.words - 3))
    writer.add_token_merges(["a b", "Ġ a"])
    writer.add_bos_token_id(0)
    writer.add_eos_token_id(1)
    writer.add_pad_token_id(2)
    rng = np.random.default_rng(1)
    for seed, (name, shape) in enumerate(decoder.shapes().items()):
        kind = next((each for part, each in decoder.kinds.items() if part in name), decoder.kind)
        if len(shape) == 1 or kind == KIND.F32:
            writer.add_tensor(name, rng.normal(0, 0.2, shape).astype(np.float32) + (len(shape) == 1))
        elif kind in HALVES:
            writer.add_tensor(name, random_blocks(kind, *shape, seed), raw_dtype=kind)
        else:
            writer.add_tensor(name, gguf.quantize(rng.normal(0, 0.2, shape).astype(np.float32), kind), raw_dtype=kind)
    for name, array in (extra or {}).items():
        writer.add_tensor(name, array)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def words(count: int) -> list[str]:
    """Tokens of a byte-level vocabulary: three special ones, letters, digits, and two merged."""
    letters = [chr(code) for code in range(33, 33 + count - 6)]
    return ["<|end|>", "<|from|>", "<|pad|>", *letters, "Ġ", "ab", "Ġa"]


def in_transformers(rows: np.ndarray, heads: int) -> np.ndarray:
    """Undo convert_hf_to_gguf.py's `permute`: reshape(heads, 2, rows / heads / 2, ...).swapaxes(1, 2)."""
    order = np.arange(len(rows)).reshape(heads, 2, -1).swapaxes(1, 2).reshape(-1)
    return rows[np.argsort(order)]
