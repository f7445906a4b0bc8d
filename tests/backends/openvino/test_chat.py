"""Which loop a folder is answered by: ours, or that of openvino_genai."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import qcompile
from qcompile.artifact import Artifact
from qcompile.backends.openvino.chat import OpenVinoChat, open_chat
from qcompile.backends.openvino.greedy_chat import GreedyChat
from qcompile.chat import Message
from qcompile.models.decoder_folders import write_decoder_folder

genai = pytest.importorskip("openvino_genai")

QUESTION = Message("user", "one two three")


def compiled(architecture: str, folder: Path) -> Artifact:
    source = write_decoder_folder(folder / "source", architecture)
    settings: dict[str, Any] = {"backend": "openvino", "output_format": "genai", "tune": "none", "verify": False}
    return qcompile.compile(source, "w4a16-rtn", output=folder / "out", **settings)


@pytest.fixture(scope="module")
def artifact(tmp_path_factory: pytest.TempPathFactory) -> Artifact:
    return compiled("llama", tmp_path_factory.mktemp("llama"))


def test_our_loop_says_what_openvino_genai_says(artifact: Artifact) -> None:
    chat = open_chat(artifact.path, threads=1)
    assert isinstance(chat, GreedyChat)
    shown: list[str] = []
    answer = chat.answer([QUESTION], max_new_tokens=12, show=lambda piece: not shown.append(piece))
    pipeline = genai.LLMPipeline(artifact.path, "CPU")
    assert "".join(shown) == answer.text == pipeline.generate([QUESTION.content], max_new_tokens=12).texts[0]


def test_what_the_cache_holds_is_not_read_again(artifact: Artifact) -> None:
    chat = open_chat(artifact.path, threads=1)
    first = chat.answer([QUESTION], max_new_tokens=5, show=lambda _: True)
    second = chat.answer([QUESTION], max_new_tokens=5, show=lambda _: True)
    assert first.prompt_tokens > 1
    assert second.prompt_tokens == 1
    assert second.text == first.text


@pytest.mark.parametrize(
    "said", [{"do_sample": True, "temperature": 0.5}, {"repetition_penalty": 1.5}], ids=lambda said: next(iter(said))
)
def test_other_ways_to_choose_a_token_are_left_to_openvino_genai(
    artifact: Artifact, said: dict[str, Any], tmp_path: Path
) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(artifact.path, copy)
    file = copy / "generation_config.json"
    before = json.loads(file.read_text()) if file.exists() else {}
    file.write_text(json.dumps(before | said))
    chat = open_chat(copy, threads=1)
    assert isinstance(chat, OpenVinoChat)
    assert chat.answer([QUESTION], max_new_tokens=3, show=lambda _: True).new_tokens >= 1


def test_windows_are_kept(tmp_path: Path) -> None:
    """Paged attention would take all tokens before; openvino_genai takes it unless it is told not to."""
    artifact = compiled("gemma3_text", tmp_path)
    chat = open_chat(artifact.path, threads=1)
    assert isinstance(chat, OpenVinoChat)
    assert np.isfinite(chat.answer([QUESTION], max_new_tokens=3, show=lambda _: True).first_token_s)
