"""Model files in plain onnxruntime and openvino, opened the same way for float, for peers and for qcompile."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import openvino

from qcompile.session import Feed

Run = Callable[[Feed], list[np.ndarray]]

THREADS = os.cpu_count() or 1


def open_onnxruntime(path: Path, threads: int = THREADS) -> Run:
    """Load an .onnx file with all of ONNX Runtime's graph optimizations."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    names = {value.name for value in session.get_inputs()}
    return lambda feed: list(session.run(None, {name: feed[name] for name in feed if name in names}))


def open_openvino(path: Path, threads: int = THREADS, settings: Mapping[str, Any] | None = None) -> Run:
    """Load an .xml or .onnx file on OpenVINO's CPU plugin, in float32 where it computes in float."""
    properties = {
        "INFERENCE_PRECISION_HINT": "f32",
        "INFERENCE_NUM_THREADS": threads,
        "PERFORMANCE_HINT": "LATENCY",
        **(settings or {}),
    }
    request = openvino.Core().compile_model(path, "CPU", properties).create_infer_request()
    names = {name for value in request.model_inputs for name in value.names}

    def run(feed: Feed) -> list[np.ndarray]:
        result = request.infer({name: feed[name] for name in feed if name in names}, share_inputs=True)
        return [np.asarray(array) for array in result.to_tuple()]

    return run


OPEN: Mapping[str, Callable[[Path], Run]] = {"onnxruntime": open_onnxruntime, "openvino": open_openvino}


def size_in_mb(path: Path) -> float:
    """Size of a model file and of the data files of the same stem beside it, in megabytes (10^6 bytes)."""
    return sum(file.stat().st_size for file in path.parent.glob(f"{path.stem}.*")) / 1e6
