"""A runtime for tests that count what is run, and the comparison of what calibration saw."""

import numpy as np
import onnx_ir as ir
import onnxruntime


class OnnxRuntime:
    """Opens models in onnxruntime, one at a time; keeps the models that it was given, and counts runs."""

    def __init__(self):
        self.opened: list[ir.Model] = []
        self.runs = 0

    def __call__(self, model):
        self.opened.append(model)
        self.session = onnxruntime.InferenceSession(ir.to_proto(model).SerializeToString())
        return self

    def run(self, feed):
        self.runs += 1
        names = [output.name for output in self.session.get_outputs()]
        return dict(zip(names, self.session.run(None, dict(feed)), strict=True))


def assert_same_statistics(one, other, **tolerance):
    """Compare two ChannelStatistics; without a tolerance they must be identical."""
    for field in ("minimum", "maximum", "mean", "rows"):
        np.testing.assert_allclose(getattr(one, field), getattr(other, field), **{"rtol": 0, **tolerance})
    assert one.count == other.count
