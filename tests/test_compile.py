"""compile and rewrite end to end, on small models and both runtimes."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import onnx_ir as ir
import pytest
import torch

import qcompile
from qcompile.errors import CalibrationError, ModelError, NothingMatchedError, RecipeError, UnsupportedError

RECIPES = ("w8a8-static", "w8a8-dynamic", "smoothquant-o1", "smoothquant-o2", "smoothquant-o3")


class Block(torch.nn.Module):
    """A pre-norm feed-forward block with a planted outlier channel."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.norm = torch.nn.LayerNorm(64)
        self.up = torch.nn.Linear(64, 128)
        self.down = torch.nn.Linear(128, 64)
        with torch.no_grad():
            self.norm.weight[3] = 60.0
            self.up.weight[:, 3] /= 60.0

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + self.down(torch.relu(self.up(self.norm(x))))


def samples(count: int, seed: int = 0) -> list[dict[str, np.ndarray]]:
    generator = np.random.default_rng(seed)
    return [{"x": generator.normal(size=(2, 5, 64)).astype(np.float32)} for _ in range(count)]


def error(artifact: qcompile.Artifact, module: torch.nn.Module, feed: dict[str, np.ndarray]) -> float:
    with torch.no_grad():
        expected = module(torch.from_numpy(feed["x"])).numpy() - feed["x"]
    actual = next(iter(artifact.run(feed).values())) - feed["x"]
    return float(np.linalg.norm(actual - expected) / np.linalg.norm(expected))


def largest_weight(model: ir.Model) -> int:
    """The largest magnitude in the int8 matrices of a model that has two."""
    tensors = [value.const_value for value in model.graph.initializers.values()]
    weights = [tensor.numpy() for tensor in tensors if tensor.dtype == ir.DataType.INT8 and len(tensor.shape) == 2]
    assert len(weights) == 2
    return max(int(np.abs(weight.astype(int)).max()) for weight in weights)


@pytest.fixture(scope="module")
def module() -> torch.nn.Module:
    return Block().eval()


def traced(module: torch.nn.Module) -> ir.Model:
    return qcompile.trace(module, example_inputs=samples(1)[0])


@pytest.fixture(scope="module")
def model(module) -> ir.Model:
    """The module, traced once: export takes longer than compilation."""
    return traced(module)


@pytest.fixture(scope="module")
def traced_again(module) -> ir.Model:
    return traced(module)


@pytest.mark.parametrize("backend", ["onnxruntime", "openvino"])
@pytest.mark.parametrize("recipe", RECIPES)
def test_every_recipe_on_every_backend(model, module, recipe, backend):
    artifact = qcompile.compile(model, recipe, backend=backend, calibration=samples(16))
    assert error(artifact, module, samples(1, seed=9)[0]) < 0.05
    assert [layer.action for layer in artifact.report.layers] == ["quantized", "quantized"]
    assert {layer.name for layer in artifact.report.layers} == {"up", "down"}
    assert artifact.report.latency["float_ms"] > 0
    assert artifact.report.latency["quantized_ms"] > 0
    assert artifact.report.size["quantized_bytes"] > 0


def test_smoothing_folds_into_the_norm_and_saves_the_planted_channel(model, module):
    smoothed = qcompile.compile(model, "smoothquant-o3", calibration=samples(16))
    assert smoothed.report.channel_scales["folded"] >= 1
    assert smoothed.report.channel_scales["explicit"] == 0
    steps = tuple(step for step in qcompile.Recipe.from_name("smoothquant-o3").steps if step.pass_name == "insert_qdq")
    plain = qcompile.compile(model, qcompile.Recipe("plain", steps), calibration=samples(16))
    feed = samples(1, seed=9)[0]
    assert error(plain, module, feed) > 3 * error(smoothed, module, feed)


def test_a_dynamic_recipe_needs_no_data_and_is_better_with_it(module):
    without = qcompile.compile(module, example_inputs=samples(1)[0])
    assert without.manifest.calibration is None
    assert without.report.accuracy["measured on"] == "the example inputs"
    feed = samples(1, seed=9)[0]
    better = qcompile.compile(module, calibration=samples(16))
    assert error(better, module, feed) < 0.5 * error(without, module, feed) < 0.1


def test_rewrite_returns_portable_onnx(model):
    rewritten = qcompile.rewrite(model, "w8a8-static", calibration=samples(4))
    assert isinstance(model, ir.Model)
    assert "QuantizeLinear" in {node.op_type for node in rewritten.graph}
    again = qcompile.compile(rewritten, "float")
    assert again.run(samples(1)[0])


def test_trace_is_canonical(model):
    operators = [node.op_type for node in model.graph]
    assert operators == ["LayerNormalization", "MatMul", "Add", "Relu", "MatMul", "Add", "Add"]


@pytest.mark.parametrize(
    ("given", "quantized"),
    [({"ignore": ["up"]}, ["down"]), ({"targets": ["re:u."]}, ["up"]), ({"ignore": ["re:d.*"]}, ["up"])],
)
def test_ignore_and_targets(model, given, quantized):
    report = qcompile.compile(model, **given).report
    assert [layer.name for layer in report.layers if layer.action == "quantized"] == quantized
    assert [layer.action for layer in report.layers if layer.name not in quantized] == ["ignored"]


