"""Layers that no pass touches: quantized already, by whatever tool, or of another type than float32."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np
import onnx_ir as ir
import onnxruntime
import pytest
import torch
from onnxruntime import quantization

import qcompile
from qcompile.errors import ModelError, NothingMatchedError
from qcompile.untouched import of_other_types, quantized_already

WEIGHTS = "{float}[32, 48] wu, {float}[48] bu, {float}[48, 32] wd, {float}[32] bd"
UP, DOWN = "m = MatMul(x, wu)", "d = MatMul(r, wd)"
KEPT = ("kept", "it is already quantized")


def parse(up: str = UP, down: str = DOWN, constants: str = WEIGHTS, number: str = "float") -> ir.Model:
    """Two linears, `up` and `down`, with random constants."""
    constants = constants.format(float=number)
    model = ir.from_onnx_text(f"""<ir_version: 10, opset_import: ["" : 21]>
    main ({number}[n, s, 32] x, {constants}) => ({number}[n, s, 32] y) {{
        {up} u = Add(m, bu) r = Relu(u) {down} y = Add(d, bd)
    }}""")
    generator = np.random.default_rng(0)
    for value in model.graph.inputs[1:]:
        scale = 40 if value.dtype == ir.DataType.INT8 else 1
        array = (generator.normal(size=value.shape.numpy()) * scale).astype(value.dtype.numpy())
        value.const_value = ir.tensor(array, name=value.name)
        model.graph.inputs.remove(value)
        model.graph.register_initializer(value)
    for node in model.graph:
        node.name = {"m": "up", "d": "down"}.get(node.outputs[0].name, f"node.{node.outputs[0].name}")
    return model


def samples(count: int = 4) -> list[dict[str, np.ndarray]]:
    generator = np.random.default_rng(1)
    return [{"x": generator.normal(size=(2, 5, 32)).astype(np.float32)} for _ in range(count)]


class Samples(quantization.CalibrationDataReader):
    def __init__(self) -> None:
        self.left = iter(samples())

    def get_next(self) -> dict[str, np.ndarray] | None:
        return next(self.left, None)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    ir.save(parse(), tmp_path / "float.onnx")
    return tmp_path / "float.onnx"


def by_static(path: Path, **settings) -> Path:
    output = path.with_name("quantized.onnx")
    quantization.quantize_static(path, output, Samples(), **settings)
    return output


def by_qdq(path: Path) -> Path:
    return by_static(path, quant_format=quantization.QuantFormat.QDQ, per_channel=True)


def by_integer_operators(path: Path) -> Path:
    return by_static(path, quant_format=quantization.QuantFormat.QOperator)


def by_dynamic(path: Path) -> Path:
    output = path.with_name("quantized.onnx")
    quantization.quantize_dynamic(path, output)
    return output


def by_us(path: Path) -> Path:
    folder = path.with_name("artifact")
    return qcompile.compile(path, "w8a8-static", calibration=samples(), output=folder, verify=False).model_path


def by_us_dynamic(path: Path) -> Path:
    folder = path.with_name("artifact")
    return qcompile.compile(path, "w8a8-dynamic", calibration=samples(), output=folder, verify=False).model_path


def by_us_portable(path: Path) -> Path:
    output = path.with_name("quantized.onnx")
    ir.save(qcompile.rewrite(path, "smoothquant-o1", calibration=samples()), output)
    return output


def by_pairs_of_float_weights(path: Path) -> Path:
    """As NNCF and others export: the weights are float, and quantized and dequantized in the graph."""
    output = path.with_name("quantized.onnx")
    scale = "s = Constant<value = float {0.05}>() z = Constant<value = int8 {0}>()"
    pair = "{0}q = QuantizeLinear({0}, s, z) {0}d = DequantizeLinear({0}q, s, z)"
    up = f"{scale} {pair.format('x')} {pair.format('wu')} m = MatMul(xd, wud)"
    ir.save(parse(up, f"{pair.format('r')} {pair.format('wd')} d = MatMul(rd, wdd)"), output)
    return output


EVERY_TOOL = [by_pairs_of_float_weights, by_qdq, by_integer_operators, by_dynamic, by_us, by_us_dynamic, by_us_portable]


@pytest.mark.parametrize("backend", ["onnxruntime", "openvino"])
@pytest.mark.parametrize("recipe", ["w8a8-static", "smoothquant-o3"])
@pytest.mark.parametrize("tool", EVERY_TOOL)
def test_a_quantized_model_is_compiled_as_it_is_and_the_report_says_so(tool, recipe, backend, path):
    quantized = tool(path)
    artifact = qcompile.compile(quantized, recipe, calibration=samples(), backend=backend, verify=False)
    assert [(layer.action, layer.reason) for layer in artifact.report.layers] == [KEPT, KEPT]
    steps = {step.pass_name for step in qcompile.Recipe.from_name(recipe).steps}
    assert not [item.name for item in artifact.report.passes if item.modified and item.title in steps]
    assert "the model is quantized already, so it was compiled as it is" in artifact.report.summary()
    assert "as fast as float" not in artifact.report.summary()
    feed = samples(1)[0]
    expected = onnxruntime.InferenceSession(quantized).run(None, feed)[0]
    if backend == "onnxruntime" and tool is not by_us_portable:
        assert artifact.run(feed)["y"].tobytes() == expected.tobytes()
    difference = np.linalg.norm(artifact.run(feed)["y"] - expected) / np.linalg.norm(expected)
    # Backends run per-token quantization, here an elementwise function, in groups or in another order of operations;
    # what OpenVINO makes of QLinearMatMul by itself is not what ONNX Runtime computes.
    tolerance = {by_us_portable: 0.01, by_integer_operators: 0.03 if backend == "openvino" else 0.0}
    assert difference <= tolerance.get(tool, 1e-5)


@pytest.mark.parametrize("tool", EVERY_TOOL)
def test_the_graph_of_a_quantized_model_is_not_changed(tool, path):
    def graph(model: ir.Model) -> list[str]:
        return [f"{node.op_type} {node.inputs} {node.attributes}" for node in model.graph if node.op_type != "Constant"]

    def constants(model: ir.Model) -> dict[str, bytes]:
        return {name: value.const_value.tobytes() for name, value in model.graph.initializers.items()}

    quantized = tool(path)
    given, traced = ir.load(quantized), qcompile.trace(quantized)
    again = qcompile.rewrite(quantized, "w8a8-static", calibration=samples())
    assert graph(again) == graph(traced)
    assert constants(again) == constants(traced)
    assert constants(given).items() <= constants(traced).items()
    assert Counter(line.split()[0] for line in graph(traced)) == Counter(line.split()[0] for line in graph(given))


def test_what_is_left_of_a_partly_quantized_model_is_quantized_once(path):
    quantized = by_static(path, quant_format=quantization.QuantFormat.QDQ, nodes_to_quantize=["up"])
    rewritten = qcompile.rewrite(quantized, "w8a8-static", calibration=samples())
    counts = Counter(node.op_type for node in rewritten.graph)
    assert counts["QuantizeLinear"] == Counter(node.op_type for node in ir.load(quantized).graph)["QuantizeLinear"] + 1
    report = qcompile.compile(quantized, "w8a8-static", calibration=samples()).report
    assert {layer.name: layer.action for layer in report.layers} == {"up": "kept", "down": "quantized"}
    assert report.accuracy["sqnr_db"] > 30


HALVES = {
    "its weight": "wq = DequantizeLinear(qw, s, z) m = MatMul(x, wq)",
    "its weight, turned": "wq = DequantizeLinear(qt, s, z) t = Transpose<perm = [1, 0]>(wq) m = MatMul(x, t)",
    "its input": "q = QuantizeLinear(x, s, z) x2 = DequantizeLinear(q, s, z) m = MatMul(x2, wu)",
}


@pytest.mark.parametrize("half", HALVES)
def test_what_is_half_quantized_stays_half_quantized(half):
    constants = "int8[32, 48] qw, int8[48, 32] qt, " + WEIGHTS
    model = parse(
        f"s = Constant<value = float {{0.03}}>() z = Constant<value = int8 {{0}}>() {HALVES[half]}", DOWN, constants
    )
    before = Counter(node.op_type for node in model.graph)
    recipe = qcompile.Recipe("plain", ("insert_qdq",))
    rewritten = qcompile.rewrite(model, recipe, calibration=samples())
    added = Counter(node.op_type for node in rewritten.graph) - before
    assert added == Counter(QuantizeLinear=1, DequantizeLinear=2)
    report = qcompile.compile(model, recipe, calibration=samples(), verify=False).report
    assert [layer.action for layer in report.layers] == ["kept", "quantized"]


ATTENTION = """
<ir_version: 10, opset_import: ["" : 23]>
main (float[n, 2, s, 8] x) => (float[n, 2, s, 8] y) { k = Neg(x) v = Abs(x) y = Attention(x, k, v) }
"""


def test_attention_that_is_quantized_per_token_is_not_quantized_again():
    data = [{"x": np.random.default_rng(3).normal(size=(1, 2, 5, 8)).astype(np.float32)}]
    recipe = qcompile.Recipe("attention", ({"quantize_attention": {"activations": PER_TOKEN}},))
    once = qcompile.rewrite(ir.from_onnx_text(ATTENTION), recipe, calibration=data)
    again = qcompile.rewrite(once, recipe, calibration=data)
    operators = [node.op_type for node in once.graph]
    assert operators.count("QuantizeDequantizePerToken") == 2
    assert [node.op_type for node in again.graph] == operators
    assert [finding.operator for finding in quantized_already(again)] == ["Attention"]


PER_TOKEN = {"dtype": "int8", "granularity": "per_token", "dynamic": True}


def test_a_float_model_has_nothing_that_is_quantized():
    model = parse()
    assert quantized_already(model) == []
    assert of_other_types(model) == []


@pytest.mark.parametrize("recipe", ["w8a8-static", "smoothquant-o3"])
@pytest.mark.parametrize("dtype", [np.float16, np.float64])
def test_weights_of_another_type_are_named_with_the_mend(dtype, recipe, tmp_path):
    name = np.dtype(dtype).name
    ir.save(parse(number={"float64": "double"}.get(name, name)), tmp_path / "model.onnx")
    data = [{"x": sample["x"].astype(dtype)} for sample in samples()]
    with pytest.raises(NothingMatchedError, match=f"the weights are {name}.*float32") as raised:
        qcompile.compile(tmp_path / "model.onnx", recipe, calibration=data)
    assert "insert_qdq" in raised.value.subject
    artifact = qcompile.compile(tmp_path / "model.onnx", "float", calibration=data)
    assert artifact.run(data[0])["y"].dtype == dtype


@pytest.mark.parametrize("dtype", [torch.float16, torch.float64])
def test_a_module_of_another_type_is_refused_with_the_mend(dtype):
    module = torch.nn.Linear(8, 8, dtype=dtype).eval()
    with pytest.raises(NothingMatchedError, match=rf"{str(dtype).removeprefix('torch.')}.*module\.float\(\)"):
        qcompile.compile(module, example_inputs=torch.ones(2, 8, dtype=dtype))


def test_what_the_runtime_has_no_kernel_for_is_named():
    module = torch.nn.Linear(8, 8, dtype=torch.bfloat16).eval()
    with pytest.raises(ModelError, match=r"its weights are bfloat16, and .*module\.float\(\)"):
        qcompile.compile(module, "float", example_inputs=torch.ones(2, 8, dtype=torch.bfloat16))


def test_a_layer_of_another_type_stays_as_it_is_among_others():
    down = "h = Cast<to = 10>(r) g = MatMul(h, wd) d = Cast<to = 1>(g)"
    model = parse(UP, down, WEIGHTS.replace("{float}[48, 32] wd", "float16[48, 32] wd"))
    report = qcompile.compile(model, "w8a8-static", calibration=samples()).report
    found = [(layer.action, layer.reason) for layer in report.layers]
    assert sorted(found) == [("kept", "its weight is float16: only float32 is quantized"), ("quantized", "")]
