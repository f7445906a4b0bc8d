"""Models as files of ONNX, for the backends that write them; and with values from inside as further outputs."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import onnx_ir as ir

MODEL_FILE = "model.onnx"
DATA_FILE = "model.onnx.data"
_EXTERNAL_BYTES = 1024


def write(model: ir.Model, folder: Path, *, external: bool) -> None:
    """Save the model into the folder, with its weights in a second file when asked for."""
    if external:
        ir.save(model, folder / MODEL_FILE, external_data=DATA_FILE, size_threshold_bytes=_EXTERNAL_BYTES)
    else:
        ir.save(ir.external_data.load_to_model(model), folder / MODEL_FILE)


def expose(model: ir.Model, values: Sequence[Sequence[str]]) -> tuple[str, ...]:
    """Make values outputs of the model, each under the first of its names that the model computes; return the names."""
    computed = {value.name: value for node in model.graph for value in node.outputs}
    found = [next((name for name in names if name in computed), None) for names in values]
    names = tuple(dict.fromkeys(name for name in found if name is not None))
    model.graph.outputs.extend(computed[name] for name in names if not computed[name].is_graph_output())
    return names
