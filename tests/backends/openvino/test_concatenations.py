from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest

pytest.importorskip("openvino")

from qcompile.backends.openvino.concatenations import quantize_concatenations_to_uint8
from tests.backends.openvino.graphs import run_as_it_is, run_lowered
from tests.backends.portable import parse, reference

JOINED = {
    "channels": "x = Concat <axis = 1> (a, b)",
    "height": "x = Concat <axis = 2> (a, b)",
    "then Relu": "c = Concat <axis = 1> (a, b) x = Relu (c)",
    "then MaxPool": "c = Concat <axis = 1> (a, b) x = MaxPool <kernel_shape = [1, 1]> (c)",
}


def model_of(text: str, channels: int = 8) -> ir.Model:
    generator = np.random.default_rng(0)
    return parse(
        f"""(float[1,4,5,5] a, float[1,4,5,5] b) => (float[1,8,h,w] y) {{
            {text}
            q = QuantizeLinear (x, xs, xz) d = DequantizeLinear (q, xs, xz)
            k = DequantizeLinear <axis = 0> (wq, ws, wz) y = Conv (d, k)
        }}""",
        xs=np.float32(0.02),
        xz=np.int8(3),
        wq=generator.integers(-127, 128, (8, channels, 1, 1)).astype(np.int8),
        ws=np.full(8, 0.01, np.float32),
        wz=np.zeros(8, np.int8),
    )


def feed() -> dict[str, np.ndarray]:
    generator = np.random.default_rng(1)
    return {name: generator.normal(size=(1, 4, 5, 5)).astype(np.float32) for name in "ab"}


def quantizer_dtype(model: ir.Model) -> ir.DataType | None:
    return next(node.outputs[0].dtype for node in model.graph if node.op_type == "QuantizeLinear")


@pytest.mark.parametrize("text", JOINED.values(), ids=JOINED)
def test_convolutions_behind_what_is_joined_are_right(text: str, tmp_path: Path) -> None:
    model = model_of(text, channels=4 if "axis = 2" in text else 8)
    found = run_lowered(model, feed(), tmp_path)
    np.testing.assert_allclose(found["y"], reference(model, feed())["y"], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("text", JOINED.values(), ids=JOINED)
def test_the_quantizer_writes_uint8(text: str) -> None:
    model = model_of(text)
    quantize_concatenations_to_uint8(model)
    assert quantizer_dtype(model) == ir.DataType.UINT8


@pytest.mark.parametrize("text", ["x = Relu (a)", "x = Add (a, b)"])
def test_what_joins_nothing_is_left(text: str) -> None:
    model = model_of(text, channels=4)
    before = [(node.op_type, [str(value) for value in node.inputs]) for node in model.graph]
    quantize_concatenations_to_uint8(model)
    assert [(node.op_type, [str(value) for value in node.inputs]) for node in model.graph] == before


def test_a_join_in_front_of_another_quantizer_is_left() -> None:
    first = "c = Concat <axis = 1> (a, b) p = QuantizeLinear (c, xs, xz) x = DequantizeLinear (p, xs, xz)"
    model = model_of(first)
    quantize_concatenations_to_uint8(model)
    dtypes = [node.outputs[0].dtype for node in model.graph if node.op_type == "QuantizeLinear"]
    assert dtypes[0] == ir.DataType.UINT8
    assert dtypes[1] != ir.DataType.UINT8


def test_otherwise_the_runtime_forgets_the_shift(tmp_path: Path) -> None:
    """When this fails, OpenVINO is mended, and the rewrite is not needed for its new version."""
    model = model_of(JOINED["channels"])
    found = run_as_it_is(model, feed(), tmp_path)
    assert np.abs(found["y"] - reference(model, feed())["y"]).max() > 1
