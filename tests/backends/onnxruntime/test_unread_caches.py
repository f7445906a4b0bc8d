from __future__ import annotations

import numpy as np
import onnx_ir as ir
import onnx_ir.passes.common as common
import pytest

from qcompile import backends

TEXT = """
<ir_version: 10, opset_import: ["" : 23]> g (float[1, 2, S, 4] q, float[1, 1, P, 4] past_k, float[1, 1, P, 4] past_v)
    => ({outputs})
{{ k = ReduceMean <keepdims=1> (q, axes) v = Neg(k) y, present_k, present_v = Attention(q, k, v, , past_k, past_v) }}
"""
OUTPUTS = ["float[1, 2, S, 4] y", "float[1, 1, T, 4] present_k", "float[1, 1, T, 4] present_v"]


def _model(outputs: list[str]) -> ir.Model:
    text = TEXT.format(outputs=", ".join(outputs)).replace("{ k", "<int64[1] axes = {1}> { k")
    model = ir.from_onnx_text(text)
    common.ShapeInferencePass()(model)
    return model


@pytest.mark.parametrize("past", [0, 3])
def test_a_cache_that_nobody_reads_is_joined_in_front(past: int) -> None:
    generator = np.random.default_rng(0)
    feed = {
        "q": generator.standard_normal((1, 2, 2, 4)).astype(np.float32),
        "past_k": generator.standard_normal((1, 1, past, 4)).astype(np.float32),
        "past_v": generator.standard_normal((1, 1, past, 4)).astype(np.float32),
    }
    runtime = backends.get("onnxruntime")
    whole = runtime.open_session(_model(OUTPUTS)).run(feed)
    alone = runtime.open_session(_model(OUTPUTS[:1])).run(feed)
    np.testing.assert_allclose(alone["y"], whole["y"], atol=1e-6)
