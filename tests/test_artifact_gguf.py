"""GGUF files that qcompile writes: the same model for transformers, within the blocks' error."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import onnx_ir as ir
import pytest
import torch
import transformers
from tokenizers import pre_tokenizers
from transformers.modeling_gguf_pytorch_utils import load_gguf_checkpoint

from qcompile.artifact_gguf import KINDS, write_gguf
from qcompile.errors import ArtifactError, ModelError, UnsupportedError
from qcompile.frontend.gguf import open_gguf
from tests.frontend.gguf_files import Decoder, write_decoder

SIZES: Mapping[str, Any] = {
    "vocab_size": 80,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
    "bos_token_id": 0,
    "eos_token_id": 1,
    "pad_token_id": 2,
}


def decoder(kind: str = "llama", **settings: Any) -> Any:
    torch.manual_seed(0)
    config = transformers.AutoConfig.for_model(kind, **(SIZES | settings))
    model = transformers.AutoModelForCausalLM.from_config(config).eval()
    for parameter in model.parameters():  # norms of one and biases of zero would hide what is lost
        parameter.data += 0.1 * torch.randn_like(parameter)
    return model


def tensors(model: Any) -> dict[str, ir.TensorProtocol]:
    return {name: ir.tensor(value.detach().numpy()) for name, value in model.state_dict().items()}


def read_back(path: Path) -> Any:
    """The decoder as transformers reads it, without any of qcompile's code."""
    loaded = load_gguf_checkpoint(path, return_tensors=False)["config"]
    model = transformers.AutoModelForCausalLM.from_config(transformers.AutoConfig.for_model(**loaded)).eval()
    weights = load_gguf_checkpoint(path, return_tensors=True, model_to_load=model)["tensors"]
    missing = model.load_state_dict({name: value.float() for name, value in weights.items()}, strict=False)
    assert set(missing.missing_keys) <= {"lm_head.weight"}
    return model


def logits(model: Any) -> np.ndarray:
    with torch.no_grad():
        return model(torch.arange(40).reshape(2, 20)).logits.numpy()


def error(model: Any, other: Any) -> float:
    expected = logits(model)
    return float(np.linalg.norm(logits(other) - expected) / np.linalg.norm(expected))


def rounded(model: Any, kind: str) -> Any:
    """Put the weights of a model through the blocks of a type, by the gguf package alone."""
    for name, parameter in model.named_parameters():
        if parameter.ndim == 2:
            vocabulary = parameter.shape[0] == SIZES["vocab_size"]
            which = gguf.GGMLQuantizationType["Q8_0" if vocabulary and kind == "Q4_0" else kind]
            blocks = gguf.quantize(parameter.detach().numpy(), which)
            assert gguf.dequantize(blocks, which).shape == parameter.shape, name
            parameter.data = torch.tensor(gguf.dequantize(blocks, which))
    return model


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("tied", [False, True])
def test_transformers_computes_with_the_blocks(tmp_path: Path, kind: str, tied: bool) -> None:
    model = decoder(tie_word_embeddings=tied)
    write_gguf(model.config, tensors(model), None, tmp_path / "a.gguf", kind)
    read = read_back(tmp_path / "a.gguf")
    assert error(rounded(model, kind), read) < 1e-6
    assert error(decoder(tie_word_embeddings=tied), read) < 0.5  # and it is near what was given


@pytest.mark.parametrize(
    ("kind", "settings"),
    [
        ("qwen2", {}),
        ("qwen3", {"head_dim": 32}),
        ("stablelm", {}),
        ("falcon", {"multi_query": True, "parallel_attn": True, "bias": False}),
        ("nemotron", {}),  # norms are stored with one added
        ("gemma2", {"head_dim": 16, "query_pre_attn_scalar": 256}),
    ],
)
def test_other_architectures(tmp_path: Path, kind: str, settings: dict[str, Any]) -> None:
    model = decoder(kind, **settings)
    write_gguf(model.config, tensors(model), None, tmp_path / "a.gguf", "F16")
    opened = open_gguf(tmp_path / "a.gguf")
    other = transformers.AutoModelForCausalLM.from_config(opened.config).eval()
    other.load_state_dict({name: torch.tensor(value.numpy()) for name, value in opened.weights().items()})
    assert error(rounded(model, "F16"), other) < 1e-6


def test_the_types_of_the_tensors(tmp_path: Path) -> None:
    model = decoder(intermediate_size=80)
    write_gguf(model.config, tensors(model), None, tmp_path / "a.gguf", "Q4_0")
    kinds = {each.name: each.tensor_type.name for each in gguf.GGUFReader(tmp_path / "a.gguf").tensors}
    assert kinds["token_embd.weight"] == kinds["output.weight"] == "Q8_0"
    assert kinds["blk.0.attn_q.weight"] == kinds["blk.1.ffn_up.weight"] == "Q4_0"
    assert kinds["blk.0.ffn_down.weight"] == "F16"  # 80 is no multiple of 32
    assert kinds["blk.0.attn_norm.weight"] == "F32"


