"""Indices into a codebook become words, and the product stays what it is."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest

pytest.importorskip("triton")

from qcompile.backends.triton.lowering import fused
from qcompile.passes.quantize_codebooks import QuantizeCodebooks
from tests.backends.portable import parse
from tests.backends.triton.rewritten import check_same, kernels, operators

RANDOM = np.random.default_rng(0)
X = RANDOM.normal(size=(2, 3, 40)).astype(np.float32)


def model(group_size: int = 16, *, double: bool = False, inputs: int = 40) -> ir.Model:
    made = parse(
        f"(float[N,S,{inputs}] x) => (float[N,S,24] y) {{ m = MatMul (x, w) y = Add (m, b) }}",
        w=RANDOM.normal(size=(inputs, 24)).astype(np.float32),
        b=RANDOM.normal(size=24).astype(np.float32),
    )
    QuantizeCodebooks(group_size, double_quantization=double)(made)
    return made


@pytest.mark.parametrize("group_size", [16, 64])
def test_indices_are_packed_and_the_scales_stay(group_size: int) -> None:
    given = model(group_size)
    check_same(given, {"x": X})
    assert operators(given) == {"CodebookLinear": 1}
    (node,) = fused(given).graph
    assert node.attributes.get_int("group_size", 0) == min(group_size, 40)
    assert [value is not None for value in node.inputs] == [*[True] * 4, *[False] * 3, True]


@pytest.mark.parametrize("inputs", [40, 160])
def test_scales_in_8_bits_stay_so(inputs: int) -> None:
    """Of 160 inputs there are more scales than one block of 256."""
    given = model(4, double=True, inputs=inputs)
    check_same(given, {"x": RANDOM.normal(size=(2, 3, inputs)).astype(np.float32)})
    assert operators(given) == {"CodebookLinear": 1}
    (node,) = fused(given).graph
    assert len(node.inputs) == 8
    assert None not in node.inputs


def test_what_the_kernel_does_not_read_stays() -> None:
    for change in ("levels", "axis", "block"):
        given = model(4, double=change == "block")
        node = next(node for node in given.graph if node.op_type == "DequantizeCodebook")
        if change == "levels":
            node.inputs[1].const_value = ir.tensor(RANDOM.normal(size=17).astype(np.float32), name="levels")
        elif change == "axis":
            node.attributes["axis"] = ir.AttrInt64("axis", 1)
            node.inputs[2].const_value = ir.tensor(RANDOM.normal(size=(40, 6)).astype(np.float32), name="scale")
        else:
            scales = next(node for node in given.graph if node.op_type == "DequantizeScale")
            scales.attributes["block_size"] = ir.AttrInt64("block_size", 128)
            scales.inputs[2].const_value = ir.tensor(RANDOM.normal(size=2).astype(np.float32), name="scales")
        check_same(given, {"x": X})
        assert kernels(given) == {}, change
