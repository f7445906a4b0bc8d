"""What qcompile needs of a runtime to run a model: one protocol, implemented by every backend."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Callable, Mapping
from typing import Protocol

import numpy as np
import onnx_ir as ir

from qcompile.errors import RecipeError

Feed = Mapping[str, np.ndarray]

_THREADS_PER_CORE = 16
"""More of them than cores only wait for each other; runtimes start as many as they are told, and hang in doing so."""


def check_threads(threads: int | None) -> None:
    """Raise RecipeError for a number of threads that this machine is not made for; None leaves it to the runtime."""
    if threads is None:
        return
    most = _THREADS_PER_CORE * (os.cpu_count() or 1)
    if isinstance(threads, bool) or not isinstance(threads, int) or not 1 <= threads <= most:
        reason = f"this machine takes 1 to {most}, {_THREADS_PER_CORE} for each core"
        raise RecipeError(f"threads {threads!r}", reason, "Give as many as it has cores, or leave it to the runtime")


class Session(Protocol):
    """A model that is loaded in a runtime."""

    def run(self, feed: Feed) -> dict[str, np.ndarray]:
        """Run the model: input name -> array, to output name -> array."""
        ...


class OpenSession(Protocol):
    """Loads a model in a runtime, e.g. `qcompile.backends.onnxruntime.open_session`."""

    def __call__(self, model: ir.Model, /) -> Session:
        """Return the session; raises ModelError when the runtime refuses the model."""
        ...


@dataclasses.dataclass(frozen=True)
class Probe:
    """An artifact in one mode of its runtime, with values from inside of it as further outputs.

    Attributes:
        name: the runtime and the mode, for messages, e.g. "onnxruntime, optimizations disabled".
        session: runs the artifact; what it returns has the values besides the outputs.
        values: names of the values.
        channels_per_scale: width of a token -> how many of its consecutive channels share a scale where the recipe
            says per token: all of them, fewer where the runtime is finer, 0 where it leaves them float.
    """

    name: str
    session: Session
    values: tuple[str, ...]
    channels_per_scale: Callable[[int], int]


@dataclasses.dataclass(frozen=True)
class Agreement:
    """How far an artifact is from the reference of its arithmetic, in one mode of its runtime.

    Attributes:
        runtime: its name and mode, that of the probe.
        values: names of the values inside of the artifact that were compared.
        max_steps: largest difference of one number, in quantization steps.
        rms_steps: largest root mean square difference of a value, in quantization steps.
        worst: name of the value or output with the largest difference; empty where all are equal.
        left_out: what was not compared, name and why: decided on floats that the runtime does not show, NaN,
            or so small that a kernel may round it to 0.
    """

    runtime: str
    values: tuple[str, ...]
    max_steps: float
    rms_steps: float
    worst: str = ""
    left_out: tuple[str, ...] = ()

    @property
    def observed(self) -> int:
        """Number of values inside of the artifact that were compared."""
        return len(self.values)
