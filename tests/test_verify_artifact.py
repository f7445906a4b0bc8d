"""The verifier lets right artifacts pass and refuses wrong ones: each mistake is planted in one layer of several."""

from __future__ import annotations

import functools
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest

import qcompile
from qcompile import backends
from qcompile.calibration_masks import PaddingMask
from qcompile.capability import quantizers
from qcompile.errors import VerificationError
from qcompile.recipe import Recipe
from qcompile.recipe_named import NAMED
from qcompile.verify_artifact import Agreement, verification_sample, verify_artifact
from qcompile.verify_observed import observed_values
from tests.backends.portable import parse

BACKENDS = ("onnxruntime", "openvino")
WIDTH, LAYERS = 64, 4
ALL = tuple(name for name in NAMED if quantizers(Recipe.from_name(name)))


def network() -> ir.Model:
    """Linears with Gelu between them: deep enough that ties grow to the size of the quantization noise."""
    random = np.random.default_rng(0)
    text = "x0 = Identity(x)"
    for index in range(LAYERS):
        text += (
            f" m{index} = MatMul(x{index}, w{index}) a{index} = Add(m{index}, b{index}) x{index + 1} = Gelu(a{index})"
        )
    model = ir.from_onnx_text(
        '<ir_version: 10, opset_import: ["" : 23]> '
        f"g (float[n, {WIDTH}] x) => (float[n, {WIDTH}] x{LAYERS}) {{ {text} }}"
    )
    for index in range(LAYERS):
        weight = random.normal(size=(WIDTH, WIDTH)) / 8
        for name, array in ((f"w{index}", weight), (f"b{index}", random.normal(size=WIDTH))):
            value = next(v for node in model.graph for v in node.inputs if v is not None and v.name == name)
            value.const_value = ir.tensor(array.astype(np.float32), name=name)
            value.type, value.shape = ir.TensorType(ir.DataType.FLOAT), ir.Shape(array.shape)
            model.graph.register_initializer(value)
    return model


def samples(count: int = 8) -> list[dict[str, np.ndarray]]:
    random = np.random.default_rng(1)
    return [{"x": random.normal(size=(16, WIDTH)).astype(np.float32)} for _ in range(count)]


@functools.cache
def portable(recipe: str) -> ir.Model:
    return qcompile.rewrite(network(), recipe, calibration=samples())


def verify(right: ir.Model, wrong: ir.Model, backend: str, folder: Path) -> list[Agreement]:
    """Lower one model and hold it against the arithmetic of another."""
    engine = backends.get(backend)
    path = folder / engine.lower(wrong, folder, target=None).model_file
    probes = engine.probes(path, observed_values(right))
    return verify_artifact(right, network(), lambda: engine.open_artifact(path), probes, samples()[0])


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("recipe", ALL)
def test_right_artifacts_agree_at_every_quantizer(recipe: str, backend: str, tmp_path: Path) -> None:
    model = portable(recipe)
    found = verify(model, model, backend, tmp_path)
    assert len(found) == (2 if backend == "onnxruntime" else 1)
    for agreement in found:
        assert agreement.observed >= LAYERS - 1
        assert agreement.max_steps <= 1
        assert agreement.rms_steps < 0.1


def _weight(model: ir.Model, part: str) -> ir.Value:
    """A part of the dequantized weight in the middle of the model."""
    return next(value for name, value in model.graph.initializers.items() if name.startswith("w1") and part in name)


def _change(part: str, change: Callable[[np.ndarray], np.ndarray]) -> Callable[[ir.Model], None]:
    def plant(model: ir.Model) -> None:
        value = _weight(model, part)
        assert value.const_value is not None
        value.const_value = ir.tensor(change(value.const_value.numpy()), name=value.name)

    return plant


def _one_column(array: np.ndarray) -> np.ndarray:
    changed = array.copy()
    changed[:, 5] //= 2
    return changed


def _shift_zero_point(model: ir.Model) -> None:
    """Take one step off what a quantizer in the middle writes: a bias as small as they come."""
    node = [node for node in model.graph if node.op_type == "DequantizeLinear" and "w" not in str(node.inputs[0].name)][
        2
    ]
    point = node.inputs[2]
    assert point is not None
    assert point.const_value is not None
    array = point.const_value.numpy() + point.const_value.dtype.numpy().type(1)
    value = ir.val(f"{point.name}.wrong", const_value=ir.tensor(array, name=f"{point.name}.wrong"))
    model.graph.register_initializer(value)
    node.replace_input_with(2, value)


