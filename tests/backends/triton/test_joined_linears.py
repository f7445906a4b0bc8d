"""Linears that read one value become one kernel and a Split, where their weights can be stored side by side."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import onnx_ir as ir
import pytest

pytest.importorskip("triton")

from qcompile.backends.triton.joined_linears import join_linears
from qcompile.backends.triton.lowering import fused
from qcompile.passes.quantize_codebooks import QuantizeCodebooks
from tests.backends.portable import PER_TOKEN, parse, weight
from tests.backends.triton.rewritten import check_same, operators

RANDOM = np.random.default_rng(0)
X = RANDOM.normal(size=(2, 3, 40)).astype(np.float32)
FEED = {"x": X}
WIDTHS = (24, 8, 16)


def model(lines: Sequence[str], functions: str = "", widths: Sequence[int] = WIDTHS, **arrays: np.ndarray) -> ir.Model:
    """x [.., 40] to y0, y1 and y2."""
    body = "\n".join(lines)
    outputs = ", ".join(f"float[N,S,{width}] y{number}" for number, width in enumerate(widths))
    return parse(f"(float[N,S,40] x) => ({outputs}) {{ {body} }}", functions, **arrays)


def grouped(
    *, bits: Sequence[int] = (4, 4, 4), sizes: Sequence[int] = (16, 16, 16), zeros: str = "", biases: str = "012"
) -> ir.Model:
    """Weights in groups; `zeros` and `biases`: of which linears."""
    lines: list[str] = []
    arrays: dict[str, np.ndarray] = {}
    for number, width in enumerate(WIDTHS):
        half, blocks = 1 << (bits[number] - 1), (-(-40 // sizes[number]), width)
        arrays[f"w{number}"] = RANDOM.integers(-half, half, (40, width)).astype(np.int8)
        arrays[f"s{number}"] = RANDOM.uniform(0.01, 0.1, blocks).astype(np.float32)
        given = f"w{number}, s{number}"
        if str(number) in zeros:
            arrays[f"z{number}"] = RANDOM.integers(-half, half, blocks).astype(np.int8)
            given += f", z{number}"
        lines.append(f"f{number} = DequantizeLinear <axis = 0, block_size = {sizes[number]}> ({given})")
        result = "m" if str(number) in biases else "y"
        lines.append(f"{result}{number} = MatMul (x, f{number})")
        if result == "m":
            arrays[f"b{number}"] = RANDOM.normal(size=width).astype(np.float32)
            lines.append(f"y{number} = Add (m{number}, b{number})")
    return model(lines, **arrays)


def codebooks(
    group_size: int, *, double: bool = False, inputs: Sequence[str] = "xxx", widths: Sequence[int] = WIDTHS
) -> ir.Model:
    lines = [f"y{number} = MatMul ({x}, w{number})" for number, x in enumerate(inputs)]
    if "r" in inputs:
        lines.insert(0, "r = Relu (x)")
    weights = {f"w{number}": RANDOM.normal(size=(40, width)) for number, width in enumerate(widths)}
    made = model(lines, "", widths, **{name: array.astype(np.float32) for name, array in weights.items()})
    QuantizeCodebooks(group_size, double_quantization=double, head=None)(made)
    return made


def outliers(places: Sequence[Sequence[int]]) -> ir.Model:
    mask = np.ones(40, np.float32)
    mask[[3, 38]] = 0
    lines = ["i = Mul (x, mask)", "d = qcompile.QuantizeDequantizePerToken (i)"]
    arrays: dict[str, np.ndarray] = {"mask": mask}
    for number, (width, channels) in enumerate(zip(WIDTHS, places, strict=True)):
        arrays |= {f"{name}{number}": array for name, array in weight(RANDOM, (40, width), 1).items()}
        arrays[f"c{number}"] = np.array(channels)
        arrays[f"r{number}"] = RANDOM.normal(size=(2, width)).astype(np.float32)
        lines += [
            f"f{number} = DequantizeLinear <axis = 1> (w{number}, ws{number}, wz{number})",
            f"m{number} = MatMul (d, f{number})",
            f"o{number} = Gather <axis = -1> (x, c{number})",
            f"p{number} = MatMul (o{number}, r{number})",
            f"y{number} = Add (m{number}, p{number})",
        ]
    return model(lines, PER_TOKEN, **arrays)


def expect(given: ir.Model, kernels: Mapping[str, int], feed: Mapping[str, np.ndarray] = FEED) -> None:
    check_same(given, feed)
    assert operators(given) == kernels


@pytest.mark.parametrize("zeros", ["", "012"])
@pytest.mark.parametrize("bits", [2, 3, 4, 8])
def test_groups_are_one_product_and_views_of_it(bits: int, zeros: str) -> None:
    given = grouped(bits=[bits] * 3, zeros=zeros)
    expect(given, {"GroupedLinear": 1, "Split": 1})
    product, split = fused(given).graph
    assert product.attributes.get_int("bits", 0) == bits
    assert str(product.outputs[0].shape) == "[N,S,48]"
    assert [value.name for value in split.outputs] == ["y0", "y1", "y2"]
    words, scale = (value.const_value for value in product.inputs[1:3] if value is not None)
    assert words is not None
    assert scale is not None
    assert (words.shape[1], tuple(scale.shape)) == (48, (3, 48))


@pytest.mark.parametrize("biases", ["", "02", "1"])
def test_a_bias_is_zero_where_another_linear_has_one(biases: str) -> None:
    given = grouped(biases=biases)
    expect(given, {"GroupedLinear": 1, "Split": 1})
    assert (len(fused(given).graph[0].inputs) == 5) == bool(biases)


@pytest.mark.parametrize(
    ("kernel", "given"),
    [
        ("CodebookLinear", codebooks(16)),
        ("OutlierLinear", outliers([(3, -2)] * 3)),
        ("OutlierLinear", outliers([(3, -2), (3, 38), (3, -2)])),
    ],
)
def test_other_kernels_are_joined_too(kernel: str, given: ir.Model) -> None:
    expect(given, {kernel: 1, "Split": 1} | ({"QuantizeTokens": 1} if kernel == "OutlierLinear" else {}))


@pytest.mark.parametrize(
    ("widths", "offsets", "joined"),
    [
        ((128, 128, 64), (0.1, 0.1, 0.1), {"CodebookLinear": 1, "Split": 1}),
        ((128, 128, 64), (0.1, 0.2, 0.1), {"CodebookLinear": 2, "Split": 1}),
        ((40, 128, 64), (0.1, 0.1, 0.1), {"CodebookLinear": 3}),
    ],
)
def test_scales_in_8_bits_are_joined_where_they_begin_blocks(
    widths: Sequence[int], offsets: Sequence[float], joined: Mapping[str, int]
) -> None:
    """10 scales for each output: 128 outputs fill 5 blocks of 256, 40 fill one and a half."""
    given = codebooks(4, double=True, widths=widths)
    scales = [node for node in given.graph if node.op_type == "DequantizeScale"]
    for node, offset in zip(scales, offsets, strict=True):
        value = node.inputs[3]
        assert value is not None
        value.const_value = ir.tensor(np.float32(offset), name=value.name)
    expect(given, joined)


def test_other_values_are_read_by_linears_of_their_own() -> None:
    expect(codebooks(16, inputs="xrx"), {"Relu": 1, "CodebookLinear": 2, "Split": 1})


def test_unlike_weights_are_not_joined() -> None:
    expect(grouped(bits=(4, 3, 4)), {"GroupedLinear": 2, "Split": 1})
    expect(grouped(sizes=(16, 16, 32)), {"GroupedLinear": 2, "Split": 1})
    expect(grouped(zeros="12"), {"GroupedLinear": 2, "Split": 1})
    expect(outliers([(3, 38), (3, 38), (38, 3)]), {"QuantizeTokens": 1, "OutlierLinear": 2, "Split": 1})


def test_unlike_codebooks_are_not_joined() -> None:
    given = codebooks(16)
    last = [node for node in given.graph if node.op_type == "DequantizeCodebook"][-1]
    other = ir.tensor(RANDOM.normal(size=16).astype(np.float32), name="other")
    value = ir.Value(name="other", shape=other.shape, type=ir.TensorType(other.dtype), const_value=other)
    given.graph.register_initializer(value)
    last.replace_input_with(1, value)
    expect(given, {"CodebookLinear": 2, "Split": 1})


def test_a_weight_that_is_read_twice_is_not_copied() -> None:
    given = grouped()
    shared = next(node for node in given.graph if node.outputs[0].name == "f1").outputs[0]
    relu = ir.node("Relu", given.graph.inputs)
    product = ir.node("MatMul", [relu.outputs[0], shared])
    product.outputs[0].name = "z"
    given.graph.extend([relu, product])
    given.graph.outputs.append(product.outputs[0])
    expect(given, {"GroupedLinear": 3, "Split": 1, "Relu": 1})


def test_what_is_joined_stays() -> None:
    once = fused(grouped())
    before = [node.name for node in once.graph]
    join_linears(once)
    assert [node.name for node in once.graph] == before
