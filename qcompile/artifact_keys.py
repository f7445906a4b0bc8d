"""Ed25519 keys in PEM files: sign and check bytes, with the package cryptography, an extra of qcompile."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from qcompile.errors import KeyFileError, MissingDependencyError, raise_interrupt

_MAKE_KEYS = (
    "Make a pair: openssl genpkey -algorithm ed25519 -out private.pem; "
    "openssl pkey -in private.pem -pubout -out public.pem"
)

_LONGEST = 64 * 1024
"""Bytes of a file that are read: a key has some hundred, and a device never ends."""


def signature_of(content: bytes, private_key: Path, password: bytes | None) -> bytes:
    """Return the Ed25519 signature (RFC 8032) of the content, 64 bytes; the same each time.

    Args:
        content: what is signed.
        private_key: a PEM file, or a pipe, for a key that never lies in a file.
        password: of the file, None when it has none.

    Raises:
        KeyFileError: the file cannot be read, is no Ed25519 private key, or the password is wrong.
        MissingDependencyError: cryptography (extra `sign`) is not installed.
    """
    exceptions, serialization, ed25519 = _cryptography()
    key = _read(private_key, lambda data: serialization.load_pem_private_key(data, password), exceptions)
    if not isinstance(key, ed25519.Ed25519PrivateKey):
        raise KeyFileError(str(private_key), "it is not an Ed25519 private key", _MAKE_KEYS)
    signature: bytes = key.sign(content)
    return signature


def is_signature(signature: bytes, content: bytes, public_key: Path) -> bool:
    """True when the owner of the key signed the content.

    Args:
        signature: what `signature_of` returned, or anything else.
        content: what is to be signed.
        public_key: a PEM file.

    Raises:
        KeyFileError: the file cannot be read, or is no Ed25519 public key.
        MissingDependencyError: cryptography (extra `sign`) is not installed.
    """
    exceptions, serialization, ed25519 = _cryptography()
    key = _read(public_key, serialization.load_pem_public_key, exceptions)
    if not isinstance(key, ed25519.Ed25519PublicKey):
        raise KeyFileError(str(public_key), "it is not an Ed25519 public key", _MAKE_KEYS)
    try:
        key.verify(signature, content)
    except exceptions.InvalidSignature:
        return False
    return True


def _read(path: Path, load: Callable[[bytes], Any], exceptions: Any) -> Any:
    try:
        with path.open("rb") as file:
            return load(file.read(_LONGEST))
    except (OSError, ValueError, TypeError, exceptions.UnsupportedAlgorithm) as error:
        raise KeyFileError(str(path), f"the key cannot be read: {error}", _MAKE_KEYS) from error


def _cryptography() -> tuple[Any, Any, Any]:
    """Return three modules of the package: the exceptions, the formats of keys, and Ed25519."""
    try:
        from cryptography import exceptions
        from cryptography.hazmat.primitives import serialization
        from cryptography.hazmat.primitives.asymmetric import ed25519
    except ImportError as error:
        raise_interrupt(error)
        reason = f"the package cryptography cannot be imported: {error}"
        raise MissingDependencyError("the signature", reason, "Install it: pip install 'qcompile[sign]'") from error
    return exceptions, serialization, ed25519