def test_the_artifact_outlives_the_process_and_loads_in_the_runtime_alone(model, tmp_path):
    artifact = qcompile.compile(model, "w8a8-static", calibration=samples(4), output=tmp_path / "out")
    code = (
        "import numpy, onnxruntime, sys\n"
        f"session = onnxruntime.InferenceSession({str(artifact.model_path)!r})\n"
        "print(session.run(None, {'x': numpy.ones((1, 3, 64), numpy.float32)})[0].shape)\n"
        "assert not any(name.startswith('qcompile') for name in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert done.stdout.strip() == "(1, 3, 64)"
    feed = samples(1)[0]
    np.testing.assert_array_equal(
        next(iter(qcompile.load(tmp_path / "out").run(feed).values())), next(iter(artifact(**feed).values()))
    )


def test_same_inputs_same_bytes(model, tmp_path):
    for name in ("a", "b"):
        qcompile.compile(model, "w8a8-static", calibration=samples(4), output=tmp_path / name)
    for file in ("model.onnx", "manifest.json"):
        assert (tmp_path / "a" / file).read_bytes() == (tmp_path / "b" / file).read_bytes()


@pytest.mark.parametrize("recipe", ["w8a8-static", "w8a8-dynamic", "smoothquant-o3"])
def test_a_second_compile_finds_all_statistics_in_the_cache(model, traced_again, recipe, tmp_path):
    def compiled(model: ir.Model, name: str) -> tuple[set[str], dict[str, int]]:
        stages = set()
        qcompile.compile(
            model,
            recipe,
            calibration=qcompile.Calibration(samples(4), cache=tmp_path / "cache"),
            output=tmp_path / name,
            progress=lambda stage, _part: stages.add(stage),
        )
        return stages, {file.name: file.stat().st_mtime_ns for file in (tmp_path / "cache").iterdir()}

    stages, entries = compiled(model, "a")
    assert "calibrating" in stages
    assert entries
    assert compiled(traced_again, "b") == (stages - {"calibrating"}, entries), "what it finds hangs on no object"
    for file in ("model.onnx", "manifest.json"):
        assert (tmp_path / "a" / file).read_bytes() == (tmp_path / "b" / file).read_bytes()
    artifact = qcompile.compile(model, recipe, calibration=samples(4), output=tmp_path / "c")
    assert artifact.model_path.read_bytes() == (tmp_path / "a" / "model.onnx").read_bytes()


def test_only_as_many_samples_as_asked_for_count(model):
    def calibrated(data: object) -> str | None:
        return qcompile.compile(model, "w8a8-static", calibration=data, verify=False).manifest.calibration

    assert calibrated(qcompile.Calibration(samples(8), num_calibration_samples=3)) == calibrated(samples(8)[:3])
    assert calibrated(samples(8)) != calibrated(samples(8)[:3])


def test_target_without_vnni_gets_weights_of_seven_bits(model):
    artifact = qcompile.compile(model, "w8a8-static", calibration=samples(4), target="avx2")
    assert largest_weight(ir.load(artifact.model_path)) <= 63


def test_portable_models_are_for_a_target_too(model):
    largest = {
        target: largest_weight(qcompile.rewrite(model, "w8a8-static", calibration=samples(4), target=target))
        for target in (None, "avx512-vnni", "avx2")
    }
    assert largest == {None: 127, "avx512-vnni": 127, "avx2": 63}
    with pytest.raises(UnsupportedError, match="avx512-vnni, avx2"):
        qcompile.rewrite(model, "float", target="z80")


@pytest.mark.parametrize(
    ("arguments", "kind", "message"),
    [
        ({"recipe": "w8a8-statik"}, RecipeError, "w8a8-static"),
        ({"recipe": "w8a8-static"}, CalibrationError, "calibration data"),
        ({"backend": "tensorrt"}, UnsupportedError, "onnxruntime, openvino"),
        ({"target": "z80"}, UnsupportedError, "avx2"),
        ({"ignore": ["upp"]}, RecipeError, "up"),
        ({"calibration": [{"y": np.zeros((1, 1, 64), np.float32)}], "recipe": "w8a8-static"}, CalibrationError, "x"),
    ],
)
def test_bad_requests_are_refused_with_the_mend(model, arguments, kind, message):
    with pytest.raises(kind, match=message):
        qcompile.compile(model, **arguments)


def test_a_model_with_nothing_to_quantize_is_an_error():
    with pytest.raises(NothingMatchedError, match="MatMul, Conv or ConvTranspose"):
        qcompile.compile(torch.nn.ReLU(), example_inputs=torch.ones(2, 3))


def test_a_module_without_inputs_to_trace_it():
    with pytest.raises(ModelError, match="example_inputs"):
        qcompile.compile(Block())


def test_the_function_stays_a_function_when_its_module_is_imported():
    code = "import qcompile.compile; import qcompile; print(qcompile.compile.__name__, callable(qcompile.compile))"
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert done.stdout.strip() == "compile True"
