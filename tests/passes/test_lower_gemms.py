from __future__ import annotations

import itertools

import numpy as np
import onnx
import onnx_ir as ir
import pytest

from qcompile.graph import linears
from qcompile.passes.lower_gemms import LowerGemms

ADDENDS = {"": None, "float": 1, "float[1]": 1, "float[4]": 4, "float[1, 4]": 4, "float[3, 1]": 3, "float[3, 4]": 12}


def text(addend: str, *, trans_a: int = 0, trans_b: int = 0, alpha: float = 1.0, beta: float = 1.0) -> str:
    generator = np.random.default_rng(0)

    def numbers(count: int) -> str:
        return ", ".join(f"{number:.3f}" for number in generator.normal(size=count))

    count = ADDENDS[addend]
    bias = f", {addend} c = {{{numbers(count)}}}" if count else ""
    return f"""
    <ir_version: 10, opset_import: ["" : 20]>
    g (float[{"5, 3" if trans_a else "3, 5"}] x) => (float[3, 4] y)
    <float[{"4, 5" if trans_b else "5, 4"}] w = {{{numbers(20)}}}{bias}>
    {{ y = Gemm<transA = {trans_a}, transB = {trans_b}, alpha = {alpha}, beta = {beta}>(x, w{", c" if count else ""}) }}
    """


@pytest.mark.parametrize(("trans_a", "trans_b"), list(itertools.product((0, 1), repeat=2)))
@pytest.mark.parametrize(("alpha", "beta"), [(1.0, 1.0), (0.5, 2.0), (1.0, 0.0)])
@pytest.mark.parametrize("addend", ADDENDS)
def test_every_gemm_is_a_linear(rewrite, trans_a, trans_b, alpha, beta, addend) -> None:
    model = text(addend, trans_a=trans_a, trans_b=trans_b, alpha=alpha, beta=beta)
    result = rewrite(model, LowerGemms())
    (linear,) = linears(result.model)
    assert "Gemm" not in result.operators
    assert linear.weight.shape == ir.Shape([5, 4])
    assert (linear.bias is not None) == (addend in ("float", "float[1]", "float[4]", "float[1, 4]") and beta != 0)


def test_the_matmul_takes_name_and_metadata() -> None:
    model = ir.from_onnx_text(text("float[4]", trans_b=1))
    gemm = model.graph[0]
    gemm.name, gemm.metadata_props["pkg.torch.onnx.name_scopes"] = "fc", "['', 'head.fc', 'linear']"
    (finding,) = LowerGemms()(model).findings
    assert (finding.layer, finding.action) == ("head.fc", "converted")
    matmul, add = model.graph
    assert (matmul.name, add.name, add.outputs[0].name) == ("fc", "fc_Add", "y")
    assert matmul.metadata_props == add.metadata_props == {"pkg.torch.onnx.name_scopes": "['', 'head.fc', 'linear']"}


def test_weights_are_lazy_or_the_same() -> None:
    model = ir.from_onnx_text(text("", trans_b=1))
    LowerGemms()(model)
    assert isinstance(model.graph.initializers["w"].const_value, ir.LazyTensor)
    model = ir.from_onnx_text(text("float[4]"))
    before = {name: value.const_value for name, value in model.graph.initializers.items()}
    LowerGemms()(model)
    assert {name: value.const_value for name, value in model.graph.initializers.items()} == before


def test_a_shared_weight_is_not_changed_under_its_other_reader(rewrite) -> None:
    model = text("", trans_b=1).replace("y = Gemm", "z = Transpose<perm = [1, 0]>(w) u = MatMul(x, z) v = Gemm")
    model = model.replace("(x, w) }", "(x, w) y = Add(u, v) }")
    assert rewrite(model, LowerGemms()).operators == ["Transpose", "MatMul", "MatMul", "Add"]


def test_a_gemm_of_two_activations_stays(rewrite) -> None:
    model = """<ir_version: 10, opset_import: ["" : 20]>
    g (float[3, 5] x, float[5, 4] w) => (float[3, 4] y) { y = Gemm(x, w) }"""
    assert not rewrite(model, LowerGemms()).modified


def test_a_computed_addend_is_added(rewrite) -> None:
    model = """<ir_version: 10, opset_import: ["" : 20]> g (float[3, 2] x, float[2] c) => (float[3, 2] y)
    <float[2, 2] w = {1, 2, 3, 4}> { y = Gemm<beta = 0.5>(x, w, c) }"""
    assert rewrite(model, LowerGemms()).operators == ["MatMul", "Mul", "Add"]


def test_a_tied_weight_stays_one_initializer(rewrite) -> None:
    model = """<ir_version: 10, opset_import: ["" : 20]> g (float[3, 2] x) => (float[3, 2] y)
    <float[2, 2] w = {1, 2, 3, 4}, float[1] c = {5}>
    { a = Gemm<transB = 1>(x, w, c) b = Gemm<transB = 1>(a, w, c) d = Gemm<alpha = 2.0>(b, w, c)
      y = Gemm<transB = 1>(d, w, c) }"""
    result = rewrite(model, LowerGemms())
    first, second, scaled, third = linears(result.model)
    assert first.weight is second.weight is third.weight
    assert first.bias is second.bias is scaled.bias is third.bias
    assert len(result.model.graph.initializers) == 3  # w transposed, w doubled, c


def test_names_that_the_user_has_taken() -> None:
    model = ir.from_onnx_text("""<ir_version: 10, opset_import: ["" : 20]>
    g (float[3, 2] x, float[2] c) => (float[3, 2] y) <float[2, 2] w = {1, 2, 3, 4}>
    { y_weight = MatMul(x, w) y_product = Add(y_weight, c) y_beta = Add(y_product, c)
      y = Gemm<transB = 1, beta = 0.5>(y_beta, w, c) }""")
    LowerGemms()(model)
    onnx.checker.check_model(ir.to_proto(model))
    assert {"y_weight_1", "y_beta_1"} <= set(model.graph.initializers)
    assert "y_product_1" in {value.name for node in model.graph for value in node.outputs}


def test_names_that_the_graph_around_a_branch_has_taken(rewrite) -> None:
    model = """<ir_version: 10, opset_import: ["" : 20]>
    g (float[3, 2] x, float[3, 2] z, float[2] c) => (float[3, 2] y) <float[2, 2] w = {1, 2, 3, 4}, bool yes = {1}> {
        t_weight = Add(x, c) t_product = MatMul(t_weight, w) t_beta = Add(t_product, z)
        y = If(yes) <
            then_branch = then () => (float[3, 2] t) { t = Gemm<transB = 1, beta = 0.5>(t_beta, w, c) },
            else_branch = other () => (float[3, 2] e) { e = Gemm<transB = 1>(t_beta, w) }
        >
    }"""
    result = rewrite(model, LowerGemms())
    parts = (result.model.graph, *result.model.graph.subgraphs())
    names = [value.name for part in parts for value in part.initializers.values()]
    names += [value.name for node in result.model.graph.all_nodes() for value in node.outputs]
    assert len(names) == len(set(names))
    assert [len(part.initializers) for part in parts[1:]] == [0, 0]  # both branches read one transposed weight
