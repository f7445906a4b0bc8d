"""OpenVINO models for the tests of the rewrites on them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir

from qcompile.backends.openvino import BACKEND, conversion, session
from qcompile.backends.openvino.runtime import core


def converted(model: ir.Model) -> Any:
    """OpenVINO model that does not need its files any more: the tests' weights are small enough to be inside."""
    with conversion.converted(model) as result:
        return result.clone()


def operators(model: Any) -> Counter[str]:
    return Counter(node.get_type_name() for node in model.get_ordered_ops())


def run(model: Any, feed: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    model.validate_nodes_and_infer_types()
    return session.load(model, "the model of the test", threads=1, group_size=0).run(feed)


def run_lowered(model: ir.Model, feed: Mapping[str, np.ndarray], folder: Path) -> dict[str, np.ndarray]:
    """What the artifact of a portable graph computes."""
    lowered = BACKEND.lower(model, folder, target=None)
    return BACKEND.open_artifact(folder / lowered.model_file, threads=1).run(feed)


def run_as_it_is(model: ir.Model, feed: Mapping[str, np.ndarray], folder: Path) -> dict[str, np.ndarray]:
    """What OpenVINO computes of a graph that nothing is rewritten in, read from a file."""
    ir.save(model, folder / "model.onnx")
    return session.load(core().read_model(folder / "model.onnx"), "the graph as it is", threads=1).run(feed)


def kernels(model: Any) -> Counter[str]:
    """Types of the kernels that the plugin runs."""
    compiled = session.load(model, "the model of the test", threads=1, group_size=0).compiled
    return Counter(node.get_rt_info()["layerType"].astype(str) for node in compiled.get_runtime_model().get_ops())
