"""`export_gguf`: from a folder or a GGUF file to one that qcompile and llama.cpp read, tokenizer and all."""

from __future__ import annotations

import json
from pathlib import Path

import gguf
import numpy as np
import pytest
import torch

import qcompile
from qcompile.artifact_gguf import KINDS
from qcompile.backends import get
from qcompile.decoder_inputs import complete
from qcompile.errors import ArtifactError, ModelError, UnsupportedError
from qcompile.frontend.gguf import open_gguf
from qcompile.models.decoder_folders import write_decoder_folder
from qcompile.models.random_decoders import random_decoder
from tests.cli.commands import run
from tests.frontend.gguf_files import Decoder, write_decoder

_Q = gguf.GGMLQuantizationType


IDS = np.arange(3, 43).reshape(2, 20)


def folder_of(path: Path) -> Path:
    """A model with a tokenizer that has a name in GGUF."""
    source = write_decoder(path / "tokenizer.gguf", Decoder(words=256))
    folder = path / "folder"
    folder.mkdir()
    open_gguf(source).save_tokenizer(folder)
    random_decoder("llama")[0].model.save_pretrained(folder)
    return folder


def logits_of_rounded(kind: str) -> np.ndarray:
    """What transformers computes with the matrices of the same model through the blocks of a type, by gguf alone."""
    module = random_decoder("llama")[0].model
    for name, parameter in module.named_parameters():
        if parameter.ndim == 2:
            wide = kind == "Q4_0" and ("embed" in name or "lm_head" in name)
            which = _Q["Q8_0" if wide else kind]
            blocks = gguf.quantize(parameter.detach().numpy(), which)
            parameter.data = torch.tensor(gguf.dequantize(blocks, which))
    with torch.no_grad():
        found: np.ndarray = module(input_ids=torch.tensor(IDS)).logits.numpy()
    return found


def logits(path: Path) -> np.ndarray:
    model = qcompile.trace(path)
    return get("onnxruntime").open_session(model).run(complete(model.graph.inputs, {"input_ids": IDS}))["logits"]


def tensors(path: Path) -> dict[str, tuple[str, bytes]]:
    return {each.name: (each.tensor_type.name, each.data.tobytes()) for each in gguf.GGUFReader(path).tensors}


@pytest.mark.parametrize("kind", KINDS)
def test_the_file_computes_with_the_rounded_weights(kind: str, tmp_path: Path) -> None:
    written = qcompile.export_gguf(folder_of(tmp_path), tmp_path / "a.gguf", kind=kind)
    found, expected = logits(written), logits_of_rounded(kind)
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-5 * np.abs(expected).max())


def test_llama_cpp_finds_the_tokenizer(tmp_path: Path) -> None:
    folder = folder_of(tmp_path)
    (folder / "chat_template.jinja").write_text("{{ messages[0].content }}", encoding="utf-8")
    fields = gguf.GGUFReader(qcompile.export_gguf(folder, tmp_path / "a.gguf")).fields
    tokenizer = json.loads((folder / "tokenizer.json").read_text(encoding="utf-8"))
    words = sorted(tokenizer["model"]["vocab"], key=tokenizer["model"]["vocab"].get)
    assert fields["tokenizer.ggml.tokens"].contents()[: len(words)] == words
    assert fields["tokenizer.ggml.model"].contents() == "gpt2"
    assert fields["tokenizer.ggml.pre"].contents() == "smollm"
    assert fields["tokenizer.ggml.merges"].contents() == ["a b", "Ġ a"]
    assert fields["tokenizer.chat_template"].contents() == "{{ messages[0].content }}"
    ids = [fields[f"tokenizer.ggml.{name}_token_id"].contents() for name in ("bos", "eos", "padding")]
    assert ids == [0, 1, 2]
    assert fields["general.architecture"].contents() == "llama"
    assert fields["general.file_type"].contents() == gguf.LlamaFileType.MOSTLY_Q8_0


@pytest.mark.parametrize("kind", KINDS)
def test_what_has_the_type_is_copied_bit_for_bit(kind: str, tmp_path: Path) -> None:
    source = write_decoder(tmp_path / "a.gguf", Decoder(kind=_Q[kind], kinds={"embd": _Q.Q8_0, "up": _Q.Q4_1}))
    before, after = tensors(source), tensors(qcompile.export_gguf(source, tmp_path / "b.gguf", kind=kind))
    assert before.keys() == after.keys()
    same = {name for name in before if before[name][0] == after[name][0]}
    assert {"blk.0.attn_q.weight", "blk.1.ffn_down.weight", "blk.0.attn_norm.weight"} < same
    assert ("token_embd.weight" in same) == (kind != "F16")
    assert "blk.0.ffn_up.weight" not in same
    assert {name for name in before if before[name] == after[name]} == same


def test_other_types_start_from_the_dequantized_weights(tmp_path: Path) -> None:
    source = write_decoder(tmp_path / "a.gguf", Decoder(kind=_Q.Q4_0))
    after = tensors(qcompile.export_gguf(source, tmp_path / "b.gguf", kind="Q8_0"))
    assert {kind for name, (kind, _) in after.items() if "norm" not in name} == {"Q8_0"}
    expected, found = logits(source), logits(tmp_path / "b.gguf")
    assert np.linalg.norm(found - expected) < 0.02 * np.linalg.norm(expected)


def test_the_command(tmp_path: Path) -> None:
    folder, file = folder_of(tmp_path), tmp_path / "a.gguf"
    result = run("export", folder, "-o", file, "--type", "q4_0")
    assert (result.exit_code, result.stdout.startswith(str(file))) == (0, True)
    assert tensors(file)["blk.0.ffn_up.weight"][0] == "Q4_0"
    printed = json.loads(run("export", folder, "-o", file, "--json").stdout)
    assert printed == {"path": str(file), "bytes": file.stat().st_size}
    assert tensors(file)["blk.0.ffn_up.weight"][0] == "Q8_0"
    assert run("export", folder, "-o", file, "--type", "Q3_K").exit_code == 4


def test_refusals(tmp_path: Path) -> None:
    source = write_decoder(tmp_path / "a.gguf")
    with pytest.raises(ArtifactError, match="it is the model itself"):
        qcompile.export_gguf(source, tmp_path / "." / "a.gguf")
    with pytest.raises(ArtifactError, match="it is a folder"):
        qcompile.export_gguf(source, tmp_path)
    with pytest.raises(UnsupportedError, match="is none of F16, Q8_0, Q4_0"):
        qcompile.export_gguf(source, tmp_path / "b.gguf", kind="Q3_K")
    with pytest.raises(UnsupportedError, match="the model comes without one"):
        qcompile.export_gguf(tmp_path / "model.onnx", tmp_path / "b.gguf")
    with pytest.raises(UnsupportedError, match=r"made of the float weights, by no recipe. Use qcompile.export_gguf"):
        qcompile.compile(source, "w4a16-rtn", output_format="gguf")
    empty = write_decoder_folder(tmp_path / "model")
    (empty / "model.safetensors").unlink()
    with pytest.raises(ModelError, match=r"there is no model.safetensors"):
        qcompile.export_gguf(empty, tmp_path / "b.gguf")
    assert not (tmp_path / "b.gguf").exists()
