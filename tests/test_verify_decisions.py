"""Integers and truth values are held against the runtime's own floats: equal, ties or not; what is wrong is refused."""

from __future__ import annotations

import functools
from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest

import qcompile
from qcompile import backends
from qcompile.errors import VerificationError
from qcompile.reference_evaluator import OutOfReachError, evaluate
from qcompile.session import Agreement
from qcompile.verify_artifact import verify_artifact
from qcompile.verify_observed import observed_values
from tests.backends.portable import parse

BACKENDS = ("onnxruntime", "openvino")
WIDTH = 64
RANDOM = np.random.default_rng(0)
CONSTANTS = {
    "w": RANDOM.normal(size=(WIDTH, WIDTH)).astype(np.float32) / 8,
    "b": np.full(WIDTH, -1, np.float32),
    "noise": RANDOM.normal(size=WIDTH).astype(np.float32) / 150,
    "zero": np.float32(0),
    "third": np.float32(1 / 3),
    "k": np.array([3]),
    "boxes": np.array([1, WIDTH * WIDTH // 4, 4]),
    "last": np.array([-1]),
    "all": np.array([WIDTH]),
    "one": np.int64(1),
}
SAMPLES = [{"x": RANDOM.normal(size=(WIDTH, WIDTH)).astype(np.float32)} for _ in range(2)]

TIED = "m = MatMul(x, w) a = Add(m, b) y = Relu(a)"
"""Most numbers are 0: in a row there is a tie for the smallest, and for the largest of some columns."""

ROWS, MASK = "int64[64] o", "bool[64, 64] o"
FIRST = "o = ArgMin<axis = 1, keepdims = 0>(y)"
CLASS = "p = ArgMax<axis = 1, keepdims = 0>(y)"
BOXES = (
    "r = Reshape(m, boxes) g = ReduceMax(r, last) s = Transpose<perm = [0, 2, 1]>(g) "
    "o = NonMaxSuppression<center_point_box = 0>(r, s, all, third, zero)"
)
MISTAKES = {
    "last of equals": (ROWS, FIRST, "o = ArgMin<axis = 1, keepdims = 0, select_last_index = 1>(y)"),
    "other axis": (ROWS, FIRST, "o = ArgMin<axis = 0, keepdims = 0>(y)"),
    "largest": (ROWS, FIRST, "o = ArgMax<axis = 1, keepdims = 0>(y)"),
    "flipped": (MASK, "o = Greater(y, zero)", "o = Less(y, zero)"),
    "with equals": (MASK, "o = Greater(y, zero)", "o = GreaterOrEqual(y, zero)"),
    "up": ("int32[64, 64] o", "f = Floor(m) o = Cast<to = 6>(f)", "f = Ceil(m) o = Cast<to = 6>(f)"),
    "rounded": ("int32[64, 64] o", "o = Cast<to = 6>(m)", "f = Round(m) o = Cast<to = 6>(f)"),
    "next class": ("float[64] o", f"{CLASS} o = Cast<to = 1>(p)", f"{CLASS} q = Add(p, one) o = Cast<to = 1>(q)"),
    "boxes by their middle": ("int64[q, 3] o", BOXES, BOXES.replace("center_point_box = 0", "center_point_box = 1")),
    "smallest": ("int64[64, 3] o", "v, o = TopK(m, k)", "v, o = TopK<largest = 0>(m, k)"),
}


@functools.cache
def portable(outputs: str, text: str, recipe: str = "w8a8-static") -> ir.Model:
    return qcompile.rewrite(parse_it(outputs, text), recipe, calibration=SAMPLES)


def parse_it(outputs: str, text: str) -> ir.Model:
    return parse(f"(float[64, 64] x) => ({outputs}) {{ {text} }}", **CONSTANTS)


def verify(right: ir.Model, wrong: ir.Model, backend: str, folder: Path, *, seen: bool = True) -> list[Agreement]:
    """Lower one model and hold it against the arithmetic of another."""
    engine = backends.get(backend)
    path = folder / engine.lower(wrong, folder, target=None).model_file
    probes = engine.probes(path, observed_values(right) if seen else [])
    return verify_artifact(right, None, lambda: engine.open_artifact(path), probes, SAMPLES[0])


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_wrong_decision_is_refused_and_the_right_one_is_not(mistake: str, backend: str, tmp_path: Path) -> None:
    outputs, right, wrong = MISTAKES[mistake]
    models = [portable(outputs, f"{TIED} {text}") for text in (right, wrong)]
    for agreement in verify(models[0], models[0], backend, tmp_path):
        assert agreement.observed == 1
        assert not any("of it equal" in name for name in agreement.left_out)
    with pytest.raises(VerificationError, match=r"o .*(other than follow from|quantization steps)"):
        verify(*models, backend, tmp_path)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize(
    ("outputs", "decision"),
    [
        ("int64[64, 64] o", "v, o = TopK(m, all)"),
        (MASK, "o = Less(m, zero)"),
        ("int32[64, 64] o", "o = Cast<to = 6>(m)"),
    ],
)
def test_a_tie_that_falls_the_other_way_is_not_refused(
    outputs: str, decision: str, backend: str, tmp_path: Path
) -> None:
    right = portable(outputs, f"m = MatMul(x, w) {decision}", "w8a8-dynamic")
    other = portable(outputs, f"n = MatMul(x, w) m = Add(n, noise) {decision}", "w8a8-dynamic")
    assert np.any(evaluate(right, SAMPLES[0])["o"] != evaluate(other, SAMPLES[0])["o"])
    for agreement in verify(right, other, backend, tmp_path):
        assert agreement.values == ("m",)
        assert 0.01 < agreement.max_steps < 2


@pytest.mark.parametrize(("outputs", "decision"), [(ROWS, FIRST), ("float[64] o", f"{CLASS} o = Cast<to = 1>(p)")])
def test_what_is_decided_where_nobody_looks_is_named(outputs: str, decision: str, tmp_path: Path) -> None:
    right = portable(outputs, f"{TIED} {decision}")
    disabled, optimized = verify(right, right, "onnxruntime", tmp_path)
    assert disabled.left_out == ()
    assert optimized.left_out == ("o where no value before it is shown (100% equal)",)


def test_a_decision_that_nobody_sees_is_named_not_vouched_for(tmp_path: Path) -> None:
    right = portable(ROWS, f"{TIED} {FIRST}")
    for agreement in verify(right, right, "onnxruntime", tmp_path, seen=False):
        assert agreement.left_out[0] == "o (int64, 100% of it equal)"
    jump = portable(*MISTAKES["up"][:1], f"{TIED} {MISTAKES['up'][1]}")
    with pytest.raises(OutOfReachError, match="Floor makes another number of a tie, and the runtime does not show"):
        verify(jump, jump, "onnxruntime", tmp_path, seen=False)


def test_what_depends_on_no_tie_has_to_be_equal_where_nobody_looks(tmp_path: Path) -> None:
    texts = [f"s = Shape(x) t = Size(x) o = {operator}(s, t) y = MatMul(x, w)" for operator in ("Add", "Sub")]
    models = [portable("float[64, 64] y, int64[2] o", text) for text in texts]
    paths = []
    engine = backends.get("onnxruntime")
    for index, model in enumerate(models):
        (tmp_path / str(index)).mkdir()
        paths.append(tmp_path / str(index) / engine.lower(model, tmp_path / str(index), target=None).model_file)
    probes = list(engine.probes(paths[0], observed_values(models[0])))
    with pytest.raises(VerificationError, match=r"artifact: o \(int64\) has 2 of 2 numbers other than follow"):
        verify_artifact(models[0], None, lambda: engine.open_artifact(paths[1]), probes, SAMPLES[0])


@pytest.mark.parametrize("backend", BACKENDS)
def test_an_output_of_a_tiny_range_is_compared_by_its_logits(backend: str, tmp_path: Path) -> None:
    def model(shift: float) -> ir.Model:
        text = f"c = Constant<value_float = {shift}>() m = MatMul(x, w) l = Add(m, c) y = Sigmoid(l)"
        return portable("float[64, 64] y", text, "w8a8-dynamic")

    for agreement in verify(model(-17.0), model(-17.0), backend, tmp_path):
        assert agreement.values[-1:] == ("l",)
        assert agreement.max_steps < 1
        assert not agreement.left_out
    for agreement in verify(model(-24.0), model(-24.0), backend, tmp_path):
        assert agreement.left_out == ("y (less than its kernel may round)",)
    with pytest.raises(VerificationError, match=r": l is up to \S+ quantization steps"):
        verify(model(-17.0), model(-17.25), backend, tmp_path)


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_number_that_is_none_elsewhere_excuses_no_decision(backend: str, tmp_path: Path) -> None:
    def model(comparison: str) -> ir.Model:
        return portable(f"{MASK}, float[64, 64] n", f"m = MatMul(x, w) n = Log(m) o = {comparison}(m, third)")

    for agreement in verify(model("Less"), model("Less"), backend, tmp_path):
        assert not any("of it equal" in name for name in agreement.left_out)
    with pytest.raises(VerificationError, match=r"o .*other than follow from"):
        verify(model("Less"), model("Greater"), backend, tmp_path)


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_function_that_is_accurate_for_small_numbers_is_held_to_it(backend: str, tmp_path: Path) -> None:
    def model(function: str) -> ir.Model:
        text = f"c = Constant<value_float = 1e-8>() m = MatMul(x, w) l = Mul(m, c) {function}"
        return portable("float[64, 64] y", text, "w8a8-dynamic")

    right, wrong = model("y = Tanh(l)"), model("t = Tanh(l) d = Add(t, t) y = Add(d, t)")
    for agreement in verify(right, right, backend, tmp_path):
        assert not agreement.left_out
    with pytest.raises(VerificationError, match=r"y is up to \S+ quantization steps"):
        verify(right, wrong, backend, tmp_path)
