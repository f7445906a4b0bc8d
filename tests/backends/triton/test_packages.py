"""Machine code ahead of time: an artifact compiled with it runs it where it is trusted, and what it is fed is asked."""

from __future__ import annotations

import dataclasses
import json
import shutil
import zipfile
from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest

import qcompile
from qcompile import artifact
from qcompile.errors import (
    ArtifactError,
    InputError,
    MissingDependencyError,
    ModelError,
    QCompileError,
    RecipeError,
    UnsupportedError,
    VerificationError,
)
from qcompile.manifest import FileEntry

torch = pytest.importorskip("torch")
pytest.importorskip("triton")

from qcompile.backends.fx import lower  # noqa: E402
from qcompile.backends.triton import BACKEND, operators, packages, runtime  # noqa: E402
from qcompile.backends.triton.lowering import fused  # noqa: E402
from qcompile.backends.triton.packages import Package  # noqa: E402
from qcompile.backends.triton.session import TorchSession  # noqa: E402
from tests.cli.commands import run  # noqa: E402

pytestmark = pytest.mark.skipif(not any(map(shutil.which, ("g++", "clang++", "c++"))), reason="no compiler of C++")

CHANNELS, WORDS = 32, 50


def classifier(seed: int = 0) -> ir.Model:
    """Ids and a mask that a table, a norm and two linears read; sizes that torch has to find out about."""
    generator = np.random.default_rng(seed)

    def constant(name: str, *shape: int) -> ir.TensorProtocol:
        return ir.tensor(generator.standard_normal(shape).astype(np.float32), name=name)

    text = """<ir_version: 10, opset_import: ["" : 23]> g (int64[batch, length] ids, float[batch, length, 1] mask)
        => (float[batch, length, 32] y)
        { x = Gather (table, ids)
          n = LayerNormalization (x, g, b)
          m = Mul (n, mask)
          h = MatMul (m, up)
          r = Relu (h)
          y = MatMul (r, down) }"""
    constants = [constant("table", WORDS, CHANNELS), constant("g", CHANNELS), constant("b", CHANNELS)]
    constants += [constant("up", CHANNELS, 2 * CHANNELS), constant("down", 2 * CHANNELS, CHANNELS)]
    return ir.from_onnx_text(text, initializers=constants)


def feed(batch: int, length: int) -> dict[str, np.ndarray]:
    """Ids of the table, and a mask of ones."""
    ids = np.random.default_rng(batch + length).integers(0, WORDS, (batch, length))
    return {"ids": ids, "mask": np.ones((batch, length, 1), np.float32)}


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> qcompile.Artifact:
    output = tmp_path_factory.mktemp("ahead") / "artifact"
    return qcompile.compile(
        classifier(), "w8a8-dynamic", backend="triton", example_inputs=feed(1, 5), aot=True, output=output
    )


def test_it_runs_where_it_is_trusted_alone(written: qcompile.Artifact) -> None:
    assert written.manifest.package == "model.pt2"
    modules = {}
    for trusted in (False, True):
        session = qcompile.load(written.path, trust_input=trusted).open_session()
        assert isinstance(session, TorchSession)
        modules[trusted] = session.module
    assert isinstance(modules[False], torch.fx.GraphModule)
    assert isinstance(modules[True], Package)
    mine = written.open_session()
    assert isinstance(mine, TorchSession)
    assert isinstance(mine.module, Package)


@pytest.mark.parametrize("sizes", [(1, 1), (2, 8), (3, 7), (1, 65), (0, 3), (2, 0)])
def test_sizes_stay_free_and_numbers_are_the_same(written: qcompile.Artifact, sizes: tuple[int, int]) -> None:
    graph = artifact.load(written.path).run(feed(*sizes))["y"]
    code = artifact.load(written.path, trust_input=True).run(feed(*sizes))["y"]
    # A sum in another order answers a few ties of the quantizers in another way: a step of one of 64 products.
    scale = np.abs(graph).max(initial=0) / 127
    assert graph.shape == code.shape == (*sizes, CHANNELS)
    assert np.all(np.abs(graph - code) < scale)
    assert np.sum((graph - code) ** 2) <= graph.size * (scale / 10) ** 2


