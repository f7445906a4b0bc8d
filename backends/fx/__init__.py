"""ONNX models as modules of torch.fx: `lower`, and `OnnxBackend`, through which ONNX's own suite runs them.

Not a backend of `qcompile.compile`: `triton` is, which runs what this lowers.
"""

from __future__ import annotations

from qcompile.backends.fx.lowering import lower
from qcompile.backends.fx.onnx_backend import OnnxBackend

__all__ = ["OnnxBackend", "lower"]
