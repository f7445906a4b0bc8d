import numpy as np
import pytest
import torch

from qcompile.models import minilm, sentence_similarity


@pytest.fixture(scope="module")
def encoder() -> minilm.SentenceEncoder:
    return minilm.load()


def _embed(encoder: minilm.SentenceEncoder, sentences, length: int = 128) -> np.ndarray:
    parts = []
    for feed in encoder.batches(sentences, length=length, batch=16):
        with torch.no_grad():
            hidden = encoder.module(**{name: torch.from_numpy(array) for name, array in feed.items()})[0].numpy()
        parts.append(minilm.embed(hidden, feed["attention_mask"]))
    return np.concatenate(parts)


def test_batches_have_the_asked_length_and_mask_padding(encoder: minilm.SentenceEncoder) -> None:
    first, last = encoder.batches(["one two", "three " * 100, "four"], length=32, batch=2)
    assert first["input_ids"].shape == (2, 32)
    assert last["input_ids"].shape == (1, 32)
    assert first["attention_mask"].sum(axis=1).tolist() == [4, 32]
    assert {array.dtype for array in first.values()} == {np.dtype(np.int64)}


def test_padding_does_not_change_an_embedding(encoder: minilm.SentenceEncoder) -> None:
    short, padded = (_embed(encoder, ["The cat sat on the mat."], length) for length in (9, 64))
    np.testing.assert_allclose(short, padded, atol=1e-6)


def test_scores_of_wordsim353_are_those_of_the_trained_model(encoder: minilm.SentenceEncoder) -> None:
    correlation = sentence_similarity.wordsim353_correlation(lambda words: _embed(encoder, words, length=16))
    assert correlation == pytest.approx(0.729, abs=0.001)


def test_lee_counts_every_pair_once() -> None:
    documents = sentence_similarity.lee_documents()
    assert len(documents) == 50
    same = np.ones((50, 2)) / np.sqrt(2)
    same[:10] = [1.0, 0.0]
    assert abs(sentence_similarity.lee_correlation(lambda _: same)) < 1


def test_equal_scores_share_their_rank() -> None:
    assert sentence_similarity._ranks(np.array([3.0, 1.0, 3.0, 2.0])).tolist() == [3.5, 1.0, 3.5, 2.0]