@pytest.mark.parametrize(
    ("wrong", "reason"),
    [
        ({"mask": np.ones((2, 7, 1), np.float32)}, "The size of tensor a"),
        ({"ids": np.full((2, 8), WORDS)}, "index out of bounds"),
        ({"ids": np.zeros((0, 8), np.int64)}, "The size of tensor a"),
        ({"ids": np.zeros((2, 8), np.int32)}, "its type is int32"),
    ],
)
def test_what_it_is_not_compiled_for_is_refused(
    written: qcompile.Artifact, wrong: dict[str, np.ndarray], reason: str
) -> None:
    with pytest.raises(InputError, match=reason):
        written.run(feed(2, 8) | wrong)
    assert written.run(feed(2, 8))["y"].shape == (2, 8, CHANNELS)


def test_the_graph_computes_for_sizes_that_it_is_not_compiled_for(written: qcompile.Artifact) -> None:
    """A mask for one of two samples is for both; the code takes as many for granted."""
    both = written.run(feed(2, 8))["y"]
    one = written.run(feed(2, 8) | {"mask": np.ones((1, 8, 1), np.float32)})["y"]
    assert np.abs(both - one).max() < np.abs(both).max() / 127


def test_sizes_that_follow_from_others_are_held_to(tmp_path: Path) -> None:
    """As the mask of a decoder, which is as long as its cache and its new tokens."""
    text = """<ir_version: 10, opset_import: ["" : 23]> g (float[past] old, float[new] x, float[total] mask) =>
        (float[total] y) { all = Concat <axis = 0> (old, x)  y = Mul (all, mask) }"""
    lowered = BACKEND.lower(ir.from_onnx_text(text), tmp_path, target=None)

    def sizes(*lengths: int) -> dict[str, np.ndarray]:
        arrays = (np.arange(length, dtype=np.float32) + 1 for length in lengths)
        return dict(zip(("old", "x", "mask"), arrays, strict=True))

    packages.compile_package(tmp_path / lowered.model_file, [sizes(0, 1, 1), sizes(3, 2, 5)])
    session = packages.open_package(tmp_path / "model.pt2")
    assert isinstance(session.module, Package)
    for lengths, compiled in (((4, 1, 5), True), ((1, 1, 2), True), ((0, 3, 3), False), ((2, 3, 1), False)):
        given = sizes(*lengths)
        assert session.module.is_for({name: array.shape for name, array in given.items()}) == compiled
        expected = np.concatenate([given["old"], given["x"]]) * given["mask"]
        np.testing.assert_array_equal(session.run(given)["y"], expected)
    with pytest.raises(InputError, match=r"The size of tensor a \(5\) must match"):
        session.run(sizes(4, 1, 6))


@pytest.mark.parametrize(
    ("text", "fits", "others"),
    [
        ("(float[n] x, float[m] w) => (float[k] y) { s = Slice (w, one, far, zero)  y = Add (x, s) }", (5, 6), (6, 9)),
        ("(float[n] x) => (float[k] y) { y = Slice (x, minus_three, far, zero) }", (5,), (2,)),
        ("(float[n] x) => (float[a,4] y) { y = Reshape (x, fours) }", (8,), (6,)),
        ("(float[n] x) => (float[2] y) { r = Reshape (x, two)  y = ReduceSum <keepdims = 0> (r, one) }", (8,), (7,)),
    ],
)
def test_nothing_is_read_that_is_not_there(
    text: str, fits: tuple[int, ...], others: tuple[int, ...], tmp_path: Path
) -> None:
    """Sizes that the code is not made for are computed, or refused, by the graph: as without a package."""
    numbers = {"one": [1], "zero": [0], "far": [1 << 40], "minus_three": [-3], "fours": [-1, 4], "two": [2, -1]}
    constants = [ir.tensor(np.array(array), name=name) for name, array in numbers.items() if f" {name}" in text]
    model = ir.from_onnx_text(f'<ir_version: 10, opset_import: ["" : 23]> g {text}', initializers=constants)
    lowered = BACKEND.lower(model, tmp_path, target=None)
    names = [str(value.name) for value in model.graph.inputs]

    def sizes(lengths: tuple[int, ...]) -> dict[str, np.ndarray]:
        return {name: np.arange(size, dtype=np.float32) for name, size in zip(names, lengths, strict=True)}

    packages.compile_package(tmp_path / lowered.model_file, [sizes(fits)])
    code, graph = packages.open_package(tmp_path / "model.pt2"), BACKEND.open_artifact(tmp_path / lowered.model_file)
    assert isinstance(code.module, Package)
    assert code.module.is_for({name: array.shape for name, array in sizes(fits).items()})
    assert not code.module.is_for({name: array.shape for name, array in sizes(others).items()})
    for given in (sizes(fits), sizes(others)):
        try:
            expected = graph.run(given)["y"]
        except InputError:
            with pytest.raises(InputError):
                code.run(given)
        else:
            np.testing.assert_array_equal(code.run(given)["y"], expected)


