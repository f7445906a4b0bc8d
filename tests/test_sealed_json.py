import hashlib
import json

import pytest

from qcompile.sealed_json import fingerprint, sealed, unsealed

DATA = {"b": [1, 0.1, None, float("inf")], "a": {"name": "モデル", "file": "\udcff"}}


def test_what_is_sealed_reads_back_and_is_sealed_alike():
    content = sealed(DATA)
    assert unsealed(content) == DATA
    assert sealed(unsealed(content)) == content


def test_the_fingerprint_is_the_sha256_of_the_text_without_it():
    text = json.dumps(DATA, indent=1) + "\n"
    assert json.loads(sealed(DATA))["fingerprint"] == fingerprint(DATA) == hashlib.sha256(text.encode()).hexdigest()


@pytest.mark.parametrize(
    "change",
    [
        lambda content: content.replace(b"0.1", b"0.10"),
        lambda content: content.replace(b"\n", b"\r\n"),
        lambda content: content.replace(b'"a"', b'"c"'),
        lambda content: content.replace(b'"b"', b'"a"'),
        lambda content: content + b" ",
        lambda content: json.dumps(json.loads(content)).encode(),
    ],
)
def test_every_change_is_seen(change):
    content = change(sealed(DATA))
    assert sealed(unsealed(content)) != content


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"3", b"\xff", b"[" * 100_000])
def test_what_is_not_an_object_is_refused(content):
    with pytest.raises((ValueError, RecursionError)):
        unsealed(content)
