"""What the reference evaluation covers, and what it says of the rest."""

from __future__ import annotations

import pytest
from onnx_ir.passes.common import ShapeInferencePass

from qcompile.reference_coverage import COVERED, not_covered
from tests.reference_cases import CASES, PAIR, SEQUENCE, case

RECURRENT = SEQUENCE.replace("{", "{{").replace("}", "}}") + "a, y = {}<hidden_size = 2{}>(t, gw, gr, gb)"
RESIZE = "i = Constant<value = float[4] {{1.0, 1.0, 2.0, 1.5}}>() y = Resize<{}>(x, , i)"
BRANCHES = (
    "a = ReduceMax(x) n = Less(a, s) "
    "y = If(n)<then_branch = g () => (t) {{ t = Relu(x) }}, else_branch = h () => (e) {{ e = {}(x) }}>"
)


def test_what_is_covered_has_a_case() -> None:
    assert {name.split(":")[0] for name in CASES} == COVERED


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        (f"{PAIR} y = Identity(d)", None),
        ("y = Clip(x, , s)", None),
        ("y = Det(x)", "does not cover Det"),
        (BRANCHES.format("Neg"), None),
        (BRANCHES.format("Multinomial"), "does not cover Multinomial"),
        (BRANCHES.format("Floor"), "Floor makes another number"),
        ("y = BatchNormalization<training_mode = 1>(x, c3, b3, b3, c3)", "statistics that it is given"),
        ("y = Floor(x)", None),
        ("y, i = MaxPool<kernel_shape = [2, 2]>(x)", None),
        ("a, i = MaxPool<kernel_shape = [2, 2]>(x) y = Cast<to = 1>(i)", "first output of MaxPool"),
        (RECURRENT.format("GRU", ', activations = ["Sigmoid", "Tanh"]'), None),
        (RECURRENT.format("GRU", ', activations = ["HardSigmoid", "Tanh"]'), "usual activations"),
        (RECURRENT.format("GRU", ", clip = 3.0"), "without clip"),
        (RECURRENT.format("LSTM", ", input_forget = 1"), "without clip or input_forget"),
        (RESIZE.format('mode = "linear"'), None),
        (RESIZE.format('mode = "cubic"'), "nearest pixel or linear"),
        (RESIZE.format('mode = "linear", antialias = 1'), "without antialias"),
        (RESIZE.format('coordinate_transformation_mode = "tf_crop_and_resize"'), "Resize"),
    ],
)
def test_what_it_cannot_say_is_told_before(text: str, reason: str | None) -> None:
    found = not_covered(ShapeInferencePass(strict_mode=False)(case(text)).model)
    assert found is None if reason is None else found is not None and reason in found
