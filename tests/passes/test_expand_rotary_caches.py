from __future__ import annotations

import onnx_ir as ir
import onnx_ir.passes.common as common_passes

from qcompile.passes.expand_rotary_caches import ExpandRotaryCaches

ROTARY = """
<ir_version: 10, opset_import: ["" : 23]>
g (float[B, 2, S, 8] x, float[{batch}, S, 4] c, float[{batch}, S, 4] s) => (float[B, 2, S, 8] y, float[B, 2, S, 8] z)
{{ y = RotaryEmbedding(x, c, s) w = Relu(x) z = RotaryEmbedding(w, c, s) }}
"""


def test_shared_caches_are_expanded_once() -> None:
    model = ir.from_onnx_text(ROTARY.format(batch=1))
    common_passes.ShapeInferencePass(strict_mode=False)(model)
    assert ExpandRotaryCaches()(model).modified
    assert [node.op_type for node in model.graph].count("Expand") == 2
    assert all(
        str(value.shape[0]) == "B" for node in model.graph for value in node.inputs[:3] if "Rotary" in node.op_type
    )
    common_passes.CheckerPass(full_check=True)(model)
    assert not ExpandRotaryCaches()(model).modified


def test_caches_of_the_batch_stay() -> None:
    model = ir.from_onnx_text(ROTARY.format(batch="B"))
    common_passes.ShapeInferencePass(strict_mode=False)(model)
    assert not ExpandRotaryCaches()(model).modified


def test_caches_indexed_by_positions_stay() -> None:
    text = ROTARY.format(batch=1).replace("(x, c, s)", "(x, c, s, p)").replace("(w, c, s)", "(w, c, s, p)")
    text = text.replace("] s)", "] s, int64[B, S] p)")
    assert not ExpandRotaryCaches()(ir.from_onnx_text(text)).modified
