"""The quantized graph and the sample that travel with an artifact."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime
import pytest

import qcompile
from qcompile.artifact_portable import GRAPH, SAMPLE, WEIGHTS, read_portable, write_portable
from qcompile.artifact_portable_forms import TRANSPOSED, UNSIGNED, Form
from qcompile.errors import ArtifactError, UnsafeModelError
from tests.backends.portable import parse

RANDOM = np.random.default_rng(0)
X = RANDOM.normal(size=(2, 64)).astype(np.float32)


def model() -> ir.Model:
    """Two weights of 16 KiB, the second of mostly zeros, and a small one."""
    weights = RANDOM.normal(size=(2, 64, 64)).astype(np.float32)
    weights[1, :60] = 0
    text = "(float[2,64] x) => (float[2,64] y) { a = MatMul(x, v) b = MatMul(a, w) y = Add(b, c) }"
    return parse(text, v=weights[0], w=weights[1], c=RANDOM.normal(size=64).astype(np.float32))


def tensors(graph: ir.Model) -> dict[str, np.ndarray]:
    return {name: value.const_value.numpy() for name, value in graph.graph.initializers.items()}


def places(folder: Path) -> dict[str, str]:
    values = ir.load(folder / GRAPH).graph.initializers.items()
    return {name: str(v.const_value.location) for name, v in values if isinstance(v.const_value, ir.ExternalTensor)}


def assert_same(folder: Path, expected: ir.Model) -> None:
    graph, sample = read_portable(folder)
    np.testing.assert_equal(tensors(graph), tensors(expected))
    assert [node.op_type for node in graph.graph] == [node.op_type for node in expected.graph]
    np.testing.assert_equal(sample, {"x": X})


def test_weights_that_lie_in_other_files_are_read_there(tmp_path: Path) -> None:
    wanted = model()
    parts = {name: array.tobytes() for name, array in tensors(wanted).items()}
    (tmp_path / "model.bin").write_bytes(b"before" + parts["w"] + b"between" + parts["v"] + b"after")
    (tmp_path / "model.xml").write_bytes(b"")
    write_portable(wanted, {"x": X}, tmp_path, ("model.xml", "model.bin"))
    assert places(tmp_path) == {"v": "model.bin", "w": "model.bin"}
    assert not (tmp_path / WEIGHTS).exists()
    assert_same(tmp_path, wanted)


def test_weights_that_lie_nowhere_else_are_written(tmp_path: Path) -> None:
    wanted = model()
    parts = {name: array.tobytes() for name, array in tensors(wanted).items()}
    (tmp_path / "model.bin").write_bytes(parts["w"][:-1] + parts["v"])  # the first as the file was before a change
    write_portable(wanted, {"x": X}, tmp_path, ("model.bin",))
    assert places(tmp_path) == {"v": "model.bin", "w": WEIGHTS}
    assert (tmp_path / WEIGHTS).stat().st_size == len(parts["w"])
    assert_same(tmp_path, wanted)


def test_the_model_is_not_changed(tmp_path: Path) -> None:
    wanted = model()
    before = [value.const_value for value in wanted.graph.initializers.values()]
    write_portable(wanted, {"x": X}, tmp_path, ())
    assert [value.const_value for value in wanted.graph.initializers.values()] == before


def test_inputs_may_have_any_name_and_hold_texts(tmp_path: Path) -> None:
    sample = {"file": X, "a/b": np.array(["é", ""], object)}
    write_portable(model(), sample, tmp_path, ())
    _, found = read_portable(tmp_path)
    np.testing.assert_array_equal(found["file"], X)
    assert found["a/b"].tolist() == ["é", ""]
    assert found["a/b"].dtype == object  # as runtimes return texts, and `verify` compares


def test_a_sample_that_is_damaged_or_holds_objects_is_refused(tmp_path: Path) -> None:
    write_portable(model(), {"x": X}, tmp_path, ())
    np.savez(tmp_path / SAMPLE, x=np.array([X], object))
    for content in (None, (tmp_path / SAMPLE).read_bytes()[:-30]):
        if content is not None:
            (tmp_path / SAMPLE).write_bytes(content)
        with pytest.raises(ArtifactError, match=SAMPLE):
            read_portable(tmp_path)


def test_a_graph_that_reads_outside_of_the_folder_is_refused(tmp_path: Path) -> None:
    (tmp_path / "artifact").mkdir()
    write_portable(model(), {"x": X}, tmp_path / "artifact", ())
    (tmp_path / "artifact" / WEIGHTS).rename(tmp_path / WEIGHTS)
    (tmp_path / "artifact" / WEIGHTS).symlink_to(tmp_path / WEIGHTS)
    with pytest.raises(UnsafeModelError):
        read_portable(tmp_path / "artifact")


@pytest.mark.parametrize("backend", ["onnxruntime", "openvino"])
def test_compile_stores_the_weights_once(backend: str, tmp_path: Path) -> None:
    text = "(float[n,256] x) => (float[n,256] y) { a = MatMul(x, v) b = Relu(a) y = MatMul(b, w) }"
    weights = RANDOM.normal(size=(2, 256, 256)).astype(np.float32)
    data = [{"x": RANDOM.normal(size=(4, 256)).astype(np.float32)} for _ in range(2)]
    found = parse(text, v=weights[0], w=weights[1])
    artifact = qcompile.compile(found, "w8a8-static", backend=backend, calibration=data, output=tmp_path / "a")
    assert artifact.report.size["quantized_bytes"] > 2 * 256 * 256
    files = artifact.manifest.files
    assert {GRAPH, SAMPLE} <= set(files)
    assert sum(entry.size for name, entry in files.items() if name.startswith("portable.")) < 0.2 * 2 * 256 * 256
    plain = qcompile.compile(found, "w8a8-static", backend=backend, calibration=data, verify=False)
    assert not [name for name in plain.manifest.files if name.startswith("portable.")]


@pytest.mark.parametrize("dtype", [ir.DataType.INT4, ir.DataType.UINT4, ir.DataType.INT8, ir.DataType.FLOAT])
@pytest.mark.parametrize("form", [TRANSPOSED, UNSIGNED], ids=lambda form: form.name)
def test_weights_that_lie_in_another_form_are_read_there(dtype: ir.DataType, form: Form, tmp_path: Path) -> None:
    if form.unsigned and dtype not in (ir.DataType.INT4, ir.DataType.INT8):
        return
    numbers = RANDOM.integers(-8 if dtype.is_signed() else 0, 8, (300, 200)).astype(dtype.numpy())
    text = "(float[2,300] x) => (float[2,200] y) { f = Cast<to = 1>(w) y = MatMul(x, f) }"
    wanted = parse(text, w=np.zeros((300, 200), np.float32))
    weight = wanted.graph.initializers["w"]
    weight.const_value, weight.dtype = ir.tensor(numbers, dtype, name="w"), dtype
    raised = numbers.T.astype(np.int16) + (1 << (dtype.bitwidth - 1)) if form.unsigned else numbers.T
    held = {ir.DataType.INT4: ir.DataType.UINT4, ir.DataType.INT8: ir.DataType.UINT8}[dtype] if form.unsigned else dtype
    content = ir.tensor(np.ascontiguousarray(raised).astype(held.numpy()), held).tobytes()
    (tmp_path / "model.bin").write_bytes(b"before" + content + b"after")
    x = RANDOM.normal(size=(2, 300)).astype(np.float32)
    write_portable(wanted, {"x": x}, tmp_path, ("model.bin",))
    assert places(tmp_path) == {"w.held": "model.bin"}
    assert not (tmp_path / WEIGHTS).exists()
    onnx.checker.check_model(str(tmp_path / GRAPH), full_check=True)
    graph, _ = read_portable(tmp_path)
    assert [node.op_type for node in graph.graph] == ["Cast", "MatMul"]
    (read,) = graph.graph.initializers.values()
    assert (read.name, read.dtype, tuple(read.shape)) == ("w", dtype, (300, 200))
    np.testing.assert_array_equal(read.const_value.numpy(), numbers)
    written = onnxruntime.InferenceSession(tmp_path / GRAPH).run(None, {"x": x})[0]  # any runtime can read it
    np.testing.assert_allclose(written, x @ numbers.astype(np.float32), rtol=1e-4, atol=1e-3)


@pytest.mark.parametrize("backend", ["onnxruntime", "openvino"])
@pytest.mark.parametrize("sym", [True, False])
def test_compile_stores_weights_of_few_bits_once(backend: str, sym: bool, tmp_path: Path) -> None:
    text = "(float[n,256] x) => (float[n,256] y) { a = MatMul(x, v) b = Relu(a) y = MatMul(b, w) }"
    weights = RANDOM.normal(size=(2, 256, 256)).astype(np.float32)
    found = parse(text, v=weights[0], w=weights[1])
    recipe = qcompile.Recipe.from_name("w4a16-rtn", sym=sym, head=None)
    artifact = qcompile.compile(found, recipe, backend=backend, output=tmp_path / "a", tune="none")
    sizes = {name: entry.size for name, entry in artifact.manifest.files.items()}
    assert sizes.get(WEIGHTS, 0) <= 2 * 256 * 256 / 64 * 4.5, "scales and zero points at most"
    assert qcompile.verify(tmp_path / "a").agreements


def in_another_form(folder: Path, text: str, last_input: str = "x") -> ir.Model:
    """The graph as it is written with w, INT8, transposed and unsigned in a file of the runtime."""
    numbers = RANDOM.integers(-128, 128, (200, 100)).astype(np.int8)
    wanted = parse(text, w=numbers)
    wanted.graph.inputs[-1].name = last_input
    (folder / "model.bin").write_bytes((numbers.T.astype(np.int16) + 128).astype(np.uint8).tobytes())
    write_portable(wanted, {"x": X}, folder, ("model.bin",))
    return wanted


def test_names_that_are_taken_are_not_used(tmp_path: Path) -> None:
    text = "(float[2,200] x, float held) => (float[2,100] y) { f = Cast<to = 1>(w) y = MatMul(x, f) }"
    wanted = in_another_form(tmp_path, text, "w.held")
    assert places(tmp_path) == {"w.held_0": "model.bin"}
    np.testing.assert_equal(tensors(read_portable(tmp_path)[0]), tensors(wanted))


def test_what_only_looks_like_another_form_is_read_as_it_is(tmp_path: Path) -> None:
    in_another_form(tmp_path, "(float[2,200] x) => (float[2,100] y) { f = Cast<to = 1>(w) y = MatMul(x, f) }")
    graph = onnx.load(tmp_path / GRAPH, load_external_data=False)
    nodes = {node.op_type: node for node in graph.graph.node}
    nodes["Sub"].op_type = "Add"
    onnx.save(graph, tmp_path / GRAPH)
    assert [node.op_type for node in read_portable(tmp_path)[0].graph][:4] == ["Transpose", "Cast", "Add", "Cast"]


def test_a_weight_that_is_an_output_stays_one(tmp_path: Path) -> None:
    text = "(float[2,200] x) => (float[2,100] y, int8[200,100] w) { f = Cast<to = 1>(w) y = MatMul(x, f) }"
    wanted = in_another_form(tmp_path, text)
    assert places(tmp_path) == {"w": WEIGHTS}
    np.testing.assert_equal(tensors(read_portable(tmp_path)[0]), tensors(wanted))
