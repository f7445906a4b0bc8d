import json

import numpy as np
import pytest

from qcompile.artifact import load
from qcompile.doctor import Check, Diagnosis, Runtime
from qcompile.recipe import Recipe
from tests.cli.commands import run


def test_compile_writes_an_artifact_and_prints_what_it_did(perceptron, tmp_path):
    result = run("compile", perceptron, "-r", "w8a8-static", "-c", tmp_path / "data.npz", "-o", tmp_path / "out")
    assert result.exit_code == 0
    assert "2 quantized of 2" in result.stdout
    assert result.stdout.splitlines()[-1] == str(tmp_path / "out" / "model.onnx")
    assert load(tmp_path / "out").manifest.recipe["name"] == "w8a8-static"


def test_compile_takes_settings_patterns_and_a_folder_of_samples(perceptron, tmp_path):
    (tmp_path / "samples").mkdir()
    for index in range(3):
        np.savez(tmp_path / "samples" / f"{index}.npz", x=np.full((2, 32), index + 1.0, np.float32))
    options = ["-r", "smoothquant-o3", "-c", tmp_path / "samples", "-o", tmp_path / "out", "--no-verify", "--json"]
    options += ["--ignore", "re:sec.*", "--set", "alpha=0.7", "--set", "observer=percentile"]
    result = run("compile", perceptron, *options)
    assert result.exit_code == 0
    found = json.loads(result.stdout)
    assert found["path"] == str(tmp_path / "out")
    assert {layer["name"]: layer["action"] for layer in found["report"]["layers"]} == {
        "first": "quantized",
        "second": "ignored",
    }
    overridden = Recipe.from_name("smoothquant-o3", alpha=0.7, observer="percentile", ignore=["re:sec.*"])
    assert load(tmp_path / "out").recipe == overridden


def test_compile_keeps_statistics_between_runs(perceptron, tmp_path):
    def compiled(*options: object) -> tuple[dict[str, int], str | None]:
        arguments = ["-r", "w8a8-static", "-c", tmp_path / "data.npz", "-o", tmp_path / "out", "--no-verify", *options]
        assert run("compile", perceptron, *arguments, "--calibration-cache", tmp_path / "cache").exit_code == 0
        entries = {file.name: file.stat().st_mtime_ns for file in (tmp_path / "cache").iterdir()}
        return entries, load(tmp_path / "out").manifest.calibration

    first = compiled()
    assert compiled() == first
    fewer = compiled("--num-calibration-samples", 5)
    assert fewer[1] != first[1]
    assert first[0].items() < fewer[0].items()


@pytest.mark.parametrize(
    ("options", "code", "message"),
    [
        (["-r", "w8a8-statik"], 2, "w8a8-static"),
        (["--ignore", "frist"], 2, "first"),
        (["-b", "onnxruntim"], 4, "onnxruntime"),
        (["-c", "missing.npz"], 3, "missing.npz"),
        (["-r", "smoothquant-o3"], 3, "calibration"),
        (["--target", "z80"], 4, "z80"),
        (["--tune", "measured"], 2, "measure"),
        (["--num-calibration-samples", "3"], 3, "Give it with --calibration"),
        (["--calibration-cache", "cache"], 3, "Give it with --calibration"),
        (["-c", "data.npz", "--num-calibration-samples", "0"], 2, "num-calibration-samples"),
    ],
)
def test_compile_refuses_with_an_exit_code_and_leaves_nothing(options, code, message, perceptron, tmp_path):
    result = run("compile", perceptron, "-o", tmp_path / "out", *options)
    assert result.exit_code == code
    assert message in result.stderr
    assert not (tmp_path / "out").exists()


def test_compile_refuses_a_folder_that_it_would_have_to_delete(perceptron, tmp_path):
    result = run("compile", perceptron, "-c", tmp_path / "data.npz", "-o", tmp_path)
    assert result.exit_code == 6
    assert perceptron.exists()


