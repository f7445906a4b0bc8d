"""KeepWeights: bit for bit the weights of the file, what stays float and why, and both backends to the end."""

from __future__ import annotations

import gguf
import numpy as np
import onnx_ir as ir
import pytest

import qcompile
from qcompile import block_weights
from qcompile.backends import get
from qcompile.errors import NothingMatchedError
from qcompile.frontend.gguf import open_gguf
from qcompile.frontend.gguf_blocks import FORMS, unpack
from qcompile.frontend.gguf_model import GGUFModel
from qcompile.graph import constant, is_standard, layer_name, sole_reader
from qcompile.passes.keep_weights import KeepWeights
from qcompile.stored_blocks import Stored, StoredTensor
from tests.frontend.gguf_files import KIND, Decoder, random_blocks, write_decoder
from tests.passes.quantizable import operators, parse, run

OUT, WIDTH = 24, 256
TEXT = "g (float[n, 3, 256] x) => (float[n, 3, 24] y) { y = MatMul(x, w) }"
TABLE = "g (int64[n, 3] x) => (float[n, 3, 256] y) { y = Gather(w, x) }"
KINDS = Decoder(
    hidden=256,
    feed_forward=512,
    layers=1,
    tied=True,
    kind=KIND.Q4_1,
    kinds={
        "token_embd": KIND.Q8_0,
        "attn_q": KIND.Q4_0,
        "attn_k": KIND.Q5_1,
        "attn_v": KIND.Q4_K,
        "ffn_gate": KIND.Q6_K,
        "ffn_up": KIND.Q5_K,
        "ffn_down": KIND.F16,
    },
)


def stored(kind: KIND, seed: int = 0, transposed: bool = True) -> StoredTensor:
    raw, form = random_blocks(kind, OUT, WIDTH, seed), FORMS[kind]
    tensor = StoredTensor(
        lambda: gguf.dequantize(raw, kind),
        (OUT, WIDTH),
        "w",
        Stored(kind.name, form.bits, form.group_size, lambda: unpack(raw, kind)),
    )
    return tensor.turned("w") if transposed else tensor


def model_of(text: str = TEXT, **weights: StoredTensor) -> ir.Model:
    model = parse(text, **{name: tensor.numpy() for name, tensor in weights.items()})
    for name, tensor in weights.items():
        model.graph.initializers[name].const_value = tensor
    return model


def float_weight(product: ir.Node) -> np.ndarray:
    """What a MatMul multiplies by, dequantized, with the minimum that the Add behind it brings."""
    weight = block_weights.of_value(product.inputs[1])
    assert weight is not None
    size = weight.block_size
    zero = np.repeat(weight.zero_points(size), size, axis=0)
    found = (weight.integers.numpy().astype(np.int16) - zero).astype(np.float32) * np.repeat(
        weight.scales(size), size, axis=0
    )
    reader = sole_reader(product.outputs[0])
    other = reader.inputs[1].producer() if is_standard(reader, "Add") else None
    if other is None or not is_standard(other.inputs[0].producer(), "ReduceSum"):
        return found
    return found + np.repeat(constant(other.inputs[1]).numpy(), size, axis=0)


def results(model: ir.Model, x: np.ndarray) -> dict[str, np.ndarray]:
    return get("onnxruntime").open_session(model, optimization="disabled").run({"x": x})


def bits(array: np.ndarray) -> np.ndarray:
    """The bits of an array in which no zero has a sign: -d * 0 has one, (m + 8 d) - 8 d has none."""
    return (np.ascontiguousarray(array) + np.float32(0)).view(np.uint32)


