"""InsertQdq calibrates in parts, and keeps of each part no more than scales."""

from __future__ import annotations

import dataclasses
import weakref
from collections.abc import Mapping
from typing import Any

import numpy as np
import onnx_ir as ir
from onnx_ir.passes.common import ShapeInferencePass

from qcompile import calibration_layers, weight_rounding
from qcompile.backends import get
from qcompile.calibration import Calibrator, ChannelStatistics
from qcompile.passes.insert_qdq import InsertQdq
from qcompile.passes.observe_channels import ObserveChannels

TEXT = """<ir_version: 10, opset_import: ["" : 23]> g (float[n, 8] x) => (float[n, 8] y) {
    a = MatMul(x, v) b = Relu(a) c = MatMul(b, w) d = Relu(c) y = MatMul(d, u)
}"""


@dataclasses.dataclass(frozen=True)
class Watching(Calibrator):
    """Counts the statistics of earlier calls that are alive when the next ones are asked for."""

    seen: list[weakref.ref[ChannelStatistics]] = dataclasses.field(default_factory=list)
    alive: list[int] = dataclasses.field(default_factory=list)
    grams: list[bool] = dataclasses.field(default_factory=list)

    def collect(self, model: ir.Model, axes: Mapping[str, int], **options: Any) -> dict[str, ChannelStatistics]:
        if axes:  # none: patches of convolutions, which belong to the part that was asked for just before
            self.alive.append(sum(item() is not None for item in self.seen))
        found = super().collect(model, axes, **options)
        self.seen.extend(weakref.ref(item) for item in found.values())
        self.grams.extend(item.gram is not None for item in found.values())
        return found


def network() -> ir.Model:
    generator = np.random.default_rng(0)
    model = ir.from_onnx_text(TEXT)
    for node, name in zip([node for node in model.graph if node.op_type == "MatMul"], "vwu", strict=True):
        tensor = ir.tensor(generator.normal(size=(8, 8)).astype(np.float32), name=name)
        value = ir.Value(name=name, type=ir.TensorType(tensor.dtype), shape=ir.Shape((8, 8)), const_value=tensor)
        model.graph.register_initializer(value)
        node.replace_input_with(1, value)
    ShapeInferencePass(strict_mode=False)(model)
    return model


def watching() -> Watching:
    generator = np.random.default_rng(1)
    samples = [{"x": generator.normal(size=(5, 8)).astype(np.float32)} for _ in range(4)]
    return Watching(samples, ObserveChannels, get("onnxruntime").open_session)


def test_statistics_go_with_their_part(monkeypatch):
    monkeypatch.setattr(calibration_layers, "_GRAM_BYTES", 1)
    model, calibrator = network(), watching()
    InsertQdq(rounding="gptq", calibrator=calibrator)(model)
    assert len(calibrator.seen) == 3
    assert calibrator.alive == [0, 0, 0]
    assert [node.op_type for node in model.graph].count("QuantizeLinear") == 3


def integers_of(model: ir.Model) -> dict[str, np.ndarray]:
    tensors = {name: value.const_value for name, value in model.graph.initializers.items()}
    return {name: tensor.numpy() for name, tensor in tensors.items() if tensor is not None and len(tensor.shape) == 2}


def test_above_so_many_inputs_there_are_no_second_moments_and_weights_are_rounded_to_nearest(monkeypatch):
    found = {}
    for limit, rounding in ((8, "gptq"), (7, "gptq"), (8, "nearest")):
        for module in (calibration_layers, weight_rounding):
            monkeypatch.setattr(module, "MOST_INPUTS", limit)
        model, calibrator = network(), watching()
        findings = InsertQdq(rounding=rounding, calibrator=calibrator)(model).findings
        reason = "rounded to nearest: gptq is for 7 inputs at most" if (limit, rounding) == (7, "gptq") else ""
        assert {finding.reason for finding in findings} == {reason}
        assert sum(calibrator.grams) == (3 if (limit, rounding) == (8, "gptq") else 0)
        found[limit, rounding] = integers_of(model)
    for name, nearest in found[8, "nearest"].items():
        np.testing.assert_array_equal(found[7, "gptq"][name], nearest)
    assert any((found[8, "gptq"][name] != nearest).any() for name, nearest in found[8, "nearest"].items())
