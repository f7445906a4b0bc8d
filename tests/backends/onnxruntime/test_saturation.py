from __future__ import annotations

from collections import Counter

import numpy as np
import onnx_ir as ir
import pytest

from qcompile.backends.onnxruntime.saturation import drop_saturated_clips
from tests.backends.onnxruntime.rewrites import check, operators, refuses, rewritten
from tests.backends.portable import conv_case, parse


@pytest.mark.parametrize("behind", ["Relu (c)", "Clip (c, low, high)"])
def test_drops_what_quantization_does_anyway(behind: str) -> None:
    case = conv_case(behind=behind, zero_point=0)
    expected = dict(operators(rewritten(case.model)))
    del expected[behind.split(maxsplit=1)[0]]
    check(case.model, case.feed, expected, drop_saturated_clips, step=case.step)


@pytest.mark.parametrize(
    ("behind", "zero_point"), [("Relu (c)", 110), ("Clip (c, low, high)", 110), ("Clip (c, low, s)", 0)]
)
def test_clips_the_integers_at_a_bound_within_the_quantized_range(behind: str, zero_point: int) -> None:
    case = conv_case(behind=behind, zero_point=zero_point)
    expected = Counter(operators(rewritten(case.model)))
    expected[behind.split(maxsplit=1)[0]] -= 1
    expected["Clip"] += 1
    after = check(case.model, case.feed, +expected, drop_saturated_clips, step=case.step)
    assert next(node for node in after.graph if node.op_type == "Clip").outputs[0].dtype == ir.DataType.UINT8


def test_keeps_a_clip_of_anything_but_a_convolution() -> None:
    model = parse(
        """(float[N,8] x) => (float[N,8] y)
        {
            r = Relu (x)
            q = QuantizeLinear (r, s, z)
            y = DequantizeLinear (q, s, z)
        }""",
        s=np.float32(0.1),
        z=np.uint8(128),
    )
    refuses(model, drop_saturated_clips)
