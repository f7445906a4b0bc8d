"""The rows that an embedding gathers and the weight of the head are the same bytes of the file."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("openvino")

from qcompile.backends.openvino import BACKEND
from qcompile.backends.openvino.runtime import openvino
from qcompile.scheme import GroupScheme
from tests.backends.openvino.test_decompression import weight_types
from tests.tied_models import IDS, ROWS, rounded, tied


@pytest.mark.parametrize(("bits", "kind"), [(8, "i8"), (4, "i4")])
def test_one_copy_in_the_file_and_no_float_one_in_memory(bits: int, kind: str, tmp_path: Path) -> None:
    BACKEND.lower(tied(head=GroupScheme(bits, 64)), tmp_path, target=None)
    table, scales = ROWS * 128 * bits // 8, ROWS * 2 * 4
    assert table + scales <= (tmp_path / "model.bin").stat().st_size < 1.1 * (table + scales)
    assert weight_types(tmp_path / "model.xml") == [("FullyConnected", kind)]


@pytest.mark.parametrize(("bits", "kind"), [(8, "i8"), (4, "i4")])
def test_rows_are_gathered_and_dequantized_at_once(bits: int, kind: str, tmp_path: Path) -> None:
    BACKEND.lower(tied(head=GroupScheme(bits, 64)), tmp_path, target=None)
    model = openvino().Core().compile_model(tmp_path / "model.xml", "CPU").get_runtime_model()
    gathers = [op for op in model.get_ordered_ops() if op.get_rt_info()["layerType"].astype(str) == "Gather"]
    assert [op.input(0).get_element_type().get_type_name() for op in gathers] == [kind]


@pytest.mark.parametrize("bits", [8, 4, 3, 2])
@pytest.mark.parametrize("channels", [128, 72, 66])
def test_both_are_the_same_table(channels: int, bits: int, tmp_path: Path) -> None:
    BACKEND.lower(tied(channels, GroupScheme(bits, 64)), tmp_path, target=None)
    weight = rounded(channels, bits=bits)
    expected = np.tanh(weight[IDS]) @ weight.T
    found = BACKEND.open_artifact(tmp_path / "model.xml", threads=1).run({"ids": IDS})["y"]
    assert np.abs(found - expected).max() < 0.02 * np.abs(expected).max()  # activations are rounded at run time
