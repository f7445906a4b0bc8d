"""From an ONNX IR model to an OpenVINO model, through OpenVINO's ONNX front end."""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import onnx_ir as ir
from onnx_ir.passes import common

from qcompile.backends.openvino.blocks import fold_misread_blocks
from qcompile.backends.openvino.branch_inputs import copy_outputs_that_bodies_read
from qcompile.backends.openvino.convolution_biases import fix_bias_shapes
from qcompile.backends.openvino.decompression import hide_weights, show_weights
from qcompile.backends.openvino.grouped_heads import repeat_key_heads
from qcompile.backends.openvino.norms import keep_epsilons
from qcompile.backends.openvino.products import keep_products_apart
from qcompile.backends.openvino.reductions import keep_reductions_apart
from qcompile.backends.openvino.runtime import core, runtime_errors
from qcompile.backends.openvino.session import refused
from qcompile.backends.openvino.transposed_weights import separate_transposed_weights

if TYPE_CHECKING:
    import openvino as ov


@contextlib.contextmanager
def converted(model: ir.Model) -> Iterator[ov.Model]:
    """Give the OpenVINO model of an ONNX IR model; what OpenVINO maps from a file is there until the context ends.

    The weights go through a file, because a serialized model is limited to 2 GiB and would be in memory twice.
    Functions are inlined, since the front end knows none. `model` is not changed. Raises ModelError when the front
    end refuses it.
    """
    model = model.clone()
    hidden = hide_weights(model)
    common.InlinePass()(model)
    common.RemoveUnusedOpsetsPass()(model)
    fold_misread_blocks(model)
    repeat_key_heads(model)
    copy_outputs_that_bodies_read(model)
    separate_transposed_weights(model)
    with tempfile.TemporaryDirectory(prefix="qcompile-", ignore_cleanup_errors=True) as folder:
        path = Path(folder) / "model.onnx"
        ir.save(model, path, external_data="model.onnx.data", size_threshold_bytes=1024)
        try:
            result = core().read_model(path)
        except runtime_errors() as error:
            raise refused(f"model {model.graph.name or 'without a name'}", error) from error
        show_weights(result, hidden)
        fix_bias_shapes(result)
        keep_reductions_apart(result)
        keep_products_apart(result)
        keep_epsilons(result)
        yield result
