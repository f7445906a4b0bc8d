"""SearchScales: scales that fold, none that would cost time, and the model stays what it was."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest

from qcompile.backends import get
from qcompile.calibration import Calibrator
from qcompile.errors import CalibrationError, RecipeError
from qcompile.passes.fold_scales import FoldScales
from qcompile.passes.observe_channels import ObserveChannels
from qcompile.passes.quantize_weights import QuantizeWeights
from qcompile.passes.search_scales import SearchScales
from tests.passes.quantizable import operators, parse, run

GENERATOR = np.random.default_rng(0)
WEIGHT = GENERATOR.normal(size=(64, 48)).astype(np.float32)
NORM = np.where(np.arange(64) % 8, 1, 30).astype(np.float32)
ROWS = np.random.default_rng(1).normal(size=(8, 40, 64)).astype(np.float32)
DATA = Calibrator([{"x": rows} for rows in ROWS], ObserveChannels, get("onnxruntime").open_session)


def model(text: str = "a = RMSNormalization(x, g) y = MatMul(a, w)") -> ir.Model:
    weights = {"w": WEIGHT, "g": NORM, "v": WEIGHT[:48, :20]}
    used = {name: array for name, array in weights.items() if f" {name})" in text}
    return parse(f"m (float[n, 64] x) => (float y) {{ {text} }}", **used)


def test_a_scale_is_written_that_folds_and_makes_the_loss_smaller():
    before, after, plain = model(), model(), model()
    result = SearchScales(3, 32, calibrator=DATA)(after)
    assert operators(after) == ["RMSNormalization", "Mul", "MatMul"]
    assert [finding.action for finding in result.findings] == ["converted"]
    rows = ROWS.reshape(-1, 64)
    np.testing.assert_allclose(run(after, rows), run(before, rows), atol=1e-3)
    assert not SearchScales(3, 32, calibrator=DATA)(after).modified
    FoldScales()(after)
    assert operators(after) == ["RMSNormalization", "MatMul"]
    for each in (after, plain):
        QuantizeWeights(3, 32, calibrator=DATA)(each)
    scaled, unscaled = (np.square(run(each, rows) - run(before, rows)).sum() for each in (after, plain))
    assert scaled < 0.9 * unscaled


def test_a_mul_that_would_stay_is_not_written():
    after = model("a = Softmax(x) y = MatMul(a, w)")
    result = SearchScales(calibrator=DATA)(after)
    assert operators(after) == ["Softmax", "MatMul"]
    assert [finding.reason[:12] for finding in result.findings] == ["not scaled: "]


def test_layers_that_are_left_out():
    name = SearchScales(calibrator=DATA)(model()).findings[0].layer
    assert not SearchScales(calibrator=DATA, ignore=frozenset({name}))(model()).modified
    wide = parse(
        "m (float[n, 64] x) => (float y) { a = RMSNormalization(x, g) y = MatMul(a, w) }",
        g=NORM,
        w=np.random.default_rng(0).normal(size=(64, 128)).astype(np.float32),
    )
    assert SearchScales(calibrator=DATA)(wide).findings == ()


def test_without_calibration():
    assert SearchScales().without_calibration() is None
    with pytest.raises(CalibrationError, match="statistics"):
        SearchScales()(model())


def test_settings_out_of_range():
    with pytest.raises(RecipeError, match="bits must be"):
        SearchScales(bits=9)
