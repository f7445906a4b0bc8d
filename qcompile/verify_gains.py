"""What it would bring to leave one layer in float: measured at the outputs, one layer at a time."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence

import onnx_ir as ir

from qcompile.calibration_masks import PaddingMask
from qcompile.outputs import Outputs, without_padding
from qcompile.restoring import restored
from qcompile.session import Feed, OpenSession
from qcompile.verify import difference, outputs_of


def output_gains(
    quantized: ir.Model,
    before: ir.Model,
    candidates: Sequence[frozenset[str]],
    samples: Sequence[Feed],
    masks: Sequence[PaddingMask],
    open_session: OpenSession,
    *,
    seconds: float,
) -> dict[frozenset[str], float]:
    """Return candidate -> by how many dB the SQNR of the outputs rises when its layers alone are put back to float.

    Candidates are measured in order as long as the time will do; no other is in what is returned. A gain of NaN, where
    the outputs say nothing, is left out as well.

    Args:
        quantized: the model with all layers quantized; not changed.
        before: the model in front of the passes that quantize; not changed.
        candidates: names of layers, one or several that stay float together.
        samples: inputs, at least one.
        masks: inputs that mark padding, which does not count.
        open_session: the runtime.
        seconds: time to spend.
    """

    def run(model: ir.Model) -> Outputs:
        return without_padding(outputs_of(model, samples, open_session), samples, masks)

    begin = time.perf_counter()
    exact = run(before)
    longest = time.perf_counter() - begin
    if 3 * longest > seconds:  # two more are needed for the first gain
        return {}
    without = difference(exact, run(quantized)).sqnr_db
    gains = {}
    for candidate in candidates:
        start = time.perf_counter()
        if start - begin + longest > seconds:
            break
        gain = difference(exact, run(restored(quantized, before, candidate))).sqnr_db - without
        longest = max(longest, time.perf_counter() - start)
        if not math.isnan(gain):
            gains[candidate] = gain
    return gains
