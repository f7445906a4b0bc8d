from __future__ import annotations

import dataclasses

import onnx_ir as ir
import pytest

from qcompile.backends.onnxruntime.genai_config import Decoder, genai_config
from qcompile.errors import ModelError
from qcompile.generation import Generation

CONFIG = {"max_position_embeddings": 64, "eos_token_id": 2, "bos_token_id": 1, "hidden_size": 32, "top_k": 9}
DECODER = Decoder(
    "model.onnx",
    ("input_ids", "attention_mask"),
    (("past_key_values.0.key", "past_key_values.0.value"), ("past_key_values.1.key", "past_key_values.1.value")),
    (("present.0.key", "present.0.value"), ("present.1.key", "present.1.value")),
    ir.Shape(["batch", 2, "past", 16]),
    4,
    "logits",
    100,
    True,
)


def test_what_the_graph_and_the_configurations_say() -> None:
    generation = Generation.of(CONFIG, {"eos_token_id": [2, 7], "temperature": 0.6, "top_k": None})
    assert genai_config(DECODER, generation) == {
        "model": {
            "type": "decoder",
            "bos_token_id": 1,
            "eos_token_id": [2, 7],
            "pad_token_id": 2,
            "context_length": 64,
            "vocab_size": 100,
            "decoder": {
                "filename": "model.onnx",
                "session_options": {"log_id": "onnxruntime-genai", "provider_options": []},
                "head_size": 16,
                "hidden_size": 64,
                "num_attention_heads": 4,
                "num_key_value_heads": 2,
                "num_hidden_layers": 2,
                "inputs": {
                    "input_ids": "input_ids",
                    "attention_mask": "attention_mask",
                    "past_key_names": "past_key_values.%d.key",
                    "past_value_names": "past_key_values.%d.value",
                },
                "outputs": {
                    "logits": "logits",
                    "present_key_names": "present.%d.key",
                    "present_value_names": "present.%d.value",
                },
            },
        },
        "search": {"top_k": 9, "temperature": 0.6, "max_length": 64, "past_present_share_buffer": True},
    }


def test_what_nobody_says_is_left_out() -> None:
    generation = Generation.of({"n_positions": 64, "eos_token_id": 5, "bos_token_id": None, "pad_token_id": 0})
    written = genai_config(DECODER, generation)["model"]
    assert "bos_token_id" not in written
    assert written["pad_token_id"] == 0


def test_a_shorter_context() -> None:
    assert Generation.of(CONFIG, context_length=16).context_length == 16


@pytest.mark.parametrize(
    ("missing", "said"), [("max_position_embeddings", "how many"), ("eos_token_id", "which token")]
)
def test_what_must_be_said(missing: str, said: str) -> None:
    with pytest.raises(ModelError, match=said):
        Generation.of({name: value for name, value in CONFIG.items() if name != missing})


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"max_position_embeddings": "long"}, "how many"),
        ({"max_position_embeddings": -1}, "how many"),
        ({"eos_token_id": "</s>"}, "which token"),
        ({"eos_token_id": [2, None]}, "which token"),
    ],
)
def test_what_is_said_must_be_numbers(changes: dict[str, object], said: str) -> None:
    with pytest.raises(ModelError, match=said):
        Generation.of(CONFIG | changes)


def test_names_that_do_not_count_the_layers() -> None:
    other = dataclasses.replace(DECODER, past=(("a.key", "a.value"), ("b.key", "b.value")))
    with pytest.raises(ModelError, match="names of the cache do not count the layers"):
        genai_config(other, Generation.of(CONFIG))
