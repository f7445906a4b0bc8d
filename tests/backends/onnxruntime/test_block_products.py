"""Weights in blocks of every width and size: one kernel of ONNX Runtime, or float, and the same weight to the bit."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest

from qcompile.backends.onnxruntime import BACKEND
from qcompile.backends.onnxruntime.block_products import BLOCKS, Storage, storage
from qcompile.block_weights import of_node
from qcompile.reference_evaluator import evaluate
from tests.backends.block_cases import GROUPS, SCHEMES, SIZES, block_case, check_weights, run
from tests.backends.onnxruntime.rewrites import optimized
from tests.backends.sizes import size_over_paper

FEW = {48: 16, -1: 128}
"""Group -> block in which MatMulNBits computes it, where that is another one, or any."""


@pytest.mark.parametrize(("bits", "sym"), SCHEMES)
def test_the_weight_is_kept_to_the_bit(bits: int, sym: bool, tmp_path: Path) -> None:
    for group, inputs in SIZES:
        folder = tmp_path / f"{group}_{inputs}"
        folder.mkdir()
        check_weights(BACKEND, block_case(bits, sym, group, inputs), folder)


@pytest.mark.parametrize(("bits", "sym"), SCHEMES)
@pytest.mark.parametrize("rounded", BLOCKS)
def test_activations_are_rounded_as_the_graph_says(bits: int, sym: bool, rounded: int, tmp_path: Path) -> None:
    for inputs, group in ((288, rounded), (288, -1), (17, rounded)):
        case = block_case(bits, sym, group, inputs, rounded=rounded)
        x = np.random.default_rng(1).standard_normal((3, inputs)).astype(np.float32)
        expected = evaluate(case.model, {"x": x})["y"]
        for found in (run(BACKEND, case, tmp_path, x), BACKEND.open_session(case.model, threads=1).run({"x": x})["y"]):
            np.testing.assert_allclose(found, expected, rtol=0, atol=2e-6 * np.abs(expected).max())
            assert np.abs(found - x @ case.weight).max() > 1e-4 * np.abs(expected).max()  # they are rounded indeed
        (product,) = optimized(tmp_path / "model.onnx").graph.node
        stored = {each.name: each.i for each in product.attribute}
        width = 8 if bits == 8 else 2 if bits == 2 and rounded in (32, 64, 128) else 4
        assert (product.op_type, stored["accuracy_level"]) == ("MatMulNBits", 4)
        assert (stored["bits"], stored["block_size"]) == (width, rounded)


@pytest.mark.parametrize(("bits", "sym"), SCHEMES)
def test_what_is_stored_for_rounded_activations_is_the_weight_to_the_bit(bits: int, sym: bool, tmp_path: Path) -> None:
    """Read with float activations, which the kernel of the file does not: its sums round otherwise."""
    for group, inputs in ((32, 17), (32, 33), (64, 288), (128, 64), (-1, 33)):
        case = block_case(bits, sym, group, inputs, rounded=64 if group == -1 else group)
        lowered = BACKEND.lower(case.model, tmp_path, target=None)
        written = ir.load(tmp_path / lowered.model_file)
        (product,) = written.graph
        product.attributes.add(ir.AttrInt64("accuracy_level", 1))
        identity = np.eye(inputs, dtype=np.float32)
        np.testing.assert_array_equal(BACKEND.open_session(written, threads=1).run({"x": identity})["y"], case.weight)


@pytest.mark.parametrize("group", GROUPS)
def test_no_weight_of_four_bits_is_expanded(group: int, tmp_path: Path) -> None:
    case = block_case(4, False, group, 288)
    lowered = BACKEND.lower(case.model, tmp_path, target=None)
    graph = optimized(tmp_path / lowered.model_file).graph
    assert [node.op_type for node in graph.node] == ["MatMulNBits"]
    (block,) = (each.i for each in graph.node[0].attribute if each.name == "block_size")
    assert block == FEW.get(group, group)
    sizes = {each.name: each.dims for each in graph.initializer if each.data_type != 1}
    assert max(np.prod(dims) for dims in sizes.values()) <= 24 * 384 // 2  # filled up to a whole block


@pytest.mark.parametrize(("bits", "group"), [(8, 32), (4, 20), (4, 8)])
def test_what_has_no_kernel_is_float_and_said_to_be(bits: int, group: int, tmp_path: Path) -> None:
    case = block_case(bits, True, group, 288)
    check_weights(BACKEND, case, tmp_path)
    (finding,) = BACKEND.lower(case.model, tmp_path, target=None).findings
    assert (finding.layer, finding.action) == ("y", "quantized")
    assert "float in memory" in finding.reason
    assert [node.op_type for node in optimized(tmp_path / "model.onnx").graph.node] == ["MatMul"]


@pytest.mark.parametrize(("rounded", "group"), [(48, 48), (64, 32), (512, -1)])
def test_activations_in_blocks_that_no_kernel_has_are_rounded_by_operators(
    rounded: int, group: int, tmp_path: Path
) -> None:
    case = block_case(4, True, group, 288, rounded=rounded)
    x = np.random.default_rng(1).standard_normal((3, 288)).astype(np.float32)
    expected = evaluate(case.model, {"x": x})["y"]
    np.testing.assert_allclose(run(BACKEND, case, tmp_path, x), expected, rtol=0, atol=2e-6 * np.abs(expected).max())
    (product,) = (node for node in ir.load(tmp_path / "model.onnx").graph if node.op_type == "MatMulNBits")
    assert product.attributes.get_int("accuracy_level") == 1


def test_a_weight_that_two_products_read_is_stored_once(tmp_path: Path) -> None:
    case = block_case(4, True, 32, 64, 64)
    model, product = case.model, case.model.graph[1]
    second = ir.node("MatMul", [product.outputs[0], product.inputs[1]])
    model.graph.append(second)
    second.outputs[0].name, second.outputs[0].type = "again", product.outputs[0].type
    model.graph.outputs.append(second.outputs[0])
    BACKEND.lower(model, tmp_path, target=None)
    written = ir.load(tmp_path / "model.onnx").graph
    assert [node.op_type for node in written] == ["MatMulNBits"] * 2
    assert len(written.initializers) == 2


@pytest.mark.parametrize(
    ("bits", "group", "rounded", "expected"),
    [
        (4, 64, None, Storage(4, 64, 1)),
        (4, 96, None, Storage(4, 32, 1)),
        (4, 512, None, Storage(4, 256, 1)),
        (4, -1, None, Storage(4, 128, 1)),
        (2, 64, None, Storage(4, 64, 1)),
        (3, 64, 64, Storage(4, 64, 4)),
        (2, 64, 64, Storage(2, 64, 4)),
        (2, 64, 16, Storage(4, 16, 4)),
        (8, 64, 32, Storage(8, 32, 4)),
        (8, 64, None, None),
        (4, 17, None, None),
        (4, 64, 128, None),
    ],
)
def test_storage(bits: int, group: int, rounded: int | None, expected: Storage | None) -> None:
    weight = of_node(block_case(bits, True, group, 1024).model.graph[0])
    assert weight is not None
    assert storage(weight, rounded) == expected


@pytest.mark.parametrize("sym", [True, False])
@pytest.mark.parametrize(("bits", "stored"), [(2, 4), (3, 4), (4, 4)])
def test_the_file_is_as_large_as_bits_and_scales_on_paper(bits: int, stored: int, sym: bool, tmp_path: Path) -> None:
    """With float activations its kernel has 4 bits only; zero points take as many."""
    assert 0.97 < size_over_paper(BACKEND, bits, sym, stored, tmp_path) < 1.03