@pytest.mark.parametrize("kind", FORMS, ids=lambda kind: kind.name)
def test_a_linear_has_the_weights_of_the_file_bit_for_bit(kind: KIND) -> None:
    text = "g (float[n, 3, 256] x) => (float[n, 3, 24] y) { p = MatMul(x, w) y = Tanh(p) }"
    model = model_of(text, w=stored(kind))
    expected, x = stored(kind).numpy(), np.random.default_rng(1).standard_normal((2, 3, WIDTH)).astype(np.float32)
    before = run(model, x)
    result = KeepWeights()(model)
    assert [(each.action, each.layer, each.value) for each in result.findings] == [("quantized", "p", "p")]
    assert result.findings[0].reason.startswith(f"as the file has it: {kind.name}, {FORMS[kind].bits} bits in groups")
    minimum = ["Reshape", "ReduceSum"], ["MatMul", "Add"]
    lead, behind = minimum if unpack(random_blocks(kind, 1, WIDTH), kind).minimum is not None else ([], [])
    assert sorted(operators(model)) == sorted(["DequantizeLinear", *lead, "MatMul", *behind, "Tanh"])
    product = next(node for node in model.graph if is_standard(node, "MatMul"))
    assert np.array_equal(bits(float_weight(product)), bits(expected))
    assert "w" not in model.graph.initializers
    np.testing.assert_allclose(run(model, x), before, atol=1e-5)
    again = KeepWeights()(model)
    assert not again.modified


@pytest.mark.parametrize("kind", FORMS, ids=lambda kind: kind.name)
def test_rows_of_a_table_are_those_of_the_file_bit_for_bit(kind: KIND) -> None:
    model, ids = model_of(TABLE, w=stored(kind, transposed=False)), np.array([[0, 23, 5], [5, 1, 2]])
    KeepWeights()(model)
    assert set(operators(model)) <= {"Gather", "Cast", "Mul", "Add"}
    (large,) = (value for value in model.graph.initializers.values() if value.const_value.size == OUT * WIDTH)
    assert large.dtype in (ir.DataType.INT8, ir.DataType.UINT8)
    assert np.array_equal(bits(run(model, ids)), bits(stored(kind, transposed=False).numpy()[ids]))
    assert not KeepWeights()(model).modified


@pytest.mark.parametrize(("kind", "copies"), [(KIND.Q8_0, 1), (KIND.Q6_K, 1), (KIND.Q5_1, 2), (KIND.Q4_0, 1)])
def test_a_tied_linear_reads_the_table(kind: KIND, copies: int) -> None:
    text = "g (int64[n] x) => (float[n, 24] y) { e = Gather(w, x) t = Tanh(e) y = MatMul(t, v) }"
    table = stored(kind, transposed=False)
    model, ids = model_of(text, w=table, v=table.turned("v")), np.array([23, 0, 5])
    before = run(model, ids)
    KeepWeights()(model)
    large = [value for value in model.graph.initializers.values() if value.const_value.size == OUT * WIDTH]
    assert len(large) == copies
    np.testing.assert_allclose(run(model, ids), before, atol=1e-5)
    assert not KeepWeights()(model).modified


def test_linears_that_read_one_value_share_its_sums_and_keep_their_names() -> None:
    text = """g (float[n, 256] x) => (float[n, 24] y, float[n, 24] z, float[n, 24] s) {
        p = MatMul(x, w) y = Add(p, p) z = MatMul(x, v) s = MatMul(x, u) }"""
    weights = {"w": stored(KIND.Q4_1), "v": stored(KIND.Q5_1, 1), "u": stored(KIND.Q2_K, 2)}
    model = model_of(text, **weights)
    x = np.random.default_rng(1).standard_normal((5, WIDTH)).astype(np.float32)
    before = results(model, x)
    KeepWeights()(model)
    for name, array in results(model, x).items():
        np.testing.assert_allclose(array, before[name], atol=1e-5)
    assert operators(model).count("ReduceSum") == 2  # of blocks of 32, and of 16
    assert [value.name for value in model.graph.outputs] == ["y", "z", "s"]
    assert {"p", "z", "s"} <= {str(node.outputs[0].name) for node in model.graph if is_standard(node, "Add")}
    assert {layer_name(node) for node in model.graph if is_standard(node, "MatMul")} >= {"p", "z", "s"}


