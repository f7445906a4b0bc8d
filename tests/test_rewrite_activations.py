"""What `rewrite` gives for static symmetric activations, in ONNX Runtime without qcompile."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import onnxruntime
import pytest
import torch
from onnxruntime.capi.onnxruntime_pybind11_state import Fail

import qcompile

UNSIGNED = qcompile.Recipe.from_name("smoothquant-o3", activations={"dtype": "uint8"})


class Reshaped(torch.nn.Module):
    """Two linears with a Reshape and a Transpose of known shapes between them, over which Q/DQ pairs are moved."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = torch.nn.LayerNorm(16)
        self.first, self.second = torch.nn.Linear(16, 16), torch.nn.Linear(16, 16)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """[2, 8, 16] to the same."""
        heads = self.first(self.norm(x)).reshape(2, 8, 4, 4).transpose(1, 2)
        return torch.relu(self.second(heads.reshape(2, 8, 16)))


def session(model: ir.Model, *, optimized: bool) -> onnxruntime.InferenceSession:
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    if not optimized:
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    return onnxruntime.InferenceSession(ir.to_proto(model).SerializeToString(), options, ["CPUExecutionProvider"])


@pytest.fixture(scope="module")
def rewritten() -> tuple[ir.Model, ir.Model]:
    """The paper's recipe with int8 activations, and with uint8."""
    torch.manual_seed(0)
    samples = [{"x": array} for array in np.random.default_rng(0).normal(size=(4, 2, 8, 16)).astype(np.float32)]
    model = qcompile.trace(Reshaped().eval(), example_inputs=(torch.zeros(2, 8, 16),))
    signed, unsigned = (qcompile.rewrite(model, recipe, calibration=samples) for recipe in ("smoothquant-o3", UNSIGNED))
    return signed, unsigned


def test_onnx_runtime_refuses_int8_activations_that_it_moved(rewritten: tuple[ir.Model, ir.Model]) -> None:
    """Why the documents name the other form. When this test fails, the passage in README and `rewrite` can go."""
    with pytest.raises(Fail, match="INT8"):
        session(rewritten[0], optimized=True)


def test_uint8_activations_are_the_same_numbers_and_load(rewritten: tuple[ir.Model, ir.Model]) -> None:
    signed, unsigned = rewritten
    feed = {"x": np.random.default_rng(1).normal(size=(2, 8, 16)).astype(np.float32)}
    (expected,) = session(signed, optimized=False).run(None, feed)
    np.testing.assert_array_equal(session(unsigned, optimized=False).run(None, feed)[0], expected)
    (optimized,) = session(unsigned, optimized=True).run(None, feed)
    # Sums in another order may move an input of the second linear by a step; its weights are below 1.
    steps = [node.inputs[1].const_value.numpy() for node in unsigned.graph if node.op_type == "QuantizeLinear"]
    np.testing.assert_allclose(optimized, expected, rtol=0, atol=max(steps))
