"""A random decoder in a folder: as many bytes as it says, in files that the Hugging Face door reads."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np

from qcompile.frontend.huggingface_weights import open_checkpoint
from qcompile.models import random_folder
from qcompile.models.random_folder import Sizes

SMALL = Sizes(hidden=64, inner=96, layers=2, heads=4, vocabulary=128)


def test_weights_are_those_of_its_sizes_and_spread_like_trained_ones(tmp_path: Path) -> None:
    total = random_folder.write(tmp_path, SMALL)
    found = {name: tensor.numpy() for name, tensor in open_checkpoint(tmp_path).items()}
    expected = {**SMALL.outside(), **SMALL.tensors(0), **SMALL.tensors(1)}
    assert {name: array.shape for name, array in found.items()} == expected
    assert total == 2 * sum(array.size for array in found.values())
    assert np.isclose(found["model.layers.1.mlp.down_proj.weight"].std(), 1 / math.sqrt(96), rtol=0.05)
    assert np.isclose(found["model.norm.weight"].mean(), 1, atol=0.05)


def test_a_seed_gives_the_same_bytes_however_long_the_pieces(tmp_path: Path, monkeypatch) -> None:
    random_folder.write(tmp_path / "whole", SMALL, seed=3)
    monkeypatch.setattr(random_folder, "_PIECE", 1000)
    random_folder.write(tmp_path / "pieces", SMALL, seed=3)
    random_folder.write(tmp_path / "other", SMALL, seed=4)
    first, second, other = (_files(tmp_path / name) for name in ("whole", "pieces", "other"))
    assert first == second
    assert first != other
    assert json.loads(first["config.json"])["num_hidden_layers"] == 2


def _files(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}
