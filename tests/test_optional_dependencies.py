"""Without the packages of the extras qcompile does what the core can, and names the extra for the rest.

Each case runs in a process of its own, in which those packages cannot be imported: whoever installs qcompile alone
has none of them.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest

OF_EXTRAS = (
    "openvino",
    "transformers",
    "gguf",
    "safetensors",
    "tokenizers",
    "triton",
    "neural_compressor",
    "jinja2",
    "nncf",
    "cryptography",
)

PREAMBLE = f"""
import sys
sys.modules.update(dict.fromkeys({OF_EXTRAS!r}))  # None: the import of this name fails
import json
import numpy as np
import qcompile
"""

TEXT = """
<ir_version: 8, opset_import: ["" : 17]>
small (float[batch, 32] x) => (float[batch, 16] y) { h = MatMul(x, w)  r = Relu(h)  y = MatMul(r, v) }
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder with a small ONNX file and samples for it."""
    rng = np.random.default_rng(0)
    model = ir.from_onnx_text(
        TEXT,
        initializers=[
            ir.tensor(rng.standard_normal((32, 64)).astype(np.float32), name="w"),
            ir.tensor(rng.standard_normal((64, 16)).astype(np.float32), name="v"),
        ],
    )
    ir.save(model, tmp_path / "small.onnx")
    np.savez(tmp_path / "samples.npz", x=rng.standard_normal((4, 8, 32)).astype(np.float32))
    return tmp_path


def run(code: str, folder: Path) -> subprocess.CompletedProcess[str]:
    """Run the code in the folder without the packages of the extras."""
    command = [sys.executable, "-c", PREAMBLE + code]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)


def said(code: str, folder: Path) -> Any:
    """What the code printed as JSON on its last line."""
    done = run(code, folder)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


def test_an_onnx_file_compiles(folder: Path) -> None:
    answer = said(
        """
artifact = qcompile.compile("small.onnx", "w8a8-static", calibration="samples.npz", output="made")
result = qcompile.load("made").run({"x": np.load("samples.npz")["x"][0]})
print(json.dumps({"shape": result["y"].shape, "layers": [layer.action for layer in artifact.report.layers]}))
""",
        folder,
    )
    assert answer == {"shape": [8, 16], "layers": ["quantized", "quantized"]}


def test_a_module_compiles(folder: Path) -> None:
    answer = said(
        """
import torch
torch.manual_seed(0)
module = torch.nn.Sequential(torch.nn.Linear(32, 64), torch.nn.LayerNorm(64), torch.nn.Linear(64, 8))
samples = [{"input": sample} for sample in np.load("samples.npz")["x"]]
artifact = qcompile.compile(module, "w8a8-static", calibration=samples)
print(json.dumps({"layers": [layer.action for layer in artifact.report.layers]}))
""",
        folder,
    )
    assert answer == {"layers": ["quantized", "quantized"]}


def test_a_missing_runtime_is_refused_before_any_work(folder: Path) -> None:
    answer = said(
        """
try:
    # There is no such file: whoever looked would say so.
    qcompile.compile("no such file.onnx", "w8a8-dynamic", backend="openvino")
except qcompile.QCompileError as error:
    print(json.dumps({"error": type(error).__name__, "mend": error.mend}))
""",
        folder,
    )
    assert answer["error"] == "MissingDependencyError"
    assert "qcompile[openvino]" in answer["mend"]


@pytest.mark.parametrize(("model", "extra"), [("decoder", "hf"), ("decoder.gguf", "gguf")])
def test_a_language_model_names_the_extra_that_reads_it(model: str, extra: str, folder: Path) -> None:
    (folder / "decoder").mkdir()
    (folder / "decoder" / "config.json").write_text("{}")
    answer = said(
        f"""
try:
    qcompile.compile({model!r}, "w4a16-rtn")
except qcompile.QCompileError as error:
    print(json.dumps([type(error).__name__, error.subject, error.mend]))
""",
        folder,
    )
    assert answer == ["MissingDependencyError", model, f"pip install 'qcompile[{extra}]'"]


def test_a_signature_needs_the_extra_and_nothing_else_does(folder: Path) -> None:
    answer = said(
        """
from qcompile.artifact_signature import sign
made = qcompile.compile("small.onnx", "w8a8-dynamic", output="made", verify=False)
assert qcompile.load("made") == made
errors = []
for attempt in (lambda: sign("made", "key.pem"), lambda: qcompile.load("made", public_key="key.pub")):
    open("made/manifest.json.sig", "wb").close()
    try:
        attempt()
    except qcompile.QCompileError as error:
        errors.append([type(error).__name__, error.mend])
print(json.dumps({"errors": errors}))
""",
        folder,
    )
    assert answer["errors"] == [["MissingDependencyError", "Install it: pip install 'qcompile[sign]'"]] * 2


@pytest.mark.parametrize(
    ("arguments", "code"),
    [
        (["recipes"], 0),
        (["compile", "small.onnx", "-r", "w8a8-static", "-c", "samples.npz", "-o", "made"], 0),
        (["compile", "small.onnx", "-b", "openvino", "-o", "made"], 4),
    ],
    ids=["recipes", "compile", "compile for openvino"],
)
def test_command_line(arguments: list[str], code: int, folder: Path) -> None:
    program = f"""
from qcompile.cli import main
sys.argv = ["qcompile", *{arguments!r}]
main()
"""
    done = run(program, folder)
    assert done.returncode == code, done.stderr
    assert (folder / "made").exists() == (arguments[0] == "compile" and code == 0)
    if code:
        assert "pip install 'qcompile[openvino]'" in done.stderr
