"""`lower`: what the module is called with and returns, that shapes stay numbers, and that torch's own tools take it."""

from __future__ import annotations

import numpy as np
import onnx
import onnx_ir as ir
import pytest
import torch

from qcompile.backends.fx import lower
from qcompile.errors import UnsupportedOperator

_HALVES = """
<ir_version: 10, opset_import: ["" : 23]>
halves (float[batch, length] x) => (float[batch, h, k] y)
<int64[1] zero = {0}, int64[1] one = {1}, int64[1] two = {2}, int64[1] rest = {-1}, float[1] weight = {3}>
{
    shape = Shape(x)
    batch = Gather(shape, zero)
    length = Gather(shape, one)
    half = Div(length, two)
    target = Concat <axis = 0> (batch, two, half)
    parts = Reshape(x, target)
    count = Cast <to = 1> (half)
    scaled = Div(parts, count)
    y = Mul(scaled, weight)
}
"""


def _model(text: str) -> ir.Model:
    return ir.from_proto(onnx.parser.parse_model(text))


def _targets(module: torch.fx.GraphModule) -> list[str]:
    return [getattr(node.target, "__name__", str(node.target)) for node in module.graph.nodes]


def _halved(x: torch.Tensor) -> torch.Tensor:
    return x.reshape(x.shape[0], 2, -1) / (x.shape[1] // 2) * 3


def test_shape_arithmetic_reads_no_tensor() -> None:
    module = lower(_model(_HALVES))
    assert "from_tensor" not in _targets(module)
    assert _targets(module).count("to_tensor") == 1  # of the number that a float tensor is divided by
    x = torch.randn(3, 8)
    torch.testing.assert_close(module(x)["y"], _halved(x))


@pytest.mark.parametrize(
    ("inputs", "node", "steps", "expected"),
    [
        ("float[3] x", "Clip(x, low, high)", 1, [0.0, 2.0, 6.0]),
        ("float[3] x", "Clip(x, , high)", 1, [-1.0, 2.0, 6.0]),
        ("float[3] x", "Clip(x, low)", 1, [0.0, 2.0, 9.0]),
        ("float[3] x", "Clip(x)", 0, [-1.0, 2.0, 9.0]),
        ("float[3] x, float least", "Clip(x, least, high)", 2, [1.0, 2.0, 6.0]),
    ],
)
def test_bounds_that_are_constants_are_numbers_and_clip_in_one_step(
    inputs: str, node: str, steps: int, expected: list[float]
) -> None:
    module = lower(
        _model(
            f'<ir_version: 10, opset_import: ["" : 23]> g ({inputs}) => (float[3] y) '
            f"<float low = {{0}}, float high = {{6}}> {{ y = {node} }}"
        )
    )
    given = (torch.tensor([-1.0, 2.0, 9.0]), torch.tensor(1.0))[: len(module.meta["input_names"])]
    assert module(*given)["y"].tolist() == expected
    program = torch.export.export(module, given, strict=False)
    assert sum("clamp" in str(each.target) for each in program.graph.nodes) == steps
    assert not dict(module.named_buffers())  # that a number would be read from


def test_names_are_those_of_the_model() -> None:
    text = '<ir_version: 10, opset_import: ["" : 23]> g (float[2] a) => (float[2] b) { b = Relu(a) }'
    model = _model(text)
    model.graph.inputs[0].name, model.graph.outputs[0].name = "past.0.key", "present.0.key"
    module = lower(model)
    assert module.meta == {"input_names": ("past.0.key",), "output_names": ("present.0.key",)}
    assert list(module(past_0_key=torch.tensor([-1.0, 1.0]))) == ["present.0.key"]


def test_initializers_are_buffers_and_gradients_flow() -> None:
    module = lower(_model(_HALVES))
    assert [tuple(tensor.shape) for tensor in module.buffers()] == [(1,)]
    x = torch.randn(3, 8, requires_grad=True)
    module(x)["y"].sum().backward()
    expected = torch.autograd.functional.jacobian(lambda x: _halved(x).sum(), x.detach())
    torch.testing.assert_close(x.grad, expected)
    assert next(module.to(torch.device("meta")).buffers()).is_meta


def test_the_model_is_not_changed() -> None:
    model = _model(_HALVES)
    before = ir.to_proto(model).SerializeToString(deterministic=True)
    lower(model)
    assert ir.to_proto(model).SerializeToString(deterministic=True) == before


@pytest.mark.parametrize("strict", [False, True])
def test_exports_with_dynamic_shapes(strict: bool) -> None:
    module = lower(_model(_HALVES))
    dynamic = ({0: torch.export.Dim.DYNAMIC, 1: 2 * torch.export.Dim("half", min=2, max=64)},)
    exported = torch.export.export(module, (torch.randn(3, 8),), dynamic_shapes=dynamic, strict=strict)
    x = torch.randn(5, 12)
    torch.testing.assert_close(exported.module()(x)["y"], _halved(x))


def test_compiles_as_one_graph() -> None:
    compiled = torch.compile(lower(_model(_HALVES)), fullgraph=True, backend="aot_eager", dynamic=True)
    for batch, length in ((3, 8), (5, 12)):
        x = torch.randn(batch, length)
        torch.testing.assert_close(compiled(x)["y"], _halved(x))


def test_an_unknown_operator_is_named() -> None:
    text = '<ir_version: 10, opset_import: ["" : 23]> g (float[2] a) => (float[2] b) { b = Nonsense(a) }'
    with pytest.raises(UnsupportedOperator, match="Nonsense") as caught:
        lower(_model(text))
    assert caught.value.subject.startswith("Nonsense of")


def test_an_unknown_attribute_is_refused() -> None:
    text = '<ir_version: 10, opset_import: ["" : 23]> g (float[2] a) => (float[2] b) { b = Relu <slope = 1> (a) }'
    with pytest.raises(UnsupportedOperator, match="slope"):
        lower(_model(text))


def test_texts_are_refused_by_type() -> None:
    text = '<ir_version: 10, opset_import: ["" : 23]> g (float[2] a) => (string[2] b) { b = Cast <to = 8> (a) }'
    with pytest.raises(UnsupportedOperator, match="STRING"):
        lower(_model(text))(torch.zeros(2))


def test_functions_of_the_model_are_written_out() -> None:
    text = """
    <ir_version: 10, opset_import: ["" : 23, "own" : 1]>
    g (float[2] a) => (float[2] b) { b = own.scaled <by: float = 3.0> (a) }
    <domain: "own", opset_import: ["" : 23]>
    scaled <by> (x) => (y) { factor = Constant <value_float: float = @by> ()  y = Mul(x, factor) }
    """
    module = lower(_model(text))
    torch.testing.assert_close(module(torch.tensor([1.0, 2.0]))["b"], torch.tensor([3.0, 6.0]))


def test_integers_of_four_bits_are_carried_in_bytes() -> None:
    text = """
    <ir_version: 10, opset_import: ["" : 23]>
    g (float[2, 2] x) => (float[2, 2] y) <float[2, 2] f = {-8, 7, 1, 9}, float[2] s = {0.5, 2.0}>
    { w = Cast <to = 22> (f)  d = DequantizeLinear <axis = 1> (w, s)  y = MatMul(x, d) }
    """
    made = lower(_model(text))(torch.eye(2))["y"]
    torch.testing.assert_close(made, torch.tensor([[-4.0, 14.0], [0.5, -14.0]]))


def test_a_cache_is_written_in_place() -> None:
    text = """
    <ir_version: 10, opset_import: ["" : 24]>
    g (float[1, 1, 4, 1] cache, float[1, 1, 1, 1] new, int64[1] at) => (float[1, 1, 4, 1] present)
    { present = TensorScatter(cache, new, at) }
    """
    module, cache = lower(_model(text)), torch.zeros(1, 1, 4, 1)
    made = module(cache, torch.ones(1, 1, 1, 1), torch.tensor([2]))["present"]
    assert made.data_ptr() == cache.data_ptr()
    np.testing.assert_array_equal(cache.flatten(), [0, 0, 1, 0])
    kept = torch.zeros(1, 1, 4, 1, requires_grad=True)
    assert module(kept, torch.ones(1, 1, 1, 1), torch.tensor([2]))["present"].sum() == 1
    assert not kept.any()


def test_a_constant_that_two_calls_of_a_function_read_is_not_overwritten() -> None:
    """The third call reads another one of the same name inside: buffers must not take each other's place."""
    rng = np.random.default_rng(0)
    text = """
        <ir_version: 10, opset_import: ["" : 23, "own" : 1]>
        calls (float[n, 300] x) => (float[n, 300] a, float[n, 300] b, float[n, 300] c) {
            a = own.Product (x, first) b = own.Product (x, first) c = own.Product (x, second)
        }
        <domain: "own", opset_import: ["" : 23]> Product (x, w) => (y) { y = MatMul (x, w) }
    """
    model = _model(text)
    weights = {name: rng.standard_normal((300, 300)).astype(np.float32) for name in ("first", "second")}
    for name, array in weights.items():
        value = ir.Value(name=name, const_value=ir.tensor(array, name=name))
        model.graph.register_initializer(value)
        for node in model.graph:
            for index, read in enumerate(node.inputs):
                if read is not None and read.name == name:
                    node.replace_input_with(index, value)
    x = rng.standard_normal((2, 300)).astype(np.float32)
    found = lower(model)(torch.from_numpy(x))
    for output, name in (("a", "first"), ("b", "first"), ("c", "second")):
        np.testing.assert_allclose(found[output].numpy(), x @ weights[name], rtol=1e-4, atol=1e-4, err_msg=output)


@pytest.mark.parametrize("name", ["in", "lambda", "self"])
def test_inputs_that_are_words_of_python_get_an_underscore(name: str) -> None:
    model = _model('<ir_version: 10, opset_import: ["" : 23]> g (float[n] x) => (float[n] y) { y = Neg(x) }')
    model.graph.inputs[0].name = name
    x = torch.ones(3)
    assert torch.equal(lower(model)(x)["y"], -x)
    assert torch.equal(lower(model)(**{f"_{name}": x})["y"], -x)


def test_no_turn_and_no_step_are_refused_or_nothing() -> None:
    scan = _model("""
        <ir_version: 10, opset_import: ["" : 23]> g (float[n, 2] x, float[2] s) => (float[2] t, float[n, 2] y) {
            t, y = Scan <num_scan_inputs = 1, body = b (float[2] c, float[2] e) => (float[2] d, float[2] o)
                { d = Add(c, e) o = Identity(d) }> (s, x)
        }""")
    with pytest.raises(UnsupportedOperator, match="it takes no turn"):
        lower(scan)(torch.zeros(0, 2), torch.zeros(2))
