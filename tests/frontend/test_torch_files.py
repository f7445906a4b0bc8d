"""Files of PyTorch run code when they are read: only where the user says so."""

from __future__ import annotations

import pickle
from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest
import torch
import torch.export
import typer.testing

import qcompile
from qcompile.cli import app
from qcompile.errors import ModelError, UnsafeModelError
from qcompile.frontend import trace


class Touches:
    """Pickled: a program that writes a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> object:
        return Path.touch, (self.path,)


@pytest.fixture
def module() -> torch.nn.Module:
    return torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.ReLU()).eval()


@pytest.fixture
def program(module: torch.nn.Module, tmp_path: Path) -> Path:
    path = tmp_path / "program.pt2"
    torch.export.save(torch.export.export(module, (torch.zeros(2, 4),)), path)
    return path


@pytest.mark.parametrize("suffix", [".pt", ".pth", ".pt2", ".PT"])
def test_nothing_is_unpickled_unasked(suffix: str, tmp_path: Path) -> None:
    path = tmp_path / f"model{suffix}"
    torch.save(Touches(tmp_path / "touched"), path)
    doors = (
        lambda: trace(path),
        lambda: trace(str(path)),
        lambda: qcompile.trace(path),
        lambda: qcompile.compile(path, "float"),
        lambda: qcompile.rewrite(path, "float"),
    )
    for door in doors:
        with pytest.raises(UnsafeModelError, match="trust_input=True"):
            door()
    result = typer.testing.CliRunner().invoke(app, ["compile", str(path), "-o", str(tmp_path / "out")])
    assert result.exit_code == 3
    assert not (tmp_path / "touched").exists()
    if suffix != ".pt2":
        with pytest.raises(ModelError, match="it holds a NoneType"):
            trace(path, trust_input=True)
        assert (tmp_path / "touched").exists()  # so the file is what it pretends to be


def test_a_trusted_program_is_compiled(program: Path, tmp_path: Path) -> None:
    assert [value.name for value in trace(program, trust_input=True).graph.inputs] == ["input"]
    arguments = ["compile", str(program), "-o", str(tmp_path / "out"), "-r", "float", "--trust-input"]
    result = typer.testing.CliRunner().invoke(app, arguments)
    assert result.exit_code == 0, result.output


def test_a_trusted_module_is_compiled_with_its_first_sample(module: torch.nn.Module, tmp_path: Path) -> None:
    torch.save(module, tmp_path / "module.pt")
    samples = [{"input": np.full((2, 4), number, np.float32)} for number in range(2)]
    artifact = qcompile.compile(tmp_path / "module.pt", "float", calibration=samples, trust_input=True)
    found = artifact.run(samples[1])
    np.testing.assert_allclose(next(iter(found.values())), module(torch.ones(2, 4)).detach(), rtol=1e-5)


def test_what_holds_no_module_is_refused(module: torch.nn.Module, tmp_path: Path) -> None:
    torch.save(module.state_dict(), tmp_path / "weights.pt")
    (tmp_path / "truncated.pt").write_bytes((tmp_path / "weights.pt").read_bytes()[:300])
    (tmp_path / "text.pt2").write_text("no model")
    (tmp_path / "empty.pt").write_bytes(b"")
    (tmp_path / "pickle.pt").write_bytes(pickle.dumps([1]))
    for name in ("weights.pt", "truncated.pt", "text.pt2", "empty.pt", "pickle.pt", "missing.pt", "missing.pt2"):
        with pytest.raises(ModelError):
            trace(tmp_path / name, trust_input=True)


def test_external_data_stays_inside_its_folder_for_trusted_models(tmp_path: Path) -> None:
    model = ir.from_onnx_text(
        '<ir_version: 10, opset_import: ["" : 20]> g (float[4] x) => (float[4] y) <float[4] w> { y = Add(x, w) }'
    )
    weight = ir.ExternalTensor(
        "../secret", 0, 16, ir.DataType.FLOAT, shape=ir.Shape([4]), name="w", base_dir=str(tmp_path)
    )
    model.graph.initializers["w"] = ir.Value(name="w", const_value=weight)
    with pytest.raises(UnsafeModelError):
        trace(ir.to_proto(model).SerializeToString(), trust_input=True)
