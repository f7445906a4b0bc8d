"""The same inputs give the same bytes: two seeds of hashes, two folders, one and two threads, two runtimes."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from qcompile.artifact import load
from tests.artifacts import files

ROOT = Path(__file__).resolve().parents[1]
BACKENDS = ("onnxruntime", "openvino")
RECIPES = ("w8a8-static", "smoothquant-o2")

COMPILE = f"""
import os, sys
threads, folder = int(sys.argv[1]), sys.argv[2]
if hasattr(os, "sched_setaffinity"):  # runtimes make one thread for each core that they may use
    os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:threads])
import numpy as np
import onnx_ir as ir
import qcompile
import qcompile.outcome

qcompile.outcome.LATENCY_SECONDS = 0.01  # how fast it is does not matter here
rng = np.random.default_rng(0)
text = '''<ir_version: 10, opset_import: ["" : 21]>
small (float[batch, 64, 128] x) => (float[batch, 64, 96] y) {{
    h = MatMul(x, w)
    n = LayerNormalization(h, scale)
    a = MatMul(n, v)
    r = Relu(a)
    y = MatMul(r, u)
}}'''
shapes = {{"w": (128, 192), "scale": (192,), "v": (192, 192), "u": (192, 96)}}
arrays = {{name: rng.standard_normal(shape, dtype=np.float32) for name, shape in shapes.items()}}
model = ir.from_onnx_text(text, initializers=[ir.tensor(array, name=name) for name, array in arrays.items()])
samples = [{{"x": rng.standard_normal((2, 64, 128), dtype=np.float32)}} for _ in range(2)]
for backend in {BACKENDS!r}:
    for recipe in {RECIPES!r}:
        output = f"{{folder}}/{{recipe}}-{{backend}}"
        # What is faster is measured anew where there are more cores: tests/test_tuning.py.
        qcompile.compile(model, recipe, backend=backend, calibration=samples, output=output, tune="none")
"""


def compiling(folder: Path, *, seed: int, threads: int) -> subprocess.Popen[str]:
    environment = os.environ | {"PYTHONHASHSEED": str(seed), "OMP_NUM_THREADS": str(threads)}
    command = [sys.executable, "-c", COMPILE, str(threads), str(folder)]
    return subprocess.Popen(command, cwd=ROOT, env=environment, stderr=subprocess.PIPE, text=True)


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="cannot tell a runtime how many cores there are")
def test_seed_folder_and_threads_change_no_byte_but_the_report(tmp_path: Path) -> None:
    pytest.importorskip("openvino")
    first, second = tmp_path / "first", tmp_path / "elsewhere" / "second"
    for process in (compiling(first, seed=0, threads=1), compiling(second, seed=1, threads=2)):
        _, said = process.communicate()
        assert process.returncode == 0, said
    for name in (f"{recipe}-{backend}" for recipe in RECIPES for backend in BACKENDS):
        one, other = files(first / name), files(second / name)
        assert set(one) > {"manifest.json", "report.json", "portable.onnx", "portable.npz"}
        assert one.pop("report.json")
        assert other.pop("report.json")
        assert one == other, name
        assert load(first / name).manifest.fingerprint == load(second / name).manifest.fingerprint
