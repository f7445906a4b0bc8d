"""An artifact of OpenVINO with values from inside of it as further outputs."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path

from qcompile.backends.openvino.generation import MODEL_FILE, keep_cache_precise, with_caches
from qcompile.backends.openvino.readback import quantizes_at_run_time
from qcompile.backends.openvino.runtime import core
from qcompile.backends.openvino.session import GROUP_SIZE, load
from qcompile.session import Probe


def open_probe(model_path: Path, values: Sequence[Sequence[str]]) -> Probe:
    """Load a written model file with values as outputs, each under the first of its names that the file computes.

    What is an output of the model already is read as that.

    Raises ModelError when OpenVINO refuses the file.
    """
    model = core().read_model(model_path)
    count = len(model.outputs)
    outputs = {name for port in model.outputs for name in port.get_names()}
    computed = {name for node in model.get_ordered_ops() for port in node.outputs() for name in port.get_names()}
    found = [next((name for name in names if name in computed), None) for names in values]
    wanted = tuple(dict.fromkeys(name for name in found if name is not None))
    inner = tuple(name for name in wanted if name not in outputs)
    if inner:
        model.add_outputs(list(inner))
    if model_path.name == MODEL_FILE:
        keep_cache_precise(model)
    session = load(model, f"model {model_path.name}")
    shown = dataclasses.replace(session, output_names=(*session.output_names[:count], *inner))
    group_size = int(session.compiled.get_property(GROUP_SIZE))
    return Probe(
        "openvino",
        with_caches(shown, model) if model_path.name == MODEL_FILE else shown,
        tuple(name for name in wanted if name in inner or name in session.output_names[:count]),
        lambda channels: _channels_per_scale(channels, group_size),
    )


def _channels_per_scale(channels: int, group_size: int) -> int:
    """Channels of a token that share a scale: a group; 0 where OpenVINO on this CPU leaves this width in float."""
    return group_size if group_size and quantizes_at_run_time(channels, group_size) else 0
