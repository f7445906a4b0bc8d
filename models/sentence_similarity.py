"""A task for sentence encoders that runs offline in seconds: how alike do people find two news texts?

Lee's 50 documents with the mean of human similarity ratings (Lee, Pincombe, Welsh 2005), and wordsim353 (Finkelstein
et al. 2001). Both lie in the wheel of gensim, of which no code is run.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from qcompile.models.installed import package_file

REQUIREMENT = "gensim==4.4.0"

Embed = Callable[[Sequence[str]], np.ndarray]


def _data(name: str) -> str:
    return package_file("gensim", REQUIREMENT, "test", "test_data", name).read_text(encoding="latin-1")


def lee_documents() -> list[str]:
    """Return the 50 documents, 50 to 130 words each."""
    return [line.strip() for line in _data("lee.cor").splitlines() if line.strip()]


def lee_correlation(embed: Embed) -> float:
    """Pearson correlation of cosine similarities with the human ratings over the 1,225 pairs of documents.

    Args:
        embed: texts to embeddings of length 1, shape [texts, dimensions].
    """
    embeddings = embed(lee_documents())
    human = np.array([[float(cell) for cell in line.split()] for line in _data("similarities0-1.txt").splitlines()])
    pairs = np.triu_indices(len(human), k=1)
    return float(np.corrcoef((embeddings @ embeddings.T)[pairs], human[pairs])[0, 1])


def wordsim353_correlation(embed: Embed) -> float:
    """Spearman's rank correlation of cosine similarities with the human ratings of 353 pairs of words."""
    rows = [line.split("\t") for line in _data("wordsim353.tsv").splitlines() if line and not line.startswith("#")]
    first, second = embed([row[0] for row in rows]), embed([row[1] for row in rows])
    cosines, human = (first * second).sum(axis=1), np.array([float(row[2]) for row in rows])
    return float(np.corrcoef(_ranks(cosines), _ranks(human))[0, 1])


def _ranks(scores: np.ndarray) -> np.ndarray:
    """Rank of every score; equal scores share the mean of their ranks."""
    _, inverse, counts = np.unique(scores, return_inverse=True, return_counts=True)
    return np.asarray((np.cumsum(counts) - (counts - 1) / 2)[inverse])
