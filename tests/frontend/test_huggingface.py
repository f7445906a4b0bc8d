"""Folders of Hugging Face: the decoder with its cache computes what transformers does, and bad folders are refused."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, MixtralConfig, PreTrainedConfig, Qwen3MoeConfig

import qcompile
from qcompile import backends, frontend
from qcompile.decoder_inputs import complete
from qcompile.errors import ModelError, UnsafeModelError, UnsupportedError
from qcompile.models.random_decoders import random_decoder

GENERATOR = np.random.default_rng(0)


def folder_of(architecture: str, path: Path) -> torch.nn.Module:
    """Write a random decoder into a folder and return transformers' own."""
    model = random_decoder(architecture)[0].model
    model.save_pretrained(path)
    return model


def run(model: ir.Model, **feed: np.ndarray) -> dict[str, np.ndarray]:
    return backends.get("onnxruntime").open_session(model).run(complete(model.graph.inputs, feed))


def in_two_steps(model: ir.Model, ids: np.ndarray, first: int) -> np.ndarray:
    """Logits of a prompt, and of what follows it by way of the cache."""
    prompt = run(model, input_ids=ids[:, :first])
    past = {name.replace("present", "past_key_values"): each for name, each in prompt.items() if name != "logits"}
    return np.concatenate([prompt["logits"], run(model, input_ids=ids[:, first:], **past)["logits"]], axis=1)


# Grouped heads; norms of queries and keys, and windows; names that older files have otherwise; learned positions.
@pytest.mark.parametrize("architecture", ["llama", "gemma3_text", "gpt_neox", "gpt2"])
def test_the_cache_computes_what_transformers_does(architecture: str, tmp_path: Path) -> None:
    expected_of = folder_of(architecture, tmp_path)
    model = frontend.trace(tmp_path)
    ids = GENERATOR.integers(3, 200, (2, 9))
    with torch.no_grad():
        expected = expected_of(input_ids=torch.tensor(ids)).logits.numpy()
    np.testing.assert_allclose(in_two_steps(model, ids, 6), expected, atol=2e-6 * np.abs(expected).max())


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("llama")
    folder_of("llama", path)
    return path


@pytest.fixture(scope="module")
def canonical(llama: Path) -> ir.Model:
    return qcompile.trace(llama)


@pytest.fixture
def folder(llama: Path, tmp_path: Path) -> Path:
    """A copy that a test may damage."""
    for file in llama.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    return tmp_path


def test_canonical_form_has_one_operator_for_attention_and_for_rotary_positions(canonical: ir.Model) -> None:
    operators = [node.op_type for node in canonical.graph]
    assert operators.count("Attention") == 2
    assert operators.count("RotaryEmbedding") == 4
    assert not {"Expand", "Slice", "GatherND"} & set(operators)
    attention = next(node for node in canonical.graph if node.op_type == "Attention")
    assert [str(value.name) for value in attention.inputs[4:6]] == ["past_key_values.0.key", "past_key_values.0.value"]
    assert [value.name for value in attention.outputs[1:3]] == ["present.0.key", "present.0.value"]
    assert {str(value.shape) for value in canonical.graph.inputs} == {
        "[batch,sequence]",
        "[batch,past + sequence]",
        "[batch,2,past,16]",
    }


def test_padding_in_front_changes_nothing(canonical: ir.Model) -> None:
    ids = GENERATOR.integers(3, 200, (1, 5))
    plain = run(canonical, input_ids=ids)["logits"]
    padded = run(
        canonical,
        input_ids=np.concatenate([[[0, 0]], ids], axis=1),
        attention_mask=np.array([[0, 0, 1, 1, 1, 1, 1]]),
        position_ids=np.array([[0, 0, 0, 1, 2, 3, 4]]),
    )["logits"]
    np.testing.assert_allclose(padded[:, 2:], plain, atol=2e-6 * np.abs(plain).max())


