"""The signature over the manifest: whoever changes a file and computes every hash again is told from the signer."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

import qcompile
from qcompile.artifact import load
from qcompile.artifact_signature import sign
from qcompile.errors import ArtifactError, SignatureError, VerificationError
from qcompile.sealed_json import sealed, unsealed
from tests.artifacts import files, write
from tests.test_verification_against import changed
from tests.test_verify_artifact import network, samples

ed25519 = pytest.importorskip("cryptography.hazmat.primitives.asymmetric.ed25519")
ec = pytest.importorskip("cryptography.hazmat.primitives.asymmetric.ec")
serialization = pytest.importorskip("cryptography.hazmat.primitives.serialization")

PASSWORD = b"correct horse"


def save_pair(folder: Path, name: str, key=None, encryption=None) -> tuple[Path, Path]:
    """Write a private and a public PEM file, and return the two paths."""
    key = key or ed25519.Ed25519PrivateKey.from_private_bytes(name.encode().ljust(32))
    private, public = folder / f"{name}.pem", folder / f"{name}.pub"
    formats = serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8
    private.write_bytes(key.private_bytes(*formats, encryption or serialization.NoEncryption()))
    public.write_bytes(
        key.public_key().public_bytes(serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo)
    )
    return private, public


@pytest.fixture
def keys(tmp_path: Path) -> tuple[Path, Path]:
    (tmp_path / "keys").mkdir()
    return save_pair(tmp_path / "keys", "mine")


def test_a_signed_artifact_loads_with_the_key_and_without(tmp_path: Path, keys: tuple[Path, Path]) -> None:
    private, public = keys
    written = write(tmp_path / "made" / "out")
    assert sign(tmp_path / "made" / "out", private) == tmp_path / "made" / "out" / "manifest.json.sig"
    assert load(tmp_path / "made" / "out") == load(tmp_path / "made" / "out", public_key=public) == written
    assert os.listdir(tmp_path / "made") == ["out"]


def test_signing_again_gives_the_same_bytes_and_writing_again_removes_them(
    tmp_path: Path, keys: tuple[Path, Path]
) -> None:
    private, public = keys
    write(tmp_path / "out")
    first = sign(tmp_path / "out", private).read_bytes()
    assert sign(str(tmp_path / "out"), str(private)).read_bytes() == first
    write(tmp_path / "out")
    with pytest.raises(SignatureError, match="nobody signed it"):
        load(tmp_path / "out", public_key=public)


@pytest.mark.skipif(shutil.which("openssl") is None, reason="openssl is not installed")
def test_openssl_checks_it_without_qcompile(tmp_path: Path, keys: tuple[Path, Path]) -> None:
    private, public = keys
    write(tmp_path / "out")
    sign(tmp_path / "out", private)
    command = ["openssl", "pkeyutl", "-verify", "-pubin", "-inkey", public, "-rawin"]
    command += ["-in", "manifest.json", "-sigfile", "manifest.json.sig"]
    assert subprocess.run(command, cwd=tmp_path / "out", check=False, capture_output=True).returncode == 0
    (tmp_path / "out" / "manifest.json").write_bytes(b"{}")
    assert subprocess.run(command, cwd=tmp_path / "out", check=False, capture_output=True).returncode != 0


def test_another_artifact_with_all_hashes_right_is_refused(tmp_path: Path, keys: tuple[Path, Path]) -> None:
    private, public = keys
    write(tmp_path / "out")
    signature = sign(tmp_path / "out", private).read_bytes()
    write(tmp_path / "out", target=None)
    (tmp_path / "out" / "manifest.json.sig").write_bytes(signature)
    load(tmp_path / "out")
    with pytest.raises(SignatureError, match="not a signature of this manifest"):
        load(tmp_path / "out", public_key=public)


def test_the_signature_of_somebody_else_is_refused(tmp_path: Path, keys: tuple[Path, Path]) -> None:
    write(tmp_path / "out")
    sign(tmp_path / "out", save_pair(tmp_path, "other")[0])
    with pytest.raises(SignatureError) as raised:
        load(tmp_path / "out", public_key=keys[1])
    assert raised.value.subject == str(tmp_path / "out" / "manifest.json.sig")


def test_a_flipped_byte_of_the_signature_is_refused(tmp_path: Path, keys: tuple[Path, Path]) -> None:
    private, public = keys
    write(tmp_path / "out")
    path = sign(tmp_path / "out", private)
    whole = path.read_bytes()
    for other in (bytes([whole[0] ^ 1]) + whole[1:], whole[:-1], b""):
        path.write_bytes(other)
        with pytest.raises(SignatureError):
            load(tmp_path / "out", public_key=public)


def test_a_damaged_artifact_is_not_signed(tmp_path: Path, keys: tuple[Path, Path]) -> None:
    write(tmp_path / "out")
    (tmp_path / "out" / "model.onnx").write_bytes(b"")
    before = files(tmp_path / "out")
    with pytest.raises(ArtifactError, match="bytes"):
        sign(tmp_path / "out", keys[0])
    assert files(tmp_path / "out") == before


def test_what_is_no_artifact_is_not_signed_and_left_alone(tmp_path: Path, keys: tuple[Path, Path]) -> None:
    with pytest.raises(ArtifactError, match="no such folder"):
        sign(tmp_path / "deep" / "nothing", keys[0])
    assert os.listdir(tmp_path) == ["keys"]


def test_a_key_with_a_password_needs_it(tmp_path: Path) -> None:
    write(tmp_path / "out")
    private, public = save_pair(tmp_path, "locked", encryption=serialization.BestAvailableEncryption(PASSWORD))
    for wrong in (None, b"wrong"):
        with pytest.raises(SignatureError, match="key cannot be read"):
            sign(tmp_path / "out", private, password=wrong)
    sign(tmp_path / "out", private, password=PASSWORD)
    load(tmp_path / "out", public_key=public)


def test_keys_of_another_kind_are_refused(tmp_path: Path, keys: tuple[Path, Path]) -> None:
    write(tmp_path / "out")
    private, public = save_pair(tmp_path, "curve", key=ec.generate_private_key(ec.SECP256R1()))
    with pytest.raises(SignatureError, match="not an Ed25519 private key"):
        sign(tmp_path / "out", private)
    sign(tmp_path / "out", keys[0])
    with pytest.raises(SignatureError, match="not an Ed25519 public key"):
        load(tmp_path / "out", public_key=public)
    for unreadable in (tmp_path / "nothing.pem", tmp_path / "out" / "manifest.json"):
        with pytest.raises(SignatureError, match="key cannot be read"):
            sign(tmp_path / "out", unreadable)
        with pytest.raises(SignatureError, match="key cannot be read"):
            load(tmp_path / "out", public_key=unreadable)


def test_a_forged_report_does_not_set_the_limits_where_there_is_a_key(tmp_path: Path, keys: tuple[Path, Path]) -> None:
    private, public = keys
    artifact = qcompile.compile(network(), "w8a8-static", calibration=samples(), output=tmp_path / "a", tune="none")
    sign(artifact.path, private)
    assert qcompile.verify(artifact, against=network(), public_key=public).accuracy["sqnr_db"] > 20
    report = unsealed((artifact.path / "report.json").read_bytes())
    report["accuracy"] = {"sqnr_db": -99.0, "cosine": {"x4": -1.0}}
    (artifact.path / "report.json").write_bytes(sealed(report))
    for model in (changed(1.5), changed(0.3)):
        assert qcompile.verify(artifact, against=model).warning == ""  # who signed nothing may say anything
    with pytest.raises(VerificationError, match=r"further .* than zeros would be: -\d\S* dB\."):
        qcompile.verify(artifact, against=changed(1.5), public_key=public)
    assert "is it the same model?" in qcompile.verify(artifact, against=changed(0.3), public_key=public).warning


def test_verify_says_whether_the_signature_was_checked(tmp_path: Path, keys: tuple[Path, Path]) -> None:
    private, public = keys
    artifact = qcompile.compile(network(), "w8a8-static", calibration=samples(), output=tmp_path / "a", tune="none")
    unsigned = qcompile.verify(artifact)
    assert (unsigned.to_dict()["signature"], "signature" in unsigned.summary()) == ("none", False)
    sign(artifact.path, private)
    signed = qcompile.verify(artifact)
    assert signed.to_dict()["signature"] == "not checked"
    assert "\nsignature not checked: give the public key (--public-key)\n" in signed.summary()
    checked = qcompile.verify(artifact, public_key=public)
    assert checked.to_dict()["signature"] == "checked"
    assert "\nsignature checked\n" in checked.summary()
