"""What has the wrong type, or cannot be written, is refused with a typed error at the door."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest
import typer.testing

import qcompile
from qcompile.cli import app
from qcompile.compile_requests import recipe_of
from qcompile.errors import ArtifactError, InputError, ModelError, QCompileError, RecipeError
from qcompile.recipe import Recipe, Step
from qcompile.report import Report
from tests.artifacts import check_output, write

WRONG: dict[str, Callable[[], object]] = {
    "no recipe": lambda: recipe_of(None, (), ()),
    "a dict as recipe": lambda: recipe_of({"name": "x", "steps": []}, (), ()),
    "a number as recipe": lambda: recipe_of(3, (), ()),
    "no ignore": lambda: recipe_of("float", None, ()),
    "a number as targets": lambda: recipe_of("float", (), 3),
    "ignore of a recipe": lambda: Recipe("x", ignore=5),
    "steps as text": lambda: Recipe("x", steps="insert_qdq"),
    "steps as number": lambda: Recipe("x", steps=5),
    "name of none": lambda: Recipe.from_name(None),
    "name of a list": lambda: Recipe.from_name([]),
    "pass that is a number": lambda: Step(3),
    "settings that are a number": lambda: Step("insert_qdq", 5),
    "setting that is a number": lambda: Recipe.from_data({"name": "x", "steps": [{"insert_qdq": {1: 2}}]}),
    "part of a scheme": lambda: Recipe.from_data({"name": "x", "steps": [{"insert_qdq": {"weights": {1: 2}}}]}),
    "key that is a number": lambda: Recipe.from_data({"name": "x", 1: 2}),
    "YAML of nothing": lambda: Recipe.from_yaml(None),
    "a date that there is not": lambda: Recipe.from_yaml("name: x\nsteps: 2020-13-45\n"),
    "a folder that is a file": lambda: Recipe.from_name("float").to_yaml(Path(__file__) / "recipe.yaml"),
}


@pytest.mark.parametrize("make", WRONG.values(), ids=WRONG)
def test_a_recipe_of_the_wrong_type_is_refused(make):
    with pytest.raises(RecipeError):
        make()


def test_one_text_is_one_pattern():
    plan = recipe_of(Recipe("x", ignore=("a",)), "re:.*b", "layer")
    assert (plan.ignore, plan.targets) == (("a", "re:.*b"), ("layer",))


@pytest.mark.parametrize("wrong", [3, b"a", ["a"]])
def test_a_folder_of_the_wrong_type_is_refused(wrong):
    for door in (check_output, qcompile.load):
        with pytest.raises(ArtifactError, match=type(wrong).__name__):
            door(wrong)
    with pytest.raises(ArtifactError, match="NoneType"):
        qcompile.load(None)


@pytest.mark.parametrize("name", ["a\0b", "a" * 300, "loop", "\udce9", "\udce9/out"], ids=ascii)
def test_a_folder_that_there_cannot_be_is_refused(name, tmp_path):
    (tmp_path / "loop").symlink_to("loop")
    for door in (check_output, qcompile.load, lambda path: qcompile.compile(b"", output=path)):
        with pytest.raises(ArtifactError, match="nothing can be there") as raised:
            door(tmp_path / name)
        str(raised.value).encode()
    assert [path.name for path in tmp_path.iterdir()] == ["loop"]


@pytest.mark.parametrize("feed", [None, [np.zeros(3)], {1: np.zeros(3)}])
def test_a_feed_that_is_no_mapping_of_names_is_refused(feed, tmp_path):
    with pytest.raises(InputError, match="Give x, n by name"):
        write(tmp_path / "out").run(feed)


def test_a_page_in_a_missing_folder_is_refused(tmp_path):
    with pytest.raises(ArtifactError, match="cannot be written"):
        Report().save_html(tmp_path / "missing" / "report.html")
    with pytest.raises(ArtifactError, match="cannot be written"):
        Report().save_html("a\0b.html")
    write(tmp_path / "out")
    page = str(tmp_path / "missing" / "report.html")
    result = typer.testing.CliRunner().invoke(app, ["report", str(tmp_path / "out"), "--html", page])
    assert result.exit_code == 6
    assert isinstance(result.exception, SystemExit)


PORT = {"name": "x", "dtype": "float32", "shape": [1]}


@pytest.mark.parametrize(
    "change",
    [
        {"model_file": 5},
        {"backend": ["x"]},
        {"recipe": 3},
        {"versions": []},
        {"inputs": 3},
        {"inputs": [PORT | {"shape": "ab"}]},
        {"inputs": [PORT | {"shape": [-1]}]},
        {"inputs": [PORT | {"shape": [1.5]}]},
        {"inputs": [PORT | {"name": 3}]},
        {"inputs": [PORT | {"dtype": 3}]},
        {"files": {"model.onnx": {"sha256": "0"}}},
    ],
    ids=str,
)
def test_a_manifest_of_wrong_types_is_refused(change, tmp_path):
    write(tmp_path / "out")
    path = tmp_path / "out" / "manifest.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(ArtifactError, match=r"manifest\.json: an entry is missing or wrong"):
        qcompile.load(tmp_path / "out")
    result = typer.testing.CliRunner().invoke(app, ["bench", str(tmp_path / "out")])
    assert result.exit_code == 6
    assert isinstance(result.exception, SystemExit)


BFLOAT16 = """
<ir_version: 10, opset_import: ["" : 23]> g (float[b, 4] x) => (bfloat16[b, 4] y) { y = Cast<to = 16>(x) }
"""


@pytest.mark.parametrize("backend", ["onnxruntime", "openvino"])
def test_an_output_that_numpy_cannot_hold_is_refused(backend: str, tmp_path: Path):
    with pytest.raises(ModelError, match="output y: its type is bfloat16"):
        qcompile.compile(ir.from_onnx_text(BFLOAT16), "float", backend=backend)
    artifact = write(tmp_path / "out", outputs=ir.from_onnx_text(BFLOAT16).graph.outputs)
    with pytest.raises(QCompileError, match="output y: its type is bfloat16"):
        artifact.run({"x": np.zeros((2, 3), np.float32), "n": np.zeros(2, np.int64)})