def test_blocks_that_were_read_are_written_again_bit_for_bit(tmp_path: Path) -> None:
    """Q8_0 of what was Q8_0: the largest of a block is 127 steps, so the same scale is found."""
    model = decoder()
    write_gguf(model.config, tensors(model), None, tmp_path / "a.gguf", "Q8_0")
    opened = open_gguf(tmp_path / "a.gguf")
    write_gguf(opened.config, opened.weights(), None, tmp_path / "b.gguf", "Q8_0")
    again = open_gguf(tmp_path / "b.gguf").weights()
    for name, tensor in opened.weights().items():
        assert np.array_equal(again[name].numpy(), tensor.numpy()), name


def test_the_tokenizer_comes_back(tmp_path: Path) -> None:
    opened = open_gguf(write_decoder(tmp_path / "a.gguf", Decoder()))
    for folder in ("first", "second"):
        (tmp_path / folder).mkdir()
    opened.save_tokenizer(tmp_path / "first")
    (tmp_path / "first" / "chat_template.jinja").write_text("{{ messages }}", encoding="utf-8")
    write_gguf(opened.config, opened.weights(), tmp_path / "first", tmp_path / "b.gguf", "F16")
    open_gguf(tmp_path / "b.gguf").save_tokenizer(tmp_path / "second")
    for name in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
        assert (tmp_path / "first" / name).read_bytes() == (tmp_path / "second" / name).read_bytes(), name


@pytest.mark.parametrize(
    ("change", "kind", "reason"),
    [
        (lambda t: t["model"].update(type="Unigram"), UnsupportedError, "is no byte-pair encoding of bytes"),
        (
            lambda t: t.update(pre_tokenizer=json.loads(pre_tokenizers.Whitespace().__getstate__())),
            UnsupportedError,
            "by a rule",
        ),
        (lambda t: t["model"]["vocab"].update(more=80), ModelError, "has the token 80, and the model knows 80"),
    ],
)
def test_tokenizers_that_gguf_cannot_say(tmp_path: Path, change: Any, kind: type[Exception], reason: str) -> None:
    opened = open_gguf(write_decoder(tmp_path / "a.gguf", Decoder()))
    opened.save_tokenizer(tmp_path)
    tokenizer = json.loads((tmp_path / "tokenizer.json").read_text(encoding="utf-8"))
    change(tokenizer)
    (tmp_path / "tokenizer.json").write_text(json.dumps(tokenizer), encoding="utf-8")
    with pytest.raises(kind, match=reason):
        write_gguf(opened.config, opened.weights(), tmp_path, tmp_path / "b.gguf", "F16")


@pytest.mark.parametrize(
    ("settings", "reason"),
    [
        ({"hidden_act": "gelu"}, "cannot say that hidden_act is 'gelu'"),
        ({"attention_bias": True}, "cannot say that attention_bias is True"),
        ({"rope_parameters": {"rope_type": "linear", "factor": 2.0, "rope_theta": 1e4}}, "cannot say that rope_param"),
    ],
)
def test_what_gguf_cannot_say_is_refused(tmp_path: Path, settings: dict[str, Any], reason: str) -> None:
    model = decoder(**settings)
    with pytest.raises(UnsupportedError, match=reason):
        write_gguf(model.config, tensors(model), None, tmp_path / "a.gguf", "F16")
    assert not list(tmp_path.iterdir())


def test_an_architecture_without_a_name(tmp_path: Path) -> None:
    model = decoder("opt", ffn_dim=64, word_embed_proj_dim=64)
    with pytest.raises(UnsupportedError, match="cannot be written as GGUF"):
        write_gguf(model.config, tensors(model), None, tmp_path / "a.gguf", "F16")


@pytest.mark.parametrize(("value", "kind"), [(np.nan, "Q8_0"), (np.inf, "F16"), (1e5, "F16"), (1e7, "Q8_0")])
def test_numbers_that_float16_does_not_hold(tmp_path: Path, value: float, kind: str) -> None:
    model = decoder()
    model.model.layers[0].mlp.up_proj.weight.data[3, 5] = value
    with pytest.raises(ModelError, match=r"layers.0.mlp.up_proj.weight: has numbers (that are not finite|too large)"):
        write_gguf(model.config, tensors(model), None, tmp_path / "a.gguf", kind)
    assert not list(tmp_path.iterdir())


def test_a_missing_weight_and_a_folder_that_is_not_there(tmp_path: Path) -> None:
    model = decoder()
    weights = tensors(model)
    with pytest.raises(ArtifactError, match="cannot be written"):
        write_gguf(model.config, weights, None, tmp_path / "none" / "a.gguf", "F16")
    del weights["model.norm.weight"]
    with pytest.raises(ModelError, match=r"model\.norm\.weight: is not among the weights"):
        write_gguf(model.config, weights, None, tmp_path / "a.gguf", "F16")
    with pytest.raises(UnsupportedError, match="is none of F16, Q8_0, Q4_0"):
        write_gguf(model.config, weights, None, tmp_path / "a.gguf", "Q3_K")


def test_kinds_are_those_that_are_tested() -> None:
    assert KINDS == ("F16", "Q8_0", "Q4_0")
