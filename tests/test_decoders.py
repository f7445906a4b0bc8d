"""Small decoders of twelve architectures compile for both runtimes, and agree with the torch module."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import numpy as np
import onnx_ir as ir
import pytest
import torch

import qcompile
from qcompile import backends
from qcompile.models.random_decoders import ARCHITECTURES, Logits, random_decoder, tokens
from qcompile.session import Feed, Session
from qcompile.solvers.sqnr import sqnr_db

FAST = ("llama", "opt", "falcon", "phi")
"""Grouped heads and gate; learned positions and biases; one key head and parallel branches; partial rotation."""

SHAPES = [(2, 12), (3, 7), (1, 20)]
"""Batch and sequence: those of the example, and others."""


@dataclasses.dataclass(frozen=True)
class Decoder:
    """A module, and the graph of it that all tests share."""

    module: Logits
    traced: ir.Model


@pytest.fixture(
    scope="module",
    params=[pytest.param(name, marks=() if name in FAST else pytest.mark.slow) for name in ARCHITECTURES],
)
def decoder(request: pytest.FixtureRequest, traced_decoder: Callable[[str], ir.Model]) -> Decoder:
    pytest.importorskip("transformers")
    module, _ = random_decoder(request.param)
    return Decoder(module, qcompile.trace(traced_decoder(request.param)))


def feeds() -> list[Feed]:
    return [tokens(batch, sequence, seed=100 + batch) for batch, sequence in SHAPES]


def valid_logits(session: Session, feed: Feed) -> np.ndarray:
    return session.run(feed)["logits"][feed["attention_mask"] == 1]


def expected_logits(module: Logits, feed: Feed) -> np.ndarray:
    with torch.no_grad():
        logits = module(**{name: torch.from_numpy(array) for name, array in feed.items()})["logits"].numpy()
    return logits[feed["attention_mask"] == 1]


@pytest.mark.parametrize("backend", backends.BACKENDS)
def test_float_is_exact_at_any_batch_and_sequence(decoder: Decoder, backend: str) -> None:
    pytest.importorskip(backend)
    session = backends.get(backend).open_session(decoder.traced)
    for feed in feeds():
        expected = expected_logits(decoder.module, feed)
        np.testing.assert_allclose(valid_logits(session, feed), expected, rtol=0, atol=1e-5 * np.ptp(expected))


@pytest.mark.parametrize("backend", backends.BACKENDS)
def test_static_int8_is_close_to_float_at_any_batch_and_sequence(decoder: Decoder, backend: str) -> None:
    pytest.importorskip(backend)
    calibration = [tokens(4, 16, seed=seed) for seed in range(8)]
    artifact = qcompile.compile(decoder.traced, "w8a8-static", backend=backend, calibration=calibration)
    layers = [layer for layer in artifact.report.layers if layer.operator == "Linear"]
    assert layers
    assert {layer.action for layer in layers} == {"quantized"}
    for feed in feeds():
        assert sqnr_db(expected_logits(decoder.module, feed), valid_logits(artifact, feed)) > 15


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_padding_in_front_of_a_causal_decoder(attention: str) -> None:
    """Its first rows attend to nothing; with elementary attention every operator and runtime makes its own of that."""
    pytest.importorskip("transformers")
    module, feed = random_decoder("opt")
    module.model.set_attn_implementation(attention)
    feed = {name: np.ascontiguousarray(array[:, ::-1]) for name, array in feed.items()}
    assert not feed["attention_mask"][-1, 0]
    artifact = qcompile.compile(module, "w8a8-dynamic", calibration=[feed])
    assert sqnr_db(expected_logits(module, feed), valid_logits(artifact, feed)) > 30
