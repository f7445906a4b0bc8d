"""Whatever bytes come to the door, a model or a typed error comes out; `make fuzz` tries ten thousand."""

from __future__ import annotations

import hypothesis
import pytest
from hypothesis import strategies

import qcompile
from qcompile.errors import QCompileError
from qcompile.untrusted.__main__ import read
from tests.fuzz_door import ACCEPTED, is_finding, outcome
from tests.mutants import mutant, seeds

SEEDS = seeds()
every = hypothesis.settings(max_examples=300, derandomize=True, deadline=None)


@pytest.mark.parametrize("content", SEEDS, ids=range(len(SEEDS)))
def test_the_models_that_mutants_are_made_of_are_accepted(content: bytes) -> None:
    assert outcome(content, limited=False) == ACCEPTED


def is_read(content: bytes) -> bool:
    """Whether the model is read; raises whatever is not typed."""
    try:
        read(content, "m")
        qcompile.trace(content, trust_input=True)
    except QCompileError:
        return False
    return True


@every
@hypothesis.given(strategies.integers(10**6, 10**9))
def test_mutants_are_models_or_typed_errors(number: int) -> None:
    hypothesis.event("accepted" if is_read(mutant(number, SEEDS)) else "refused")


@every
@hypothesis.given(strategies.binary(max_size=200))
def test_random_bytes_are_refused(content: bytes) -> None:
    assert not is_read(content)


@every
@hypothesis.given(strategies.sampled_from(SEEDS), strategies.floats(0, 1, exclude_max=True))
def test_truncated_models_are_models_or_typed_errors(content: bytes, part: float) -> None:
    is_read(content[: int(len(content) * part)])


@pytest.mark.parametrize("number", range(5))
def test_mutants_meet_the_whole_door(number: int) -> None:
    assert not is_finding(outcome(mutant(number, SEEDS), limited=True))


def test_a_door_that_lets_a_bare_error_out_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("qcompile.frontend.onnx.check_structure", lambda *_: {}["nothing"])
    assert is_finding(outcome(SEEDS[0], limited=False))
