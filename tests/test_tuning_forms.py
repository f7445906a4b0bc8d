"""Forms of groups: models that each backend takes, integer where they say so."""

import collections

import onnx_ir as ir
import pytest

from qcompile import backends
from qcompile.scheme import ASYMMETRIC_UINT8, PER_CHANNEL_INT8, Scheme
from qcompile.tuning_forms import feed_of, form_names, forms
from qcompile.tuning_groups import Group

PER_TOKEN = Scheme("int8", "per_token", dynamic=True)
PER_TENSOR = Scheme("uint8", "per_tensor", sym=False, dynamic=True)
INT8 = Scheme("int8", "per_tensor")

LINEAR = Group("MatMul", (), (1, 5, 16), (16, 24), True, ())
SHARED = Group("MatMul", (), (1, 5, 16), (16, 24), False, (), "shared")
CONV = Group(
    "Conv", (("pads", (1, 1, 1, 1)),), (1, 8, 6, 6), (4, 8, 3, 3), True, ("Relu", "Clip"), "integers", "integers"
)
ROUNDED = Group("Conv", (("group", 8),), (1, 8, 6, 6), (8, 1, 3, 3), False, (), "float", "rounded")
TRANSPOSED = Group("ConvTranspose", (("group", 2),), (1, 8, 6, 6), (8, 2, 2, 2), True, (), "integers", "rounded")

CASES = [
    (LINEAR, ASYMMETRIC_UINT8),
    (LINEAR, PER_TOKEN),
    (LINEAR, PER_TENSOR),
    (SHARED, ASYMMETRIC_UINT8),
    (CONV, ASYMMETRIC_UINT8),
    (ROUNDED, ASYMMETRIC_UINT8),
    (TRANSPOSED, INT8),
]


@pytest.mark.parametrize("backend", backends.BACKENDS)
@pytest.mark.parametrize(("group", "activations"), CASES)
def test_a_backend_takes_every_form(group, activations, backend, tmp_path):
    engine = backends.get(backend)
    made = forms(group, activations, PER_CHANNEL_INT8, engine.flowing_dtype(activations))
    assert tuple(made) == form_names(group)
    outputs = set()
    for name, model in made.items():
        (tmp_path / name).mkdir()
        lowered = engine.lower(model, tmp_path / name, target=None)
        session = engine.open_artifact(tmp_path / name / lowered.model_file)
        outputs.add(session.run(feed_of(model))["y"].shape)
    assert len(outputs) == 1


@pytest.mark.parametrize(("backend", "dtype"), [("onnxruntime", "UINT8"), ("openvino", "INT8")])
def test_integers_from_neighbours_have_the_type_in_which_the_backend_stores_them(backend, dtype):
    """ONNX Runtime computes int8 x int8 without vector instructions, and lowered models hold no such layer."""
    for group in (SHARED, CONV):
        model = forms(group, INT8, PER_CHANNEL_INT8, backends.get(backend).flowing_dtype(INT8))["integer"]
        assert model.graph.inputs[0].dtype == ir.DataType[dtype]


def operators(model: ir.Model) -> collections.Counter[str]:
    return collections.Counter(node.op_type for node in model.graph)


@pytest.mark.parametrize(
    ("group", "integer", "float_form", "alone"),
    [
        (LINEAR, {"QuantizeLinear": 1, "DequantizeLinear": 2}, {}, None),
        (SHARED, {"DequantizeLinear": 2}, {}, None),
        (CONV, {"QuantizeLinear": 1, "DequantizeLinear": 2}, {"QuantizeLinear": 1, "DequantizeLinear": 1}, {}),
        (ROUNDED, {"QuantizeLinear": 2, "DequantizeLinear": 3}, {}, None),
    ],
    ids=["linear", "shared", "between convolutions", "rounded"],
)
def test_a_form_has_the_pairs_that_it_has_in_a_model(group, integer, float_form, alone):
    made = forms(group, ASYMMETRIC_UINT8, PER_CHANNEL_INT8, "uint8")
    pairs = {
        name: {op: count for op, count in operators(model).items() if op.endswith("Linear")}
        for name, model in made.items()
    }
    expected = {"integer": integer, "float": float_form} | ({} if alone is None else {"float alone": alone})
    assert pairs == expected


def test_onnx_runtime_computes_the_integer_form_in_integers(tmp_path):
    engine = backends.get("onnxruntime")
    made = forms(LINEAR, ASYMMETRIC_UINT8, PER_CHANNEL_INT8, "uint8")
    found = {}
    for name, model in made.items():
        (tmp_path / name).mkdir()
        lowered = engine.lower(model, tmp_path / name, target=None)
        assert not [finding for finding in lowered.findings if finding.action == "kept"]
        found[name] = set(operators(ir.load(tmp_path / name / lowered.model_file)))
    assert "MatMulIntegerToFloat" in found["integer"]
    assert found["float"] == {"MatMul", "Add"}