@pytest.mark.parametrize(
    ("recipe", "kernel"), [("w8a8-dynamic", "int8_gemm"), ("w4a16-rtn", "grouped_gemm"), ("nf4-dq", "nf4_gemm")]
)
def test_programs_of_kernels_are_exported_for_all_sizes(
    recipe: str, kernel: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As on a card, where a program that holds for few rows alone would be a package for no others."""
    monkeypatch.setattr(operators, "runs_kernels", lambda _: True)
    model = qcompile.rewrite(classifier(), recipe)
    given = tuple(torch.from_numpy(array) for array in feed(2, 3).values())
    free = {0: torch.export.Dim.DYNAMIC, 1: torch.export.Dim.DYNAMIC}
    program = torch.export.export(lower(fused(model)), given, dynamic_shapes=(free, free))
    assert [node.target for node in program.graph.nodes].count(getattr(torch.ops.qcompile, kernel).default) == 2
    assert all(found.upper > 10**6 for found in program.range_constraints.values())


def changed(package: Path, folder: Path, **said: object) -> Path:
    """A copy of a package that says other things of itself."""
    shutil.copy(package.with_name("model.onnx"), folder)
    target = folder / package.name
    with zipfile.ZipFile(package) as old, zipfile.ZipFile(target, "w") as new:
        for name in old.namelist():
            content = old.read(name)
            if name.endswith("wrapper_metadata.json"):
                data = json.loads(content)
                data["qcompile"] = json.dumps(json.loads(data["qcompile"]) | said)
                content = json.dumps(data).encode()
            new.writestr(name, content)
    return target


@pytest.mark.parametrize(
    ("said", "reason"),
    [
        ({"device": "CUDA, compute capability 9.0"}, r"compiled for CUDA, compute capability 9\.0, and this is"),
        ({"extensions": ["avx1024"]}, "a processor with avx1024, which this one does not have"),
    ],
)
def test_code_for_another_device_is_refused(
    written: qcompile.Artifact, said: dict[str, object], reason: str, tmp_path: Path
) -> None:
    with pytest.raises(ModelError, match=reason):
        packages.open_package(changed(written.path / "model.pt2", tmp_path, **said))


def test_what_is_no_package_is_refused(tmp_path: Path) -> None:
    (tmp_path / "model.pt2").write_bytes(b"no archive")
    with pytest.raises(ModelError, match=r"package model\.pt2: it cannot be read"):
        packages.open_package(tmp_path / "model.pt2")


def test_verification_runs_it(written: qcompile.Artifact, tmp_path: Path) -> None:
    """A package of another model has the same inputs, and other numbers."""
    other = qcompile.compile(classifier(seed=1), "float", backend="triton", output=tmp_path / "other", verify=False)
    folder = tmp_path / "mixed"
    shutil.copytree(written.path, folder)
    name = packages.compile_package(other.model_path, [feed(2, 8)])
    (other.path / name).replace(folder / name)
    files = {**written.manifest.files, name: FileEntry.of(folder / name)}
    manifest = dataclasses.replace(written.manifest, files=files)
    (folder / "manifest.json").write_bytes(manifest.to_json())
    (folder / "report.json").write_bytes(artifact.report_json(written.report, manifest))
    assert qcompile.verify(folder, trust_input=True).agreements  # that is of a float model
    trusted = qcompile.load(folder, trust_input=True)
    with pytest.raises(VerificationError, match=r"output y is .* times as far from the reference"):
        qcompile.verify(trusted)
    (folder / "manifest.json").write_bytes(dataclasses.replace(manifest, target="cuda").to_json())
    changed = dataclasses.replace(manifest, target="cuda")
    (folder / "report.json").write_bytes(artifact.report_json(written.report, changed))
    with pytest.raises(ArtifactError, match="it was replaced since it was loaded"):
        qcompile.verify(trusted)


def test_code_is_not_run_under_another_name(written: qcompile.Artifact, tmp_path: Path) -> None:
    """Somebody calls the package the model, and seals the folder again."""
    folder = tmp_path / "artifact"
    shutil.copytree(written.path, folder)
    for package in ("model.pt2", None):
        manifest = dataclasses.replace(written.manifest, model_file="model.pt2", package=package)
        (folder / "manifest.json").write_bytes(manifest.to_json())
        (folder / "report.json").write_bytes(artifact.report_json(written.report, manifest))
        with pytest.raises(QCompileError, match="model"):
            qcompile.load(folder).run(feed(2, 8))


@pytest.mark.parametrize("command", ["bench", "verify"])
def test_the_command_line_runs_it_where_it_is_told_to(command: str, written: qcompile.Artifact, tmp_path: Path) -> None:
    """A package for another device tells: it is refused where it is run, and not looked at elsewhere."""
    folder = tmp_path / "artifact"
    shutil.copytree(written.path, folder)
    changed(written.path / "model.pt2", folder, device="an abacus")
    files = {**written.manifest.files, "model.pt2": FileEntry.of(folder / "model.pt2")}
    manifest = dataclasses.replace(written.manifest, files=files)
    (folder / "manifest.json").write_bytes(manifest.to_json())
    (folder / "report.json").write_bytes(artifact.report_json(written.report, manifest))
    arguments = (command, folder, *(("--seconds", 0.1) if command == "bench" else ()))
    assert run(*arguments).exit_code == 0
    refused = run(*arguments, "--run-package")
    assert refused.exit_code != 0
    assert "it was compiled for an abacus" in refused.output


def test_no_weight_is_left_in_the_cache_of_torch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path / "cache"))
    lowered = BACKEND.lower(classifier(), tmp_path, target=None)
    packages.compile_package(tmp_path / lowered.model_file, [feed(2, 8)])
    assert not list((tmp_path / "cache").rglob("*.so"))
    assert not list((tmp_path / "cache").rglob("*.bin"))


def test_trust_is_true_or_false(written: qcompile.Artifact) -> None:
    with pytest.raises(RecipeError, match="trust_input: it is 'no'"):
        qcompile.load(written.path, trust_input="no")  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("backend", "given", "error", "reason"),
    [
        ("onnxruntime", {}, UnsupportedError, "aot=True: what is compiled for onnxruntime holds no machine code"),
        ("openvino", {}, UnsupportedError, "aot=True: what is compiled for openvino holds no machine code"),
        ("triton", {"aot": "yes"}, QCompileError, "aot: it is 'yes'"),
    ],
)
def test_who_has_no_machine_code_says_so_before_any_work(
    backend: str, given: dict[str, object], error: type[QCompileError], reason: str
) -> None:
    with pytest.raises(error, match=reason):
        qcompile.compile(b"no model", "w8a8-dynamic", backend=backend, **{"aot": True, **given})


def test_without_a_compiler_that_is_said_before_any_work(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runtime.shutil, "which", lambda _: None)
    with pytest.raises(MissingDependencyError, match=r"a compiler of C\+\+"):
        qcompile.compile(b"no model", "w8a8-dynamic", backend="triton", aot=True)
