"""Weights in blocks of every width and size in OpenVINO: compressed in memory, and the same weight to the bit."""

from __future__ import annotations

import itertools
from pathlib import Path

import pytest

pytest.importorskip("openvino")

from qcompile.backends.openvino import BACKEND
from qcompile.backends.openvino.decompression import Storage, storage
from qcompile.block_weights import of_node
from tests.backends.block_cases import GROUPS, SCHEMES, WIDTHS, block_case, check_weights


def weight_types(model_file: Path) -> list[tuple[str, str]]:
    """Kernel and element type of its weight, of each linear that the plugin runs."""
    compiled = BACKEND.open_artifact(model_file, threads=1).compiled
    nodes = compiled.get_runtime_model().get_ordered_ops()
    kinds = [(node.get_rt_info()["layerType"].astype(str), node) for node in nodes]
    return [
        (kind, node.input(1).get_element_type().to_string())
        for kind, node in kinds
        if kind in ("FullyConnected", "MatMul")
    ]


@pytest.mark.parametrize(("bits", "sym"), SCHEMES)
def test_the_weight_is_kept_to_the_bit(bits: int, sym: bool, tmp_path: Path) -> None:
    for group, inputs in itertools.product(GROUPS, WIDTHS):
        check_weights(BACKEND, block_case(bits, sym, group, inputs), tmp_path)


@pytest.mark.parametrize(("bits", "sym"), SCHEMES)
@pytest.mark.parametrize("group", GROUPS)
def test_no_weight_is_expanded(bits: int, sym: bool, group: int, tmp_path: Path) -> None:
    BACKEND.lower(block_case(bits, sym, group, 288).model, tmp_path, target=None)
    dtype = "u2" if bits == 2 else f"{'i' if sym else 'u'}{8 if bits == 8 else 4}"
    assert weight_types(tmp_path / "model.xml") == [("FullyConnected", dtype)]


@pytest.mark.parametrize(
    ("bits", "sym", "group", "inputs", "expected"),
    [
        (4, True, 64, 288, Storage("i4", 32, 288)),
        (4, False, 32, 288, Storage("u4", 32, 288)),
        (3, True, 48, 64, Storage("i4", 16, 64)),
        (2, True, 32, 64, Storage("u2", 32, 64)),
        (2, False, 6, 36, Storage("u4", 6, 36)),
        (4, True, 32, 33, Storage("i4", 32, 64)),
        (4, True, -1, 33, Storage("i8", 33, 33)),
        (4, False, 11, 33, Storage("u8", 11, 33)),
        (8, True, 64, 4544, Storage("i8", 64, 4544)),
        (4, True, 128, 4544, Storage("i4", 64, 4544)),
        (4, True, 32, 1, Storage("i8", 1, 1)),
    ],
)
def test_storage(bits: int, sym: bool, group: int, inputs: int, expected: Storage) -> None:
    weight = of_node(block_case(bits, sym, group, inputs).model.graph[0])
    assert weight is not None
    assert storage(weight) == expected
