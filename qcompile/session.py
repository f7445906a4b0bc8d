"""What qcompile needs of a runtime to run a model: one protocol, implemented by every backend."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol

import numpy as np
import onnx_ir as ir

Feed = Mapping[str, np.ndarray]


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
