"""What every benchmark of a sentence encoder does: export it as the peers' users would, embed, compare embeddings."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch

from benchmarks.sessions import Run
from qcompile.models import minilm, texts

CALIBRATION_SAMPLES, HELD_OUT = 64, 128


def export(encoder: minilm.SentenceEncoder, path: Path, opset: int) -> Path:
    """Write the float model as onnxruntime's and NNCF's users would."""
    example = {name: torch.from_numpy(array) for name, array in encoder.example().items()}
    shapes = encoder.dynamic_shapes()
    program = torch.onnx.export(
        encoder.module, kwargs=example, dynamo=True, opset_version=opset, dynamic_shapes=shapes, verbose=False
    )
    assert program is not None
    program.save(path)
    return path


def embeddings(encoder: minilm.SentenceEncoder, run: Run, passages: Sequence[str], length: int = 128) -> np.ndarray:
    """Embeddings of texts, shape [texts, 384], one text at a time."""
    feeds = encoder.batches(passages, length=length)
    return np.concatenate([minilm.embed(run(feed)[0], np.asarray(feed["attention_mask"])) for feed in feeds])


def error(encoder: minilm.SentenceEncoder, run: Run, reference: Run) -> float:
    """1 - mean cosine to the reference's embeddings on text that nothing was calibrated on."""
    held_out = texts.held_out_texts(HELD_OUT)
    return float(1 - (embeddings(encoder, run, held_out) * embeddings(encoder, reference, held_out)).sum(axis=1).mean())
