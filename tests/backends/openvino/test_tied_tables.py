"""The rows that an embedding gathers and the weight of the head are the same bytes of the file."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("openvino")

from qcompile.backends.openvino import BACKEND
from tests.backends.openvino.test_decompression import weight_types
from tests.tied_models import IDS, ROWS, rounded, tied


def test_one_copy_in_the_file_and_no_float_one_in_memory(tmp_path: Path) -> None:
    BACKEND.lower(tied(), tmp_path, target=None)
    table, scales = ROWS * 128, ROWS * 2 * 4
    assert table + scales <= (tmp_path / "model.bin").stat().st_size < 1.1 * (table + scales)
    assert weight_types(tmp_path / "model.xml") == [("FullyConnected", "i8")]


@pytest.mark.parametrize("channels", [128, 72])
def test_both_are_the_same_table(channels: int, tmp_path: Path) -> None:
    BACKEND.lower(tied(channels), tmp_path, target=None)
    weight = rounded(channels)
    expected = np.tanh(weight[IDS]) @ weight.T
    found = BACKEND.open_artifact(tmp_path / "model.xml", threads=1).run({"ids": IDS})["y"]
    assert np.abs(found - expected).max() < 0.02 * np.abs(expected).max()  # activations are rounded at run time
