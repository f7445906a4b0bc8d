"""Calibration streams: its memory does not grow with the number of samples."""

import subprocess
import sys
import textwrap

PEAK_MEMORY = """
    import resource, sys
    import numpy as np, onnx, onnx_ir as ir, onnxruntime
    from qcompile.calibration import Calibrator
    from qcompile.passes.observe_channels import ObserveChannels

    class Session:
        def __init__(self, model):
            self.session = onnxruntime.InferenceSession(ir.to_proto(model).SerializeToString())
        def run(self, feed):
            names = [output.name for output in self.session.get_outputs()]
            return dict(zip(names, self.session.run(None, feed)))

    shape = "float[batch, 64, 256]"
    text = f'<ir_version: 10, opset_import: ["" : 23]> main ({shape} x) => ({shape} y) {{ y = Relu(x) }}'
    rng = np.random.default_rng(0)
    data = ({"x": rng.random((2, 64, 256), np.float32)} for _ in range(int(sys.argv[1])))  # 128 KiB each
    model = ir.from_proto(onnx.parser.parse_model(text))
    found = Calibrator(data, ObserveChannels, Session).collect(model, {"x": -1, "y": -1}, gram=["y"])
    assert found["y"].count == int(sys.argv[1]) * 128
    print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
"""


def test_peak_memory_at_512_samples_is_within_a_tenth_of_that_at_8():
    few, many = (
        int(subprocess.check_output([sys.executable, "-c", textwrap.dedent(PEAK_MEMORY), str(count)]))
        for count in (8, 512)
    )
    assert many < 1.1 * few
