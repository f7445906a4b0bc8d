"""A disk that is full: a typed error, the artifact before it stays, and nothing is left behind.

A limit on the size of files, which needs no rights, stops a writer in the midst of a file as a full disk does. It is
set in a process of its own.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from qcompile.artifact import load
from tests.artifacts import files, write

ROOT = Path(__file__).resolve().parents[1]

pytestmark = pytest.mark.skipif(os.name == "nt", reason="there are no limits on files")

LIMITED = """
import json, resource, signal, sys
from pathlib import Path
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)

def said(work, limits):
    answers = []
    for limit in limits:
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, resource.RLIM_INFINITY))
        try:
            work()
            answers.append("written")
        except Exception as error:
            answers.append(f"{type(error).__name__} {error}")
        resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
    print(json.dumps(answers))
"""


def answers(code: str, *arguments: object) -> list[str]:
    """What each attempt under a limit came to."""
    command = [sys.executable, "-c", LIMITED + code, *map(str, arguments)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    found: list[str] = json.loads(done.stdout)
    return found


@pytest.mark.parametrize("replaces", [True, False])
def test_the_old_artifact_stays_and_nothing_is_left_behind(replaces: bool, tmp_path: Path) -> None:
    output = tmp_path / "deep" / "out"
    if replaces:
        write(output)
    before = files(tmp_path)
    code = """
from tests.artifacts import save, write
output = Path(sys.argv[1])
said(lambda: write(output, lambda folder: save(folder, "model.onnx.data"), target=None), range(0, 600, 19))
"""
    found = answers(code, output)
    assert len(found) == 32
    for answer in found:
        assert answer.startswith(f"ArtifactError {output}: it cannot be written")
    assert files(tmp_path) == before
    assert os.listdir(tmp_path) == (["deep"] if replaces else [])
    if replaces:
        load(output)
        assert os.listdir(output.parent) == ["out"]


def test_openvino_that_cannot_write_says_so(tmp_path: Path) -> None:
    pytest.importorskip("openvino")
    code = """
import numpy as np
import openvino
from openvino import opset13
from qcompile.backends.openvino.lowering import save
x = opset13.parameter([2, 16], np.float32)
model = openvino.Model([opset13.matmul(x, opset13.constant(np.ones((16, 16), np.float32)), False, False)], [x])
said(lambda: save(model, Path(sys.argv[1]) / "model.xml"), [*range(0, 1024, 64), 100_000])
"""
    *full, last = answers(code, tmp_path)
    assert last == "written"
    assert all(answer.startswith("OSError") and "OpenVINO could not write it" in answer for answer in full)


def test_temporary_files_that_have_no_room_are_told_from_the_artifact(tmp_path: Path) -> None:
    code = """
import numpy as np
import onnx_ir as ir
import qcompile
weights = np.random.default_rng(0).standard_normal((64, 64)).astype(np.float32)
text = '<ir_version: 10, opset_import: ["" : 21]> g (float[n, 64] x) => (float[n, 64] y) { y = MatMul(x, w) }'
model = ir.from_onnx_text(text, initializers=[ir.tensor(weights, name="w")])
samples = [{"x": weights}]
work = lambda: qcompile.compile(model, "w8a8-static", calibration=samples, output=sys.argv[1])
said(work, [100, 10_000])
"""
    for answer in answers(code, tmp_path / "out"):
        assert answer.startswith("ArtifactError temporary folder")
    assert os.listdir(tmp_path) == []
