import importlib.metadata
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest
import typer.testing

from qcompile import backends, errors
from qcompile.artifact import load
from qcompile.artifact_writing import write_artifact
from qcompile.cli import app, inputs
from qcompile.cli.console import EXIT_CODES, exit_code
from qcompile.doctor import Check, Diagnosis, Runtime
from qcompile.recipe import Recipe
from qcompile.report import LayerReport, Report

TEXT = """
<ir_version: 10, opset_import: ["" : 21]>
adding (float[batch, 3] x, int64[batch, sequence] n) => (float[batch, 3] y, int64[batch, sequence] m)
{ y = Add(x, x)  m = Add(n, n) }
"""


def run(*arguments: object) -> typer.testing.Result:
    result = typer.testing.CliRunner().invoke(app, [str(argument) for argument in arguments])
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result


@pytest.fixture
def artifact(tmp_path) -> Path:
    model = ir.from_onnx_text(TEXT)
    write_artifact(
        tmp_path / "artifact",
        lambda folder: backends.get("onnxruntime").lower(model, folder, target=None),
        recipe=Recipe("float"),
        backend="onnxruntime",
        target=None,
        inputs=model.graph.inputs,
        outputs=model.graph.outputs,
        calibration=None,
        report=Report(model="adding", layers=[LayerReport("fc", "Linear", "kept", "it is too small")]),
    )
    ir.save(model, tmp_path / "float.onnx")
    return tmp_path / "artifact"


def test_recipes_lists_every_name_with_its_steps():
    result = run("recipes")
    assert result.exit_code == 0
    for name in ("float", "w8a8-static", "w8a8-dynamic", "smoothquant-o1", "smoothquant-o2", "smoothquant-o3"):
        assert name in result.stdout
    assert "insert_qdq" in result.stdout


def test_a_printed_recipe_can_be_read_again(tmp_path):
    (tmp_path / "mine.yaml").write_text(run("recipes", "w8a8-static").stdout)
    assert inputs.recipe(str(tmp_path / "mine.yaml"), ()) == Recipe.from_name("w8a8-static")
    assert Recipe.from_data(json.loads(run("recipes", "w8a8-static", "--json").stdout)) == Recipe.from_name(
        "w8a8-static"
    )
    assert list(json.loads(run("recipes", "--json").stdout)) == list(map(str, inputs.named_recipes()))


def test_a_typed_error_is_one_message_and_an_exit_code():
    result = run("recipes", "flaot")
    assert (result.exit_code, result.stdout) == (2, "")
    assert result.stderr == "error: recipe 'flaot': there is no such recipe\nThe nearest is 'float'.\n"


def test_a_message_may_hold_what_looks_like_markup():
    assert "[/red] [bold]" in run("recipes", "[/red] [bold]").stderr


def test_debug_shows_where_an_error_was_raised():
    result = run("recipes", "flaot", "--debug")
    assert result.exit_code == 2
    assert "Traceback" in result.stderr
    assert "recipe.py" in result.stderr


def test_errors_are_json_too():
    result = run("recipes", "flaot", "--json")
    assert result.exit_code == 2
    assert json.loads(result.stdout) == {
        "error": {
            "type": "RecipeError",
            "subject": "recipe 'flaot'",
            "reason": "there is no such recipe",
            "mend": "The nearest is 'float'",
        }
    }


def test_every_error_has_an_exit_code_that_help_explains():
    classes = [item for item in vars(errors).values() if isinstance(item, type) and issubclass(item, Exception)]
    codes = {exit_code(item("a", "b", "c")) for item in classes}
    assert exit_code(errors.UnsafeModelError("a", "b", "c")) == exit_code(errors.ModelError("a", "b", "c")) == 3
    assert codes == set(EXIT_CODES.values()) == {1, 2, 3, 4, 5, 6}
    text = run("compile", "--help").stdout
    assert all(f"{code} " in text.partition("Exit codes:")[2] for code in [0, *codes])


def test_report_prints_the_summary_or_writes_the_page(artifact, tmp_path):
    assert "it is too small" in run("report", artifact).stdout
    assert json.loads(run("report", artifact, "--json").stdout)["layers"][0]["name"] == "fc"
    result = run("report", artifact, "--html", tmp_path / "report.html")
    assert result.stdout == f"{tmp_path / 'report.html'}\n"
    assert "it is too small" in (tmp_path / "report.html").read_text()


