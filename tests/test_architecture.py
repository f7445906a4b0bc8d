"""The architecture as a test: who may import whom, what every pass must have, what the wheel must hold."""

from __future__ import annotations

import ast
import fnmatch
import importlib
import importlib.util
import inspect
import os
import re
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from qcompile.contract import Pass

ROOT = Path(__file__).resolve().parents[1]
# Folder in the repository -> package, as in pyproject's package-dir.
FOLDERS = {
    "qcompile": "qcompile",
    "passes": "qcompile.passes",
    "backends": "qcompile.backends",
    "models": "qcompile.models",
}
OWN_CODE = (*FOLDERS, "benchmarks", "examples", "tests")

# Room -> the modules in it. A module belongs to the first room that matches.
ROOMS = {
    "passes": ["qcompile.passes*"],
    "onnxruntime": ["qcompile.backends.onnxruntime*"],
    "openvino": ["qcompile.backends.openvino*"],
    "fx": ["qcompile.backends.fx*"],
    "kernels": ["qcompile.backends.triton.kernels*"],
    "triton": ["qcompile.backends.triton*"],
    "backends": [
        "qcompile.backends",
        "qcompile.backends.decoder_caches",
        "qcompile.backends.feeds",
        "qcompile.backends.greedy",
        "qcompile.backends.onnx_files",
    ],
    "models": ["qcompile.models*"],
    "dynamo": ["qcompile.frontend.dynamo"],
    "frontend": ["qcompile.frontend*"],
    "untrusted": ["qcompile.untrusted*"],
    # Before the room of its prefix: kernels keep their times as tuned graphs do.
    "times": ["qcompile.tuning_cache"],
    "report": ["qcompile.report*", "qcompile.latency"],
    "solvers": ["qcompile.solvers*"],
    "compile": [
        "qcompile",
        "qcompile.compile*",
        "qcompile.cli*",
        "qcompile.nothing_matched",
        "qcompile.pipeline",
        "qcompile.canonical",
        "qcompile.outcome",
        "qcompile.activation_ranges",
        "qcompile.capability",
        "qcompile.doctor",
        "qcompile.evaluation*",
        "qcompile.lm_evaluation",
        "qcompile.inspection",
        "qcompile.verification*",
        "qcompile.tuning*",
        "qcompile.work",
    ],
    "recipe": ["qcompile.recipe*"],
    "artifact": ["qcompile.artifact*", "qcompile.manifest*"],
    "verify": ["qcompile.verify*", "qcompile.first_difference", "qcompile.random_outputs"],
    "reference": ["qcompile.reference_*"],
    "calibration": [
        "qcompile.calibration*",
        "qcompile.smoothing_problem",
        "qcompile.weight_only",
        "qcompile.bit_allocation",
        "qcompile.outputs",
        "qcompile.rounding_trials",
    ],
    "graph": [
        "qcompile.graph*",
        "qcompile.attention_parts",
        "qcompile.bits_per_weight",
        "qcompile.decoder_inputs",
        "qcompile.finished_layers",
        "qcompile.block_*",
        "qcompile.cache_rounding",
        "qcompile.channel_*",
        "qcompile.rewriting",
        "qcompile.rotary_caches",
        "qcompile.opset_conversion",
        "qcompile.initializers",
        "qcompile.layer_bias",
        "qcompile.layers",
        "qcompile.multiplied",
        "qcompile.outlier_columns",
        "qcompile.qdq",
        "qcompile.restoring",
        "qcompile.saturation",
        "qcompile.tied_tables",
        "qcompile.stored_blocks",
        "qcompile.unlisted",
        "qcompile.unsigned_activations",
        "qcompile.untouched",
        "qcompile.unused_nodes",
        "qcompile.weight_rounding",
    ],
    "foundation": [
        "qcompile.accuracy_budget",
        "qcompile.chat",
        "qcompile.contract",
        "qcompile.disk_room",
        "qcompile.errors",
        "qcompile.generation",
        "qcompile.memory",
        "qcompile.misspelt",
        "qcompile.plain_files",
        "qcompile.processor",
        "qcompile.quiet",
        "qcompile.scheme",
        "qcompile.sealed_json",
        "qcompile.session",
        "qcompile.text_tokenizer",
    ],
}
_BELOW_PASSES = {"graph", "calibration", "solvers", "foundation"}
# Room -> the rooms that it may import, besides itself.
ARROWS = {
    "foundation": set[str](),
    "solvers": {"foundation"},
    "graph": {"solvers", "foundation"},
    "calibration": {"graph", "solvers", "foundation"},
    "passes": _BELOW_PASSES,
    "backends": {"graph", "foundation"},
    "onnxruntime": {"backends", "graph", "solvers", "foundation"},
    "openvino": {"backends", "graph", "solvers", "foundation"},
    "fx": {"backends", "graph", "foundation"},
    "kernels": {"times", "foundation"},
    "times": set[str](),
    "triton": {"backends", "fx", "kernels", "graph", "solvers", "foundation"},
    "untrusted": {"foundation"},
    "frontend": {"untrusted", "graph", "foundation"},
    "report": {"backends", "calibration", "graph", "solvers", "recipe", "foundation"},
    "recipe": {"foundation"},
    "verify": {"calibration", "graph", "reference", "solvers", "foundation"},
    # Judges what all others make, so it shares nothing with them.
    "reference": set[str](),
    "artifact": {"backends", "frontend", "report", "recipe", "foundation"},
    "models": {"graph", "foundation"},
    "dynamo": {"compile", "frontend", "foundation"},
    "compile": set(ROOMS) - {"dynamo", "fx", "kernels", "models", "onnxruntime", "openvino", "triton"},
}
# Heavy or optional packages -> the only modules that may import them.
RUNTIMES = {
    "onnxruntime": ["qcompile.backends.onnxruntime*"],
    "openvino": ["qcompile.backends.openvino*"],
    "triton": ["qcompile.backends.triton*"],
    "torch": [
        "qcompile.backends.fx*",
        "qcompile.backends.triton*",
        "qcompile.frontend*",
        "qcompile.models*",
        "qcompile.calibration_data",
        "qcompile.solvers.inc",
    ],
    "auto_round": ["qcompile.solvers.inc"],
    "transformers": [
        "qcompile.frontend.huggingface*",
        "qcompile.backends.openvino.tokenizers",
        "qcompile.backends.triton.chat",
        "qcompile.frontend.gguf*",
    ],
    "onnxruntime_genai": ["qcompile.backends.onnxruntime*"],
    "openvino_genai": ["qcompile.backends.openvino*"],
    "openvino_tokenizers": ["qcompile.backends.openvino*"],
    "accelerate": ["qcompile.frontend.huggingface*"],
    "gguf": ["qcompile.frontend.gguf*", "qcompile.artifact_gguf*"],
    "tokenizers": ["qcompile.frontend*", "qcompile.text_tokenizer"],
    "lm_eval": ["qcompile.lm_evaluation"],
    "nncf": [],
    "jinja2": ["qcompile.report*", "qcompile.backends.triton.chat"],
    "typer": ["qcompile.cli*"],
    "cryptography": ["qcompile.artifact_keys"],
}
ARCHITECTURE_NAMES = re.compile(
    r"\b(bert|roberta|minilm|llama|mistral|qwen\d?|gemma\d?|falcon|gpt_?(2|j|neo\w*)|mpt|stablelm|whisper)\b", re.I
)


