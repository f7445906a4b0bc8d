"""Weights in groups become words, in as few bits as their integers need, and the product stays what it is."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest

pytest.importorskip("triton")

from qcompile.backends.triton.lowering import fused
from tests.backends.portable import parse
from tests.backends.triton.rewritten import check_same, kernels, operators

RANDOM = np.random.default_rng(0)
X = RANDOM.normal(size=(2, 3, 40)).astype(np.float32)


def model(
    kind: ir.DataType, low: int, high: int, *, group_size: int = 16, zero: int | None = None, behind: str = ""
) -> ir.Model:
    """x [.., 40] by a weight of integers from low to high; zero: the highest zero point, from low on."""
    groups = -(-40 // group_size)
    arrays = {"w": RANDOM.integers(low, high + 1, (40, 24))}
    if zero is not None:
        arrays["z"] = RANDOM.integers(low, zero + 1, (groups, 24))
    made = parse(
        f"""(float[N,S,40] x) => (float[N,S,24] y)
        {{
            f = DequantizeLinear <axis = 0, block_size = {group_size}> ({", ".join(["w", "s", *list(arrays)[1:]])})
            m = MatMul (x, f)
            {behind or "y = Add (m, b)"}
        }}""",
        s=RANDOM.uniform(0.01, 0.1, (groups, 24)).astype(np.float32),
        b=RANDOM.normal(size=24).astype(np.float32),
        **{name: array.astype(np.int8) for name, array in arrays.items()},
    )
    for name, array in arrays.items():  # of which onnx's own parser knows no types of 4 bits
        value = made.graph.initializers[name]
        value.const_value = ir.tensor(array.astype(kind.numpy()), name=name)
        value.type = ir.TensorType(kind)
    return made


@pytest.mark.parametrize(
    ("kind", "low", "high", "zero", "bits"),
    [
        (ir.DataType.INT4, -8, 7, None, 4),
        (ir.DataType.INT4, -4, 3, None, 3),
        (ir.DataType.INT4, -2, 1, None, 2),
        (ir.DataType.INT4, -8, 7, 3, 4),
        (ir.DataType.UINT4, 0, 15, 15, 4),
        (ir.DataType.UINT4, 0, 7, 7, 3),
        (ir.DataType.UINT4, 0, 3, 15, 2),
        (ir.DataType.UINT4, 0, 15, None, 4),
        (ir.DataType.INT8, -128, 127, None, 8),
        (ir.DataType.UINT8, 0, 255, 255, 8),
    ],
)
@pytest.mark.parametrize("group_size", [16, 64])
def test_integers_are_packed_in_the_fewest_bits(
    kind: ir.DataType, low: int, high: int, zero: int | None, bits: int, group_size: int
) -> None:
    given = model(kind, low, high, group_size=group_size, zero=zero)
    check_same(given, {"x": X})
    assert operators(given) == {"GroupedLinear": 1}
    (node,) = fused(given).graph
    assert node.attributes.get_int("bits", 0) == bits
    assert (len(node.inputs) > 3 and node.inputs[3] is not None) == (zero is not None or low == 0)


def test_a_scale_for_each_output_is_one_group() -> None:
    given = parse(
        "(float[N,S,40] x) => (float[N,S,24] y) { f = DequantizeLinear <axis = 1> (w, s, z) y = MatMul (x, f) }",
        w=RANDOM.integers(-128, 128, (40, 24)).astype(np.int8),
        s=RANDOM.uniform(0.01, 0.1, 24).astype(np.float32),
        z=np.zeros(24, np.int8),
    )
    check_same(given, {"x": X})
    assert operators(given) == {"GroupedLinear": 1}


@pytest.mark.parametrize(
    ("behind", "left"),
    [
        ("y = Add (b, m)", {}),
        ("y = Relu (m)", {"Relu": 1}),
        ("y = Add (m, m)", {"Add": 1}),
        ("y = Add (m, one)\n one = Constant <value = float[1] {1.0}> ()", {"Add": 1}),
        ("a = Add (m, b)\n y = Mul (a, m)", {"Add": 1, "Mul": 1}),
    ],
)
def test_what_else_reads_the_product_still_does(behind: str, left: dict[str, int]) -> None:
    lines = behind.split("\n")
    given = model(ir.DataType.INT4, -8, 7, behind="\n".join(reversed(lines) if "one" in behind else lines))
    check_same(given, {"x": X})
    assert {
        name: count for name, count in operators(given).items() if name not in ("GroupedLinear", "Constant")
    } == left


def test_a_weight_that_two_products_read_is_packed_once() -> None:
    given = model(ir.DataType.INT4, -8, 7, behind="r = Relu (x)\n n = MatMul (r, f)\n y = Add (m, n)")
    check_same(given, {"x": X})
    assert kernels(given) == {"GroupedLinear": 2}
    words = [node.inputs[1] for node in fused(given).graph if node.op_type == "GroupedLinear"]
    assert words[0] is words[1]


def test_what_is_no_weight_in_groups_stays() -> None:
    along_outputs = parse(
        "(float[N,S,40] x) => (float[N,S,24] y) "
        "{ f = DequantizeLinear <axis = 1, block_size = 8> (w, s) y = MatMul (x, f) }",
        w=RANDOM.integers(-128, 128, (40, 24)).astype(np.int8),
        s=RANDOM.uniform(0.01, 0.1, (40, 3)).astype(np.float32),
    )
    check_same(along_outputs, {"x": X})
    assert kernels(along_outputs) == {}


@pytest.mark.parametrize("shape", [(40,), (0, 3, 40), (9, 1, 40)])
def test_any_number_of_rows(shape: tuple[int, ...]) -> None:
    given = model(ir.DataType.UINT4, 0, 15, zero=15)
    for value in (*given.graph.inputs, *given.graph.outputs):
        value.shape = None
    check_same(given, {"x": RANDOM.normal(size=shape).astype(np.float32)})
