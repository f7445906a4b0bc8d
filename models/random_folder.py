"""A folder as Hugging Face has them, of a decoder like Llama with random weights, of any size; written in pieces."""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Iterator, Mapping
from pathlib import Path

import ml_dtypes
import numpy as np

_PIECE = 2**22
"""Numbers that are made at a time."""

_TOKENIZER = {"version": "1.0", "model": {"type": "WordLevel", "vocab": {"<unk>": 0, "a": 1}, "unk_token": "<unk>"}}


@dataclasses.dataclass(frozen=True)
class Sizes:
    """Sizes of a decoder like Llama, by default those of OpenLLaMA 3B: 3.4 billion parameters.

    Attributes:
        hidden: width of the residual stream.
        inner: width of the gated layers.
        layers: how many.
        heads: of queries, keys and values alike.
        vocabulary: how many tokens.
    """

    hidden: int = 3200
    inner: int = 8640
    layers: int = 26
    heads: int = 32
    vocabulary: int = 32000

    def tensors(self, layer: int) -> Mapping[str, tuple[int, ...]]:
        """Names and shapes of the weights of a layer."""
        square, name = (self.hidden, self.hidden), f"model.layers.{layer}"
        return {
            **{f"{name}.self_attn.{each}_proj.weight": square for each in "qkvo"},
            f"{name}.mlp.gate_proj.weight": (self.inner, self.hidden),
            f"{name}.mlp.up_proj.weight": (self.inner, self.hidden),
            f"{name}.mlp.down_proj.weight": (self.hidden, self.inner),
            f"{name}.input_layernorm.weight": (self.hidden,),
            f"{name}.post_attention_layernorm.weight": (self.hidden,),
        }

    def outside(self) -> Mapping[str, tuple[int, ...]]:
        """Names and shapes of what is in no layer; the two tables are not tied."""
        table = (self.vocabulary, self.hidden)
        return {"model.embed_tokens.weight": table, "lm_head.weight": table, "model.norm.weight": (self.hidden,)}


def write(folder: Path, sizes: Sizes, *, seed: int = 0) -> int:
    """Write config.json, a tokenizer of two words and a safetensors file in bfloat16 for each layer.

    Returns how many bytes of weights are in the files, which never are in memory together.
    """
    folder.mkdir(parents=True, exist_ok=True)
    generator, places, total = np.random.default_rng(seed), {}, 0
    parts = [sizes.outside(), *(sizes.tensors(layer) for layer in range(sizes.layers))]
    for index, shapes in enumerate(parts):
        name = f"model-{index + 1:05}-of-{len(parts):05}.safetensors"
        total += _write_file(folder / name, shapes, generator)
        places.update(dict.fromkeys(shapes, name))
    index_of_files = {"metadata": {"total_size": total}, "weight_map": places}
    _write_json(folder / "model.safetensors.index.json", index_of_files)
    _write_json(folder / "config.json", _configuration(sizes))
    _write_json(folder / "tokenizer.json", _TOKENIZER)
    return total


def _write_file(file: Path, shapes: Mapping[str, tuple[int, ...]], generator: np.random.Generator) -> int:
    """Write one safetensors file: eight bytes of length, so much JSON, then the tensors."""
    header, end = {}, 0
    for name, shape in shapes.items():
        start, end = end, end + 2 * math.prod(shape)
        header[name] = {"dtype": "BF16", "shape": shape, "data_offsets": [start, end]}
    said = json.dumps(header).encode()
    with file.open("wb") as stream:
        stream.write(len(said).to_bytes(8, "little") + said)
        for shape in shapes.values():
            for piece in _numbers(shape, generator):
                stream.write(piece.astype(ml_dtypes.bfloat16).tobytes())
    return end


def _numbers(shape: tuple[int, ...], generator: np.random.Generator) -> Iterator[np.ndarray]:
    """Yield the numbers of a weight: of matrices as wide as a trained model's, of norms around 1."""
    size, matrix = math.prod(shape), len(shape) == 2
    for start in range(0, size, _PIECE):
        numbers = generator.standard_normal(min(_PIECE, size - start), np.float32)
        yield numbers / math.sqrt(shape[-1]) if matrix else 1 + numbers / 10


def _configuration(sizes: Sizes) -> dict[str, object]:
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "hidden_size": sizes.hidden,
        "intermediate_size": sizes.inner,
        "num_hidden_layers": sizes.layers,
        "num_attention_heads": sizes.heads,
        "num_key_value_heads": sizes.heads,
        "vocab_size": sizes.vocabulary,
        "max_position_embeddings": 2048,
        "rms_norm_eps": 1e-6,
        "tie_word_embeddings": False,
        "bos_token_id": 1,
        "eos_token_id": 1,
        "dtype": "bfloat16",
    }


def _write_json(file: Path, data: object) -> None:
    file.write_text(json.dumps(data) + "\n", encoding="utf-8")
