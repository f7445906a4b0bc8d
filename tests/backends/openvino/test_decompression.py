"""Weights in blocks of every width and size in OpenVINO: compressed in memory, and the same weight to the bit."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest

pytest.importorskip("openvino")

from qcompile.backends.openvino import BACKEND, decompression, readback, runtime
from qcompile.backends.openvino.decompression import Storage, storage
from qcompile.backends.openvino.runtime import opset
from qcompile.block_weights import of_node
from qcompile.reference_evaluator import evaluate
from tests.backends.block_cases import GROUPS, SCHEMES, SIZES, BlockCase, block_case, check_weights
from tests.backends.sizes import size_over_paper

PRECISE = {"INFERENCE_PRECISION_HINT": "f32", "DYNAMIC_QUANTIZATION_GROUP_SIZE": "0"}


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
    for group, inputs in SIZES:
        check_weights(BACKEND, block_case(bits, sym, group, inputs), tmp_path)


@pytest.mark.parametrize("outputs", [1, 3])
@pytest.mark.parametrize(("bits", "sym"), [(2, True), (2, False), (4, False)])
def test_zero_points_that_do_not_end_with_a_byte(bits: int, sym: bool, outputs: int, tmp_path: Path) -> None:
    for group in (32, -1):
        check_weights(BACKEND, block_case(bits, sym, group, 96, outputs), tmp_path)


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
        (2, False, 12, 36, Storage("u8", 12, 36)),
        (2, True, 96, 288, Storage("u2", 32, 288)),
        (4, True, 48, 288, Storage("i4", 16, 288)),
        (8, True, 48, 288, Storage("i8", 48, 288)),
        (2, True, -1, 34, Storage("i4", 34, 34)),
        (4, True, 32, 33, Storage("i4", 32, 64)),
        (4, True, -1, 33, Storage("i8", 33, 33)),
        (4, False, 11, 33, None),
        (8, True, 64, 4544, Storage("i8", 64, 4544)),
        (4, True, 128, 4544, Storage("i4", 64, 4544)),
        (4, True, 32, 1, Storage("i8", 1, 1)),
    ],
)
def test_storage(bits: int, sym: bool, group: int, inputs: int, expected: Storage | None) -> None:
    weight = of_node(block_case(bits, sym, group, inputs).model.graph[0])
    assert weight is not None
    assert storage(weight) == expected


@pytest.mark.parametrize(("bits", "sym"), SCHEMES)
@pytest.mark.parametrize(("group", "inputs", "rounded"), [(32, 288, 32), (64, 64, 64), (-1, 288, 32), (48, 288, 16)])
def test_activations_are_rounded_as_the_graph_says(
    bits: int, sym: bool, group: int, inputs: int, rounded: int, tmp_path: Path
) -> None:
    case = block_case(bits, sym, group, inputs, rounded=rounded)
    lowered = BACKEND.lower(case.model, tmp_path, target=None)
    (probe,) = BACKEND.probes(tmp_path / lowered.model_file, [])
    x = np.random.default_rng(1).standard_normal((3, inputs)).astype(np.float32)
    channels = probe.channels_per_scale(inputs)
    expected = evaluate(case.model, {"x": x}, channels_per_scale=probe.channels_per_scale)["y"]
    found = probe.session.run({"x": x})["y"]
    np.testing.assert_allclose(found, expected, rtol=0, atol=2e-6 * np.abs(expected).max())
    if readback.quantizes_at_run_time(64, 16):  # with VNNI
        assert (channels, lowered.findings) == (rounded, ())
        assert np.abs(found - x @ case.weight).max() > 1e-4 * np.abs(expected).max()
    session = BACKEND.open_session(case.model, threads=1).run({"x": x})["y"]
    np.testing.assert_allclose(session, evaluate(case.model, {"x": x})["y"], rtol=0, atol=2e-6 * np.abs(session).max())


def two_linears(first: BlockCase, second: BlockCase) -> ir.Model:
    """Both of one input; the names of the second have a 2."""
    model, other = first.model.clone(), second.model.clone()
    for value in (*other.graph.initializers.values(), *(value for node in other.graph for value in node.outputs)):
        value.name = f"{value.name}2"
    initializers, nodes = list(other.graph.initializers.values()), list(other.graph)
    (output,) = other.graph.outputs
    other.graph.inputs[0].replace_all_uses_with(model.graph.inputs[0])
    other.graph.outputs.clear()
    other.graph.initializers.clear()
    other.graph.remove(nodes)
    for value in initializers:
        model.graph.register_initializer(value)
    model.graph.extend(nodes)
    model.graph.outputs.append(output)
    model.functions.update(other.functions)
    return model


@pytest.mark.parametrize(
    ("other", "reason"),
    [
        (block_case(4, True, 64, 192), "not all can be"),
        (block_case(4, True, 24, 192, rounded=32), "16 or more"),
    ],
    ids=["float", "groups of 24"],
)
def test_where_linears_disagree_all_activations_stay_float(other: BlockCase, reason: str, tmp_path: Path) -> None:
    case = block_case(4, True, 64, 192, rounded=64)
    lowered = BACKEND.lower(two_linears(case, other), tmp_path, target=None)
    assert {(each.layer, each.action) for each in lowered.findings} >= {("y", "kept")}
    assert all(reason in each.reason for each in lowered.findings)
    x = np.random.default_rng(1).standard_normal((3, 192)).astype(np.float32)
    found = BACKEND.open_artifact(tmp_path / lowered.model_file, threads=1).run({"x": x})
    for name, each in (("y", case), ("y2", other)):
        exact = x @ each.weight
        np.testing.assert_allclose(found[name], exact, rtol=0, atol=1e-5 * np.abs(exact).max())


def test_groups_of_48_in_4_bits_are_still_computed_wrong_for_one_token() -> None:
    """Why `storage` splits them; where OpenVINO has mended it, it need not."""
    case = block_case(4, True, 48, 288)
    weight = of_node(case.model.graph[0])
    assert weight is not None
    x = np.random.default_rng(1).standard_normal((1, 288)).astype(np.float32)
    expected = x @ case.weight
    for stored, right in ((Storage("i4", 48, 288), False), (Storage("i4", 16, 288), True)):
        parameter = opset().parameter([-1, 288], np.float32, name="x")
        product = opset().matmul(parameter, decompression._decompressed(weight, stored), False, True)
        found = runtime.core().compile_model(runtime.openvino().Model([product], [parameter]), "CPU", PRECISE)([x])[0]
        assert (np.abs(found - expected).max() < 1e-4 * np.abs(expected).max()) == right


ENDS = """
import sys, openvino
openvino.Core().compile_model(sys.argv[1], "CPU")
print("compiled")
"""


def test_four_bits_with_one_scale_for_each_output_still_end_the_process(tmp_path: Path) -> None:
    """Why `hide_weights` keeps them from the front end; ours compiles."""
    model = block_case(4, True, -1, 64).model
    ir.save(model, tmp_path / "model.onnx")
    run = subprocess.run(
        [sys.executable, "-c", ENDS, str(tmp_path / "model.onnx")], capture_output=True, text=True, check=False
    )
    assert (run.returncode, run.stdout) != (0, "compiled\\n"), "OpenVINO has mended it"
    check_weights(BACKEND, block_case(4, True, -1, 64), tmp_path)


@pytest.mark.parametrize("sym", [True, False])
@pytest.mark.parametrize(("bits", "stored"), [(2, 2), (3, 4), (4, 4), (8, 8)])
def test_the_file_is_as_large_as_bits_and_scales_on_paper(bits: int, stored: int, sym: bool, tmp_path: Path) -> None:
    """It has no 3 bits; zero points take as many as the integers."""
    assert 0.97 < size_over_paper(BACKEND, bits, sym, stored, tmp_path) < 1.03
