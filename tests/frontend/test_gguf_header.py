"""Heads of GGUF files that are truncated, damaged or built to break their reader."""

from __future__ import annotations

import struct
from collections.abc import Callable
from pathlib import Path

import gguf
import numpy as np
import pytest

from qcompile.errors import ModelError, QCompileError, UnsafeModelError
from qcompile.frontend.gguf import open_gguf
from qcompile.frontend.gguf_header import Header, read_header
from tests.frontend.gguf_files import KIND, Decoder, write_decoder

SMALL = Decoder(hidden=32, feed_forward=32, layers=1, heads=2, key_heads=2, words=40, kind=KIND.Q4_0)


@pytest.fixture(scope="module")
def content(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    return write_decoder(tmp_path_factory.mktemp("gguf") / "small.gguf", SMALL).read_bytes()


def read(content: bytes) -> Header:
    return read_header(np.frombuffer(content, np.uint8), "the file")


def test_it_finds_what_the_package_finds(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "small.gguf").write_bytes(content)
    reader = gguf.GGUFReader(tmp_path / "small.gguf")
    header = read(content)
    assert list(header.tensors) == [each.name for each in reader.tensors]
    for each in reader.tensors:
        place = header.tensors[each.name]
        assert place.kind == each.tensor_type
        assert (place.start, place.nbytes) == (each.data_offset, each.n_bytes)
        assert place.shape == tuple(each.shape[::-1].tolist())
    stated = {name: field.contents() for name, field in reader.fields.items() if not name.startswith("GGUF.")}
    assert header.metadata.keys() == stated.keys()
    for name, field in header.metadata.items():
        assert field.value == stated[name] or (field.value is None and field.count == len(stated[name]))


def test_a_truncated_file_is_refused_wherever_it_ends(content: bytes) -> None:
    for size in (*range(0, len(content), 100), len(content) - 1):
        with pytest.raises(ModelError):
            read(content[:size])


def test_any_byte_of_the_head_may_be_wrong(content: bytes) -> None:
    begin = min(place.start for place in read(content).tensors.values())
    refused = 0
    for at in range(begin):
        for flip in (0xFF, 0x01, 0x80):
            damaged = bytearray(content)
            damaged[at] ^= flip
            try:
                read(bytes(damaged))
            except QCompileError:
                refused += 1
    assert refused > begin // 2


def test_a_file_with_a_wrong_byte_opens_or_is_refused(content: bytes, tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    begin = min(place.start for place in read(content).tensors.values())
    file = tmp_path / "damaged.gguf"
    for at in rng.integers(24, begin, 60):
        damaged = bytearray(content)
        damaged[at] ^= int(rng.integers(1, 256))
        file.write_bytes(damaged)
        try:
            weights = open_gguf(file).weights()
            weights["model.norm.weight"].numpy()
        except QCompileError:
            continue


def patched(content: bytes, at: int, form: str, value: int) -> bytes:
    return content[:at] + struct.pack(form, value) + content[at + struct.calcsize(form) :]


def behind(content: bytes, text: str) -> int:
    return content.index(text.encode()) + len(text)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda c: b"GGML" + c[4:], "is not a GGUF file"),
        (lambda c: patched(c, 4, "<I", 1), "states version 1;"),
        (lambda c: patched(c, 4, ">I", 3), "big-endian"),
        (lambda c: patched(c, 8, "<Q", 1 << 60), f"states {1 << 60} tensors"),
        (lambda c: patched(c, 16, "<Q", 1 << 60), f"states {1 << 60} entries of metadata"),
        (lambda c: patched(c, 24, "<Q", 1 << 62), "is truncated"),
        (lambda c: c.replace(b"general.architecture", b"general.architectur\xff"), "is not UTF-8"),
        (lambda c: c.replace(b"llama.context_length", b"general.architecture"), "'general.architecture' twice"),
        (lambda c: patched(c, behind(c, "llama.block_count"), "<I", 13), "of the unknown type 13"),
        (lambda c: patched(c, behind(c, "tokenizer.ggml.merges") + 4, "<I", 9), "array of arrays"),
        (lambda c: patched(c, behind(c, "tokenizer.ggml.token_type") + 8, "<Q", 1 << 61), "numbers in an array"),
        (lambda c: patched(c, behind(c, "tokenizer.ggml.tokens") + 8, "<Q", 1 << 61), "texts in an array"),
        (lambda c: c.replace(b"ffn_gate.weight", b"ffn_down.weight"), "the tensor 'blk.0.ffn_down.weight' twice"),
        (lambda c: patched(c, behind(c, "token_embd.weight"), "<I", 5), "states 5 axes"),
        (lambda c: patched(c, behind(c, "token_embd.weight"), "<I", 0), "states 0 axes"),
        (lambda c: patched(c, behind(c, "token_embd.weight") + 4, "<Q", 33), "not one of Q4_0"),
        (lambda c: patched(c, behind(c, "token_embd.weight") + 4, "<Q", 0), "not one of Q4_0"),
        (lambda c: patched(c, behind(c, "token_embd.weight") + 4, "<Q", 1 << 63), "would not be inside"),
        (lambda c: patched(c, behind(c, "token_embd.weight") + 20, "<I", 99), "of the unknown type 99"),
        (lambda c: patched(c, behind(c, "token_embd.weight") + 24, "<Q", 1 << 40), "would not be inside"),
        (lambda c: patched(c, behind(c, "token_embd.weight") + 24, "<Q", 1), "would not be inside"),
    ],
)
def test_what_a_file_lies_about_is_named(content: bytes, change: Callable[[bytes], bytes], reason: str) -> None:
    with pytest.raises(ModelError) as raised:
        read(change(content))
    assert reason in raised.value.reason


def test_counts_that_fit_the_file_and_no_model(monkeypatch: pytest.MonkeyPatch, content: bytes) -> None:
    monkeypatch.setattr("qcompile.frontend.gguf_header.MOST_TENSORS", 2)
    with pytest.raises(UnsafeModelError, match="no model has more than 2"):
        read(content)


@pytest.mark.parametrize("alignment", [0, 48])
def test_an_alignment_that_is_no_power_of_two(tmp_path: Path, alignment: int) -> None:
    writer = gguf.GGUFWriter(tmp_path / "a.gguf", "none")
    writer.add_uint32("general.alignment", alignment)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.close()
    with pytest.raises(ModelError, match="no power of two"):
        read((tmp_path / "a.gguf").read_bytes())