def _scaled_product(model: ir.Model) -> None:
    """What a Gemm with an alpha of 0.9 gives where it is taken for 1."""
    node = next(node for node in model.graph if node.op_type == "MatMul" and node.inputs[1].name.startswith("w2"))
    factor = ir.val("alpha", const_value=ir.tensor(np.float32(0.9), name="alpha"))
    model.graph.register_initializer(factor)
    product = ir.node("Mul", [node.outputs[0], factor])
    product.outputs[0].name, product.outputs[0].type = "scaled", node.outputs[0].type
    node.outputs[0].replace_all_uses_with(product.outputs[0])
    product.replace_input_with(0, node.outputs[0])
    model.graph.insert_after(node, product)


MISTAKES: dict[str, Callable[[ir.Model], None]] = {
    "negative weights are zero": _change("quantized", lambda w: np.maximum(w, 0)),
    "weights saturate": _change("quantized", lambda w: np.clip(w, -64, 63)),
    "weights lose their lowest bit": _change("quantized", lambda w: w & ~np.int8(1)),
    "one column is halved": _change("quantized", _one_column),
    "scales are along the other axis": _change(
        "scale", lambda s: np.roll(s, 1) if s.size > 1 else s * np.float32(1.05)
    ),
    "alpha is forgotten": _scaled_product,
}


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("recipe", ["w8a8-static", "w8a8-dynamic", "smoothquant-o2"])
@pytest.mark.parametrize("mistake", MISTAKES)
def test_one_wrong_layer_is_caught(mistake: str, recipe: str, backend: str, tmp_path: Path) -> None:
    right = portable(recipe)
    wrong = right.clone()
    MISTAKES[mistake](wrong)
    with pytest.raises(VerificationError, match=r"x[23].* quantization steps"):
        verify(right, wrong, backend, tmp_path)


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_zero_point_that_is_one_off_is_caught(backend: str, tmp_path: Path) -> None:
    right = portable("w8a8-static")
    wrong = right.clone()
    _shift_zero_point(wrong)
    with pytest.raises(VerificationError, match="quantization steps"):
        verify(right, wrong, backend, tmp_path)


def test_an_artifact_that_computes_something_else_when_nobody_looks_is_caught(tmp_path: Path) -> None:
    right, engine = portable("w8a8-static"), backends.get("onnxruntime")
    wrong = right.clone()
    MISTAKES["negative weights are zero"](wrong)
    paths = []
    for name, model in (("right", right), ("wrong", wrong)):
        (tmp_path / name).mkdir()
        paths.append(tmp_path / name / engine.lower(model, tmp_path / name, target=None).model_file)
    probes = list(engine.probes(paths[0], observed_values(right)))
    verify_artifact(right, network(), lambda: engine.open_artifact(paths[0]), probes, samples()[0])
    with pytest.raises(VerificationError, match="times as far from the reference as quantization itself"):
        verify_artifact(right, network(), lambda: engine.open_artifact(paths[1]), probes, samples()[0])


@pytest.mark.parametrize("broken", [np.nan, np.inf])
def test_values_that_are_not_finite_are_caught(broken: float, tmp_path: Path) -> None:
    right = portable("w8a8-static")
    wrong = right.clone()
    wrong.graph.initializers["b3"].const_value = ir.tensor(np.full(WIDTH, broken, np.float32), name="b3")
    with pytest.raises(VerificationError, match=f"x{LAYERS} has NaN or infinity"):
        verify(right, wrong, "onnxruntime", tmp_path)


def test_compile_refuses_what_the_verifier_does(monkeypatch: pytest.MonkeyPatch) -> None:
    """ONNX Runtime clips float biases to int32; here without the step of the lowering that prevents it."""
    random = np.random.default_rng(0)
    kernels = random.normal(size=(2, 4, 4, 3, 3)).astype(np.float32)
    kernels[0, 1] *= 1e-30
    model = ir.from_onnx_text(
        '<ir_version: 10, opset_import: ["" : 23]> g (float[1, 4, 8, 8] x) => (float[1, 4, 4, 4] y) '
        "{ c = Conv(x, k0, b) r = Relu(c) y = Conv(r, k1, b) }"
    )
    for name, array in (("k0", kernels[0]), ("k1", kernels[1]), ("b", np.full(4, 1.5, np.float32))):
        tensor = ir.tensor(array, name=name)
        model.graph.register_initializer(ir.val(name, const_value=tensor))
        for node in model.graph:
            for index, value in enumerate(node.inputs):
                if value is not None and value.name == name:
                    node.replace_input_with(index, model.graph.initializers[name])
    data = [{"x": random.normal(size=(1, 4, 8, 8)).astype(np.float32)} for _ in range(4)]
    recipe = qcompile.Recipe.from_data({"name": "quantize", "steps": [{"insert_qdq": {}}]})
    qcompile.compile(model, recipe, calibration=data)
    monkeypatch.setattr("qcompile.backends.onnxruntime.lowering.fit_biases", lambda _model: None)
    with pytest.raises(VerificationError, match=r"all graph optimizations: r\.quantized is up to"):
        qcompile.compile(model, recipe, calibration=data)
    qcompile.compile(model, recipe, calibration=data, verify=False)


