"""OpenVINO models for the tests of the rewrites on them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from typing import Any

import numpy as np
import onnx_ir as ir

from qcompile.backends.openvino import conversion, session


def converted(model: ir.Model) -> Any:
    """OpenVINO model that does not need its files any more: the tests' weights are small enough to be inside."""
    with conversion.converted(model) as result:
        return result.clone()


def operators(model: Any) -> Counter[str]:
    return Counter(node.get_type_name() for node in model.get_ordered_ops())


def run(model: Any, feed: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    model.validate_nodes_and_infer_types()
    return session.load(model, "the model of the test", threads=1, group_size=0).run(feed)


def kernels(model: Any) -> Counter[str]:
    """Types of the kernels that the plugin runs."""
    compiled = session.load(model, "the model of the test", threads=1, group_size=0).compiled
    return Counter(node.get_rt_info()["layerType"].astype(str) for node in compiled.get_runtime_model().get_ops())
