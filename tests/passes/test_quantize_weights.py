"""QuantizeWeights: the canonical form of a weight in groups, which layers get it, and what is said of them."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest

from qcompile.backends import get
from qcompile.calibration import Calibrator
from qcompile.errors import RecipeError
from qcompile.finished_layers import FinishedLayers
from qcompile.passes.observe_channels import ObserveChannels
from qcompile.passes.quantize_weights import QuantizeWeights
from qcompile.scheme import GroupScheme
from qcompile.solvers.gptq_groups import gptq_groups
from qcompile.solvers.grouped import Evidence
from qcompile.solvers.rtn import rtn
from tests.passes.quantizable import calibrator, linear, operators, parse, relative_error, run

WEIGHT = np.random.default_rng(0).normal(size=(40, 24)).astype(np.float32)


def model(text: str = "y = MatMul(x, w)", **weights: np.ndarray) -> ir.Model:
    return parse(f"g (float[n, 40] x) => (float y) {{ {text} }}", **(weights or {"w": WEIGHT}))


def dequantizer(found: ir.Model) -> ir.Node:
    (node,) = [node for node in found.graph if node.op_type == "DequantizeLinear"]
    return node


@pytest.mark.parametrize(
    ("bits", "sym", "dtype"),
    [
        *[(2, True, ir.DataType.INT4), (4, True, ir.DataType.INT4), (8, True, ir.DataType.INT8)],
        *[(3, False, ir.DataType.UINT4), (5, False, ir.DataType.UINT8)],
    ],
)
def test_a_weight_becomes_integers_with_a_scale_for_each_group(bits, sym, dtype):
    after = model()
    result = QuantizeWeights(bits, 16, sym)(after)
    assert operators(after) == ["DequantizeLinear", "MatMul"]
    node = dequantizer(after)
    assert [value.dtype for value in node.inputs] == [dtype, ir.DataType.FLOAT, dtype]
    assert [tuple(value.shape) for value in node.inputs] == [(40, 24), (3, 24), (3, 24)]
    assert (node.attributes.get_int("axis"), node.attributes.get_int("block_size")) == (0, 16)
    integers = node.inputs[0].const_value.numpy().astype(np.int8)
    smallest, largest = GroupScheme(bits, 16, sym).range
    assert integers.min() == smallest
    assert smallest < integers.max() <= largest
    x = np.random.default_rng(1).normal(size=(5, 40)).astype(np.float32)
    expected = rtn(WEIGHT, GroupScheme(bits, 16, sym), range_grid=10).weight(16)
    np.testing.assert_allclose(run(after, x), x @ expected, atol=1e-5)
    assert "w" not in after.graph.initializers
    assert [finding.action for finding in result.findings] == ["quantized"]
    assert not QuantizeWeights(bits, 16, sym)(after).modified


def test_one_group_is_a_scale_for_each_output():
    before, after = model(), model()
    QuantizeWeights(8, -1)(after)
    node = dequantizer(after)
    assert [tuple(value.shape) for value in node.inputs] == [(40, 24), (24,), (24,)]
    assert node.attributes.get_int("axis") == 1
    assert "block_size" not in node.attributes
    assert relative_error(before, after) < 0.01


@pytest.mark.parametrize(("group_size", "sym"), [(16, True), (16, False), (-1, True)])
def test_weights_that_are_kept_in_files_take_no_memory_and_are_the_same(tmp_path, group_size, sym):
    in_memory, in_files = model(), model()
    QuantizeWeights(4, group_size, sym)(in_memory)
    QuantizeWeights(4, group_size, sym, finished=FinishedLayers(tmp_path))(in_files)
    for first, second in zip(dequantizer(in_memory).inputs, dequantizer(in_files).inputs, strict=True):
        assert isinstance(second.const_value, ir.LazyTensor)
        assert (first.name, first.dtype, first.shape) == (second.name, second.dtype, second.shape)
        np.testing.assert_array_equal(first.const_value.numpy(), second.const_value.numpy())
    assert len(list(tmp_path.iterdir())) == 1


def test_a_bias_stays():
    after = linear()
    QuantizeWeights()(after)
    assert operators(after) == ["DequantizeLinear", "MatMul", "Add"]


def test_tied_weights_are_quantized_once():
    after = model("a = MatMul(x, w) b = Relu(x) c = MatMul(b, w) y = Add(a, c)")
    result = QuantizeWeights()(after)
    assert operators(after).count("DequantizeLinear") == 1
    assert [finding.action for finding in result.findings] == ["quantized", "quantized"]
    assert [finding.value for finding in result.findings] == ["a", "c"]


def test_the_loss_of_each_layer_is_measured_on_calibration_data():
    after = model()
    (finding,) = QuantizeWeights(4, 8, calibrator=calibrator(after))(after).findings
    generator, before = np.random.default_rng(0), model()
    x = np.concatenate([generator.normal(size=(5, 40)) for _ in range(8)]).astype(np.float32)
    noise = run(before, x) - run(after, x)
    expected = 10 * np.log10(np.square(run(before, x)).sum() / np.square(noise).sum())
    assert finding.sqnr_db == pytest.approx(expected, abs=0.01)


@pytest.mark.parametrize(
    ("text", "outputs", "bits"),
    [
        ("y = MatMul(x, v)", 80, 8),
        ("a = MatMul(x, v) b = Tanh(a) two = Constant<value_float = 2.0>() y = Mul(b, two)", 80, 8),
        ("y = MatMul(x, v)", 79, 4),
        ("a = MatMul(x, v) y = Softmax(a)", 80, 4),
    ],
)
def test_a_linear_that_writes_a_vocabulary_has_its_own_scheme(text, outputs, bits):
    after = parse(
        f"g (float[n, 40] x) => (float y) {{ {text} }}",
        v=np.random.default_rng(0).normal(size=(40, outputs)).astype(np.float32),
    )
    QuantizeWeights()(after)
    assert dequantizer(after).inputs[0].dtype == (ir.DataType.INT8 if bits == 8 else ir.DataType.INT4)


def test_the_table_of_an_embedding_has_the_scheme_of_a_vocabulary():
    table = np.random.default_rng(0).normal(size=(50, 40)).astype(np.float32)
    text = "e = Gather(t, ids) a = MatMul(e, v) b = Relu(a) y = MatMul(b, u)"
    after = parse(
        f"g (int64[n] ids) => (float y) {{ {text} }}",
        t=table,
        v=np.ascontiguousarray(table.T),
        u=WEIGHT[:1].repeat(50, 0),
    )
    QuantizeWeights()(after)
    found = [node.inputs[0] for node in after.graph if node.op_type == "DequantizeLinear"]
    assert [value.dtype for value in found] == [ir.DataType.INT8, ir.DataType.INT4]


def test_without_a_scheme_of_its_own_a_vocabulary_is_as_the_others():
    after = model("y = MatMul(x, v)", v=np.random.default_rng(0).normal(size=(40, 90)).astype(np.float32))
    QuantizeWeights(head=None)(after)
    assert dequantizer(after).inputs[0].dtype == ir.DataType.INT4


@pytest.mark.parametrize(
    ("weight", "reason"),
    [
        (np.full((40, 3), np.nan, np.float32), "its weight holds NaN or infinity"),
        (np.zeros((40, 0), np.float32), "its weight is empty"),
    ],
)
def test_refusals(weight, reason):
    result = QuantizeWeights()(model(w=weight))
    assert not result.modified
    assert [(finding.action, finding.reason) for finding in result.findings] == [("kept", reason)]


def test_layers_that_are_left_out():
    name = QuantizeWeights()(model()).findings[0].layer
    assert [f.action for f in QuantizeWeights(ignore=frozenset({name}))(model()).findings] == ["ignored"]
    result = QuantizeWeights(operators=frozenset({"Conv"}))(model())
    assert [(f.action, f.reason) for f in result.findings] == [
        ("kept", "the backend has no integer Linear with these schemes")
    ]
    assert not result.modified


@pytest.mark.parametrize("settings", [{"bits": 9}, {"bits": 0}, {"group_size": 0}, {"group_size": -2}])
def test_settings_out_of_range(settings):
    with pytest.raises(RecipeError, match=r"bits must be|group_size must be"):
        QuantizeWeights(**settings)


def correlated(seed: int = 0) -> tuple[Calibrator, np.ndarray]:
    generator = np.random.default_rng(seed)
    mixing = generator.normal(size=(40, 40)) * np.exp(generator.normal(size=40))
    rows = (generator.normal(size=(8, 50, 40)) @ mixing).astype(np.float32)
    samples = [{"x": each} for each in rows]
    return Calibrator(samples, ObserveChannels, get("onnxruntime").open_session), rows.reshape(-1, 40)


@pytest.mark.parametrize("bits", [2, 3, 4, 8])
def test_gptq_keeps_the_outputs_better_than_the_nearest(bits):
    data, rows = correlated()

    def error(solver) -> float:
        after = model()
        QuantizeWeights(bits, 16, solver=solver, calibrator=data)(after)
        return float(np.square(run(after, rows) - rows @ WEIGHT).sum())

    assert error("gptq") < 0.6 * error("rtn")


def test_later_layers_are_fitted_to_what_the_quantized_ones_before_them_write(monkeypatch):
    monkeypatch.setattr("qcompile.calibration_layers._GRAM_BYTES", 0)
    data, rows = correlated()
    text = "a = MatMul(x, w) b = Relu(a) y = MatMul(b, v)"
    last = np.random.default_rng(3).normal(size=(24, 30)).astype(np.float32)
    after = model(text, w=WEIGHT, v=last)
    QuantizeWeights(2, 8, solver="gptq", head=None, calibrator=data)(after)
    first, second = [node.inputs for node in after.graph if node.op_type == "DequantizeLinear"]
    integers, scale = (value.const_value.numpy().astype(np.float32) for value in first[:2])
    hidden = np.maximum(rows @ (integers * np.repeat(scale, 8, axis=0)), 0)
    expected = gptq_groups(last, GroupScheme(2, 8), Evidence(hidden.T @ hidden / len(hidden)))
    actual = second[0].const_value.numpy().astype(np.int8)
    assert (actual == expected.integers).mean() > 0.98  # sums of another order may tip one over
    wrong = np.maximum(rows @ WEIGHT, 0)
    other = gptq_groups(last, GroupScheme(2, 8), Evidence(wrong.T @ wrong / len(wrong)))
    assert (actual == other.integers).mean() < 0.95


@pytest.mark.parametrize("solver", ["rtn", "gptq"])
def test_asymmetric_calibration_makes_up_for_layers_in_front(solver):
    """On rows that it has not seen, through six blocks between residuals."""
    block = "a{0} = MatMul({1}, w{0}) b{0} = Relu(a{0}) c{0} = MatMul(b{0}, v{0}) r{0} = Add({1}, c{0})"
    text = " ".join(block.format(index, f"r{index - 1}" if index else "x") for index in range(6)) + " y = Tanh(r5)"
    rng = np.random.default_rng(5)
    shapes = {f"{name}{index}": shape for index in range(6) for name, shape in (("w", (40, 64)), ("v", (64, 40)))}
    weights = {name: (rng.normal(size=shape) / 8).astype(np.float32) for name, shape in shapes.items()}
    rows = (rng.normal(size=(40, 50, 12)) @ rng.normal(size=(12, 40)) / 3).astype(np.float32)
    data = Calibrator([{"x": each} for each in rows[:20]], ObserveChannels, get("onnxruntime").open_session)
    held = rows[20:].reshape(-1, 40)

    def error(calibration):
        after = model(text, **weights)
        exact = run(after, held)
        found = QuantizeWeights(3, 8, solver=solver, head=None, calibration=calibration, calibrator=data)(after)
        assert [finding.action for finding in found.findings] == ["quantized"] * 12
        return float(np.square(run(after, held) - exact).mean())

    assert error("asymmetric") < 0.8 * error("symmetric")


def test_without_calibration_gptq_rounds_to_nearest_and_cuts_no_range():
    assert QuantizeWeights(solver="gptq").without_calibration() == QuantizeWeights(solver="rtn", range_grid=0)
    assert QuantizeWeights(solver="inc").without_calibration() == QuantizeWeights(solver="rtn", range_grid=0)
    assert QuantizeWeights(solver="rtn").without_calibration() == QuantizeWeights(solver="rtn")
    for solver in ("rtn", "hqq"):
        asked = QuantizeWeights(solver=solver, calibration="asymmetric")
        assert asked.without_calibration() == QuantizeWeights(solver=solver)


def test_inc_keeps_the_outputs_better_than_the_nearest():
    pytest.importorskip("auto_round", reason="needs the extra inc")
    data, rows = correlated()

    def error(solver: str) -> float:
        after = model()
        QuantizeWeights(3, 16, solver=solver, range_grid=0, iters=100, calibrator=data)(after)
        return float(np.square(run(after, rows) - rows @ WEIGHT).sum())

    assert error("inc") < error("rtn")


def test_a_vocabulary_is_rounded_to_nearest_whatever_the_solver():
    wide = np.random.default_rng(0).normal(size=(40, 90)).astype(np.float32)
    data, _ = correlated()
    after = model("y = MatMul(x, v)", v=wide)
    QuantizeWeights(solver="gptq", calibrator=data)(after)
    np.testing.assert_array_equal(
        dequantizer(after).inputs[0].const_value.numpy(), rtn(wide, GroupScheme(8, 64)).integers
    )


def shifted_layers() -> tuple[ir.Model, Calibrator, np.ndarray]:
    """A linear with a bias whose inputs are not around 0, so that what rounding adds is not either."""
    rows = (np.random.default_rng(0).normal(size=(8, 50, 40)) + 2).astype(np.float32)
    samples = [{"x": each} for each in rows]
    text = "p = MatMul(x, w) y = Add(p, b)"
    made = model(text, w=WEIGHT, b=np.arange(24, dtype=np.float32))
    return made, Calibrator(samples, ObserveChannels, get("onnxruntime").open_session), rows.reshape(-1, 40)


@pytest.mark.parametrize("solver", ["rtn", "hqq"])
def test_what_rounding_adds_on_average_is_taken_off_the_bias(solver):
    errors = []
    for how in ("none", "linears"):
        after, data, rows = shifted_layers()
        QuantizeWeights(3, 16, solver=solver, bias_correction=how, calibrator=data)(after)
        error = run(after, rows) - (rows @ WEIGHT + np.arange(24))
        errors.append(np.square(error).sum())
        assert operators(after) == ["DequantizeLinear", "MatMul", "Add"]
    assert np.abs(error.mean(axis=0)).max() < 0.1
    assert errors[1] < 0.7 * errors[0]


def test_a_bias_that_others_read_is_corrected_for_its_linear_alone():
    _, data, _ = shifted_layers()
    bias = np.arange(24, dtype=np.float32)
    after = model("p = MatMul(x, w) q = Add(p, b) y = Mul(q, b)", w=WEIGHT, b=bias)
    QuantizeWeights(3, 16, bias_correction="linears", calibrator=data)(after)
    add, multiply = after.graph[-2], after.graph[-1]
    assert np.abs(add.inputs[1].const_value.numpy() - bias).max() > 0.1
    np.testing.assert_array_equal(multiply.inputs[1].const_value.numpy(), bias)


@pytest.mark.parametrize("setting", ["range_grid", "sweeps", "iters", "damp_percent"])
def test_settings_below_zero_are_refused(setting):
    with pytest.raises(RecipeError, match=setting):
        QuantizeWeights(**{setting: -1})


def test_a_weight_that_a_head_and_another_linear_read_has_the_scheme_of_the_head():
    nodes = "y = MatMul(x, w) t = Tanh(x) u = MatMul(t, w) z = LogSoftmax(u)"
    text = f"g (float[n, 16] x) => (float[n, 40] y, float[n, 40] z) {{ {nodes} }}"
    weight = np.random.default_rng(5).normal(size=(16, 40)).astype(np.float32)
    after = parse(text, w=weight)
    QuantizeWeights(4, 16)(after)
    large = [value for value in after.graph.initializers.values() if value.const_value.size == weight.size]
    assert [value.dtype for value in large] == [ir.DataType.INT8]
    assert operators(after).count("DequantizeLinear") == 1
    run(after.clone(), np.ones((2, 16), np.float32))


@pytest.mark.parametrize(("rows", "solver", "said"), [(39, "gptq", True), (40, "gptq", False), (39, "rtn", False)])
def test_fewer_positions_than_inputs_are_said(rows, solver, said):
    x = np.random.default_rng(0).normal(size=(rows, 40)).astype(np.float32)
    data = Calibrator([{"x": x}], ObserveChannels, get("onnxruntime").open_session)
    (finding,) = QuantizeWeights(4, 16, solver=solver, calibrator=data)(model()).findings
    assert ("calibrated at 39 positions, fewer than its 40 inputs" in finding.reason) == said
