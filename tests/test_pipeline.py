"""The pipeline: promises are checked, and the pass that breaks one is named."""

from __future__ import annotations

import dataclasses
from typing import ClassVar

import numpy as np
import onnx_ir as ir
import pytest
from onnx_ir.passes import common

import qcompile
from qcompile.backends import get
from qcompile.calibration_masks import PaddingMask
from qcompile.contract import Keeps, Pass, Result
from qcompile.errors import ModelError, NothingMatchedError, VerificationError
from qcompile.passes.insert_qdq import InsertQdq
from qcompile.passes.lower_gemms import LowerGemms
from qcompile.pipeline import Log, Pipeline, apply_pass, name_of

TEXT = '<ir_version: 10, opset_import: ["" : 23]> g (float[n, 4] x) => (float[n, 4] y) { a = Relu(x) y = Neg(a) }'


@dataclasses.dataclass(frozen=True)
class Rename(Pass):
    """Turns every operator of one type into another."""

    old: str
    new: str

    looks_for: ClassVar[str] = "the old operator"

    def call(self, model: ir.Model) -> Result:
        nodes = [node for node in model.graph if node.op_type == self.old]
        for node in nodes:
            node.op_type = self.new
        return Result(model, modified=bool(nodes))


class LossyRename(Rename):
    """The same without the promise."""

    keeps: ClassVar[Keeps] = "lossy"


class OptionalRename(Rename):
    """The same where matching nothing is fine."""

    may_match_nothing = True


def run(*passes: Pass, required: bool = True) -> tuple[ir.Model, Log]:
    log = Log()
    x = np.random.default_rng(0).normal(size=(3, 4)).astype(np.float32)
    pipeline = Pipeline(get("onnxruntime").open_session, [{"x": x}], (), lambda _name, _part: None)
    return pipeline.run(ir.from_onnx_text(TEXT), passes, log, required=required), log


def test_a_pass_that_changes_the_meaning_is_named_among_others():
    with pytest.raises(VerificationError, match=r"pass rename\(old=Neg, new=Exp\).*the first value that differs is y"):
        run(OptionalRename("Tanh", "Abs"), Rename("Neg", "Exp"), OptionalRename("Sinh", "Abs"))


def test_the_first_of_two_that_change_the_meaning_is_named():
    with pytest.raises(VerificationError, match=r"new=Sigmoid.*the first value that differs is a"):
        run(Rename("Relu", "Sigmoid"), Rename("Neg", "Exp"))


def test_a_lossy_pass_is_measured():
    model, log = run(LossyRename("Relu", "Gelu"))
    assert model.graph[0].op_type == "Gelu"
    assert 0 < log.passes[0].sqnr_db < 40
    assert log.passes[0].max_error is None


def test_an_invalid_model_is_refused_with_the_name_of_the_pass():
    with pytest.raises(VerificationError, match=r"new=NoSuchOperator.*checker"):
        run(LossyRename("Relu", "NoSuchOperator"))


def test_matching_nothing_says_what_was_sought_and_found():
    with pytest.raises(NothingMatchedError, match=r"looks for the old operator and found 1 Relu, 1 Neg"):
        run(Rename("Tanh", "Abs"))
    run(Rename("Tanh", "Abs"), required=False)
    run(OptionalRename("Tanh", "Abs"))


MASKED = """
<ir_version: 10, opset_import: ["" : 23]> g (float[n, s] x, int64[n, s] mask) => (float[n, s] y) { y = Relu(x) }
"""


def test_an_exact_pass_may_change_padded_positions_and_no_others():
    def compare(mask: list[int]) -> Log:
        log = Log()
        feed = {"x": np.array([[5, 3, -2]], np.float32), "mask": np.array([mask])}
        masks = [PaddingMask("mask")]
        pipeline = Pipeline(get("onnxruntime").open_session, [feed], masks, lambda _name, _part: None)
        pipeline.run(ir.from_onnx_text(MASKED), [Rename("Relu", "Identity")], log, required=True)
        return log

    assert compare([1, 1, 0]).passes[0].max_error == 0
    with pytest.raises(VerificationError, match="Identity"):
        compare([1, 0, 1])


def test_a_pass_is_called_as_in_a_recipe_with_what_differs_from_its_defaults():
    assert name_of(LowerGemms()) == "lower_gemms"
    bound = InsertQdq(observer="mse", ignore=frozenset({"a"}), operators=frozenset({"Linear"}))
    assert name_of(bound) == "insert_qdq(observer=mse)"
    assert name_of(common.InlinePass()) == "InlinePass"


@dataclasses.dataclass(frozen=True)
class OnlyOnce(Rename):
    """Changes the first model that it sees, and no copy of it."""

    seen: list[ir.Model] = dataclasses.field(default_factory=list, repr=False)

    def call(self, model: ir.Model) -> Result:
        self.seen.append(model)
        return super().call(model) if len(self.seen) == 1 else Result(model, modified=False)


def test_a_change_that_no_single_pass_repeats_is_refused_with_the_whole_group():
    with pytest.raises(VerificationError, match=r"passes only_once.*, rename.*: together they changed output y by"):
        run(OnlyOnce("Relu", "Sigmoid"), Rename("Neg", "Neg"))


WEIGHT_AMONG_INPUTS = """
<ir_version: 4, opset_import: ["" : 17]>
g (float[n, 4] x, float[4, 4] w) => (float[n, 4] y) { y = MatMul(x, w) }
"""


def test_weights_that_are_inputs_too_are_named():
    model = ir.from_onnx_text(WEIGHT_AMONG_INPUTS)
    model.graph.inputs[1].const_value = ir.tensor(np.eye(4, dtype=np.float32), name="w")
    model.graph.register_initializer(model.graph.inputs[1])
    cause = r"1 weight is also an input of the graph, which may be overridden.*RemoveInitializersFromInputsPass"
    with pytest.raises(NothingMatchedError, match=cause):
        qcompile.compile(model, "w8a8-dynamic")
    common.RemoveInitializersFromInputsPass()(model)
    assert qcompile.compile(model, "w8a8-dynamic").report.layers[0].action == "quantized"


def test_a_pass_that_fails_on_a_model_that_contradicts_itself_is_named():
    model = ir.from_onnx_text("""
    <ir_version: 10, opset_import: ["" : 20]> g (float[1, 1, 8] x) => (float[1, 1, 8] y)
    <float w = {1}> { y = LayerNormalization<axis = 7>(x, w) }
    """)
    with pytest.raises(ModelError, match=r"pass _Trips: it fails on this model \(IndexError: ") as caught:
        apply_pass(_Trips(), model)
    assert isinstance(caught.value.__cause__, IndexError)


class _Trips(ir.passes.InPlacePass):
    """Reads the axis that a norm names, as a pass may."""

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        node = model.graph[0]
        assert node.inputs[0].shape[node.attributes.get_int("axis", -1)]
        return ir.passes.PassResult(model, modified=False)
