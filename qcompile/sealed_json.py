"""JSON that carries its own SHA-256: whoever changes a byte of it, by accident or by hand, is told."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from typing import Any

SEAL = "fingerprint"
"""Last entry of the file: the SHA-256 of what the text would be without it."""


def sealed(data: Mapping[str, Any]) -> bytes:
    """Return the data as JSON with its fingerprint as the last entry; equal data in equal order gives equal bytes.

    It protects from damage and from editing by hand, not from whoever computes the fingerprint again: for that a file
    is signed.

    Args:
        data: what `json` writes and reads back as it is; has no entry "fingerprint".
    """
    return _text({**data, SEAL: fingerprint(data)})


def fingerprint(data: Mapping[str, Any]) -> str:
    """Return the hexadecimal SHA-256 of the data as JSON."""
    return hashlib.sha256(_text(data)).hexdigest()


def unsealed(content: bytes) -> dict[str, Any]:
    """Return the data that `sealed` wrote. Not checked: `sealed(data)` gives the same bytes when nothing was changed.

    Raises:
        ValueError, RecursionError: it is not JSON, or not an object.
    """
    data = json.loads(content)
    if not isinstance(data, dict):
        raise ValueError("it is not a JSON object")
    data.pop(SEAL, None)
    return data


def _text(data: Mapping[str, Any]) -> bytes:
    # ASCII: names of files may hold what UTF-8 cannot.
    return (json.dumps(data, indent=1) + "\n").encode("ascii")
