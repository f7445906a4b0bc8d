from __future__ import annotations

import pytest

from qcompile.backends.onnxruntime.saturation import drop_saturated_clips
from tests.backends.onnxruntime.rewrites import check, operators, refuses, rewritten
from tests.backends.portable import conv_case


@pytest.mark.parametrize("behind", ["Relu (c)", "Clip (c, low, high)"])
def test_drops_what_quantization_does_anyway(behind: str) -> None:
    case = conv_case(behind=behind, zero_point=0)
    expected = dict(operators(rewritten(case.model)))
    del expected[behind.split(maxsplit=1)[0]]
    check(case.model, case.feed, expected, drop_saturated_clips, step=case.step)


@pytest.mark.parametrize(
    ("behind", "zero_point"), [("Relu (c)", 110), ("Clip (c, low, high)", 110), ("Clip (c, low, s)", 0)]
)
def test_keeps_a_bound_within_the_quantized_range(behind: str, zero_point: int) -> None:
    refuses(conv_case(behind=behind, zero_point=zero_point).model, drop_saturated_clips)
