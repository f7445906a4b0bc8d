"""Nats, divergence and agreement are those of torch in float64, also where exponentials overflow."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from qcompile.evaluation_scores import agreement, divergence, negative_log_likelihood

GENERATOR = np.random.default_rng(0)
COUNT, VOCABULARY = 37, 50
"""More rows than are computed at once, and no multiple of them."""


def logits(scale: float) -> np.ndarray:
    return (scale * GENERATOR.standard_normal((COUNT, VOCABULARY))).astype(np.float32)


@pytest.mark.parametrize("scale", [1.0, 30.0, 1e4])
def test_nats_are_those_of_torch(scale: float) -> None:
    values, tokens = logits(scale), GENERATOR.integers(0, VOCABULARY, COUNT)
    expected = torch.nn.functional.cross_entropy(
        torch.from_numpy(values).double(), torch.from_numpy(tokens), reduction="none"
    )
    found = negative_log_likelihood(values, tokens)
    assert found.dtype == np.float64
    np.testing.assert_allclose(found, expected.numpy(), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("scale", [1.0, 30.0, 1e4])
def test_divergence_is_that_of_torch(scale: float) -> None:
    p, q = logits(scale), logits(scale)
    log_p, log_q = (torch.from_numpy(each).double().log_softmax(-1) for each in (p, q))
    expected = torch.nn.functional.kl_div(log_q, log_p, reduction="none", log_target=True).sum(-1)
    np.testing.assert_allclose(divergence(p, q), expected.numpy(), rtol=1e-12, atol=1e-12)


def test_divergence_is_zero_from_itself_and_does_not_depend_on_a_constant() -> None:
    values = logits(5.0).astype(np.float64)
    assert not divergence(values, values).any()
    np.testing.assert_allclose(divergence(values, values + 1000.0), 0.0, atol=1e-12)


def test_tokens_that_are_excluded() -> None:
    both, only = np.array([[0.0, -np.inf, 0.0]]), np.array([[0.0, -np.inf, -np.inf]])
    assert divergence(both, both) == [0.0]
    np.testing.assert_allclose(divergence(only, both), [np.log(2)])
    assert divergence(both, only) == [np.inf]


def test_agreement_is_about_the_most_likely_token() -> None:
    assert agreement(np.array([[0.0, 1.0], [0.0, 1.0]]), np.array([[-5.0, 9.0], [1.0, 0.0]])).tolist() == [True, False]
