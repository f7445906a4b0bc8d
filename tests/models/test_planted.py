import numpy as np
import onnx_ir as ir
import onnxruntime
import pytest

from qcompile.errors import ModelError
from qcompile.models.planted import plant_outliers

X = np.random.default_rng(1).standard_normal((6, 8)).astype(np.float32)


def _model(body: str, outputs: str, weights: dict[str, tuple[int, ...]], norm: str = "LayerNormalization") -> ir.Model:
    declared = ", ".join(f"float[{','.join(map(str, shape))}] {name}" for name, shape in weights.items())
    model = ir.from_onnx_text(
        f"""<ir_version: 10, opset_import: ["" : 23]>
        model (float[6, 8] x, {declared}) => ({outputs}) {{ {body.replace("NORM", norm)} }}"""
    )
    generator = np.random.default_rng(0)
    for value in list(model.graph.inputs)[1:]:
        value.const_value = ir.tensor(
            generator.standard_normal(weights[value.name]).astype(np.float32), name=value.name
        )
        model.graph.inputs.remove(value)
        model.graph.register_initializer(value)
    return model


def _run(model: ir.Model) -> list[np.ndarray]:
    session = onnxruntime.InferenceSession(ir.to_proto(model).SerializeToString())
    return session.run(None, {"x": X})


CASES = {
    "linear": ("h = NORM(x, gamma, beta) z = MatMul(h, w)", "float[6, 5] z", (8, 5)),
    "transposed Gemm": ("h = NORM(x, gamma, beta) z = Gemm<transB = 1>(h, w)", "float[6, 5] z", (5, 8)),
    "residual": (
        "h = NORM(x, gamma, beta) z = MatMul(h, w) y = Add(h, x) v = Relu(h)",
        "float[6, 5] z, float[6, 8] y, float[6, 8] v",
        (8, 5),
    ),
    "shared weight": (
        "h = NORM(x, gamma, beta) z = MatMul(h, w) y = MatMul(x, w)",
        "float[6, 5] z, float[6, 5] y",
        (8, 5),
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_float_model_is_unchanged_and_the_norm_has_outliers(case: str) -> None:
    body, outputs, shape = CASES[case]
    model = _model(body, outputs, {"gamma": (8,), "beta": (8,), "w": shape})
    before = _run(model)
    gamma = model.graph.initializers["gamma"].const_value.numpy()
    assert plant_outliers(model, fraction=0.25, magnitude=(20, 100)) == 1
    for expected, actual in zip(before, _run(model), strict=True):
        np.testing.assert_allclose(actual, expected, atol=1e-5)
    norm = next(node for node in model.graph if node.op_type == "LayerNormalization")
    factors = norm.inputs[1].const_value.numpy() / gamma
    assert sorted(np.round(factors, 3) > 1) == [False] * 6 + [True] * 2
    assert factors.max() <= 100.001
    assert factors[factors > 1.001].min() >= 19.999
    assert [node.op_type for node in model.graph].count("Mul") == (1 if case == "residual" else 0)


def test_rms_normalization_has_no_bias() -> None:
    model = _model(
        "h = NORM(x, gamma) z = MatMul(h, w)", "float[6, 5] z", {"gamma": (8,), "w": (8, 5)}, "RMSNormalization"
    )
    (before,) = _run(model)
    assert plant_outliers(model) == 1
    np.testing.assert_allclose(_run(model)[0], before, atol=1e-5)
    assert np.abs(model.graph[0].inputs[1].const_value.numpy()).max() > 20 * 0.1


def test_the_same_seed_plants_the_same_channels() -> None:
    models = [_model(*CASES["linear"][:2], {"gamma": (8,), "beta": (8,), "w": (8, 5)}) for _ in range(3)]
    for model, seed in zip(models, (3, 3, 4), strict=True):
        plant_outliers(model, fraction=0.25, seed=seed)
    first, same, other = (model.graph[0].inputs[1].const_value.numpy() for model in models)
    np.testing.assert_array_equal(first, same)
    assert not np.array_equal(first, other)


@pytest.mark.parametrize(
    ("body", "outputs"),
    [
        ("h = NORM(x, gamma, beta) z = Add(h, x)", "float[6, 8] z"),
        ("h = NORM(x, gamma, beta) z = MatMul(h, w)", "float[6, 5] z, float[6, 8] h"),
        ("g = Exp(gamma) h = NORM(x, g, beta) z = MatMul(h, w)", "float[6, 5] z"),
    ],
    ids=["no linear", "norm is an output", "computed weight"],
)
def test_refusals(body: str, outputs: str) -> None:
    model = _model(body, outputs, {"gamma": (8,), "beta": (8,), "w": (8, 5)})
    with pytest.raises(ModelError, match="no norm with a constant weight"):
        plant_outliers(model)
