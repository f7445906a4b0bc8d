"""Quantized convolutions become convolutions of integers, and the others stay."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest

pytest.importorskip("triton")

from tests.backends.portable import conv_case, parse, two_layers, weight
from tests.backends.triton.rewritten import check_same, kernels


@pytest.mark.parametrize("bias", ["int32", "float32"])
@pytest.mark.parametrize("groups", [1, 8])
def test_a_convolution(bias: str, groups: int) -> None:
    case = conv_case(bias=bias, groups=groups)
    check_same(case.model, case.feed)
    assert kernels(case.model) == {"IntegerConv": 1}


def test_integers_flow_between_convolutions() -> None:
    case = two_layers("Conv", "int8", sym=False)
    check_same(case.model, case.feed)
    assert kernels(case.model) == {"IntegerConv": 2}


@pytest.mark.parametrize("groups", [1, 2])
def test_a_transposed_convolution_has_the_scales_of_its_channels(groups: int) -> None:
    random = np.random.default_rng(0)
    parts = weight(random, (8, 6, 3, 3), 1)
    model = parse(
        f"""(float[N,8,5,5] x) => (float[N,{6 * groups},A,B] y)
        {{
            q = QuantizeLinear (x, s, z)
            d = DequantizeLinear (q, s, z)
            f = DequantizeLinear <axis = 1> (w, ws, wz)
            y = ConvTranspose <group = {groups}, strides = [2, 2], pads = [1, 0, 0, 1], output_padding = [1, 0]>
                (d, f, b)
        }}""",
        **parts,
        s=np.float32(0.03),
        z=np.uint8(100),
        b=random.normal(size=6 * groups).astype(np.float32),
    )
    check_same(model, {"x": random.normal(size=(2, 8, 5, 5)).astype(np.float32)})
    assert kernels(model) == {"IntegerConvTranspose": 1}


def test_a_weight_that_is_no_symmetric_int8_stays() -> None:
    case = conv_case()
    case.model.graph.initializers["wz"].const_value = ir.tensor(np.full(8, 2, np.int8), name="wz")
    check_same(case.model, case.feed)
    assert kernels(case.model) == {}


def test_a_float_input_stays() -> None:
    case = conv_case()
    node = next(node for node in case.model.graph if node.op_type == "Conv")
    node.replace_input_with(0, case.model.graph.inputs[0])
    check_same(case.model, case.feed)
    assert kernels(case.model) == {}
