"""What the rewrites of Triton's backend make of a model, and whether torch still computes it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping

import numpy as np
import onnx_ir as ir

from qcompile.backends.triton.lowering import fused
from qcompile.backends.triton.products import DOMAIN
from qcompile.backends.triton.session import load
from qcompile.session import Feed

ROUNDING = 1e-5


def kernels(model: ir.Model) -> Mapping[str, int]:
    """How many nodes of each kernel the model has once it is fused; torch computes the same as without."""
    return Counter(node.op_type for node in fused(model).graph if node.domain == DOMAIN)


def operators(model: ir.Model) -> Mapping[str, int]:
    return Counter(node.op_type for node in fused(model).graph)


def expect(model: ir.Model, feeds: Feed, *expected: str) -> None:
    """Assert that the model fuses to these operators, and computes the same of its inputs among the feeds."""
    check_same(model, {str(value.name): feeds[str(value.name)] for value in model.graph.inputs})
    assert sorted(operators(model).elements()) == sorted(expected)


def quantized_linear(value: str) -> str:
    """Lines that quantize a value for each token, and multiply it by w of 8 bits: y."""
    return f"""
    d = qcompile.QuantizeDequantizePerToken ({value})
    f = DequantizeLinear <axis = 1> (w, ws, wz)
    y = MatMul (d, f)
"""


def check_same(model: ir.Model, feed: Feed) -> None:
    """Assert that the model computes with kernels what it does operator by operator."""
    before = ir.to_proto(model).SerializeToString(deterministic=True)
    expected, found = (load(each).run(feed) for each in (model, fused(model)))
    assert ir.to_proto(model).SerializeToString(deterministic=True) == before
    assert list(found) == list(expected)
    for name, array in expected.items():
        assert found[name].dtype == array.dtype
        np.testing.assert_allclose(found[name], array, rtol=0, atol=ROUNDING * np.abs(array).max(initial=0))