def test_a_folder_that_is_no_artifact_is_refused(tmp_path):
    result = run("report", tmp_path)
    assert result.exit_code == 6
    assert "manifest.json" in result.stderr


def test_bench_measures_the_artifact_and_the_float_model(artifact, tmp_path):
    arguments = ["bench", artifact, "--against", tmp_path / "float.onnx", "--seconds", "0.1", "--threads", 1]
    found = json.loads(run(*arguments, "--json").stdout)
    assert found["backend"] == "onnxruntime"
    assert found["quantized_ms"] > 0
    assert found["float_ms"] > 0
    assert found["speedup"] == pytest.approx(found["float_ms"] / found["quantized_ms"], rel=0.05)
    text = run(*arguments).stdout
    assert "float " in text
    assert "times as fast as float on onnxruntime" in text


def test_the_version_is_printed():
    result = run("--version")
    assert (result.exit_code, result.stdout) == (0, f"qcompile {importlib.metadata.version('qcompile')}\n")


@pytest.mark.parametrize(
    ("options", "reason", "mend"),
    [
        (
            ["--dim", "sequenc=3"],
            "no free dimension has this name: they are batch, sequence",
            "The nearest is 'sequence'",
        ),
        (["--dim", "sequence=0"], "it is not name=size", "--dim sequence=128"),
        (["--dim", "batch=3", "--data", "feed.npz"], "--data gives the feed", "Leave one of them out"),
    ],
)
def test_a_dimension_that_is_of_no_use_is_refused(artifact, options, reason, mend):
    result = run("bench", artifact, *options)
    assert result.exit_code == 2
    assert f"error: --dim {options[1]}: {reason}" in result.stderr
    assert mend in result.stderr


def test_bench_takes_a_feed_or_makes_one_of_the_size_that_it_is_told(artifact, tmp_path):
    np.savez(tmp_path / "feed.npz", x=np.zeros((2, 3), np.float32), n=np.zeros((2, 5), np.int64))
    assert list(
        json.loads(run("bench", artifact, "--data", tmp_path / "feed.npz", "--seconds", "0.1", "--json").stdout)
    )
    assert run("bench", artifact, "--dim", "sequence=7", "--seconds", "0.1").exit_code == 0
    np.savez(tmp_path / "wrong.npz", x=np.zeros((2, 3), np.float32))
    result = run("bench", artifact, "--data", tmp_path / "wrong.npz")
    assert result.exit_code == 3
    assert "'n'" in result.stderr


def test_help_is_quick_and_imports_no_runtime():
    code = (
        "import sys\nfrom qcompile.cli import main\nsys.argv = ['qcompile', '--help']\n"
        "try: main()\nexcept SystemExit: pass\n"
        "print(sorted({'torch', 'onnxruntime', 'openvino', 'onnx_ir', 'numpy'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert done.stdout.splitlines()[-1] == "[]"


@pytest.fixture
def perceptron(tmp_path) -> Path:
    """Two linears with a Relu between them, and calibration data for them."""
    generator = np.random.default_rng(0)
    model = ir.from_onnx_text("""
        <ir_version: 10, opset_import: ["" : 21]>
        perceptron (float[batch, 32] x, float[32, 64] w1, float[64, 8] w2) => (float[batch, 8] y)
        { [first] h = MatMul(x, w1)  r = Relu(h)  [second] y = MatMul(r, w2) }
    """)
    for value in list(model.graph.inputs)[1:]:
        model.graph.inputs.remove(value)
        shape = tuple(int(size) for size in value.shape)
        value.const_value = ir.tensor(generator.standard_normal(shape).astype(np.float32), name=value.name)
        model.graph.initializers[value.name] = value
    ir.save(model, tmp_path / "perceptron.onnx")
    np.savez(tmp_path / "data.npz", x=generator.standard_normal((16, 32)).astype(np.float32))
    return tmp_path / "perceptron.onnx"


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
    run("compile", perceptron, "-o", tmp_path / "out", "--target", "avx2")
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
