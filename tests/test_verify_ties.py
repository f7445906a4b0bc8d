from __future__ import annotations

import numpy as np
import onnx_ir as ir

from qcompile.block_functions import round_in_blocks
from qcompile.reference_operators import whole_token
from qcompile.verify_ties import moved_by_ties, towards

TEXT = """
<ir_version: 10, opset_import: ["" : 21]> g (float[1, 4] x) => (float[1, 2] y)
<float[4, 2] w = {100, 0, 0, 1, 0, 0, 0, 0}> { y = MatMul(x, w) }
"""


def _model() -> ir.Model:
    model = ir.from_onnx_text(TEXT)
    product = model.graph.node(0)
    product.replace_input_with(0, round_in_blocks(model, model.graph.inputs[0], 4, product))
    return model


def test_a_tie_moves_what_is_computed_from_it_alone() -> None:
    # In steps of 1 (127 is the largest): 2.5 may become 2 or 3, 7.25 is 7.
    moved = moved_by_ties(_model(), {"x": np.array([[2.5, 7.25, 0, 127]], np.float32)}, {}, whole_token)
    np.testing.assert_allclose(moved["y"], [[100, 0]], atol=1e-4)


def test_what_no_tie_explains_stays_apart() -> None:
    expected, moved = np.array([1.0, 1.0, 1.0]), np.array([0.5, 0.5, 0.0])
    np.testing.assert_array_equal(towards(expected, np.array([1.4, 0.2, 3.0]), moved), [1.0, 0.7, 3.0])
