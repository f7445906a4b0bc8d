"""What users hand to compile: recipes as files, samples in every form."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest
import torch

import qcompile
from qcompile.calibration_data import Calibration
from qcompile.calibration_masks import padding_masks
from qcompile.compile_requests import first_sample, format_of, recipe_of
from qcompile.errors import CalibrationError, InputError, ModelError, RecipeError, UnsupportedError
from qcompile.models.decoder_folders import write_decoder_folder
from qcompile.scheme import Scheme
from tests.textual_models import model_of, weights

LINEAR = "g (float[b, 8] x) => (float[b, 8] y) { y = MatMul(x, w) }"


def linear() -> ir.Model:
    return model_of(LINEAR, w=weights(8, 8))


def test_a_recipe_is_the_path_of_its_file_too(tmp_path):
    recipe = qcompile.Recipe.from_name("w8a8-dynamic")
    path = tmp_path / "mine.yaml"
    recipe.to_yaml(path)
    assert recipe_of(path, (), ()) == recipe_of(str(path), (), ()) == recipe
    with pytest.raises(RecipeError, match=r"absent\.yml"):
        qcompile.compile(linear(), str(tmp_path / "absent.yml"))


def refused_formats(model: Path, reason: str) -> None:
    with pytest.raises((ModelError, UnsupportedError), match=reason):
        format_of("genai", model)
    with pytest.raises((ModelError, UnsupportedError), match=f"{reason}.*output_format='model'"):
        format_of(None, model)
    assert format_of("model", model) == "model"


def test_a_folder_that_does_not_say_how_answers_end_is_refused_before_any_work(tmp_path):
    folder = write_decoder_folder(tmp_path / "folder")
    assert format_of(None, folder) == "genai"
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    (folder / "config.json").write_text(json.dumps(config | {"eos_token_id": None}), encoding="utf-8")
    (folder / "generation_config.json").unlink(missing_ok=True)
    refused_formats(folder, "which token ends an answer")


def test_a_file_whose_tokenizer_is_not_known_is_refused_before_any_work(tmp_path):
    pytest.importorskip("gguf")
    from tests.frontend.gguf_files import write_decoder

    file = write_decoder(tmp_path / "a.gguf")
    assert format_of(None, file) == "genai"
    file.write_bytes(file.read_bytes().replace(b"smollm", b"smollM"))
    refused_formats(file, "the rule 'smollM'")


def test_a_damaged_tokenizer_is_refused_before_any_work(tmp_path):
    folder = write_decoder_folder(tmp_path / "folder")
    whole = (folder / "tokenizer.json").read_bytes()
    (folder / "tokenizer.json").write_bytes(whole[: len(whole) // 2])
    refused_formats(folder, r"tokenizer\.json: it is no tokenizer")


def test_a_file_that_is_cut_is_not_said_to_do_as_a_model_alone(tmp_path):
    pytest.importorskip("gguf")
    from tests.frontend.gguf_files import write_decoder

    file = write_decoder(tmp_path / "a.gguf")
    file.write_bytes(file.read_bytes()[:-64])
    with pytest.raises(ModelError, match="truncated") as raised:
        format_of(None, file)
    assert "output_format" not in str(raised.value)


class Reader:
    def __init__(self) -> None:
        self.left = iter([{"input": weights(1, 8)}, {"input": weights(2, 8)}])

    def get_next(self) -> dict[str, np.ndarray] | None:
        return next(self.left, None)


@pytest.mark.parametrize(
    "calibration",
    [
        torch.utils.data.DataLoader(torch.utils.data.TensorDataset(torch.ones(4, 8)), batch_size=2),
        weights(4, 8),
        torch.ones(4, 8),
        {"input": weights(4, 8)},
        lambda: [weights(2, 8)],
        (weights(2, 8) for _ in range(2)),
        Reader(),
        Calibration({"x": weights(4, 8)}, transform=lambda piece: piece["x"]),
        {"input": weights(4, 8).astype(np.float64)},
        [torch.ones(2, 8, dtype=torch.float64)],
    ],
    ids=[
        "loader",
        "array",
        "tensor",
        "stacked",
        "callable",
        "generator",
        "reader",
        "transform",
        "doubles",
        "double tensor",
    ],
)
def test_a_module_is_traced_with_the_first_calibration_sample(calibration):
    artifact = qcompile.compile(torch.nn.Linear(8, 8).eval(), "w8a8-static", calibration=calibration)
    assert artifact.report.accuracy["measured on"] == "calibration samples"


def test_a_module_is_traced_with_an_npz_file_whose_names_are_parameters(tmp_path):
    np.savez(tmp_path / "data.npz", input1=weights(4, 8), input2=weights(4, 8))
    artifact = qcompile.compile(torch.nn.Bilinear(8, 8, 3), "float", calibration=tmp_path / "data.npz")
    assert [port.name for port in artifact.manifest.inputs] == ["input1", "input2"]
    np.savez(tmp_path / "data.npz", weights(4, 8))
    with pytest.raises(CalibrationError, match=r"it holds arr_0, and forward\(input1, input2\) does not take that"):
        qcompile.compile(torch.nn.Bilinear(8, 8, 3), "float", calibration=str(tmp_path / "data.npz"))


@pytest.mark.parametrize(
    "data",
    [Reader, lambda: iter([{"input": weights(1, 8)}, {"input": weights(2, 8)}])],
    ids=["reader", "generator"],
)
def test_a_stream_keeps_the_sample_that_was_read(data):
    first, calibration = first_sample(Calibration(data(), 2), torch.nn.Linear(8, 8))
    assert first["input"].shape == (1, 8)
    assert [sample["input"].shape for sample in calibration.data] == [(1, 8), (2, 8)]
    assert calibration.num_calibration_samples == 2


LABELLED = torch.utils.data.DataLoader(
    torch.utils.data.TensorDataset(torch.ones(4, 8), torch.tensor([0, 1, 0, 1])), batch_size=2
)


@pytest.mark.parametrize("model", [torch.nn.Linear(8, 8), linear()], ids=["module", "onnx"])
def test_samples_with_labels_are_refused_with_the_transform_that_mends_them(model):
    with pytest.raises(CalibrationError, match="it has 2 arrays") as caught:
        qcompile.compile(model, "w8a8-static", calibration=LABELLED)
    assert "qcompile.Calibration(data, transform=lambda sample: sample[0])" in caught.value.mend
    mended = qcompile.Calibration(LABELLED, transform=lambda sample: sample[0])
    assert qcompile.compile(model, "w8a8-static", calibration=mended).manifest.calibration is not None


def test_a_module_with_doubles_is_traced_with_doubles():
    double, single = ({"input": weights(2, 8).astype(dtype)} for dtype in (np.float64, np.float32))
    for module, dtype in ((torch.nn.Linear(8, 8).double(), np.float64), (torch.nn.Linear(8, 8), np.float32)):
        assert first_sample(Calibration([double]), module)[0]["input"].dtype == dtype
    assert first_sample(Calibration([single]), torch.nn.Linear(8, 8).double())[0]["input"].dtype == np.float32


def test_a_named_padding_mask_holds_for_the_comparison_too():
    body = (
        "g (float[b, s, 8] x, int64[b, s] keep) => (float[b, s, 8] y, int64[b, s] k) { y = MatMul(x, w) k = Neg(keep) }"
    )
    feed = {"x": weights(1, 4, 8), "keep": np.array([[1, 1, 0, 0]])}
    activations = {"dtype": "int8", "granularity": "per_token", "dynamic": True}
    recipe = qcompile.Recipe("nothing calibrated", ({"insert_qdq": {"activations": activations}},))

    def sqnr_db(data):
        accuracy = qcompile.compile(model_of(body, w=weights(8, 8)), recipe, calibration=data).report.accuracy
        return accuracy["sqnr_db"]

    assert sqnr_db(Calibration([feed], padding_mask="keep")) != sqnr_db([feed])
    with pytest.raises(CalibrationError, match="The nearest is 'keep'"):
        sqnr_db(Calibration([feed], padding_mask="keeep"))


@pytest.mark.parametrize("empty", [[], iter(()), list])
def test_no_sample_is_said_to_be_no_sample(empty):
    with pytest.raises(CalibrationError, match="it holds no sample"):
        qcompile.compile(torch.nn.Linear(8, 8), "w8a8-static", calibration=empty)


class Flagged(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear = torch.nn.Linear(8, 8)

    def forward(self, x, mask=None, flag=True):
        x = x["x"][0][0] if isinstance(x, dict) else x
        y = self.linear(x)
        y = y if mask is None else y * mask
        return torch.relu(y) if flag else y


@pytest.mark.parametrize(
    "example",
    [
        {"x": torch.ones(2, 8), "flag": False},
        {"x": torch.ones(2, 8), "mask": None},
        {"mask": torch.ones(2, 8), "x": torch.full((2, 8), 3.0)},
        ({"x": [(torch.ones(2, 8), 1)]}, None),
        (torch.ones(2, 8), None, False),
    ],
)
def test_example_inputs_need_not_be_plain_tensors(example):
    report = qcompile.compile(Flagged().eval(), example_inputs=example).report
    assert report.accuracy["measured on"] == "the example inputs"


def test_an_additive_mask_leaves_every_position_compared():
    body = """g (float[b, s, 8] x, float[b, s] mask) => (float[b, s, 8] y) <int64[1] one = {1}> {
        l = MatMul(x, w) t = Transpose<perm = [0, 2, 1]>(x) d = MatMul(l, t) m = Unsqueeze(mask, one)
        a = Add(d, m) p = Softmax(a) y = MatMul(p, l) }"""
    model = model_of(body, w=weights(8, 8))
    assert padding_masks(model)
    feed = {"x": weights(2, 5, 8), "mask": np.array([[0, 0, 0, -1e4, -1e4]] * 2, np.float32)}
    accuracy = qcompile.compile(model, calibration=[feed]).report.accuracy
    assert 10 < accuracy["sqnr_db"] < 80
    assert accuracy["cosine"]["y"] < 1


def test_texts_in_the_output_are_compared():
    body = """g (float[b, 8] x) => (float[b, 8] y, string[b] t) <string[2] words = {"a", "b"}> {
        y = MatMul(x, w) i = ArgMax<axis = 1, keepdims = 0>(x) two = Constant<value_int = 2>() j = Mod(i, two)
        t = Gather(words, j) }"""
    report = qcompile.compile(model_of(body, w=weights(8, 8)), example_inputs={"x": weights(3, 8)}).report
    assert report.accuracy["cosine"]["t"] == 1


@pytest.mark.parametrize("recipe", ["float", "w8a8-static", "w8a8-dynamic", "smoothquant-o2"])
def test_a_conversion_that_the_runtime_lacks_a_kernel_for_is_not_made(recipe):
    body = "g (float[b, 8, 8] x) => (float[b, 8, 1] y) { l = MatMul(x, w) y = GlobalLpPool(l) }"
    model = model_of(body, opset=17, w=weights(8, 8))
    feed = {"x": weights(2, 8, 8)}
    artifact = qcompile.compile(model, recipe, calibration=[feed])
    expected = np.linalg.norm(feed["x"] @ weights(8, 8), axis=2, keepdims=True)
    assert artifact.run(feed)["y"] == pytest.approx(expected, rel=0.02)
    assert any("the runtime refuses it in opset 23" in finding.reason for finding in artifact.report.findings)


def test_a_branch_may_hand_on_a_value_from_outside():
    class Branches(torch.nn.Module):
        def forward(self, x):
            a = torch.relu(x)
            return torch.cond(a.sum() > 0, lambda a: a.clone(), lambda a: a - 1, (a,))

    artifact = qcompile.compile(Branches(), "float", example_inputs=torch.ones(2, 8))
    for x in (np.ones((2, 8), np.float32), -np.ones((2, 8), np.float32)):
        expected = x if x[0, 0] > 0 else -np.ones_like(x)
        np.testing.assert_array_equal(next(iter(artifact.run({"x": x}).values())), expected)


@pytest.mark.parametrize("recipe", ["smoothquant-o1", "smoothquant-o2"])
def test_smoothing_that_was_asked_for_needs_data(recipe):
    with pytest.raises(CalibrationError, match="smooth_activations works from calibration data"):
        qcompile.compile(linear(), recipe)


def test_what_is_left_out_without_data_is_said():
    findings = qcompile.compile(linear()).report.findings
    reasons = {finding.layer.partition("(")[0]: finding.reason for finding in findings}
    assert reasons["smooth_activations"] == "left out: there is no calibration data"
    assert "there is no calibration data" in reasons["insert_qdq"]


def test_seven_bits_for_a_target_keep_the_defaults_of_the_pass():
    recipe = qcompile.Recipe("defaults", ("insert_qdq",))
    artifact = qcompile.compile(linear(), recipe, target="avx2", calibration=[{"x": weights(4, 8)}])
    scheme = qcompile.Recipe.from_data(artifact.manifest.recipe).steps[0].build().weights
    assert scheme == Scheme("int8", "per_channel", bits=7)


@pytest.mark.parametrize(
    ("argument", "value"), [("verify", "no"), ("verify", None), ("trust_input", "no"), ("progress", 5)]
)
def test_switches_are_true_or_false_and_progress_is_called(argument, value):
    for call in (qcompile.compile, qcompile.rewrite):
        with pytest.raises(RecipeError, match=argument):
            call("missing.onnx", "w8a8-dynamic", **{argument: value})


def test_made_up_inputs_that_do_not_fit_are_called_so():
    model = model_of("g (float[n, 4, h, w] x) => (float[n, 4, a, b] y) { y = AveragePool<kernel_shape = [64, 64]>(x) }")
    with pytest.raises(InputError, match="made-up inputs, sample 0") as raised:
        qcompile.compile(model, "float")
    assert "calibration data" in raised.value.mend


@pytest.mark.parametrize("as_file", [True, False])
def test_an_opset_that_the_runtime_lacks_is_named_with_those_that_it_has(tmp_path: Path, as_file: bool) -> None:
    model = ir.from_onnx_text('<ir_version: 8, opset_import: ["" : 99]> g (float[2] x) => (float[2] y) { y = Neg(x) }')
    path = tmp_path / "model.onnx"
    ir.save(model, path)
    reason = r"its opset of ai.onnx is 99, and the last that is supported is \d+\. Export .* from 7 to \d+, such as"
    with pytest.raises(ModelError, match=reason) as caught:
        qcompile.compile(path if as_file else model, "float")
    assert caught.value.subject == (str(path) if as_file else "model g")


class Refused(torch.nn.Module):
    """Its dtype is one that ONNX Runtime has no kernel for."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.sinh(x.to(torch.bfloat16)).to(torch.float32)


def test_a_module_that_the_runtime_refuses_is_called_by_its_class() -> None:
    with pytest.raises(ModelError, match=r"ONNX Runtime .* refuses it") as caught:
        qcompile.compile(Refused(), "float", example_inputs=torch.zeros(2, 3))
    assert caught.value.subject == "model Refused"
