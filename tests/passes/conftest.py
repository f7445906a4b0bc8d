"""Fixtures of the tests of passes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir
import onnx_ir.passes.common as common_passes
import onnxruntime
import pytest


def run(model: ir.Model, feed: dict[str, np.ndarray]) -> list[np.ndarray]:
    """Outputs of ONNX Runtime without optimizations, which could hide or undo what a pass did."""
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.log_severity_level = 3
    return onnxruntime.InferenceSession(ir.to_proto(model).SerializeToString(), options).run(None, feed)


@dataclass
class Rewritten:
    """A model after a pass, with what the pass said."""

    model: ir.Model
    modified: bool
    findings: tuple

    @property
    def operators(self) -> list[str]:
        """Operators in graph order."""
        return [node.op_type for node in self.model.graph]


@pytest.fixture
def rewrite() -> Callable[..., Rewritten]:
    """Apply a pass to a model in textual ONNX; check numerics, names of outputs, and that a second run does nothing."""

    def apply(text: str, rewriting: ir.passes.InPlacePass, *, seed: int = 0, atol: float = 1e-5) -> Rewritten:
        model = ir.from_onnx_text(text)
        common_passes.ShapeInferencePass(strict_mode=False)(model)
        generator = np.random.default_rng(seed)
        feed = {}
        for value in model.graph.inputs:
            shape = [dim if isinstance(dim, int) else 3 for dim in value.shape or ()]
            array = generator.normal(size=shape)
            feed[value.name] = (array > 0) if value.dtype == ir.DataType.BOOL else array.astype(value.dtype.numpy())
        expected = run(model, feed)
        outputs = [value.name for value in model.graph.outputs]
        result = rewriting(model)
        assert [value.name for value in model.graph.outputs] == outputs
        for before, after in zip(expected, run(model, feed), strict=True):
            assert before.shape == after.shape
            np.testing.assert_allclose(after, before, atol=atol)
        assert not rewriting(model).modified
        return Rewritten(model, result.modified, result.findings)

    return apply
