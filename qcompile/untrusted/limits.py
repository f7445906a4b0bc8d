"""Reads an untrusted model a first time in another process, which may be killed.

A short file can ask for much: protobuf takes 80 times its length in memory for empty messages, and shape inference runs
C++ over what the file says. No check in this process could stop either of them, or survive a crash. So the model is
parsed, and onnx's checker and shape inference are run on it without its weights, by a Python that has no more than a
given memory and processor time. It costs 0.2 seconds, most of it the import of onnx; a fork of this process would cost
less, and is not safe where runtimes have started threads. What comes after it meets nothing that has not been met here.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from typing import Any, BinaryIO, NoReturn

from qcompile import errors

MOST_BYTES = 2**31 - 1
"""Length of the longest message of protobuf."""

_MEMORY = 2 * 2**30
"""Bytes for the interpreter, onnx and the graph."""

_MEMORY_FACTOR = 4
"""Bytes for each byte of the model: as read, as parsed, and twice as much to spare."""

_SECONDS = 3
"""Processor time; the largest graphs that are let through take a third of it."""

_PATIENCE = 30
"""Seconds until a process that gets no processor time is given up."""

_MEND = "Do not use it. If you know where it comes from, pass trust_input=True"


def first_read(model: BinaryIO | bytes, length: int, subject: str) -> None:
    """Read a serialized ModelProto in a process of its own, and forget it.

    Args:
        model: an open file, which is read from its start, or the bytes themselves.
        length: how many bytes it has.
        subject: what to call it in errors.

    Raises:
        UnsafeModelError: reading it takes too much memory or time, crashes, or it is built to grow.
        ModelError: it is not an ONNX model, or the other process cannot be started.
    """
    if length > MOST_BYTES:
        raise errors.ModelError(subject, "is longer than 2 GiB", "Save the model with its weights in files beside it")
    memory = _MEMORY + _MEMORY_FACTOR * length
    command = [sys.executable, "-P", "-m", "qcompile.untrusted", subject, str(memory), str(_SECONDS)]
    given: dict[str, Any] = {"input": model} if isinstance(model, bytes) else {"stdin": model}
    try:
        found = subprocess.run(
            command,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env=_environment(),
            timeout=_PATIENCE,
            check=False,
            **given,
        )
    except subprocess.TimeoutExpired as error:
        raise errors.UnsafeModelError(subject, f"reading it takes more than {_PATIENCE} seconds", _MEND) from error
    except OSError as error:
        reason = f"the process that reads it cannot be started ({error.strerror})"
        raise errors.ModelError(subject, reason, "Pass trust_input=True if you know where it comes from") from error
    if found.returncode:
        _raise_for(found.returncode, subject)
    if found.stdout:
        _raise_reported(json.loads(found.stdout), subject)


def _environment() -> dict[str, str]:
    """Modules come from where this process has them; numpy must not reserve memory for threads."""
    path = os.pathsep.join(dict.fromkeys(map(os.path.abspath, sys.path)))
    return {**os.environ, "PYTHONPATH": path, "OPENBLAS_NUM_THREADS": "1"}


def _raise_for(code: int, subject: str) -> NoReturn:
    if code in (-signal.SIGXCPU, -signal.SIGKILL):
        reason = f"reading it takes more than {_SECONDS} seconds"
    else:
        reason = f"reading it crashes ({signal.strsignal(-code) if code < 0 else f'exit code {code}'})"
    raise errors.UnsafeModelError(subject, reason, _MEND)


def _raise_reported(report: dict[str, str], subject: str) -> NoReturn:
    """Raise here what was raised there."""
    if report["type"] == "MemoryError":
        raise errors.UnsafeModelError(subject, "reading it takes more memory than a model of its length may", _MEND)
    kind = errors.UnsafeModelError if report["type"] == "UnsafeModelError" else errors.ModelError
    raise kind(report["subject"], report["reason"], report["mend"])
