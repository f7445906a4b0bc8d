"""Sessions of Triton's backend: what they refuse, and that feeds and weights stay what they are."""

from __future__ import annotations

import logging
import sys
from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest

from qcompile import processor
from qcompile.backends import get
from qcompile.errors import InputError, MissingDependencyError, ModelError, UnsupportedOperator

torch = pytest.importorskip("torch")
pytest.importorskip("triton")

from qcompile.backends.fx import lower  # noqa: E402
from qcompile.backends.triton import BACKEND, runtime  # noqa: E402
from qcompile.backends.triton.lowering import in_integers  # noqa: E402
from tests.backends.portable import linear_case, parse  # noqa: E402


def test_an_operator_that_torch_does_not_have_is_named() -> None:
    model = ir.from_onnx_text(
        '<ir_version: 10, opset_import: ["" : 23]> g (string[N] x) => (string[N] y) { y = StringNormalizer (x) }'
    )
    with pytest.raises(UnsupportedOperator, match="StringNormalizer"):
        BACKEND.open_session(model)


def test_values_that_an_operator_refuses_are_told_of() -> None:
    table = np.zeros((4, 2), np.float32)
    session = BACKEND.open_session(parse("(int64[N] x) => (float[N,2] y) { y = Gather (w, x) }", w=table))
    assert session.run({"x": np.array([3, 0])})["y"].shape == (2, 2)
    with pytest.raises(InputError, match=r"feed of x \[1\]: torch refuses it"):
        session.run({"x": np.array([4])})


@pytest.mark.parametrize("content", [b"not a model", None])
def test_what_is_no_model_is_refused(content: bytes | None, tmp_path: Path) -> None:
    if content is not None:
        (tmp_path / "model.onnx").write_bytes(content)
    with pytest.raises(ModelError, match=r"model\.onnx"):
        BACKEND.open_artifact(tmp_path / "model.onnx")


def test_nothing_that_was_given_or_returned_is_written_to() -> None:
    """A cache that a TensorScatter alone reads is written in place, and a constant may be an output."""
    constant = np.arange(3, dtype=np.float32)
    model = ir.from_onnx_text(
        '<ir_version: 11, opset_import: ["" : 24]> g (float[1,4,2] past, float[1,1,2] new) => (float[1,4,2] y, '
        "float[3] c) { y = TensorScatter <axis = 1> (past, new, at) c = Identity (w) }",
        initializers=[ir.tensor(constant, name="w"), ir.tensor(np.array([2]), name="at")],
    )
    session = BACKEND.open_session(model)
    feed = {"past": np.zeros((1, 4, 2), np.float32), "new": np.ones((1, 1, 2), np.float32)}
    first = session.run(feed)
    assert first["y"][0, 2].tolist() == [1, 1]
    assert not feed["past"].any()
    first["c"][:] = 9
    assert session.run(feed)["c"].tolist() == constant.tolist() == [0, 1, 2]


def test_threads_are_those_of_the_run_alone() -> None:
    case = linear_case()
    before = torch.get_num_threads()
    seen: list[int] = []
    session = BACKEND.open_session(case.model, threads=before + 1)
    session.module.register_forward_pre_hook(lambda *_: seen.append(torch.get_num_threads()))
    session.run(case.feed)
    assert seen == [before + 1]
    assert torch.get_num_threads() == before


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a card")
def test_without_a_card_artifacts_say_so_once_and_nothing_is_timed(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    case = linear_case()
    lowered = BACKEND.lower(case.model, tmp_path, target=None)
    runtime.say_once_without_card.cache_clear()
    with caplog.at_level(logging.WARNING):
        for _ in range(2):
            BACKEND.open_artifact(tmp_path / lowered.model_file).run(case.feed)
        BACKEND.open_session(case.model)
    assert [record.getMessage().partition(":")[0] for record in caplog.records] == ["there is no CUDA device here"]
    assert BACKEND.untimed() == "there is no CUDA device here"
    assert BACKEND.describe()["device"].startswith("there is no CUDA device here")


@pytest.mark.parametrize("vnni", [True, False])
def test_without_kernels_sums_of_integers_are_exact_too(
    vnni: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Those of the floats that they stand for are not: the next quantizer would answer some ties the other way."""
    if vnni and not processor.runs_target("avx512-vnni"):
        pytest.skip("torch's product of integers may saturate on this processor")
    monkeypatch.setattr("qcompile.backends.triton.operators._HAS_VNNI", vnni)
    case = linear_case("int8", sym=True, bias=False)
    parts = {str(name): value.const_value.numpy() for name, value in case.model.graph.initializers.items()}
    q = np.clip(np.rint(case.feed["x"] / parts["s"]), -128, 127).astype(np.int64)
    sums = (q @ parts["w"].astype(np.int64)).astype(np.float32)
    lowered = BACKEND.lower(case.model, tmp_path, target=None)
    found = BACKEND.open_artifact(tmp_path / lowered.model_file).run(case.feed)["y"]
    assert found.tolist() == (sums * parts["s"] * parts["ws"]).tolist()


def test_torch_compiles_products_of_integers_as_one_graph() -> None:
    case = linear_case("int8", sym=True)
    module = lower(in_integers(case.model))
    x = torch.from_numpy(case.feed["x"])
    compiled = torch.compile(module, fullgraph=True, backend="eager")
    assert torch.equal(compiled(x)["y"], module(x)["y"])


def test_the_artifact_is_the_quantized_graph(tmp_path: Path) -> None:
    case = linear_case()
    lowered = BACKEND.lower(case.model, tmp_path, target=None)
    written = ir.load(tmp_path / lowered.model_file)
    assert [node.op_type for node in written.graph] == [node.op_type for node in case.model.graph]
    assert written.graph.initializers["w"].dtype == ir.DataType.INT8


def test_without_triton(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "triton", None)
    with pytest.raises(MissingDependencyError) as caught:
        get("triton")
    assert "pip install 'qcompile[triton]'" in caught.value.mend
