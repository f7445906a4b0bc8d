from __future__ import annotations

import json
from pathlib import Path

import pytest

import qcompile
from tests.artifacts import write
from tests.cli.commands import run

ed25519 = pytest.importorskip("cryptography.hazmat.primitives.asymmetric.ed25519")
serialization = pytest.importorskip("cryptography.hazmat.primitives.serialization")


@pytest.fixture
def keys(tmp_path: Path) -> Path:
    """A folder with private.pem, of the password "secret", and public.pem."""
    key = ed25519.Ed25519PrivateKey.generate()
    private = (serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8)
    public = (serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo)
    encryption = serialization.BestAvailableEncryption(b"secret")
    (tmp_path / "private.pem").write_bytes(key.private_bytes(*private, encryption))
    (tmp_path / "public.pem").write_bytes(key.public_key().public_bytes(*public))
    return tmp_path


def test_sign_and_verify_with_the_other_half(keys: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = keys / "artifact"
    write(folder)
    with pytest.raises(qcompile.QCompileError, match="nobody signed it"):
        qcompile.verify(folder, public_key=keys / "public.pem")
    refused = run("verify", folder, "--public-key", keys / "public.pem")
    assert refused.exit_code == 6
    assert "nobody signed it" in refused.output
    assert run("sign", folder, "--key", keys / "private.pem").exit_code == 3  # it has a password
    assert run("sign", folder, "--key", keys / "nothere.pem").exit_code == 3
    monkeypatch.setenv("QCOMPILE_KEY_PASSWORD", "secret")
    signed = run("sign", folder, "--key", keys / "private.pem", "--json")
    assert json.loads(signed.output) == {"path": str(folder / "manifest.json.sig")}
    assert qcompile.load(folder, public_key=keys / "public.pem").path == folder
    assert run("verify", folder, "--public-key", keys / "nothere.pem").exit_code == 3
    again = run("verify", folder, "--public-key", keys / "public.pem")
    assert "portable.onnx" in again.output  # the signature is right, and this artifact holds nothing else to verify


def test_bom_is_written_beside_the_artifact(tmp_path: Path) -> None:
    write(tmp_path / "artifact")
    done = run("bom", tmp_path / "artifact", "-o", tmp_path / "bom.cdx.json")
    assert done.exit_code == 0
    assert json.loads((tmp_path / "bom.cdx.json").read_text())["bomFormat"] == "CycloneDX"
    assert run("bom", tmp_path / "artifact", "-o", tmp_path / "artifact" / "bom.cdx.json").exit_code == 6
