"""Decoders over caches of a fixed length compute what they do over caches that grow."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import onnx_ir as ir
import pytest

import qcompile
from qcompile.decoder_inputs import ABSENT
from qcompile.errors import UnsupportedError

torch = pytest.importorskip("torch")
pytest.importorskip("triton")
pytest.importorskip("transformers")

from qcompile.backends.fx import host  # noqa: E402
from qcompile.backends.triton import decoder as decoders  # noqa: E402
from qcompile.backends.triton.lowering import prepared  # noqa: E402
from qcompile.backends.triton.recorded import recorded  # noqa: E402
from qcompile.backends.triton.runtime import NO_CARD  # noqa: E402
from qcompile.backends.triton.session import load  # noqa: E402
from qcompile.backends.triton.static_caches import static_step  # noqa: E402
from qcompile.graph import is_standard  # noqa: E402
from qcompile.models.decoder_folders import write_decoder_folder  # noqa: E402

CONTEXT = 128

Decoder = decoders.TorchDecoder


@pytest.fixture(scope="module", params=["llama", "gemma3_text", "gpt2"])
def model(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> ir.Model:
    """gemma3_text looks 64 tokens back in one of its layers; gpt2 looks positions up in a table."""
    folder = tmp_path_factory.mktemp(request.param) / "source"
    return prepared(qcompile.trace(write_decoder_folder(folder, request.param)))


@pytest.fixture
def opened(model: ir.Model, monkeypatch: pytest.MonkeyPatch) -> Callable[[], Decoder]:
    monkeypatch.setattr(decoders, "_SMALLEST", 16)
    session = load(model)
    return lambda: decoders.decoder_of(session, model, CONTEXT, "the decoder")


def tokens(count: int) -> list[int]:
    return [int(token) for token in np.random.default_rng(0).integers(3, 200, count)]


def test_logits_are_those_of_caches_that_grow(opened: Callable[[], Decoder]) -> None:
    """Through caches of 16, 32, 64 and 128 tokens, a second prompt, and what is taken back."""
    static, growing = opened(), opened()
    growing.grows = True
    said = tokens(100)
    pieces = [said[:5], *([token] for token in said[5:70]), said[70:75], *([token] for token in said[75:])]
    capacities = set()
    for piece in pieces:
        found, wanted = static.logits(piece), growing.logits(piece)
        assert np.abs(found - wanted).max() < 1e-5 * np.abs(wanted).max()
        capacities.add(static.step.capacity if static.step is not None else 0)
    assert capacities == {0, 16, 32, 64, 128}
    for each in (static, growing):
        del each.read[40:]
    np.testing.assert_allclose(static.logits([7]), growing.logits([7]), atol=1e-5 * np.abs(wanted).max())


def test_nothing_but_the_caches_is_held_twice(opened: Callable[[], Decoder]) -> None:
    decoder = opened()
    decoder.logits([5, 6, 7])
    decoder.logits([8])
    assert decoder.step is not None
    (session, *_) = decoder.step.run.args  # type: ignore[attr-defined]
    own = {buffer.data_ptr() for buffer in decoder.session.module.buffers()}  # type: ignore[attr-defined]
    new = [buffer for buffer in session.module.buffers() if buffer.data_ptr() not in own]
    assert sum(buffer.numel() for buffer in new) < 200


def test_no_step_waits_for_what_a_tensor_holds(model: ir.Model) -> None:
    """It is recorded on a card, which no record can wait for."""
    module = load(static_step(model, 32).model).module
    assert isinstance(module, torch.fx.GraphModule)
    assert host.from_tensor not in {node.target for node in module.graph.nodes}


def test_a_cache_is_written_in_place_alone(model: ir.Model) -> None:
    step = static_step(model, 32)
    pasts = [value for value in step.model.graph.inputs if "past" in str(value.name)]
    assert pasts
    assert [value.name for value in step.model.graph.outputs] == ["logits"]
    for past in pasts:
        (reader,) = {use.node for use in past.uses()}
        assert is_standard(reader, "TensorScatter")
    assert {str(value.name) for value in model.graph.outputs} > {"logits"}  # the model is not changed


DECODER = """<ir_version: 10, opset_import: ["" : 23]>
g (int64[1, sequence] ids, float[1, 2, past, 4] past_k, float[1, 2, past, 4] past_v)
=> (float[1, sequence, 8] logits, float[1, 2, total, 4] k, float[1, 2, total, 4] v)
{ shape = Shape <start = 2, end = 3> (past_k)
  x = Gather (table, ids)
  %s
  y, k, v = Attention <q_num_heads = 2, kv_num_heads = 2, is_causal = 1> (turned, x, x, , past_k, past_v)
  logits = Identity (y) }"""
MEETS_DATA = """length = Squeeze (shape)  floats = Cast <to = 1> (length)  turned = Add (x, floats)"""
SLICES = """one = Constant <value = int64[1] {1}> ()  zero = Constant <value = int64[1] {0}> ()
  end = Add (shape, one)  row = Slice (table, shape, end, zero)  turned = Add (x, row)"""
COUNTS = """one = Constant <value = int64 {1}> ()  start = Squeeze (shape)  end = Add (start, one)
  place = Range (start, end, one)  row = Gather (table, place)  turned = Add (x, row)"""
SIZE = """size = Size (past_k)  floats = Cast <to = 1> (size)  turned = Add (x, floats)"""
INNER = """same = Identity (past_k)  last = Shape <start = 2, end = 3> (same)  length = Squeeze (last)
  floats = Cast <to = 1> (length)  turned = Add (x, floats)"""
LONGEST = """one = Constant <value = int64 {1}> ()  zero = Constant <value = int64 {0}> ()  length = Squeeze (shape)
  total = Add (length, one)  places = Range (zero, total, one)  most = ReduceMax <keepdims = 0> (places)
  floats = Cast <to = 1> (most)  turned = Add (x, floats)"""


def written(text: str) -> ir.Model:
    table = np.random.default_rng(0).standard_normal((32, 8)).astype(np.float32)
    model = ir.from_onnx_text(DECODER % text, initializers=[ir.tensor(table, name="table")])
    for value in model.graph.inputs[1:]:
        value.metadata_props[ABSENT] = "empty"
    return model


@pytest.mark.parametrize("text", [MEETS_DATA, COUNTS])
def test_the_length_is_a_number_where_it_meets_data(text: str) -> None:
    """A mask is not needed: attention reads as much of its caches as is filled."""
    model = written(text)
    session = load(model)
    static, growing = (decoders.decoder_of(session, model, 32, "m") for _ in range(2))
    growing.grows = True
    for piece in ([5, 6, 7], [8], [9], [10]):
        np.testing.assert_allclose(static.logits(piece), growing.logits(piece), rtol=1e-5, atol=1e-5)
    assert not static.grows


def test_what_is_no_arithmetic_is_refused_and_its_caches_grow() -> None:
    model = written(SLICES)
    with pytest.raises(UnsupportedError, match="Slice reads the length of the cache, and is no arithmetic"):
        static_step(model, 16)
    decoder = decoders.decoder_of(load(model), model, 32, "m")
    for piece in ([5, 6, 7], [8]):
        decoder.logits(piece)
    assert decoder.grows


@pytest.mark.parametrize(
    ("text", "refused"), [(SIZE, "Size reads past_k"), (INNER, "Identity reads past_k"), (LONGEST, None)]
)
def test_what_sees_that_caches_are_full_is_not_believed(text: str, refused: str | None) -> None:
    """The last is found by the first token alone."""
    model = written(text)
    if refused is not None:
        with pytest.raises(UnsupportedError, match=refused):
            static_step(model, 16)
    session = load(model)
    static, growing = (decoders.decoder_of(session, model, 32, "m") for _ in range(2))
    growing.grows = True
    for piece in ([5, 6, 7], [8], [9]):
        np.testing.assert_allclose(static.logits(piece), growing.logits(piece), rtol=1e-5, atol=1e-5)
    assert static.grows


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a card")
def test_without_a_card_nothing_is_recorded() -> None:
    def run() -> torch.Tensor:
        return torch.zeros(1)

    assert recorded(run) is run


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason=NO_CARD)
def test_what_is_recorded_reads_what_tensors_hold_then() -> None:
    given = torch.zeros(4, device="cuda")
    replay = recorded(lambda: given * 2)
    given.fill_(3)
    assert replay().tolist() == [6.0] * 4


def test_a_model_without_a_cache_is_refused() -> None:
    model = ir.from_onnx_text(
        '<ir_version: 10, opset_import: ["" : 23]> g (float[1] x) => (float[1] y) { y = Abs (x) }'
    )
    with pytest.raises(UnsupportedError, match="no attention reads a cache"):
        static_step(model, 16)
