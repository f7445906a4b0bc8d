"""The example of a pipeline: compiled on one machine, checked and run on another that has no qcompile."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest

from qcompile.artifact import load

EXAMPLE = Path(__file__).resolve().parents[1] / "examples" / "pipeline"
# Isolated: neither PYTHONPATH nor the folder of this test; and the import of qcompile fails, wherever it is installed.
WITHOUT_QCOMPILE = """
import runpy, sys
sys.modules["qcompile"] = None
sys.argv = sys.argv[1:]
runpy.run_path(sys.argv[0], run_name="__main__")
"""


def on_target(*arguments: object) -> subprocess.CompletedProcess[str]:
    script = str(EXAMPLE / "run_on_target.py")
    command = [sys.executable, "-I", "-c", WITHOUT_QCOMPILE, script, *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=False)


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder in which the build machine has compiled a model."""
    folder = tmp_path_factory.mktemp("pipeline")
    rng = np.random.default_rng(0)
    model = ir.from_onnx_text(
        '<ir_version: 8, opset_import: ["" : 17]> g (float[n, 32] x) => (float[n, 16] y) { y = MatMul(x, w) }',
        initializers=[ir.tensor(rng.standard_normal((32, 16), dtype=np.float32), name="w")],
    )
    ir.save(model, folder / "model.onnx")
    np.savez(folder / "samples.npz", x=rng.standard_normal((4, 8, 32), dtype=np.float32))
    np.savez(folder / "inputs.npz", x=rng.standard_normal((8, 32), dtype=np.float32))
    command = [sys.executable, EXAMPLE / "compile_in_ci.py", "model.onnx", "samples.npz", "build"]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == f"fingerprint {load(folder / 'build').manifest.fingerprint}"
    return folder


def test_what_was_compiled_runs_where_there_is_no_qcompile(built: Path, tmp_path: Path) -> None:
    done = on_target(built / "build", built / "inputs.npz", tmp_path / "outputs.npz")
    assert done.returncode == 0, done.stderr
    expected = load(built / "build").run(dict(np.load(built / "inputs.npz")))
    np.testing.assert_array_equal(np.load(tmp_path / "outputs.npz")["y"], expected["y"])


@pytest.mark.parametrize("name", ["model.onnx", "manifest.json", "extra.so"])
def test_what_was_changed_on_the_way_does_not_run(name: str, built: Path, tmp_path: Path) -> None:
    path = built / "build" / name
    whole = path.read_bytes() if path.exists() else None
    path.write_bytes((whole or b"") + b"\n")
    done = on_target(built / "build", built / "inputs.npz", tmp_path / "outputs.npz")
    path.unlink() if whole is None else path.write_bytes(whole)
    assert done.returncode != 0
    assert f"error: {name}" in done.stderr
    assert not (tmp_path / "outputs.npz").exists()


def test_what_is_not_there_or_does_not_fit_is_one_line(built: Path, tmp_path: Path) -> None:
    build, good, outputs = built / "build", built / "inputs.npz", tmp_path / "outputs.npz"
    np.savez(tmp_path / "others.npz", y=np.zeros(3))
    np.savez(tmp_path / "types.npz", x=np.zeros((8, 32)))
    np.save(tmp_path / "array.npy", np.zeros(3))
    whole = good.read_bytes()
    (tmp_path / "cut.npz").write_bytes(whole[:-99])
    (tmp_path / "damaged.npz").write_bytes(whole[:500] + bytes([whole[500] ^ 1]) + whole[501:])
    (tmp_path / "manifest.json").write_text("{}")
    for folder, inputs, named in (
        (tmp_path / "nothing", good, "manifest.json"),
        (tmp_path, good, "manifest.json"),
        (build, tmp_path / "nothing.npz", "nothing.npz"),
        (build, tmp_path / "others.npz", "x"),
        (build, tmp_path / "types.npz", "float"),
        (build, tmp_path / "array.npy", "array.npy is no .npz file"),
        (build, tmp_path / "cut.npz", "cut.npz is no .npz file"),
        (build, tmp_path / "damaged.npz", "Bad CRC-32"),
    ):
        done = on_target(folder, inputs, outputs)
        assert done.returncode == 1
        assert len(done.stderr.splitlines()) == 1
        assert done.stderr.startswith("error: ")
        assert named in done.stderr
    assert not outputs.exists()