@pytest.mark.parametrize(
    ("text", "settings", "tensor", "reason"),
    [
        (TEXT, {"ignore": frozenset({"y"})}, stored(KIND.Q4_0), "the recipe leaves it out"),
        (TEXT, {"operators": frozenset({"Embedding"})}, stored(KIND.Q4_0), "the backend has no integer Linear"),
        (TABLE, {"operators": frozenset({"Linear"})}, stored(KIND.Q8_0, 0, False), "the backend has no integer Emb"),
        (
            "g (int64[n] x) => (float[n, 256] y, float z) { y = Gather(w, x) z = ReduceMax(w) }",
            {},
            stored(KIND.Q8_0, 0, False),
            "something else reads its table",
        ),
        (
            "g (int64[n] x) => (float[24, n] y) { y = Gather <axis = 1> (w, x) }",
            {},
            stored(KIND.Q8_0, 0, False),
            "something else reads its table",
        ),
        (
            "g (int64[n] x) => (float[n, 24] y) { y = Gather(w, x) }",
            {},
            stored(KIND.Q8_0),
            "its blocks run the other way",
        ),
        (
            TEXT,
            {},
            StoredTensor(lambda: np.ones((256, 24), np.float32), (256, 24), "w", "the file has it as F16", True),
            "the file has it as F16",
        ),
    ],
    ids=["ignored", "no linears", "no tables", "read by others", "axis", "across", "float"],
)
def test_what_stays_float_says_why(
    text: str, settings: dict[str, frozenset[str]], tensor: StoredTensor, reason: str
) -> None:
    # Beside one that is kept: a model without any is an error.
    beside = text.replace("x) => (", "x, float[7, 256] o) => (float[7, 24] k, ").replace("{", "{ k = MatMul(o, t)")
    model = model_of(beside, w=tensor, t=stored(KIND.Q8_0))
    findings = KeepWeights(**settings)(model).findings
    assert [reason in each.reason for each in findings if each.value == "y"] == [True]
    assert "w" in model.graph.initializers


def test_a_model_without_any_is_an_error_that_says_what_there_is() -> None:
    with pytest.raises(NothingMatchedError, match="of 1: it did not come quantized") as raised:
        KeepWeights()(parse(TEXT, w=np.ones((256, 24), np.float32)))
    assert "w4a16-rtn" in raised.value.mend
    with pytest.raises(NothingMatchedError, match="GGUF's Q4_0 or Q8_0 and found 1 Tanh"):
        qcompile.rewrite(parse("g (float[n] x) => (float[n] y) { y = Tanh(x) }"), "keep")


@pytest.fixture(scope="module")
def decoder(tmp_path_factory: pytest.TempPathFactory) -> tuple[GGUFModel, ir.Model]:
    """A file, and its graph with the weights that still know of it."""
    file = write_decoder(tmp_path_factory.mktemp("gguf") / "decoder.gguf", KINDS)
    return open_gguf(file), qcompile.trace(file)


def test_through_the_door_every_weight_is_that_of_the_file(decoder: tuple[GGUFModel, ir.Model]) -> None:
    file, traced = decoder
    model, weights = traced.clone(), file.weights()
    KeepWeights()(model)
    products = [node for node in model.graph if is_standard(node, "MatMul")]
    kept = {layer_name(node): float_weight(node) for node in products if block_weights.of_value(node.inputs[1])}
    assert len(kept) == 7
    for layer, weight in kept.items():
        assert np.array_equal(bits(weight.T), bits(weights[f"{layer}.weight"].numpy())), layer


@pytest.mark.parametrize("backend", ["onnxruntime", "openvino"])
def test_a_decoder_is_kept_and_verified(decoder: tuple[GGUFModel, ir.Model], backend: str) -> None:
    file, traced = decoder
    report = qcompile.compile(traced, "keep", backend=backend, tune="none").report
    down = "model.layers.0.mlp.down_proj"
    assert report.agreements
    assert {layer.name: layer.reason for layer in report.layers if layer.action != "quantized"} == {
        down: file.stored(f"{down}.weight")
    }
    assert len(report.layers) == 9
    (entry,) = (each for each in report.passes if each.name == "keep_weights")
    assert entry.max_error is not None
    assert entry.max_error < 1e-4