def test_verify_repeats_the_verification_and_compares_with_the_float_model(perceptron, tmp_path):
    data = tmp_path / "data.npz"
    assert run("compile", perceptron, "-r", "w8a8-static", "-c", data, "-o", tmp_path / "out").exit_code == 0
    result = run("verify", tmp_path / "out", "--against", perceptron, "--data", data)
    assert result.exit_code == 0
    assert "verified  onnxruntime, graph optimizations disabled: " in result.stdout
    assert "on 16 samples" in result.stdout
    found = json.loads(run("verify", tmp_path / "out", "--json").stdout)
    report = json.loads(run("report", tmp_path / "out", "--json").stdout)
    assert found["agreements"] == report["agreements"]
    assert found["versions"] == found["compiled_with"]
    (tmp_path / "out" / "portable.onnx").unlink()
    assert run("verify", tmp_path / "out").exit_code == 6


def test_inspect_says_what_is_in_a_model_and_what_an_artifact_is(perceptron, tmp_path):
    text = run("inspect", perceptron).stdout
    for words in ("2 MatMul, 1 Relu", "x: float32 [batch, 32]", "32×64", "first", "needs calibration data", "2 of 2"):
        assert words in text
    found = json.loads(run("inspect", perceptron, "--json").stdout)
    assert [layer["name"] for layer in found["layers"]] == ["first", "second"]
    run("compile", perceptron, "-o", tmp_path / "out", "--target", "avx2", "--tune", "none")
    text = run("inspect", tmp_path / "out").stdout
    for words in ("w8a8-dynamic · onnxruntime · avx2", "2 quantized", "model.onnx, ", "which the runtime loads"):
        assert words in text
    assert json.loads(run("inspect", tmp_path / "out", "--json").stdout)["model_file"] == "model.onnx"


def test_doctor_prints_what_was_found_and_exits_with_5_when_something_is_wrong(monkeypatch):
    right = Runtime("onnxruntime", "1.31", {"providers": "CPU"}, (Check("static", None, 0.5, 4.0, 1.0),))
    check = Check("dynamic", None, problem="dynamic INT8 is wrong", mend="Do that")
    wrong = Runtime("openvino", "2026.4", {}, (check,))
    absent = Runtime("openvino", None)
    for runtimes, code, words in (((right, absent), 0, "nothing is wrong\n"), ((right, wrong), 5, "1 problem\n")):
        found = Diagnosis("a CPU", ("avx2",), 2, "3.11", {"numpy": "2.0"}, runtimes)
        monkeypatch.setattr("qcompile.doctor.diagnose", lambda found=found, **_options: found)
        result = run("doctor")
        assert result.exit_code == code
        assert "static INT8: right, within 0.5 quantization steps" in result.stdout
        assert "4.0 times as fast as float" in result.stdout
        assert result.stdout.endswith(words)
        data = run("doctor", "--json")
        assert data.exit_code == code
        assert len(json.loads(data.stdout)["problems"]) == bool(code)
    assert "Do that." in result.stdout


def test_doctor_says_how_to_mend_a_runtime_that_cannot_be_imported(monkeypatch):
    right = Runtime("onnxruntime", "1.31", {}, (Check("static", None, 0.5),))
    wrong = Runtime("onnxruntime", "1.31", {}, (Check("static", None, problem="static INT8 is wrong", mend="Do that"),))
    broken = Runtime("openvino", "2026.4", problem="it is installed, and cannot be imported", mend="Install it: pip")
    for other, code in ((right, 4), (wrong, 5)):
        found = Diagnosis("a CPU", ("avx2",), 2, "3.11", {"numpy": "2.0"}, (other, broken))
        monkeypatch.setattr("qcompile.doctor.diagnose", lambda found=found, **_options: found)
        result = run("doctor")
        assert result.exit_code == code
        assert "problem: it is installed, and cannot be imported\n  Install it: pip." in result.stdout
        assert json.loads(run("doctor", "--json").stdout)["runtimes"][1]["mend"] == "Install it: pip"