def test_weights_of_sixteen_bits_are_read_exactly(folder: Path) -> None:
    weights = {name: tensor.to(torch.bfloat16) for name, tensor in load_file(folder / "model.safetensors").items()}
    save_file(weights, folder / "model.safetensors")
    model = frontend.trace(folder)
    for name, tensor in weights.items():
        stored = model.graph.initializers[name].const_value
        assert stored.dtype == ir.DataType.FLOAT
        np.testing.assert_array_equal(stored.numpy(), tensor.float().numpy())


def test_weights_may_lie_in_several_files(folder: Path) -> None:
    weights = load_file(folder / "model.safetensors")
    names = sorted(weights)
    parts = {"a.safetensors": names[::2], "b.safetensors": names[1::2]}
    for file, held in parts.items():
        save_file({name: weights[name] for name in held}, folder / file)
    (folder / "model.safetensors").unlink()
    index = {"weight_map": {name: file for file, held in parts.items() for name in held}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    assert len(frontend.trace(folder).graph.initializers) >= len(names)
    index["weight_map"][names[0]] = "../a.safetensors"
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(UnsafeModelError, match="outside of its folder"):
        frontend.trace(folder)


def test_truncated_weights_are_refused_wherever_they_end(folder: Path) -> None:
    file = folder / "model.safetensors"
    whole = file.read_bytes()
    for end in [0, 7, 8, 100, len(whole) // 2, len(whole) - 1]:
        file.write_bytes(whole[:end])
        with pytest.raises(ModelError, match=r"no safetensors file|not lie inside"):
            frontend.trace(folder)


@pytest.mark.parametrize(
    "header",
    [
        b"[]",
        b"{" * 5000,
        b'{"a": {"dtype": "F32", "shape": [-1, -4], "data_offsets": [0, 16]}}',
        b'{"a": {"dtype": "F32", "shape": [2], "data_offsets": [8, 0]}}',
        b'{"a": {"dtype": "F32", "shape": "x", "data_offsets": [0, 8]}}',
        b'{"a": {"dtype": "F32", "shape": [9223372036854775807, 9223372036854775807], "data_offsets": [0, 4]}}',
        b'{"a": {"dtype": "I8", "shape": [4], "data_offsets": [0, 4]}}',
        b'{"a": 5}',
    ],
)
def test_headers_that_lie_are_refused(folder: Path, header: bytes) -> None:
    (folder / "model.safetensors").write_bytes(len(header).to_bytes(8, "little") + header + bytes(64))
    with pytest.raises(ModelError):
        frontend.trace(folder)


def test_a_missing_weight_is_named(folder: Path) -> None:
    weights = load_file(folder / "model.safetensors")
    del weights["model.layers.1.mlp.up_proj.weight"]
    save_file(weights, folder / "model.safetensors")
    with pytest.raises(ModelError, match=r"parameter model\.layers\.1\.mlp\.up_proj\.weight"):
        frontend.trace(folder)


def test_weights_that_no_parameter_takes_are_in_the_report(folder: Path) -> None:
    weights = load_file(folder / "model.safetensors")
    assert compiled_findings(folder) == []
    buffers = {"model.layers.0.self_attn.rotary_emb.inv_freq": torch.zeros(8)}  # as older files have it
    others = {f"model.layers.{index}.mlp.gate_proj.weight_scale": torch.zeros(1) for index in (7, 8, 9, 10)}
    save_file({**weights, **buffers, **others}, folder / "model.safetensors")
    first = ", ".join(sorted(others)[:3])
    assert compiled_findings(folder) == [f"no parameter of the model takes these weights: {first} and 1 more"]


def compiled_findings(folder: Path) -> list[str]:
    report = qcompile.compile(folder, "w4a16-rtn", verify=False).report
    return [found.reason for found in report.findings if found.layer == "files of the model"]


def test_frequencies_that_change_with_the_length_are_refused(folder: Path) -> None:
    for kind in ("linear", "dynamic"):
        _configured(folder, rope_parameters={"rope_type": kind, "factor": 2.0, "rope_theta": 10000.0})
        if kind == "linear":
            frontend.trace(folder)
    with pytest.raises(ModelError, match=r"rope_scaling .* its rope_type is 'dynamic'"):
        frontend.trace(folder)
    _configured(folder, rope_parameters=None, rope_scaling={"type": "dynamic", "factor": 2.0})
    with pytest.raises(ModelError, match=r"rope_scaling .* its rope_type is 'dynamic'"):
        frontend.trace(folder)


@pytest.mark.parametrize("architecture", [MixtralConfig, Qwen3MoeConfig])
def test_experts_are_refused_by_their_name(architecture: type[PreTrainedConfig], tmp_path: Path) -> None:
    sizes = {"vocab_size": 50, "hidden_size": 16, "intermediate_size": 8, "num_hidden_layers": 1}
    config = architecture(**sizes, num_attention_heads=2, num_key_value_heads=1)
    config.num_local_experts = config.num_experts = 2
    AutoModelForCausalLM.from_config(config).save_pretrained(tmp_path)
    with pytest.raises(UnsupportedError, match=r"model\.layers\.0\.mlp\.experts chooses among experts for each token"):
        frontend.trace(tmp_path)


def test_weights_that_are_tied_and_differ_are_refused(folder: Path) -> None:
    """transformers does not tie them then: with either alone, the model would compute something else."""
    _configured(folder, tie_word_embeddings=True)
    with pytest.raises(ModelError, match="their weights differ"):
        frontend.trace(folder)
    weights = load_file(folder / "model.safetensors")
    weights["lm_head.weight"] = weights["model.embed_tokens.weight"].clone()
    save_file(weights, folder / "model.safetensors")
    frontend.trace(folder)


def test_a_weight_of_another_shape_is_named_before_any_work(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    weights = load_file(folder / "model.safetensors")
    weights["model.norm.weight"] = torch.zeros(63)
    save_file(weights, folder / "model.safetensors")
    monkeypatch.setattr(torch.onnx, "export", None)
    with pytest.raises(ModelError, match=r"parameter model\.norm\.weight.*\[63\].*\[64\]"):
        frontend.trace(folder)


def _configured(folder: Path, **changes: object) -> None:
    file = folder / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))


def test_code_of_a_model_is_never_run(folder: Path) -> None:
    (folder / "modeling.py").write_text("raise SystemExit('run')")
    _configured(folder, auto_map={"AutoModelForCausalLM": "modeling.Model", "AutoConfig": "modeling.Config"})
    with pytest.raises(UnsafeModelError, match="code of its own"):
        frontend.trace(folder)


def test_pickled_weights_are_refused(folder: Path) -> None:
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    with pytest.raises(UnsafeModelError, match="can run code"):
        frontend.trace(folder)


@pytest.mark.parametrize(
    "changes",
    [
        {"model_type": "nobody"},
        {"num_attention_heads": "x"},
        {"num_attention_heads": 0},
        {"num_key_value_heads": 0},
        {"head_dim": 0},
        {"pad_token_id": 99999},
        {"hidden_size": -1},
        {"num_hidden_layers": -1},
        {"num_hidden_layers": 10**9},
        {"model_type": "mamba"},
    ],
)
def test_configurations_that_are_none_are_refused(folder: Path, changes: dict[str, object]) -> None:
    _configured(folder, **changes)
    with pytest.raises(ModelError):
        frontend.trace(folder)


def test_other_architectures_than_decoders_are_refused(folder: Path) -> None:
    _configured(folder, model_type="resnet")
    with pytest.raises(ModelError, match="architecture resnet"):
        frontend.trace(folder)


@pytest.mark.parametrize("architecture", ["bloom", "falcon", "mpt"])
def test_attention_that_transformers_has_no_function_for_is_named(architecture: str, tmp_path: Path) -> None:
    """What the mend says works: test_decoders compiles the three without a cache."""
    random_decoder(architecture)[0].model.save_pretrained(tmp_path)
    with pytest.raises(
        ModelError, match=r"compute attention by themselves.*Pass a torch\.nn\.Module .* use_cache=False"
    ):
        qcompile.trace(tmp_path)
