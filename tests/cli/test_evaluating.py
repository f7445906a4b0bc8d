"""`qcompile evaluate`: prints what the library measures, as text or JSON, and ends in the exit code of an error."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest

import qcompile
from qcompile.evaluation import evaluate
from tests.cli.commands import run

TEXT = "the same words are said again and again and again"


def expects_again(likely: float) -> ir.Model:
    """A model without a cache that expects every token to come again."""
    constants = {"depth": np.array(16), "values": np.array([0, likely], dtype=np.float32)}
    return ir.from_onnx_text(
        """<ir_version: 10, opset_import: ["" : 21]>
        again (int64[batch, sequence] input_ids) => (float[batch, sequence, 16] logits)
        { logits = OneHot(input_ids, depth, values) }""",
        initializers=[ir.tensor(array, name=name) for name, array in constants.items()],
    )


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """An artifact, its float model, a tokenizer and a text."""
    tokenizers = pytest.importorskip("tokenizers")
    words = {word: number for number, word in enumerate(["?", *sorted(set(TEXT.split()))])}
    tokenizer = tokenizers.Tokenizer(tokenizers.models.WordLevel(words, unk_token="?"))
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    (tmp_path / "text.txt").write_text(TEXT, encoding="utf-8")
    ir.save(expects_again(2.0), tmp_path / "float.onnx")
    qcompile.compile(expects_again(1.0), "float", output=tmp_path / "artifact", tune="none", verify=False)
    return tmp_path


def options(folder: Path) -> list[object]:
    return [folder / "artifact", "--text", folder / "text.txt", "--tokenizer", folder, "--window", 4, "--stride", 2]


def test_what_the_library_measures_is_printed(folder: Path) -> None:
    found = evaluate(
        folder / "artifact",
        folder / "text.txt",
        against=folder / "float.onnx",
        tokenizer=folder,
        window=4,
        stride=2,
    )
    assert (found.tokens, found.window, found.stride) == (9, 4, 2)
    assert found.float_nats == pytest.approx(np.log(np.exp(2.0) + 15))  # no word comes twice in a row
    printed = run("evaluate", *options(folder), "--against", folder / "float.onnx")
    assert printed.exit_code == 0
    assert printed.stdout == found.summary()
    as_json = run("evaluate", *options(folder), "--against", folder / "float.onnx", "--json")
    assert json.loads(as_json.stdout) == found.to_dict()


def test_without_a_float_model_only_perplexity_is_printed(folder: Path) -> None:
    lines = run("evaluate", *options(folder)).stdout.splitlines()
    assert "perplexity" in lines[2]
    assert "--against" in lines[3]
    assert len(lines) == 4


@pytest.mark.parametrize(
    ("arguments", "code"),
    [
        (["--stride", 4], 2),
        (["--threads", 10**6], 2),
        (["--tokenizer", "nowhere"], 3),
        (["--text", "nowhere"], 3),
        (["--against", "nowhere.onnx"], 3),
    ],
)
def test_errors_have_their_exit_codes(arguments: list[object], code: int, folder: Path) -> None:
    assert run("evaluate", *options(folder), *arguments).exit_code == code


def test_what_is_no_artifact_has_its_exit_code(folder: Path) -> None:
    assert run("evaluate", folder, "--text", folder / "text.txt").exit_code == 6
