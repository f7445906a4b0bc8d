"""Small decoders of twelve architectures with random weights, from transformers' own configuration classes.

They share the dataflow of the real models and nothing else: hidden size 64, 2 layers, 4 heads. The weights of norms
and all biases are perturbed, because a norm with weight 1 and bias 0 would hide a wrong fold.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch

from qcompile.errors import ModelError
from qcompile.models.installed import import_optional
from qcompile.models.reference import Feed

_HIDDEN, _LAYERS, _HEADS, _KEY_HEADS, _VOCABULARY = 64, 2, 4, 2, 256

_LLAMA_LIKE: Mapping[str, Any] = {
    "hidden_size": _HIDDEN,
    "intermediate_size": 2 * _HIDDEN,
    "num_hidden_layers": _LAYERS,
    "num_attention_heads": _HEADS,
    "num_key_value_heads": _KEY_HEADS,
    "head_dim": _HIDDEN // _HEADS,
}
_STANDARD: Mapping[str, Any] = {
    "hidden_size": _HIDDEN,
    "intermediate_size": 2 * _HIDDEN,
    "num_hidden_layers": _LAYERS,
    "num_attention_heads": _HEADS,
}

# Names and sizes of transformers' configuration arguments; the keys are its model types.
_CONFIGURATIONS: Mapping[str, Mapping[str, Any]] = {
    "llama": _LLAMA_LIKE,
    "mistral": {**_LLAMA_LIKE, "sliding_window": None},
    "qwen3": _LLAMA_LIKE,
    "gemma3_text": {**_LLAMA_LIKE, "query_pre_attn_scalar": _HIDDEN // _HEADS, "sliding_window": 64},
    "opt": {
        "hidden_size": _HIDDEN,
        "ffn_dim": 2 * _HIDDEN,
        "num_hidden_layers": _LAYERS,
        "num_attention_heads": _HEADS,
        "word_embed_proj_dim": _HIDDEN,
        "max_position_embeddings": 128,
    },
    "bloom": {"hidden_size": _HIDDEN, "n_layer": _LAYERS, "n_head": _HEADS},
    "falcon": {
        "hidden_size": _HIDDEN,
        "num_hidden_layers": _LAYERS,
        "num_attention_heads": _HEADS,
        "multi_query": True,
        "parallel_attn": True,
        "bias": False,
        # torch's exporter to opset 23 refuses a fused attention of several query heads over one key head.
        "attn_implementation": "eager",
    },
    "gpt2": {"n_embd": _HIDDEN, "n_layer": _LAYERS, "n_head": _HEADS, "n_positions": 128},
    "gpt_neox": _STANDARD,
    "phi": {**_STANDARD, "num_key_value_heads": _KEY_HEADS},
    "mpt": {"d_model": _HIDDEN, "n_layers": _LAYERS, "n_heads": _HEADS, "max_seq_len": 128},
    "stablelm": {**_STANDARD, "num_key_value_heads": _KEY_HEADS},
}
_SPECIAL_TOKENS: Mapping[str, Any] = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}

ARCHITECTURES = tuple(_CONFIGURATIONS)


class Logits(torch.nn.Module):
    """A causal language model without a cache, whose only output is `logits` [batch, sequence, vocabulary]."""

    def __init__(self, model: torch.nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> dict[str, torch.Tensor]:
        """Both inputs are int64 [batch, sequence]."""
        output = self.model(input_ids=input_ids, attention_mask=attention_mask, use_cache=False)
        return {"logits": output.logits}


def random_decoder(architecture: str, *, seed: int = 0) -> tuple[Logits, Feed]:
    """Build a decoder with random weights, in eval mode, and a feed of 2 sequences of 12 tokens (one is padded).

    Args:
        architecture: one of `ARCHITECTURES`, transformers' name of the model type.
        seed: of the weights and of the tokens.

    Raises:
        ModelError: for an unknown architecture.
        MissingDependencyError: when transformers is not installed.
    """
    if architecture not in _CONFIGURATIONS:
        raise ModelError(f"architecture {architecture!r}", "it is not known", f"Use one of {', '.join(ARCHITECTURES)}")
    transformers = import_optional("transformers", "'qcompile[hf]'")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        config = transformers.AutoConfig.for_model(
            architecture, vocab_size=_VOCABULARY, **_SPECIAL_TOKENS, **_CONFIGURATIONS[architecture]
        )
        model = transformers.AutoModelForCausalLM.from_config(config).eval()
        _perturb(model)
    return Logits(model).eval(), tokens(2, 12, seed=seed)


def tokens(batch: int, sequence: int, *, seed: int) -> Feed:
    """Random token ids and their mask, int64 [batch, sequence]; the last sequence has two padded positions."""
    generator = np.random.default_rng(seed)
    input_ids = generator.integers(3, _VOCABULARY, (batch, sequence))
    attention_mask = np.ones_like(input_ids)
    input_ids[-1, -2:], attention_mask[-1, -2:] = 0, 0
    return {"input_ids": input_ids, "attention_mask": attention_mask}


def _perturb(model: torch.nn.Module) -> None:
    """Spread linears as a trained model's (transformers starts them at 0.02), and move norms and biases off 1 and 0."""
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() == 1:
                parameter.add_(0.2 * torch.randn_like(parameter))
            else:
                parameter.copy_(torch.randn_like(parameter) / parameter.shape[-1] ** 0.5)
