"""OpenVINO through the conformance suite, and what is its own."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.backends.conformance import BackendConformance

pytest.importorskip("openvino")

from qcompile.backends import openvino as backend_module
from qcompile.backends.openvino import readback


class TestOpenVino(BackendConformance):
    name = "openvino"

    def integer_kernels(self, model_file: Path) -> int:
        session = backend_module.BACKEND.open_artifact(model_file, threads=1)
        return len(readback.integer_kernels(session.compiled))
