"""Ctrl-C is never taken for an error of the model, the data or the installation."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import onnx_ir as ir
import pytest
import torch

import qcompile
from qcompile.backends.openvino import runtime
from qcompile.calibration_data import Calibration
from qcompile.errors import MissingDependencyError, ModelError, raise_interrupt


def interrupted() -> None:
    """What pybind11 raises when Ctrl-C comes while it loads a module."""
    raise ImportError("initialization failed") from KeyboardInterrupt()


class Interrupted(torch.nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        interrupted()
        return x


def samples() -> Iterator[None]:
    interrupted()
    yield


def test_in_a_front_door() -> None:
    with pytest.raises(KeyboardInterrupt):
        qcompile.trace(Interrupted(), example_inputs=torch.ones(2, 3))


def test_in_calibration_data() -> None:
    with pytest.raises(KeyboardInterrupt):
        list(Calibration(samples()).read([ir.val("x", ir.DataType.FLOAT, [1])]))


@pytest.mark.parametrize(
    ("cause", "expected"), [("KeyboardInterrupt()", KeyboardInterrupt), ("None", MissingDependencyError)]
)
def test_while_a_runtime_is_imported(
    cause: str, expected: type[BaseException], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "openvino.py").write_text(f"raise ImportError('initialization failed') from {cause}\n")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "openvino", raising=False)
    with pytest.raises(expected):
        runtime.openvino.__wrapped__()


def test_other_causes_are_let_through() -> None:
    try:
        try:
            raise KeyError("a")
        except KeyError as cause:
            raise ModelError("a", "b", "c") from cause
    except ModelError as error:
        raise_interrupt(error)
