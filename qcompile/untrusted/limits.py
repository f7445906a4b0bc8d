"""Reads an untrusted model a first time in another process, which may be killed.

A short file can ask for much: protobuf takes 80 times its length in memory for empty messages, and shape inference runs
C++ over what the file says. No check in this process could stop either of them, or survive a crash. So the model is
parsed, and onnx's checker and shape inference are run on it without its weights, by a Python that has no more than a
given memory and processor time. It costs 0.2 seconds, most of it the import of onnx; a fork of this process would cost
less, and is not safe where runtimes have started threads.

What comes after it in this process, the reader, the passes and the runtime, has no limits. It meets only models that
this read has ended on, no larger or deeper once written out than `qcompile.untrusted.structure` lets through; it may
still take long over them, or crash.
"""

from __future__ import annotations

import json
import math
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

_MEMORY_FACTOR = 8
"""Bytes for each byte of the model; weights in Constant nodes, which onnx's functions get too, take 5."""

_SECONDS = 3
"""Processor time; the largest graphs that are let through take a third of it."""

_SECONDS_PER_GIB = 30
"""Processor time for copying weights; 6 were measured, on a core of a server, for weights in Constant nodes."""

_PATIENCE = 30
"""Seconds, besides twice the processor time, until a process that gets no processor time is given up."""

READING_FAILED = 3
"""Exit code of a process that an exception ended while it read."""

_NEVER_READ = 1
"""Exit code of a Python that cannot start or import, before it has seen the model."""

_MEND = "Do not use it. If you know where it comes from, pass trust_input=True"


def first_read(model: BinaryIO | bytes, length: int, subject: str) -> None:
    """Read a serialized ModelProto in a process of its own, and forget it.

    Args:
        model: an open file, which is read from its start, or the bytes themselves.
        length: how many bytes it has.
        subject: what to call it in errors.

    Raises:
        UnsafeModelError: reading it takes too much memory or time, crashes, or it is built to grow.
        ModelError: it is not an ONNX model, or the other process cannot be started or fails before it reads.
    """
    if length > MOST_BYTES:
        raise errors.ModelError(subject, "is longer than 2 GiB", "Save the model with its weights in files beside it")
    memory = _MEMORY + _MEMORY_FACTOR * length
    seconds = processor_seconds(length)
    patience = _PATIENCE + 2 * seconds
    command = [sys.executable, "-P", "-m", "qcompile.untrusted", subject, str(memory), str(seconds)]
    given: dict[str, Any] = {"input": model} if isinstance(model, bytes) else {"stdin": model}
    try:
        found = subprocess.run(
            command,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env=_environment(),
            timeout=patience,
            check=False,
            **given,
        )
    except subprocess.TimeoutExpired as error:
        raise errors.UnsafeModelError(subject, f"reading it takes more than {patience} seconds", _MEND) from error
    except OSError as error:
        reason = f"the process that reads it cannot be started ({error.strerror})"
        raise errors.ModelError(subject, reason, "Pass trust_input=True if you know where it comes from") from error
    if found.returncode:
        _raise_for(found.returncode, seconds, subject)
    if found.stdout:
        _raise_reported(json.loads(found.stdout), subject)


def processor_seconds(length: int) -> int:
    """Return the processor time, in seconds, that the read of so many bytes gets."""
    return _SECONDS + math.ceil(_SECONDS_PER_GIB * length / 2**30)


def _environment() -> dict[str, str]:
    """Modules come from where this process has them; numpy must not reserve memory for threads."""
    path = os.pathsep.join(dict.fromkeys(map(os.path.abspath, sys.path)))
    return {**os.environ, "PYTHONPATH": path, "OPENBLAS_NUM_THREADS": "1"}


def _raise_for(code: int, seconds: int, subject: str) -> NoReturn:
    if code == _NEVER_READ:
        reason = f"the process that reads it fails before it does (exit code {code})"
        mend = f"See why with `{sys.executable} -c 'import qcompile.untrusted.__main__'`; the model is not to blame"
        raise errors.ModelError(subject, reason, mend)
    # Windows has neither signal; what it calls an exit code is never negative.
    out_of_time = {-getattr(signal, name) for name in ("SIGXCPU", "SIGKILL") if hasattr(signal, name)}
    if code in out_of_time:
        reason = f"reading it takes more than {seconds} seconds"
    else:
        reason = f"reading it crashes ({signal.strsignal(-code) if code < 0 else f'exit code {code}'})"
    raise errors.UnsafeModelError(subject, reason, _MEND)


def _raise_reported(report: dict[str, Any], subject: str) -> NoReturn:
    """Raise here what was raised there."""
    if report["type"] == "MemoryError" and report["scarce"]:
        reason = "reading it takes more memory than the limit that this process was started under (ulimit -v)"
        raise errors.ModelError(subject, reason, "Lift the limit")
    if report["type"] == "MemoryError":
        raise errors.UnsafeModelError(subject, "reading it takes more memory than a model of its length may", _MEND)
    kind = errors.UnsafeModelError if report["type"] == "UnsafeModelError" else errors.ModelError
    raise kind(report["subject"], report["reason"], report["mend"])
