"""The signature of an artifact: an Ed25519 signature over its manifest, made with a key on this machine, offline."""

from __future__ import annotations

from pathlib import Path

from qcompile.artifact import absolute, load
from qcompile.artifact_exchange import sync
from qcompile.artifact_keys import signature_of
from qcompile.artifact_stage import behind_link, stage_beside
from qcompile.errors import ArtifactError
from qcompile.manifest import SIGNATURE, Manifest


def sign(folder: str | Path, private_key: str | Path, *, password: bytes | None = None) -> Path:
    """Sign the manifest of an artifact, and with it every file that its runtime reads; return the signature's path.

    `qcompile.load(folder, public_key=...)` checks it, and so does openssl, where there is no qcompile:
    `openssl pkeyutl -verify -pubin -inkey public.pem -rawin -in manifest.json -sigfile manifest.json.sig`. A signature
    from before is replaced; writing the artifact again removes it. The measurements of the report are not signed.

    Args:
        folder: an artifact; a damaged one is not signed.
        private_key: a PEM file with an Ed25519 key.
        password: of that file, None when it has none.

    Raises:
        KeyFileError: the key cannot be read or is of another kind.
        ArtifactError: the folder is not an artifact, damaged, being written by another process, or not writable.
        MissingDependencyError: cryptography (extra `sign`) is not installed.
    """
    output = absolute(folder)
    Manifest.read(output)  # nothing is written beside what is not an artifact
    path = output / SIGNATURE
    try:
        with stage_beside(behind_link(output)) as stage:
            made = signature_of(load(output).manifest.to_json(), Path(private_key), password)
            (stage / SIGNATURE).write_bytes(made)
            sync(stage / SIGNATURE)
            (stage / SIGNATURE).replace(path)
            sync(output)
    except OSError as error:
        raise ArtifactError(
            str(path), f"it cannot be written: {error}", "Give a folder with room and rights"
        ) from error
    return path
