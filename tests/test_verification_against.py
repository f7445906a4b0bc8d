"""A float model to verify against that is not the one that was compiled: an error or a warning, never a mere number."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest

import qcompile
from qcompile.artifact import Artifact
from qcompile.errors import ModelError, VerificationError
from tests.backends.portable import parse
from tests.cli.commands import run
from tests.test_verify_artifact import network, samples


@pytest.fixture(scope="module")
def artifact(tmp_path_factory: pytest.TempPathFactory) -> Artifact:
    folder = tmp_path_factory.mktemp("against") / "a"
    return qcompile.compile(network(), "w8a8-static", calibration=samples(), output=folder)


def changed(by: float) -> ir.Model:
    """The network with noise in its last weight, as large a part of it."""
    model = network()
    weight = model.graph.initializers["w3"]
    array = weight.const_value.numpy()
    noise = np.random.default_rng(7).normal(size=array.shape) * array.std()
    weight.const_value = ir.tensor(((1 - by) * array + by * noise).astype(np.float32), name="w3")
    return model


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("(float[n,64] z) => (float[n,64] x4) { x4 = Neg(z) }", "its inputs are z where those of the artifact are x"),
        ("(float[n,64] x) => (float[n,64] y) { y = Neg(x) }", "its outputs are y where those of the artifact are x4"),
        ("(double[n,64] x) => (float[n,64] x4) { x4 = Cast<to = 1>(x) }", "x of its inputs is float64"),
        ("(float[n,32] x) => (float[n,64] x4) { x4 = Concat<axis = 1>(x, x) }", r"float32 \['n', 32\] where"),
        ("(float[64] x) => (float[64] x4) { x4 = Neg(x) }", r"float32 \[64\] where"),
        ("(float[n,64] x) => (float[64] x4) { x4 = ReduceMax<keepdims = 0>(x, axis) }", "x4 of its outputs is"),
    ],
)
def test_a_model_with_other_inputs_or_outputs_is_refused(text: str, reason: str, artifact: Artifact) -> None:
    constants = {"axis": np.array([0])} if "axis)" in text else {}
    with pytest.raises(ModelError, match=reason):
        qcompile.verify(artifact, against=parse(text, **constants))


def test_a_fixed_size_may_stand_where_the_artifact_has_a_free_one(artifact: Artifact) -> None:
    model = network()
    model.graph.inputs[0].shape = ir.Shape([16, 64])
    assert qcompile.verify(artifact, against=model, data=samples(1)).warning == ""


def test_inputs_that_have_a_default_are_those_of_the_model_too(tmp_path: Path) -> None:
    def model() -> ir.Model:
        constants = {"w": np.eye(64, 8, dtype=np.float32), "b": np.ones(8, np.float32)}
        found = parse("(float[n,64] x) => (float[n,8] y) { h = MatMul(x, w) y = Add(h, b) }", **constants)
        found.graph.inputs.append(found.graph.initializers["b"])
        return found

    artifact = qcompile.compile(model(), "w8a8-dynamic", output=tmp_path / "a", tune="none")
    assert [port.name for port in artifact.manifest.inputs] == ["x", "b"]
    assert qcompile.verify(artifact, against=model(), data=samples(1)).accuracy["sqnr_db"] > 20
    model_without = model()
    model_without.graph.inputs.pop()
    with pytest.raises(ModelError, match="its inputs are x where those of the artifact are x, b"):
        qcompile.verify(artifact, against=model_without)


@pytest.mark.parametrize("data", [None, samples(2)], ids=["its own sample", "data"])
def test_another_model_of_the_same_inputs_and_outputs_is_an_error(data: object, artifact: Artifact) -> None:
    same = qcompile.verify(artifact, against=network(), data=data)
    assert same.accuracy["sqnr_db"] > 20
    assert (same.warning, "warning" in same.summary()) == ("", False)
    with pytest.raises(VerificationError, match=r"than zeros would be: -\d.* dB where compile measured \d.*") as raised:
        qcompile.verify(artifact, against=changed(1.5), data=data)
    assert "the model that the artifact was compiled from" in raised.value.mend


def test_a_model_that_is_near_is_warned_of(artifact: Artifact) -> None:
    found = qcompile.verify(artifact, against=changed(0.3))
    assert 0 < found.accuracy["sqnr_db"] < 20
    assert found.accuracy["measured on"] == "the sample in the artifact"
    assert "where compile measured" in found.warning
    assert f"warning: {found.warning}" in found.summary()
    assert found.to_dict()["warning"] == found.warning


def test_one_output_that_is_far_is_an_error_however_large_another_is(tmp_path: Path) -> None:
    def model(sign: int) -> ir.Model:
        weight = sign * np.random.default_rng(0).normal(size=(64, 8)).astype(np.float32)
        text = "(float[n,64] x) => (float[n,64] large, float[n,8] y) { large = Mul(x, c) y = MatMul(x, w) }"
        return parse(text, w=weight, c=np.array(1000, np.float32))

    artifact = qcompile.compile(model(1), "w8a8-dynamic", output=tmp_path / "a", tune="none")
    assert qcompile.verify(artifact, against=model(1)).accuracy["sqnr_db"] > 60
    with pytest.raises(VerificationError, match=r"its output y is further .* than zeros would be: -\d"):
        qcompile.verify(artifact, against=model(-1))


def test_made_up_inputs_are_no_proof_and_what_compile_knew_is_no_error(tmp_path: Path) -> None:
    unverified = qcompile.compile(network(), "w8a8-static", calibration=samples(), verify=False, output=tmp_path / "a")
    found = qcompile.verify(unverified, against=changed(1.5))
    assert (found.accuracy["measured on"], found.accuracy["sqnr_db"] < 0) == ("made-up inputs", True)
    assert found.warning
    with pytest.raises(VerificationError, match="than zeros would be") as raised:
        qcompile.verify(unverified, against=changed(1.5), data=samples(1))
    assert "compile measured" not in raised.value.reason


def test_the_command_line_says_so_with_its_exit_codes(artifact: Artifact, tmp_path: Path) -> None:
    for name, model in (("other", changed(1.5)), ("near", changed(0.3))):
        ir.save(model, tmp_path / f"{name}.onnx")
    ir.save(parse("(float[n,64] x) => (float[n,64] y) { y = Neg(x) }"), tmp_path / "names.onnx")
    for name, code in (("other", 5), ("near", 0), ("names", 3)):
        assert run("verify", artifact.path, "--against", tmp_path / f"{name}.onnx").exit_code == code
    found = json.loads(run("verify", artifact.path, "--against", tmp_path / "near.onnx", "--json").stdout)
    assert "is it the same model?" in found["warning"]