def test_the_sample_is_small_and_has_no_padding() -> None:
    model = ir.from_onnx_text(
        '<ir_version: 10, opset_import: ["" : 23]> g (int64[n, s] ids, int64[n, s] mask) => (int64[n, s] y) '
        "{ y = Mul(ids, mask) }"
    )
    shapes = [(4, 7), (3, 5)]
    feeds = [{name: np.zeros(shape, np.int64) for name in ("ids", "mask")} for shape in shapes]
    sample = verification_sample(model, feeds, [PaddingMask("mask")])
    assert {name: array.tolist() for name, array in sample.items()} == {"ids": [[0] * 5], "mask": [[1] * 5]}
    model.graph.inputs[0].shape = ir.Shape([4, "s"])
    assert verification_sample(model, feeds, [])["ids"].shape == (3, 5)


def sampled(inputs: str, outputs: str, **arrays: np.ndarray) -> dict[str, tuple[int, ...]]:
    header = '<ir_version: 10, opset_import: ["" : 23]>'
    model = ir.from_onnx_text(f"{header} g ({inputs}) => ({outputs}) {{ y = Identity(x) }}")
    return {name: array.shape for name, array in verification_sample(model, [arrays], []).items()}


@pytest.mark.parametrize(
    ("inputs", "outputs", "shapes", "kept"),
    [
        ("float[batch, 4] x", "float[batch, 4] y", {"x": (3, 4)}, {"x": (1, 4)}),
        ("float[time] x", "float[time] y", {"x": (3,)}, {"x": (3,)}),
        ("float[time, 4] x", "float[shorter, 4] y", {"x": (3, 4)}, {"x": (3, 4)}),
        ("float[n, 4] x, float[n, n] z", "float[n, 4] y", {"x": (3, 4), "z": (3, 3)}, {"x": (3, 4), "z": (3, 3)}),
    ],
    ids=["batch", "one axis", "no batch behind", "nodes of a graph"],
)
def test_only_a_batch_is_cut_to_its_first(
    inputs: str, outputs: str, shapes: dict[str, tuple[int, ...]], kept: dict[str, tuple[int, ...]]
) -> None:
    arrays = {name: np.zeros(shape, np.float32) for name, shape in shapes.items()}
    assert sampled(inputs, outputs, **arrays) == kept


def test_a_model_that_the_reference_does_not_cover_is_compiled_and_the_report_says_so() -> None:
    weight = np.random.default_rng(0).normal(size=(8, 2)).astype(np.float32)
    model = parse("(float[2, 8] x) => (float y) { h = MatMul(x, w) y = Det(h) }", w=weight)
    data = [{"x": np.random.default_rng(1).normal(size=(2, 8)).astype(np.float32)}]
    artifact = qcompile.compile(model, "w8a8-dynamic", calibration=data)
    assert "the reference does not cover Det" in artifact.report.not_compared
    assert "not compared with the reference of its arithmetic: the ref" in artifact.report.summary()


def test_what_is_decided_is_compared_and_the_report_says_where_it_is_not() -> None:
    model = parse(
        f"(float[n, {WIDTH}] x) => (int64[n] place) "
        "{ y = MatMul (x, w) place = ArgMax <axis = 1, keepdims = 0> (y) }",
        w=np.random.default_rng(0).normal(size=(WIDTH, WIDTH)).astype(np.float32),
    )
    report = qcompile.compile(model, "w8a8-static", calibration=samples()).report
    assert [agreement.values for agreement in report.agreements] == [("y",), ("y",)]
    assert report.agreements[0].left_out == ()
    assert "not compared: place where no value before it is shown (100% equal)" in report.summary()
