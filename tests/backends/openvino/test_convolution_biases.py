from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest

pytest.importorskip("openvino")

from qcompile.backends import openvino as room
from qcompile.backends.openvino.convolution_biases import CONVOLUTIONS, fix_bias_shapes
from tests.backends.openvino.graphs import converted, operators
from tests.backends.portable import parse, reference, weight


def patches_and_a_token(size: str = "H,W") -> ir.Model:
    """A convolution in 8 bits with a bias, its patches behind a token for each item of the batch that x has."""
    return parse(
        f"""(float[N,3,{size}] x) => (float[N,P,8] y)
        {{
            q = QuantizeLinear(x, s, z) d = DequantizeLinear(q, s, z)
            f = DequantizeLinear<axis = 0>(w, ws, wz)
            c = Conv(d, f, b)
            r = QuantizeLinear(c, s, z) e = DequantizeLinear(r, s, z)
            i = Constant<value = int64[3] {{0, 8, -1}}>() v = Reshape(e, i) t = Transpose<perm = [0, 2, 1]>(v)
            n = Shape<start = 0, end = 1>(x) j = Constant<value = int64[2] {{1, 8}}>() g = Concat<axis = 0>(n, j)
            k = Expand(token, g) y = Concat<axis = 1>(k, t)
        }}""",
        s=np.float32(0.03),
        z=np.uint8(120),
        b=np.linspace(-1, 1, 8, dtype=np.float32),
        token=np.ones((1, 1, 1), np.float32),
        **weight(np.random.default_rng(0), (8, 3, 3, 3), 0),
    )


@pytest.mark.parametrize("size", ["H,W", "9,9"])
def test_the_bias_is_there_when_the_batch_size_is_read(size: str, tmp_path: Path) -> None:
    model = patches_and_a_token(size)
    feed = {"x": np.random.default_rng(1).normal(size=(2, 3, 9, 9)).astype(np.float32)}
    lowered = room.BACKEND.lower(model, tmp_path, target=None)
    session = room.BACKEND.open_artifact(tmp_path / lowered.model_file, threads=1)
    np.testing.assert_allclose(session.run(feed)["y"], reference(model, feed)["y"], rtol=0, atol=0.03)


@pytest.mark.parametrize(
    "call", ["Conv(x, w, b)", "Conv<group = 2>(x, g, b)", "ConvTranspose(x, t, b)", "ConvTranspose<group = 2>(x, u, b)"]
)
def test_no_shape_of_a_convolution_is_read(call: str) -> None:
    shapes = {"w": (6, 4, 2, 2), "g": (6, 2, 2, 2), "t": (4, 6, 2, 2), "u": (4, 3, 2, 2), "b": (6,)}
    arrays = {name: np.ones(shape, np.float32) for name, shape in shapes.items()}
    model = converted(parse(f"(float[N,4,H,W] x) => (float[?] y) {{ y = {call} }}", **arrays))
    model.validate_nodes_and_infer_types()
    counts = operators(model)
    assert counts["Add"] == 1
    sources = [node.input_value(0).get_node() for node in model.get_ops() if node.get_type_name() == "ShapeOf"]
    assert not {node.get_type_name() for node in sources} & set(CONVOLUTIONS)
    fix_bias_shapes(model)
    assert operators(model) == counts
