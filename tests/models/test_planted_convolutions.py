"""Outliers planted between convolutions: static INT8 collapses without smoothing and must not notice them with it."""

import dataclasses

import numpy as np
import onnx
import onnx_ir as ir
import pytest

import qcompile
from qcompile.backends.onnxruntime import BACKEND

CHANNELS = 24
ACTIVATIONS = {"Relu": "{0} = Relu({0}c)", "none": "{0} = Identity({0}c)"}


def network(activation, *, planted):
    """Five convolutions, one of them depthwise; planted: channels times 20 to 100, and divided where they are read."""
    last = 4
    body = []
    for index in range(last + 1):
        source, attributes = ("x", "") if index == 0 else (f"h{index - 1}", "<pads = [1, 1, 1, 1]>")
        attributes = "<group = 24, pads = [1, 1, 1, 1]>" if index == 2 else attributes
        result = "y" if index == last else f"h{index}c"
        body.append(f"{result} = Conv{attributes}({source}, w{index}, b{index})")
        body += [ACTIVATIONS[activation].format(f"h{index}")] if index < last else []
    text = f"""<ir_version: 10, opset_import: ["": 23]>
    cnn (float[batch, 3, 16, 16] x) => (float[batch, ?, ?, ?] y) {{ {" ".join(body)} }}"""
    proto = onnx.parser.parse_model(text)
    generator, planter = np.random.default_rng(0), np.random.default_rng(1)
    shapes = {0: (CHANNELS, 3, 3, 3), 2: (CHANNELS, 1, 3, 3), last: (10, CHANNELS, 3, 3)}
    before = np.ones(3)
    for index in range(last + 1):
        shape = shapes.get(index, (CHANNELS, CHANNELS, 3, 3))
        after = np.ones(shape[0])
        if planted and index < last:
            after[planter.choice(CHANNELS, 3, replace=False)] = planter.uniform(20, 100, 3)
        weight = generator.normal(size=shape) * np.sqrt(2 / np.prod(shape[1:])) * after[:, None, None, None]
        weight /= before[:, None, None, None] if index == 2 else before[:, None, None]
        arrays = {f"w{index}": weight, f"b{index}": generator.normal(size=shape[0]) / 10 * after}
        for name, array in arrays.items():
            proto.graph.initializer.append(onnx.numpy_helper.from_array(array.astype(np.float32), name))
        before = after
    return ir.from_proto(proto)


def samples(seed, count):
    generator = np.random.default_rng(seed)
    return [{"x": generator.normal(size=(1, 3, 16, 16)).astype(np.float32)} for _ in range(count)]


def without_smoothing(recipe):
    steps = tuple(step for step in recipe.steps if step.pass_name not in ("smooth_activations", "fold_scales"))
    return dataclasses.replace(recipe, steps=steps)


def error(activation, recipe, *, planted):
    """Relative error of the quantized model on new samples, and its operators."""
    model = network(activation, planted=planted)
    quantized = qcompile.rewrite(model.clone(), recipe, calibration=samples(2, 16))
    runs = [[BACKEND.open_session(one).run(feed)["y"] for feed in samples(3, 8)] for one in (model, quantized)]
    expected, actual = (np.stack(run) for run in runs)
    operators = [node.op_type for node in quantized.graph]
    return np.linalg.norm(actual - expected) / np.linalg.norm(expected), operators


@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("name", ["w8a8-static", "smoothquant-o3"])
def test_planted_outliers_do_not_cost_accuracy(activation, name):
    recipe = dataclasses.replace(qcompile.Recipe.from_name(name, min_convolution_sqnr_db=None))
    clean, _ = error(activation, recipe, planted=False)
    planted, operators = error(activation, recipe, planted=True)
    collapsed, _ = error(activation, without_smoothing(recipe), planted=True)
    assert "Mul" not in operators
    assert planted < 1.5 * clean
    assert collapsed > 5 * planted


def test_a_network_without_a_place_for_scales_is_quantized_all_the_same():
    proto = onnx.parser.parse_model("""<ir_version: 10, opset_import: ["": 23]>
    cnn (float[batch, 3, 16, 16] x) => (float[batch, ?, ?, ?] y) {
        c = Conv(x, w0) h = HardSwish(c) y = Conv(h, w1) }""")
    generator = np.random.default_rng(0)
    for name, shape in {"w0": (8, 3, 3, 3), "w1": (4, 8, 3, 3)}.items():
        proto.graph.initializer.append(
            onnx.numpy_helper.from_array(generator.normal(size=shape).astype(np.float32), name)
        )
    for name in ("w8a8-static", "smoothquant-o3"):
        quantized = qcompile.rewrite(ir.from_proto(proto), name, calibration=samples(0, 4))
        operators = [node.op_type for node in quantized.graph]
        assert operators.count("QuantizeLinear") >= 2
        assert "Mul" not in operators