def _sources(folder: str) -> list[Path]:
    return sorted(path for path in (ROOT / folder).rglob("*.py") if "__pycache__" not in path.parts)


def _modules() -> dict[str, Path]:
    """Every module of the package and its file."""
    found = {}
    for folder, package in FOLDERS.items():
        for path in _sources(folder):
            parts = path.relative_to(ROOT / folder).with_suffix("").parts
            found[".".join([package, *(part for part in parts if part != "__init__")])] = path
    return found


MODULES = _modules()
PASSES = sorted(path.stem for path in (ROOT / "passes").glob("*.py") if not path.stem.startswith("_"))


def _imports(path: Path) -> Iterator[tuple[str, int]]:
    """Every absolute module name that a file imports, at any depth, with its line; `from a import b` gives a.b too."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from ((alias.name, node.lineno) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}:{node.lineno}: relative import"
            names = [f"{node.module}.{alias.name}" for alias in node.names]
            yield from ((name if name in MODULES else str(node.module), node.lineno) for name in names)


def _room(module: str) -> str:
    for room, patterns in ROOMS.items():
        if any(fnmatch.fnmatchcase(module, pattern) for pattern in patterns):
            return room
    raise AssertionError(f"{module} belongs to no room: say in ROOMS which one, or move it")


@pytest.mark.parametrize("module", sorted(MODULES))
def test_imports_follow_the_arrows(module: str) -> None:
    room = _room(module)
    for imported, line in _imports(MODULES[module]):
        if imported not in MODULES or imported == module:
            continue
        target = _room(imported)
        where = f"{MODULES[module].relative_to(ROOT)}:{line}"
        if room == "passes":
            assert target != "passes", f"{where}: a pass imports the pass {imported}"
        assert target == room or target in ARROWS[room], f"{where}: {room} must not import {imported} ({target})"


@pytest.mark.parametrize("module", sorted(MODULES))
def test_runtimes_stay_in_their_own_files(module: str) -> None:
    for imported, line in _imports(MODULES[module]):
        allowed = RUNTIMES.get(imported.partition(".")[0], ["*"])
        assert any(fnmatch.fnmatchcase(module, pattern) for pattern in allowed), (
            f"{MODULES[module].relative_to(ROOT)}:{line}: only {allowed} may import {imported}"
        )


@pytest.mark.parametrize("path", [path for folder in OWN_CODE for path in _sources(folder)], ids=str)
def test_files_are_small_and_named_for_what_they_hold(path: Path) -> None:
    limit = 400 if path.is_relative_to(ROOT / "tests") else 300
    assert len(path.read_text(encoding="utf-8").splitlines()) < limit
    assert path.stem not in {"utils", "util", "helpers", "common", "misc"}


@pytest.mark.parametrize("path", [path for folder in OWN_CODE for path in _sources(folder)], ids=str)
def test_bare_folders_are_never_imported(path: Path) -> None:
    bare = [(name, line) for name, line in _imports(path) if name.partition(".")[0] in {"passes", "backends", "models"}]
    assert not bare, "a second copy of the module: import it from qcompile"


@pytest.mark.parametrize("module", sorted(module for module in MODULES if not module.startswith("qcompile.models")))
def test_no_code_knows_a_model_architecture(module: str) -> None:
    tree = ast.parse(MODULES[module].read_text(encoding="utf-8"))
    prose = {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr)}
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in prose:
            assert not ARCHITECTURE_NAMES.search(node.value), f"{module}:{node.lineno}: {node.value!r}"


@pytest.mark.parametrize("name", PASSES)
def test_a_file_of_passes_holds_one_public_pass_named_like_it(name: str) -> None:
    module = importlib.import_module(f"qcompile.passes.{name}")
    public = [
        member
        for member in vars(module).values()
        if inspect.isclass(member) and member.__module__ == module.__name__ and not member.__name__.startswith("_")
    ]
    passes = [member for member in public if issubclass(member, Pass)]
    assert [member.__name__ for member in passes] == ["".join(part.title() for part in name.split("_"))]
    assert passes[0].__dataclass_params__.frozen
    assert passes[0].looks_for, "a pass that matches nothing says what it looked for"
    assert len((passes[0].__doc__ or "").splitlines()) > 1, "the docstring says what it does and when it does not"
    assert passes[0].keeps in ("exact", "lossy")


@pytest.mark.parametrize("name", PASSES)
def test_every_pass_has_its_test(name: str) -> None:
    assert (ROOT / "tests" / "passes" / f"test_{name}.py").is_file()


def test_contributing_lists_every_pass_and_what_it_keeps() -> None:
    text = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    table = re.search(r"<!-- passes -->\n(.*?)<!-- /passes -->", text, re.S)
    assert table is not None
    lines = ["| pass | keeps | what it does |", "|---|---|---|", *map(_documented, PASSES)]
    assert table[1].splitlines() == lines, "put this between the markers:\n" + "\n".join(lines)


def _documented(name: str) -> str:
    cls = _pass_class(name)
    summary = " ".join(inspect.getdoc(cls).partition("\n\n")[0].split()).rstrip(".")  # type: ignore[union-attr]
    return f"| `{name}` | {cls.keeps} | {summary.replace('|', chr(92) + '|').replace('*', chr(92) + '*')} |"


def _pass_class(name: str) -> type[Pass]:
    module = importlib.import_module(f"qcompile.passes.{name}")
    cls: type[Pass] = getattr(module, "".join(part.title() for part in name.split("_")))
    return cls


def test_import_is_quick_and_brings_no_runtime() -> None:
    code = (
        "import time; start = time.perf_counter(); import qcompile; print(time.perf_counter() - start); "
        "heavy = {'torch', 'onnxruntime', 'openvino', 'transformers', 'onnxscript'}; "
        "import sys; print(*sorted(heavy & set(sys.modules)))"
    )
    seconds = []
    for _ in range(3):
        run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=os.sep)
        elapsed, heavy = run.stdout.split("\n")[:2]
        assert heavy == ""
        seconds.append(float(elapsed))
    assert min(seconds) < 0.5


def test_every_source_file_is_in_the_wheel(tmp_path: Path) -> None:
    source = tmp_path / "source"
    for folder in FOLDERS:
        shutil.copytree(ROOT / folder, source / folder, ignore=shutil.ignore_patterns("__pycache__", "*.egg-info"))
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source / name)
    code = "import sys; from setuptools import build_meta; print(build_meta.build_wheel(sys.argv[1]))"
    subprocess.run([sys.executable, "-c", code, str(tmp_path)], cwd=source, check=True, capture_output=True)
    (wheel,) = tmp_path.glob("*.whl")
    packed = set(zipfile.ZipFile(wheel).namelist())
    for folder, package in FOLDERS.items():
        for path in (source / folder).rglob("*"):
            if path.is_file():
                inside = "/".join([*package.split("."), *path.relative_to(source / folder).parts])
                assert inside in packed, f"{inside} is missing: see [tool.setuptools] in pyproject.toml"
