"""The goals of benchmarks, decided on rows and graphs made by hand."""

import onnx_ir as ir
import pytest

from benchmarks import folding, outliers, planted
from qcompile import channel_markers

ROWS = [
    {"runtime": "openvino", "recipe": planted.WITH.name, "as trained": 0.001, "planted": 0.0012},
    {"runtime": "openvino", "recipe": "smoothquant-o3", "as trained": 0.001, "planted": 0.0011},
    {"runtime": "openvino", "recipe": planted.WITHOUT.name, "as trained": 0.001, "planted": 0.03},
]


def test_planted_wants_smoothing_to_hold_and_its_absence_to_collapse() -> None:
    goals = planted._goals(ROWS)
    assert [goal.measured for goal in goals] == pytest.approx([1.2, 1.1, 25])
    assert all(goal.holds for goal in goals)


def test_planted_falls_short_where_the_model_does_not_collapse_without_smoothing() -> None:
    goals = planted._goals([*ROWS[:2], {**ROWS[2], "planted": 0.004}])
    assert [goal.holds for goal in goals] == [True, True, False]


def test_outliers_want_the_error_of_int8_without_them_and_a_fifth_of_its_time_at_most() -> None:
    columns = ("runtime", "recipe", "as trained", "planted", "ms, planted")
    rows = [
        dict(zip(columns, (runtime, recipe, 0.001, error, ms), strict=True))
        for runtime, ms_int8, ms_split in (("onnxruntime", 4.0, 4.6), ("openvino", 4.0, 5.0), (outliers.TORCH, "", ""))
        for recipe, error, ms in ((outliers.INT8.name, 0.05, ms_int8), (outliers.SPLIT.name, 0.00105, ms_split))
    ]
    goals = outliers._goals(rows)
    assert [goal.measured for goal in goals] == pytest.approx([1.05, 1.05, 1.05, 1.15, 1.25])
    assert [goal.holds for goal in goals] == [True, True, True, True, False]


def marked(between: str) -> channel_markers.Marker:
    """A scale on h = `between`(x * W), in front of a second MatMul."""
    model = ir.from_onnx_text(
        f"""
        <ir_version: 10, opset_import: ["" : 23]>
        g (float[2, 3] x) => (float[2, 2] y)
        <float[3, 3] W = {{1, 2, 3, 4, 5, 6, 7, 8, 9}}, float[3] factors = {{2, 3, 4}},
         float[3, 2] V = {{1, 2, 3, 4, 5, 6}},
         int64[2] shape = {{2, 3}}>
        {{
            first = MatMul (x, W)
            {between}
            scaled = Mul (h, factors)
            y = MatMul (scaled, V)
        }}
        """
    )
    for node in model.graph:
        node.outputs[0].shape = ir.Shape([2, 2] if node.outputs[0].name == "y" else [2, 3])
        node.outputs[0].dtype = ir.DataType.FLOAT
    (marker,) = channel_markers.find(model)
    return marker


@pytest.mark.parametrize(
    ("between", "foldable"),
    [
        ("h = Relu (first)", True),
        ("h = Gelu (first)", False),
        ("g1 = Gelu (first) h = Reshape (g1, shape)", False),
        ("h = Exp (first)", True),
    ],
)
def test_a_scale_counts_as_foldable_unless_an_activation_excuses_it(between: str, foldable: bool) -> None:
    assert folding._is_foldable(marked(between)) is foldable
