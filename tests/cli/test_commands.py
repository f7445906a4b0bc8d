import importlib.metadata
import json
import subprocess
import sys

import numpy as np
import pytest

from qcompile import errors
from qcompile.cli import inputs
from qcompile.cli.console import EXIT_CODES, exit_code
from qcompile.recipe import Recipe
from tests.cli.commands import run


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
