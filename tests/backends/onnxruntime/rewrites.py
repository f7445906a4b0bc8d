"""How the rewrites of the lowering are tested: operators and numerics before and after, and once more."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime
from onnx_ir.passes import common

from qcompile import backends
from tests.backends.portable import reference

Rewrite = Callable[[ir.Model], Any]


def operators(model: ir.Model) -> Counter[str]:
    return Counter(node.op_type for node in model.graph)


def run(model: ir.Model, feed: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Outputs of the model as written: without ONNX Runtime's own fusions, which could repair or hide a wrong one."""
    return backends.get("onnxruntime").open_session(model, threads=1, optimization="disabled").run(feed)  # type: ignore[call-arg]


def optimized(model_file: Path) -> onnx.ModelProto:
    """The graph that ONNX Runtime runs, after its own optimizations."""
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    options.optimized_model_filepath = str(model_file.with_suffix(".optimized"))
    onnxruntime.InferenceSession(model_file, options, providers=["CPUExecutionProvider"])
    return onnx.load(options.optimized_model_filepath)


def rewritten(model: ir.Model, *rewrites: Rewrite) -> ir.Model:
    """The model after the rewrites and the removal of dead nodes, with shapes as the lowering has them."""
    model = model.clone()
    common.ShapeInferencePass(check_type=False, strict_mode=False)(model)
    for rewrite in rewrites:
        rewrite(model)
    common.RemoveUnusedNodesPass()(model)
    model.graph.opset_imports.setdefault("com.microsoft", 1)
    return model


def check(
    model: ir.Model, feed: Mapping[str, np.ndarray], expected: Mapping[str, int], *rewrites: Rewrite, step: Any = 0.0
) -> ir.Model:
    """Assert the operators and the outputs after the rewrites, and that they change nothing the second time."""
    after = rewritten(model, *rewrites)
    assert operators(after) == expected
    wanted = reference(model, feed)
    results = run(after, feed)
    assert list(results) == list(wanted)
    for name, result in results.items():
        excess = np.abs(result - wanted[name]) - step - 1e-5 * np.abs(wanted[name]).max()
        assert excess.max() <= 0, f"{name} is off by {excess.max():.3g} more than allowed"
    again = ir.to_proto(after).SerializeToString(deterministic=True)
    for rewrite in rewrites:
        rewrite(after)
    common.RemoveUnusedNodesPass()(after)
    assert ir.to_proto(after).SerializeToString(deterministic=True) == again
    return after


def refuses(model: ir.Model, *rewrites: Rewrite) -> ir.Model:
    """Assert that the rewrites leave all operators as they are."""
    after = rewritten(model, *rewrites)
    assert operators(after) == operators(rewritten(model))
    return after
